"""What clients ask for, how it is routed, and who serves it."""

from boards import CHOSEN, chosen, quantile, rate
from panels import board, histogram, row, timeseries

ERRORS = 'result=~"unknown|unavailable|overloaded|failed"'


def by(labels, expression):
    return f"sum by ({labels}) ({expression})"


BOARD = board(
    "rangekeeper-router", "Rangekeeper / Router",
    "Rate, errors and duration of client commands; retries, map, connections.",
    "kvrouter_route_epoch", [
        row("Commands",
            timeseries("Rate", "reqps", "Client commands answered per second.",
                       (by("instance, op", rate("kvrouter_requests_total")),
                        "{{instance}} {{op}}"), stacked=True),
            timeseries("Errors", "reqps", "Errors of the service per second.",
                       (by("instance, result", rate("kvrouter_requests_total", ERRORS)),
                        "{{instance}} {{result}}"), runbook="KVErrorBudgetFast"),
            timeseries("Duration, 99th percentile", "s", "From reading a command to its reply.",
                       (quantile(0.99, "kvrouter_request_duration_seconds", "instance", "op"),
                        "{{instance}} {{op}}"), runbook="KVLatencyBudget"),
            histogram("Durations", "All chosen routers, by how long a command took.",
                      by("le", rate("kvrouter_request_duration_seconds_bucket"))),
            timeseries("Duration behind the router, 99th percentile", "s",
                       "From taking over an operation to a node's answer, retries included.",
                       (quantile(0.99, "kvrouter_upstream_duration_seconds", "instance", "op"),
                        "{{instance}} {{op}}"), width=12)),
        row("Load",
            timeseries("In flight", "short", "Operations sent or held and not answered.",
                       (chosen("kvrouter_requests_in_flight"), "{{instance}}")),
            timeseries("Bytes in flight", "bytes", "Of these operations.",
                       (chosen("kvrouter_pending_bytes"), "{{instance}}")),
            timeseries("Refused", "reqps", "Too much unanswered in the router, or by one node.",
                       (by("instance, reason", rate("kvrouter_requests_shed_total")),
                        "{{instance}} {{reason}}"), runbook="KVRequestsShed"),
            timeseries("Slow commands", "reqps", "Those that took longer than slow.request.",
                       (by("instance, op", rate("kvrouter_slow_requests_total")),
                        "{{instance}} {{op}}")),
            timeseries("Operations per frame", "short", "How well operations are batched.",
                       (rate("kvrouter_operations_sent_total") + " / "
                        + rate("kvrouter_frames_total"), "{{instance}}")),
            timeseries("Late answers", "ops",
                       "Answers that came after the client had been told something else.",
                       (rate("kvrouter_late_responses_total"), "{{instance}}"))),
        row("Retries and map",
            timeseries("Retries", "ops", "Operations not answered at their first attempt.",
                       (by("instance, reason", rate("kvrouter_retries_total")),
                        "{{instance}} {{reason}}")),
            timeseries("Stale routes", "percentunit",
                       "Share of the look-ups whose shard was not there any more.",
                       (f"instance:kvrouter_stale_routes:ratio_rate5m{{{CHOSEN}}}",
                        "{{instance}}"), runbook="KVRouterStaleRoutes"),
            timeseries("Updates of the map", "ops", "Taken over per second.",
                       (rate("kvrouter_map_updates_total"), "{{instance}}")),
            timeseries("Behind the newest map", "short",
                       "1 while a router's map is older than the newest router's.",
                       (chosen("kvrouter_route_epoch")
                        + " < bool scalar(max(kvrouter_route_epoch))",
                        "{{instance}}"), maximum=1, runbook="KVRouterStaleRoutes"),
            timeseries("Groups out of reach", "short",
                       "Groups that have no known leader, or no connection to it.",
                       (chosen("kvrouter_groups_unroutable"), "{{instance}}"),
                       runbook="KVRouterUnroutable"),
            timeseries("Connected to a controller", "short", "1 while it is.",
                       (chosen("kvrouter_controller_connected"), "{{instance}}"), maximum=1)),
        row("Connections",
            timeseries("Connections", "short", "Of clients and to nodes.",
                       (chosen("kvrouter_connections"), "{{instance}} {{side}}")),
            timeseries("Nodes by connection", "short", "Nodes of the map, up and down.",
                       (chosen("kvrouter_backends"), "{{instance}} {{state}}"), stacked=True),
            timeseries("Clients refused", "ops", "Connections above clients.max, per second.",
                       (rate("kvrouter_clients_refused_total"), "{{instance}}"))),
        row("Process",
            timeseries("Processors", "short", "Processors kept busy.",
                       (rate("process_cpu_seconds_total"), "{{instance}}")),
            timeseries("Memory", "bytes", "Resident memory.",
                       (chosen("process_resident_memory_bytes"), "{{instance}}")),
            timeseries("Event loop busy", "percentunit",
                       "Share of the time that the loop works rather than waits.",
                       (rate("kv_loop_busy_seconds_total"), "{{instance}}"), maximum=1)),
    ])
