// Prometheus beside the cluster of a playground: which program, with which rules, scraping what.

import Glibc
import OperatorClient

/// How a playground's Prometheus is started. It stays with the directory until `up` is told
/// `--with-prometheus` again.
struct PrometheusPlan: Codable, Hashable {
    /// Path of the program.
    var binary: String
    /// The directory whose `rules` and `alerts` it loads.
    var rules: String
    /// The directory of the runbooks that its alerts link to; nil where there is none.
    var runbooks: String?

    /// Behind the ports of the routers.
    static func port(base: Int) -> Int { base + 2 * PlaygroundPlan.routersMax }

    /// The installed program, with the rules in `directory`, or else with those that came with the
    /// programs in `binaries`.
    static func found(rulesIn directory: String?, binaries: String) throws(Failure) -> Self {
        guard let binary = program() else {
            throw Failure(
                .failure,
                "--with-prometheus: there is no program 'prometheus' on the PATH;"
                    + " on Debian: apt-get install prometheus")
        }
        let shipped = shipped(
            near: binaries,
            at: ["share/rangekeeper/dashboards/prometheus", "dashboards/prometheus"])
        guard let rules = directory ?? shipped else {
            throw Failure(
                .failure,
                "--with-prometheus: no rules beside \(binaries): name them with --rules DIR")
        }
        guard let absolute = realpath(rules, nil) else {
            throw Failure(.failure, "--rules \(rules): \(String(cString: strerror(errno)))")
        }
        defer { free(absolute) }
        let runbooks = Self.shipped(
            near: binaries, at: ["share/rangekeeper/Runbooks", "Runbooks"])
        let plan = Self(binary: binary, rules: String(cString: absolute), runbooks: runbooks)
        guard access(plan.rules + "/alerts", R_OK) == 0 else {
            throw Failure(.failure, "--rules \(rules): it has no directory 'alerts'")
        }
        return plan
    }

    private static func program() -> String? {
        let path = getenv("PATH").map { String(cString: $0) } ?? "/usr/bin:/bin"
        return path.split(separator: ":").map { "\($0)/prometheus" }
            .first { access($0, X_OK) == 0 }
    }

    /// The first of `places` in a directory above `binaries`: below `/usr` for programs in
    /// `/usr/bin`, in the source tree for those that were built in it.
    private static func shipped(near binaries: String, at places: [String]) -> String? {
        var folder = binaries[...]
        while let slash = folder.lastIndex(of: "/") {
            for place in places where access("\(folder)/\(place)", R_OK) == 0 {
                return "\(folder)/\(place)"
            }
            folder = folder[..<slash]
        }
        return nil
    }

    /// The configuration that scrapes `daemons`. Each one's `instance` is its name, as `kvctl`
    /// calls it.
    func configuration(scraping daemons: [DaemonPlan]) -> String {
        var lines = [
            "# Written by kvctl playground.",
            "global:",
            "  scrape_interval: 2s",
            "  evaluation_interval: 2s",
            "  external_labels:",
            "    cluster: playground",
            "    runbooks: \(Self.quoted(runbooks.map { "file://" + $0 } ?? ""))",
            "rule_files:",
            "  - \(Self.quoted(rules + "/rules/*.yml"))",
            "  - \(Self.quoted(rules + "/alerts/*.yml"))",
            "scrape_configs:",
        ]
        for kind in [DaemonPlan.Kind.controller, .node, .router] {
            lines += ["  - job_name: \(kind.program)", "    static_configs:"]
            for daemon in daemons where daemon.kind == kind {
                lines.append("      - targets: [\(Self.quoted(daemon.admin))]")
                lines.append("        labels: {instance: \(Self.quoted(daemon.name))}")
            }
        }
        return lines.joined(separator: "\n") + "\n"
    }

    /// `text` as a YAML scalar; JSON strings are such.
    private static func quoted(_ text: String) -> String {
        JSONValue.string(text).encoded(pretty: false)
    }
}
