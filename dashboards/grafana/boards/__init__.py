"""The boards, one file each: what they show and why."""

#: What the variables of a board choose.
CHOSEN = 'job=~"$job", instance=~"$instance"'


def rate(metric, matchers=""):
    """The rate of a counter of the chosen processes."""
    return f"rate({metric}{{{', '.join(filter(None, [CHOSEN, matchers]))}}}[$__rate_interval])"


def chosen(metric, matchers=""):
    """A gauge of the chosen processes."""
    return f"{metric}{{{', '.join(filter(None, [CHOSEN, matchers]))}}}"


def quantile(share, metric, *by, matchers=""):
    """A quantile of a histogram of the chosen processes, one for each value of the labels `by`."""
    labels = ", ".join(["le", *by])
    return (f"histogram_quantile({share}, sum by ({labels}) ("
            + rate(f"{metric}_bucket", matchers) + "))")


def cluster(metric, matchers=""):
    """A gauge that only the acting controller tells."""
    return f"max without (instance) ({metric}{{{matchers}}})"
