// Commands about tables.

import KVBase
import RESP
import RouterCore
import ShardCore

extension ClientSession {
    func executeTableCommand(_ command: ParsedCommand, _ id: CommandID) {
        if !isMapConfirmed, dependsOnMissing(command, id) { return confirmMap(command) }
        switch id {
        case .del: drop(command)
        case .exists:
            var count: Int64 = 0
            for place in 1..<command.count where table(command[place]) != nil { count += 1 }
            reply { $0.integer(count) }
        case .type:
            if table(command[1]) != nil {
                reply { $0.simple("hash") }
            } else {
                reply { $0.simple("none") }
            }
        case .scan: scanTables(command)
        case .keys:
            let pattern = GlobPattern(command.bytes(1))
            let names = tableNames.filter { pattern.matches($0) }
            reply { Self.write(names, &$0) }
        case .dbsize: reply { $0.integer(Int64(tableNames.count)) }
        case .kvCreate: create(command)
        case .kvDrop: dropOne(command)
        case .kvDescribe: describe(command)
        default: reply { Self.write(tableNames, &$0) }
        }
    }

    /// The answer says, or may say, that some table does not exist.
    private func dependsOnMissing(_ command: ParsedCommand, _ id: CommandID) -> Bool {
        switch id {
        // The controller itself answers these.
        case .kvCreate, .kvDrop: false
        case .del, .exists, .type, .kvDescribe:
            (1..<command.count).contains { table(command[$0]) == nil }
        default: true
        }
    }

    private func table(_ name: UnsafeRawBufferPointer) -> ClusterMap.NamedTable? {
        router.core.map.table(named: name)
    }

    /// In byte order.
    private var tableNames: [Bytes] { router.core.map.activeTables.map(\.name) }

    private static func write(_ names: [Bytes], _ writer: inout RESPWriter) {
        writer.array(count: names.count)
        for name in names { writer.bulk(name) }
    }

    // MARK: Creating

    private func create(_ command: ParsedCommand) {
        guard checkTableName(command[1]) else { return }
        var isHash = false
        var ranges: UInt16?
        var engine = EngineKind.lsm
        var replicas: UInt8?
        var splits: [Bytes] = []
        var ifMissing = false
        var place = 2
        func refuse(_ message: String) { reply(DatabaseError(.invalidRequest, message)) }
        while place < command.count {
            if command.argument(place, is: "IFMISSING") {
                ifMissing = true
                place += 1
                continue
            }
            guard place + 1 < command.count else { return refuse("syntax error; see KV.HELP") }
            let value = place + 1
            if command.argument(place, is: "PARTITION") {
                isHash = command.argument(value, is: "HASH")
                guard isHash || command.argument(value, is: "RANGE") else {
                    return refuse("PARTITION is RANGE or HASH")
                }
            } else if command.argument(place, is: "ENGINE") {
                engine = command.argument(value, is: "BTREE") ? .btree : .lsm
                guard engine == .btree || command.argument(value, is: "LSM") else {
                    return refuse("ENGINE is LSM or BTREE")
                }
            } else if command.argument(place, is: "REPLICAS") {
                guard let count = command.integer(value), [1, 3, 5].contains(count) else {
                    return refuse("REPLICAS is 1, 3 or 5")
                }
                replicas = UInt8(count)
            } else if command.argument(place, is: "VRANGES") {
                let bounds = Partitioning.virtualRangeBounds
                guard let count = command.integer(value).flatMap({ UInt16(exactly: $0) }),
                    bounds.contains(count)
                else {
                    return refuse("VRANGES is from \(bounds.lowerBound) to \(bounds.upperBound)")
                }
                ranges = count
            } else if command.argument(place, is: "SPLIT") {
                // All that follows is split keys, except a last word IFMISSING.
                place += 1
                while place < command.count {
                    if place == command.count - 1, command.argument(place, is: "IFMISSING") {
                        ifMissing = true
                    } else {
                        splits.append(command.bytes(place))
                    }
                    place += 1
                }
                continue
            } else {
                return refuse("unknown option '\(command.text(place).prefix(64))'; see KV.HELP")
            }
            place += 2
        }
        guard isHash || ranges == nil else { return refuse("VRANGES is for PARTITION HASH") }
        guard !isHash || splits.isEmpty else { return refuse("SPLIT is for PARTITION RANGE") }
        splits.sort { compareBytes($0, $1) < 0 }
        guard splits.count < Limits.initialShardsMax,
            splits.allSatisfy({ !$0.isEmpty && $0.count <= Limits.keyBytesMax }),
            zip(splits, splits.dropFirst()).allSatisfy({ $0 != $1 })
        else {
            return refuse(
                "split keys are different, not empty, and fewer than \(Limits.initialShardsMax)")
        }
        guard splits.reduce(0, { $0 + $1.count }) <= Limits.splitBytesMax else {
            return refuse("split keys have at most \(Limits.splitBytesMax) bytes together")
        }
        let partitioning: Partitioning =
            isHash ? .hash(virtualRanges: ranges ?? Partitioning.virtualRangesDefault) : .range
        ask(
            .create(
                name: command.text(1), partitioning: partitioning, engine: engine,
                replicas: replicas, splitPoints: splits, ifMissing: ifMissing)
        ) { $0.ok() }
    }

