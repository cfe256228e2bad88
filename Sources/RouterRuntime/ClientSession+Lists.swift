// Commands over many records of a table: lists, counts, scans.

import KVBase
import RESP
import RouterCore
import ShardCore
import WireProtocol

/// A list command under way.
struct RunningWalk {
    var id: CommandID
    var slot: UInt32
    var walk: ListWalk
    /// HSCAN: only keys that match are answered.
    var pattern: GlobPattern?
}

extension ClientSession {
    /// Most records and bytes that HGETALL, HKEYS and HVALS answer at once.
    static let wholeTableRecordsMax = 1_000_000
    static let wholeTableBytesMax = 64 << 20

    func list(_ command: ParsedCommand, _ id: CommandID) {
        if !isMapConfirmed, router.core.map.table(named: command[1]) == nil {
            return confirmMap(command)
        }
        var query = ListWalk.Query(table: command.bytes(1))
        var pattern: GlobPattern?
        switch id {
        case .hscan:
            guard readScan(command, &query, &pattern) else { return }
        case .kvList:
            guard readList(command, &query) else { return }
        case .hlen:
            query.isCountOnly = true
            query.limit = .max
            query.bytesMax = .max
        default:
            query.limit = Self.wholeTableRecordsMax
            query.bytesMax = Self.wholeTableBytesMax
        }
        let slot = openSlot(id)
        mode = .working
        walk = RunningWalk(id: id, slot: slot, walk: ListWalk(query), pattern: pattern)
        ask(walk!.walk.start(router.core.map))
        finishWalkIfDone()
    }

    // MARK: Arguments

    private func readScan(
        _ command: ParsedCommand, _ query: inout ListWalk.Query, _ pattern: inout GlobPattern?
    ) -> Bool {
        guard let cursor = UInt64(command.text(2)) else {
            return refuse("invalid cursor")
        }
        if cursor > 0 {
            guard let key = router.cursors.lastKey(of: cursor, table: query.table) else {
                return refuse("the cursor is unknown here or was forgotten: start again from 0")
            }
            query.from = key
            query.isFromExclusive = true
        }
        query.limit = 10
        var place = 3
        while place < command.count {
            if command.argument(place, is: "MATCH"), place + 1 < command.count {
                pattern = GlobPattern(command.bytes(place + 1))
            } else if command.argument(place, is: "COUNT"), place + 1 < command.count,
                let count = command.integer(place + 1), count > 0
            {
                query.limit = Int(min(count, Int64(Limits.listPageMax)))
            } else {
                return refuse("syntax error")
            }
            place += 2
        }
        return true
    }

    private func readList(_ command: ParsedCommand, _ query: inout ListWalk.Query) -> Bool {
        var place = 2
        while place < command.count {
            if command.argument(place, is: "QUORUM") {
                query.isQuorum = true
                place += 1
                continue
            }
            guard place + 1 < command.count else { return refuse("syntax error") }
            if command.argument(place, is: "FROM") {
                // A cursor says more exactly where to begin.
                if !query.isFromExclusive { query.from = command.bytes(place + 1) }
            } else if command.argument(place, is: "TO") {
                query.to = command.bytes(place + 1)
            } else if command.argument(place, is: "LIMIT") {
                guard let limit = command.integer(place + 1),
                    (1...Int64(Limits.listPageMax)).contains(limit)
                else { return refuse("LIMIT is a number from 1 to \(Limits.listPageMax)") }
                query.limit = Int(limit)
            } else if command.argument(place, is: "CURSOR") {
                if command[place + 1].count > 0 {
                    guard let key = Self.unhex(command[place + 1]) else {
                        return refuse("a cursor is what the page before answered")
                    }
                    query.from = key
                    query.isFromExclusive = true
                }
            } else {
                return refuse("KV.LIST table [FROM key] [TO key] [LIMIT n] [CURSOR c] [QUORUM]")
            }
            place += 2
        }
        if query.from.count > Limits.keyBytesMax || (query.to?.count ?? 0) > Limits.keyBytesMax {
            return refuse("a key has at most \(Limits.keyBytesMax) bytes")
        }
        return true
    }

    private func refuse(_ message: String) -> Bool {
        reply(DatabaseError(.invalidRequest, message))
        return false
    }

    // MARK: Pages

    private func ask(_ requests: [ListWalk.Request]) {
        let plan = walk!.walk.plan
        let flags: OperationFlags = walk!.walk.query.isQuorum ? .quorumRead : []
        for request in requests {
            var writer = ByteWriter()
            request.page.encode(into: &writer)
            let destination = Destination(
                client, walk!.slot, Self.part(plan: plan, source: request.source))
            guard writer.count <= Limits.valueBytesMax else {
                answer(destination, DatabaseError(.tooLarge, "the bounds of the list are too long"))
                continue
            }
            let error = writer.bytes.withUnsafeBytes { value in
                router.core.submit(
                    .list, flags: flags,
                    route: ClusterMap.Route(table: request.table, location: request.location),
                    key: UnsafeRawBufferPointer(start: nil, count: 0), value: value,
                    for: destination, now: router.now)
            }
            if let error { answer(destination, error) }
            // The error may have ended the walk.
            if walk == nil { return }
        }
    }

