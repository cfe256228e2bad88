// The answers of a controller as lines of text.

import OperatorClient

/// Lines about a `status` answer (or one of its parts: `nodes`, `groups`).
struct StatusReport {
    let status: JSONValue

    init(_ status: JSONValue) { self.status = status }

    /// `degraded: group 2 has no leader; node-3 is down`.
    func verdictLine(_ palette: Palette) -> String {
        palette.state(status["verdict"].text) + ": " + facts
    }

    /// What the verdict rests on.
    var facts: String {
        let findings = status["findings"].elements.map(\.text)
        return findings.isEmpty ? summary : findings.joined(separator: "; ")
    }

    /// What leaves the verdict as it is.
    var notices: [String] { status["notices"].elements.map(\.text) }

    /// `4 nodes (1 spare), 2 groups, 3 tables`.
    var summary: String {
        let nodes = status["nodes"].elements
        let spares = nodes.count { $0["state"].string == "spare" }
        let spareText = spares > 0 ? " (\(Quantity.of(spares, "spare")))" : ""
        return Quantity.of(nodes.count, "node") + spareText + ", "
            + Quantity.of(status["groups"].elements.count, "group") + ", "
            + Quantity.of(status["tables"].int ?? 0, "table")
    }

    func controllers(_ palette: Palette) -> [String] {
        Self.controllers(status["controllers"].elements, palette)
    }

    static func controllers(_ controllers: [JSONValue], _ palette: Palette) -> [String] {
        var table = TextTable([
            .text("CONTROLLER"), .text("ROLE"), .text("ACTING"), .number("TERM"),
            .text("REACHABLE"), .number("LAG"), .text("STATE"), .text("RPC"), .text("ADMIN"),
        ])
        for controller in controllers {
            let isReachable = controller["reachable"].bool ?? false
            let term = controller["term"].int ?? 0
            table.add(
                [
                    controller["name"].text, controller["role"].text, controller["acting"].text,
                    term > 0 ? "\(term)" : "-", isReachable ? "yes" : palette.bad("no"),
                    Quantity.count(controller["lag"].int), palette.state(controller["state"].text),
                    controller["rpc"].text, controller["admin"].text,
                ])
        }
        return table.lines(palette)
    }

    func routers(_ palette: Palette) -> [String] {
        var table = TextTable([.text("ROUTER"), .text("REDIS PROTOCOL"), .text("ADMIN")])
        for router in status["routers"].elements {
            table.add([router["name"].text, router["resp"].text, router["admin"].text])
        }
        return table.lines(palette)
    }

    func nodes(_ palette: Palette) -> [String] {
        // Weights are shown where there are any to compare.
        let hasWeights = Set(status["nodes"].elements.compactMap { $0["weight"].int }).count > 1
        var table = TextTable(
            [.text("NODE"), .number("ID"), .text("STATE"), .text("ZONE")]
                + (hasWeights ? [.number("WEIGHT")] : []) + [
                    .number("REPLICAS"), .number("LEADERS"), .number("HEARTBEAT"),
                    .number("DATA"), .number("DISK FREE"), .text("RPC"), .text("ADMIN"),
                ])
        let nodes = status["nodes"].elements.sorted {
            // node-2 before node-10.
            let (left, right) = ($0["name"].text, $1["name"].text)
            return (left.utf8.count, left) < (right.utf8.count, right)
        }
        for node in nodes {
            let disks = node["disks"].elements
            let bad = disks.compactMap { $0["state"].string }.filter { $0 != "healthy" }
            let state = palette.state(node["state"].text)
            let until = node["maintenanceUntil"].int.map { " until " + OperationReport.time($0) }
            table.add(
                [
                    node["name"].text, node["id"].text,
                    state + (until ?? "")
                        + (bad.isEmpty ? "" : " (disk \(bad.joined(separator: ",")))"),
                    node["zone"].string.flatMap { $0.isEmpty ? nil : $0 } ?? "-",
                ] + (hasWeights ? [node["weight"].text] : []) + [
                    node["replicas"].text, node["leaders"].text,
                    Quantity.milliseconds(node["heartbeatAgeMillis"].int),
                    Quantity.bytes(Self.sum("dataBytes", disks)),
                    Quantity.bytes(Self.sum("freeBytes", Self.fileSystems(of: disks))),
                    node["rpc"].text, node["admin"].text,
                ])
        }
        return table.lines(palette)
    }