    // MARK: Dropping

    private func dropOne(_ command: ParsedCommand) {
        ask(.drop(name: command.text(1))) { $0.ok() }
    }

    /// DEL and UNLINK: drops the tables that exist, one after the other, and answers how many.
    private func drop(_ command: ParsedCommand) {
        var names: [String] = []
        for place in 1..<command.count where table(command[place]) != nil {
            let name = command.text(place)
            if !names.contains(name) { names.append(name) }
        }
        guard !names.isEmpty else { return reply { $0.integer(0) } }
        let slot = openSlot(.del)
        mode = .working
        dropNext(names[...], slot: slot, dropped: 0)
    }

    private func dropNext(_ names: ArraySlice<String>, slot: UInt32, dropped: Int64) {
        guard let name = names.first else {
            return end(slot, nil) { $0.integer(dropped) }
        }
        router.controllers.request(.drop(name: name)) { [weak self] error in
            guard let self, isWaiting(for: Destination(client, slot, 0)) else { return }
            if let error, error.code != .tableNotFound {
                end(slot, error) { _ in }
            } else {
                dropNext(
                    names.dropFirst(), slot: slot, dropped: dropped + (error == nil ? 1 : 0))
            }
        }
    }

    /// One request to the controller, with nothing else on this connection meanwhile.
    private func ask(_ request: TableRequest, _ success: @escaping (inout RESPWriter) -> Void) {
        let slot = openSlot(.kvCreate)
        mode = .working
        router.controllers.request(request) { [weak self] error in
            guard let self, isWaiting(for: Destination(client, slot, 0)) else { return }
            end(slot, error, success)
        }
    }

    private func end(
        _ slot: UInt32, _ error: DatabaseError?, _ success: (inout RESPWriter) -> Void
    ) {
        count(.table, error?.code, slot: slot)
        endBarrier()
        finish(slot) { writer in
            if let error { writer.error(error) } else { success(&writer) }
        }
    }

    // MARK: Looking

    private func scanTables(_ command: ParsedCommand) {
        var limit = 10
        var pattern: GlobPattern?
        var isTypeRight = true
        var place = 2
        while place < command.count {
            if command.argument(place, is: "MATCH"), place + 1 < command.count {
                pattern = GlobPattern(command.bytes(place + 1))
            } else if command.argument(place, is: "COUNT"), place + 1 < command.count,
                let count = command.integer(place + 1), count > 0
            {
                limit = Int(min(count, Int64(Limits.tablesMax)))
            } else if command.argument(place, is: "TYPE"), place + 1 < command.count {
                isTypeRight = command.argument(place + 1, is: "HASH")
            } else {
                return reply(DatabaseError(.invalidRequest, "syntax error"))
            }
            place += 2
        }
        guard let cursor = UInt64(command.text(1)) else {
            return reply(DatabaseError(.invalidRequest, "invalid cursor"))
        }
        var names = tableNames[...]
        if cursor > 0 {
            // The empty name stands for the list of tables.
            guard let last = router.cursors.lastKey(of: cursor, table: []) else {
                return reply(
                    DatabaseError(
                        .invalidRequest,
                        "the cursor is unknown here or was forgotten: start again from 0"))
            }
            names = names.drop { compareBytes($0, last) <= 0 }
        }
        let page = names.prefix(limit)
        let isEnd = page.count == names.count
        let next = isEnd ? 0 : router.cursors.remember(table: [], lastKey: page.last!)
        let matching = page.filter { isTypeRight && (pattern?.matches($0) ?? true) }
        reply { writer in
            writer.array(count: 2)
            writer.bulk(String(next))
            Self.write(Array(matching), &writer)
        }
    }

    private func describe(_ command: ParsedCommand) {
        guard let named = table(command[1]) else {
            return reply(DatabaseError(.tableNotFound, "no such table"))
        }
        var groups: [GroupID] = []
        named.index.forEachLocation { groups.append($0.group) }
        groups.sort()
        var distinct: [GroupID] = []
        for group in groups where distinct.last != group { distinct.append(group) }
        let table = named.table
        reply { writer in
            writer.map(pairs: 8)
            writer.bulk("name")
            writer.bulk(table.name)
            writer.bulk("id")
            writer.integer(Int64(table.id.rawValue))
            writer.bulk("partition")
            writer.bulk(table.partitioning.description)
            writer.bulk("vranges")
            if case .hash(let count) = table.partitioning {
                writer.integer(Int64(count))
            } else {
                writer.null()
            }
            writer.bulk("engine")
            writer.bulk(table.engine.description)
            writer.bulk("replicas")
            writer.integer(Int64(table.replicas))
            writer.bulk("shards")
            writer.integer(Int64(named.index.count))
            writer.bulk("groups")
            writer.array(count: distinct.count)
            for group in distinct { writer.integer(Int64(group.rawValue)) }
        }
    }
}
