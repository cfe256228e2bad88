// Commands on single records: the data path.

import KVBase
import RESP
import RouterCore
import ShardCore
import WireProtocol

extension ClientSession {
    private static var nothing: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: nil, count: 0)
    }

    // MARK: Writing

    func set(_ command: ParsedCommand, _ id: CommandID) {
        guard command.count >= 4, command.count % 2 == 0 else {
            return refuseArity(id == .hset ? "hset" : "hmset")
        }
        let pairs = (command.count - 2) / 2
        guard pairs <= Limits.commandFieldsMax else { return refuseTooMany(pairs) }
        for place in 0..<pairs
        where !checkSizes(key: command[2 + 2 * place], value: command[3 + 2 * place]) {
            return
        }
        guard let first = route(command, key: command[2]) else { return createFirst(command) }
        let slot = openSlot(id, parts: pairs)
        // HMSET answers OK whatever was there, so the node need not look.
        let flags: OperationFlags = id == .hset ? .wantsPrevious : []
        if pairs == 1 {
            submit(
                .put, flags, nil, first, command[2], command[3], Destination(client, slot, 0))
            return
        }
        for place in 0..<pairs {
            let key = command[2 + 2 * place]
            let route = place == 0 ? first : route(command, key: key)!
            submit(
                .put, flags, nil, route, key, command[3 + 2 * place],
                Destination(client, slot, UInt32(place)))
        }
    }

    func setIfAbsent(_ command: ParsedCommand) {
        guard checkSizes(key: command[2], value: command[3]) else { return }
        guard let route = route(command, key: command[2]) else { return createFirst(command) }
        let slot = openSlot(.hsetnx)
        submit(
            .put, [], .zero, route, command[2], command[3], Destination(client, slot, 0))
    }

    func kvPut(_ command: ParsedCommand) {
        var expected: Sequencer?
        switch command.count {
        case 4: break
        case 6 where command.argument(4, is: "IF"):
            if command.argument(5, is: "ABSENT") {
                expected = .zero
            } else {
                guard let given = Sequencer(command.text(5)) else {
                    return refuseSequencer()
                }
                expected = given
            }
        default:
            return reply(DatabaseError(.invalidRequest, "KV.PUT table key value [IF sequencer]"))
        }
        guard checkSizes(key: command[2], value: command[3]) else { return }
        guard let route = route(command, key: command[2]) else { return createFirst(command) }
        let slot = openSlot(.kvPut)
        submit(
            .put, [], expected, route, command[2], command[3], Destination(client, slot, 0))
    }

    func delete(_ command: ParsedCommand) {
        guard command.count >= 3 else { return refuseArity("hdel") }
        let fields = command.count - 2
        guard fields <= Limits.commandFieldsMax else { return refuseTooMany(fields) }
        for place in 0..<fields where !checkSizes(key: command[2 + place], value: Self.nothing) {
            return
        }
        guard let first = route(command, key: command[2]) else {
            return missing(command) { $0.integer(0) }
        }
        let slot = openSlot(.hdel, parts: fields)
        for place in 0..<fields {
            let key = command[2 + place]
            let route = place == 0 ? first : route(command, key: key)!
            submit(
                .delete, .wantsPrevious, nil, route, key, Self.nothing,
                Destination(client, slot, UInt32(place)))
        }
    }

    func kvDel(_ command: ParsedCommand) {
        var expected: Sequencer?
        if command.count == 5, command.argument(3, is: "IF") {
            guard let given = Sequencer(command.text(4)) else { return refuseSequencer() }
            expected = given
        } else if command.count != 3 {
            return reply(DatabaseError(.invalidRequest, "KV.DEL table key [IF sequencer]"))
        }
        guard checkSizes(key: command[2], value: Self.nothing) else { return }
        guard let route = route(command, key: command[2]) else {
            guard expected == nil || !isMapConfirmed else {
                return reply(DatabaseError(.conditionFailed, "there is no such table"))
            }
            return missing(command) { $0.integer(0) }
        }
        let slot = openSlot(.kvDel)
        submit(
            .delete, .wantsPrevious, expected, route, command[2], Self.nothing,
            Destination(client, slot, 0))
    }

    // MARK: Reading

    func get(_ command: ParsedCommand, _ id: CommandID) {
        guard command.count == 3 else {
            return refuseArity(id == .hget ? "hget" : id == .hexists ? "hexists" : "hstrlen")
        }
        guard checkSizes(key: command[2], value: Self.nothing) else { return }
        guard let route = route(command, key: command[2]) else {
            return missing(command) { id == .hget ? $0.null() : $0.integer(0) }
        }
        let slot = openSlot(id)
        submit(
            .get, id == .hexists ? .withoutValue : [], nil, route, command[2], Self.nothing,
            Destination(client, slot, 0))
    }

    func kvGet(_ command: ParsedCommand) {
        let isQuorum = command.count == 4 && command.argument(3, is: "QUORUM")
        guard command.count == 3 || isQuorum else {
            return reply(DatabaseError(.invalidRequest, "KV.GET table key [QUORUM]"))
        }
        guard checkSizes(key: command[2], value: Self.nothing) else { return }
        guard let route = route(command, key: command[2]) else {
            return missing(command) { $0.null() }
        }
        let slot = openSlot(.kvGet)
        submit(
            .get, isQuorum ? .quorumRead : [], nil, route, command[2], Self.nothing,
            Destination(client, slot, 0))
    }

    func getMany(_ command: ParsedCommand) {
        let fields = command.count - 2
        guard fields <= Limits.commandFieldsMax else { return refuseTooMany(fields) }
        for place in 0..<fields where !checkSizes(key: command[2 + place], value: Self.nothing) {
            return
        }
        guard let first = route(command, key: command[2]) else {
            return missing(command) { writer in
                writer.array(count: fields)
                for _ in 0..<fields { writer.null() }
            }
        }
        let slot = openSlot(.hmget, parts: fields)
        collections[slot] = PartCollection(values: Array(repeating: nil, count: fields))
        for place in 0..<fields {
            let key = command[2 + place]
            let route = place == 0 ? first : route(command, key: key)!
            submit(
                .get, [], nil, route, key, Self.nothing, Destination(client, slot, UInt32(place)))
        }
    }

    // MARK: Helpers

    private func route(_ command: ParsedCommand, key: UnsafeRawBufferPointer)
        -> ClusterMap.Route?
    {
        router.core.map.route(tableNamed: command[1], key: key)
    }

    private func submit(
        _ code: OperationCode, _ flags: OperationFlags, _ expected: Sequencer?,
        _ route: ClusterMap.Route, _ key: UnsafeRawBufferPointer,
        _ value: UnsafeRawBufferPointer, _ destination: Destination
    ) {
        let error = router.core.submit(
            code, flags: flags, expected: expected, route: route, key: key, value: value,
            for: destination, now: router.now)
        if let error { answer(destination, error) }
    }

    /// The table is not there: it is created as the defaults say, and the command waits.
    private func createFirst(_ command: ParsedCommand) {
        guard checkTableName(command[1]) else { return }
        router.statistics.unknownTables += 1
        awaitTable(command)
    }
}

extension Destination {
    init(_ client: UInt32, _ slot: UInt32, _ part: UInt32) {
        self.init(client: client, slot: slot, part: part)
    }
}