    func groups(_ palette: Palette) -> [String] {
        var table = TextTable([
            .number("GROUP"), .text("ENGINE"), .text("STATE"), .number("TERM"),
            .number("READS/S"), .number("WRITES/S"), .text("LEADER"), .text("REPLICAS"),
        ])
        for group in status["groups"].elements {
            let replicas = group["replicas"].elements.map { replica in
                let state = replica["state"].text
                let lag = replica["lag"].int ?? 0
                return replica["node"].text
                    + (replica["role"].string == "learner" ? " (learner)" : "")
                    + (state == "active" ? "" : " (\(palette.state(state)))")
                    + (lag > 0 ? " (\(Quantity.count(lag)) behind)" : "")
            }
            let count = group["replicas"].elements.count { $0["role"].string != "learner" }
            let lacking = (group["replicasWanted"].int ?? count) - count
            let rest = lacking > 0 ? [palette.bad("\(lacking) lacking")] : []
            table.add(
                [
                    group["id"].text, group["engine"].text, palette.state(group["state"].text),
                    group["term"].text, Quantity.count(group["reads"].int),
                    Quantity.count(group["writes"].int),
                    group["leader"].string ?? palette.bad("none"),
                    (replicas + rest).joined(separator: ", "),
                ])
        }
        return table.lines(palette)
    }

    static func shards(_ shards: [JSONValue], _ palette: Palette) -> [String] {
        var table = TextTable([
            .number("SHARD"), .text("TABLE"), .text("FROM"), .text("TO"), .number("GROUP"),
            .text("STATE"), .number("EPOCH"), .number("RECORDS"), .number("SIZE"),
            .number("READS/S"), .number("WRITES/S"),
        ])
        for shard in shards {
            let start = shard["start"].text
            table.add(
                [
                    shard["id"].text, shard["table"].text, start.isEmpty ? "(first)" : start,
                    shard["end"].string ?? "(last)", shard["group"].text,
                    palette.state(shard["state"].text), shard["epoch"].text,
                    Quantity.count(shard["records"].int), Quantity.bytes(shard["bytes"].int),
                    Quantity.count(shard["reads"].int), Quantity.count(shard["writes"].int),
                ])
        }
        return table.lines(palette)
    }

    static func tables(_ tables: [JSONValue], _ palette: Palette) -> [String] {
        var table = TextTable([
            .text("TABLE"), .text("PARTITION"), .text("ENGINE"), .number("REPLICAS"),
            .number("SHARDS"), .text("GROUPS"), .number("RECORDS"), .number("SIZE"), .text("STATE"),
        ])
        for entry in tables {
            let ranges = entry["virtualRanges"].int.map { " \($0)" } ?? ""
            table.add(
                [
                    entry["name"].text, entry["partitioning"].text + ranges, entry["engine"].text,
                    entry["replicas"].text, entry["shards"].text, entry["groups"].text,
                    Quantity.count(entry["records"].int), Quantity.bytes(entry["bytes"].int),
                    entry["state"].text,
                ])
        }
        return table.lines(palette)
    }

    /// One disk of each file system: directories that share one share what is free of it.
    private static func fileSystems(of disks: [JSONValue]) -> [JSONValue] {
        var seen: Set<Int> = []
        return disks.filter { disk in
            guard let id = disk["fileSystem"].int, id != 0 else { return true }
            return seen.insert(id).inserted
        }
    }

    /// The sum of a field over objects; nil when none has it.
    private static func sum(_ field: String, _ objects: [JSONValue]) -> Int? {
        let values = objects.compactMap { $0[field].int }
        return values.isEmpty ? nil : values.reduce(0, +)
    }
}