    /// A page's plan and source in the 32 bits of a destination's part.
    private static func part(plan: UInt32, source: UInt32) -> UInt32 {
        (plan & 0xFFF) << 20 | source
    }

    func walkDidReceive(_ destination: Destination, _ answer: OperationAnswer) {
        guard let plan = walk?.walk.plan, destination.part >> 20 == plan & 0xFFF else { return }
        if answer.error == .staleEpoch {
            guard let requests = walk!.walk.restart(router.core.map) else {
                return failWalk(
                    DatabaseError(.unavailable, "the shards of the table do not settle"))
            }
            ask(requests)
            return finishWalkIfDone()
        }
        if let error = answer.databaseError { return failWalk(error) }
        do throws(DatabaseError) {
            var reader = ByteReader(answer.payload)
            let page = try ListPage(from: &reader)
            let source = destination.part & 0xFFFFF
            ask(walk!.walk.receive(source: source, page, router.core.map))
        } catch {
            return failWalk(error)
        }
        finishWalkIfDone()
    }

    private func failWalk(_ error: DatabaseError) {
        let slot = walk!.slot
        count(.list, error.code, slot: slot)
        endBarrier()
        finish(slot) { $0.error(error) }
    }

    private func finishWalkIfDone() {
        guard let walk, walk.walk.asked == 0 else { return }
        let isWhole = walk.id == .hgetall || walk.id == .hkeys || walk.id == .hvals
        guard !isWhole || !walk.walk.hasMore else {
            return failWalk(
                DatabaseError(
                    .refused,
                    "more than \(Self.wholeTableRecordsMax) records or "
                        + "\(Self.wholeTableBytesMax >> 20) MiB: read page by page, "
                        + "with KV.LIST or HSCAN"))
        }
        count(.list, nil, slot: walk.slot)
        let lastKey = walk.walk.hasMore ? walk.walk.records.last?.key : nil
        var cursor: UInt64 = 0
        if walk.id == .hscan, let lastKey {
            cursor = router.cursors.remember(table: walk.walk.query.table, lastKey: lastKey)
        }
        endBarrier()
        finish(walk.slot) { writer in
            Self.write(walk, cursor: cursor, lastKey: lastKey, &writer)
        }
    }

    private static func write(
        _ walk: RunningWalk, cursor: UInt64, lastKey: Bytes?, _ writer: inout RESPWriter
    ) {
        let records = walk.walk.records
        switch walk.id {
        case .hlen: writer.integer(Int64(clamping: walk.walk.count))
        case .hkeys:
            writer.array(count: records.count)
            for record in records { writer.bulk(record.key) }
        case .hvals:
            writer.array(count: records.count)
            for record in records { writer.bulk(record.value) }
        case .hgetall:
            writer.map(pairs: records.count)
            for record in records {
                writer.bulk(record.key)
                writer.bulk(record.value)
            }
        case .hscan:
            let matching = walk.pattern.map { pattern in
                records.filter { pattern.matches($0.key) }
            }
            writer.array(count: 2)
            writer.bulk(String(cursor))
            writer.array(count: 2 * (matching ?? records).count)
            for record in matching ?? records {
                writer.bulk(record.key)
                writer.bulk(record.value)
            }
        default:
            writer.array(count: 2)
            if let lastKey { writer.bulk(hex(lastKey)) } else { writer.null() }
            writer.array(count: 3 * records.count)
            for record in records {
                writer.bulk(record.key)
                writer.bulk(record.value)
                writer.bulk(record.sequencer)
            }
        }
    }

    // MARK: Cursors of KV.LIST

    /// `k` and the last key in hexadecimal; the prefix keeps the cursor of an empty key non-empty.
    private static func hex(_ key: Bytes) -> Bytes {
        let digits = Bytes("0123456789abcdef".utf8)
        var text: Bytes = [UInt8(ascii: "k")]
        text.reserveCapacity(2 * key.count + 1)
        for byte in key {
            text.append(digits[Int(byte >> 4)])
            text.append(digits[Int(byte & 15)])
        }
        return text
    }

    private static func unhex(_ text: UnsafeRawBufferPointer) -> Bytes? {
        guard text.first == UInt8(ascii: "k"), text.count % 2 == 1 else { return nil }
        var key: Bytes = []
        key.reserveCapacity(text.count / 2)
        for place in stride(from: 1, to: text.count, by: 2) {
            guard let high = nibble(text[place]), let low = nibble(text[place + 1]) else {
                return nil
            }
            key.append(high << 4 | low)
        }
        return key
    }

    private static func nibble(_ byte: UInt8) -> UInt8? {
        switch byte {
        case 0x30...0x39: byte - 0x30
        case 0x61...0x66: byte - 0x61 + 10
        default: nil
        }
    }
}
