// Commands on single records: the data path.

import KVBase
import RESP
import RouterCore
import ShardCore
import WireProtocol

/// What the operations of one command have brought.
struct PartCollection {
    /// HMGET: the values by position.
    var values: [Bytes?] = []
    /// The error that tells most: one about an unknown outcome before any other.
    var error: DatabaseError?

    mutating func note(_ error: DatabaseError) {
        if self.error == nil
            || (self.error!.code != .unknownOutcome && error.code == .unknownOutcome)
        {
            self.error = error
        }
    }
}

extension ClientSession {
    private static var nothing: UnsafeRawBufferPointer {
        UnsafeRawBufferPointer(start: nil, count: 0)
    }

    // MARK: Entry

    func execute(_ command: ParsedCommand) {
        // The commands of the data path first, without a look-up.
        if isAuthenticated {
            if command.argument(0, is: "HSET") { return set(command, .hset) }
            if command.argument(0, is: "HGET") { return get(command, .hget) }
            if command.argument(0, is: "KV.PUT") { return kvPut(command) }
            if command.argument(0, is: "KV.GET") { return kvGet(command) }
            if command.argument(0, is: "HDEL") { return delete(command) }
            if command.argument(0, is: "HEXISTS") { return get(command, .hexists) }
            if command.argument(0, is: "KV.DEL") { return kvDel(command) }
        }
        guard let spec = CommandTable.find(command[0]) else { return refuseUnknown(command) }
        let isArityRight =
            spec.arity >= 0 ? command.count == spec.arity : command.count >= -spec.arity
        guard isArityRight else { return refuseArity(spec.name) }
        guard isAuthenticated || [.auth, .hello, .quit, .reset].contains(spec.id) else {
            return reply { $0.error("NOAUTH", "Authentication required.") }
        }
        if spec.isBarrier, !ring.isEmpty { return postpone(command, .waitingForEarlier) }
        switch spec.id {
        case .hset, .hmset: set(command, spec.id)
        case .hsetnx: setIfAbsent(command)
        case .hget, .hexists, .hstrlen: get(command, spec.id)
        case .hmget: getMany(command)
        case .hdel: delete(command)
        case .kvPut: kvPut(command)
        case .kvGet: kvGet(command)
        case .kvDel: kvDel(command)
        case .hlen, .hkeys, .hvals, .hgetall, .hscan, .kvList: list(command, spec.id)
        case .del, .exists, .type, .scan, .keys, .dbsize, .kvCreate, .kvDrop, .kvDescribe,
            .kvTables:
            executeTableCommand(command, spec.id)
        default: executeConnectionCommand(command, spec.id)
        }
    }

    // MARK: Writing

    private func set(_ command: ParsedCommand, _ id: CommandID) {
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

    private func setIfAbsent(_ command: ParsedCommand) {
        guard checkSizes(key: command[2], value: command[3]) else { return }
        guard let route = route(command, key: command[2]) else { return createFirst(command) }
        let slot = openSlot(.hsetnx)
        submit(
            .put, [], .zero, route, command[2], command[3], Destination(client, slot, 0))
    }

    private func kvPut(_ command: ParsedCommand) {
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

    private func delete(_ command: ParsedCommand) {
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

    private func kvDel(_ command: ParsedCommand) {
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

    private func get(_ command: ParsedCommand, _ id: CommandID) {
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

    private func kvGet(_ command: ParsedCommand) {
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

    private func getMany(_ command: ParsedCommand) {
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

    // MARK: Answers

    /// Takes the answer of one operation of this session.
    func answer(_ destination: Destination, _ answer: OperationAnswer) {
        // A list that failed leaves pages behind.
        guard isWaiting(for: destination) else { return }
        let slot = ring[destination.slot]
        let id = CommandID(rawValue: slot.kind)!
        if id.isWalk { return walkDidReceive(destination, answer) }
        // HSETNX asks by a condition; that it does not hold is an answer.
        let isError = answer.error != nil && !(id == .hsetnx && answer.error == .conditionFailed)
        if slot.remaining == 1, collections.isEmpty {
            count(id.operationClass, isError ? answer.error : nil, slot: destination.slot)
            finish(destination.slot) { writer in
                if isError {
                    writer.error(answer.databaseError!)
                } else {
                    Self.write(id, answer, tally: slot.tally, &writer)
                }
            }
            return
        }
        collect(destination, id, answer, isError: isError)
    }

    /// Takes an error of the router's own as the answer of one operation.
    func answer(_ destination: Destination, _ error: DatabaseError) {
        let message = Bytes(error.message.utf8)
        message.withUnsafeBytes {
            answer(
                destination,
                OperationAnswer(error: error.code, flags: [], sequencer: .zero, payload: $0))
        }
    }

    private func collect(
        _ destination: Destination, _ id: CommandID, _ answer: OperationAnswer, isError: Bool
    ) {
        let serial = destination.slot
        var slot = ring[serial]
        slot.remaining -= 1
        if isError {
            collections[serial, default: PartCollection()].note(answer.databaseError!)
        } else {
            slot.tally += Self.weight(id, answer)
            if id == .hmget, answer.isFound {
                collections[serial]!.values[Int(destination.part)] = Bytes(answer.payload)
            }
        }
        ring[serial] = slot
        guard slot.remaining == 0 else { return }
        let collection = collections.removeValue(forKey: serial)
        count(id.operationClass, collection?.error?.code, slot: serial)
        finish(serial) { writer in
            if let error = collection?.error {
                writer.error(error)
            } else if id == .hmget, let values = collection?.values {
                writer.array(count: values.count)
                for value in values {
                    if let value { writer.bulk(value) } else { writer.null() }
                }
            } else if id == .hset || id == .hdel {
                writer.integer(Int64(slot.tally))
            } else {
                Self.write(id, answer, tally: slot.tally - Self.weight(id, answer), &writer)
            }
        }
    }

    /// What one part adds to the integer that a command answers.
    private static func weight(_ id: CommandID, _ answer: OperationAnswer) -> UInt32 {
        switch id {
        case .hset: answer.isFound ? 0 : 1
        case .hdel, .kvDel, .hexists: answer.isFound ? 1 : 0
        default: 0
        }
    }

    private static func write(
        _ id: CommandID, _ answer: OperationAnswer, tally: UInt32, _ writer: inout RESPWriter
    ) {
        switch id {
        case .hset, .hdel, .kvDel, .hexists: writer.integer(Int64(tally + weight(id, answer)))
        case .hmset: writer.ok()
        case .hsetnx: writer.integer(answer.error == nil ? 1 : 0)
        case .hstrlen: writer.integer(answer.isFound ? Int64(answer.payload.count) : 0)
        case .kvPut: writer.bulk(answer.sequencer)
        case .kvGet:
            guard answer.isFound else { return writer.null() }
            writer.array(count: 2)
            writer.bulk(answer.payload)
            writer.bulk(answer.sequencer)
        default:
            if answer.isFound { writer.bulk(answer.payload) } else { writer.null() }
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

    /// False after an error reply.
    func checkTableName(_ name: UnsafeRawBufferPointer) -> Bool {
        guard !Limits.isValidTableName(name) else { return true }
        reply(
            DatabaseError(
                .invalidRequest,
                "invalid table name: 1 to \(Limits.tableNameBytesMax) printable ASCII characters "
                    + "without space, not starting with _"))
        return false
    }

    private func checkSizes(
        key: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer
    ) -> Bool {
        if key.count <= Limits.keyBytesMax, value.count <= Limits.valueBytesMax { return true }
        reply(
            DatabaseError(
                .tooLarge,
                "key of \(key.count) and value of \(value.count) bytes; each may have at most "
                    + "\(Limits.valueBytesMax)"))
        return false
    }

    func refuseArity(_ name: String) {
        reply(
            DatabaseError(.invalidRequest, "wrong number of arguments for '\(name)' command"))
    }

    private func refuseTooMany(_ fields: Int) {
        reply(
            DatabaseError(
                .tooLarge, "\(fields) fields; one command has at most \(Limits.commandFieldsMax)"))
    }

    private func refuseSequencer() {
        reply(
            DatabaseError(
                .invalidRequest,
                "a sequencer is what KV.PUT and KV.GET answer: time-counter-node in hexadecimal"))
    }

    private func refuseUnknown(_ command: ParsedCommand) {
        let name = String(command.text(0).prefix(64))
        reply(
            DatabaseError(
                .invalidRequest,
                "unknown command '\(name)'; Rangekeeper stores records in tables: "
                    + "HSET table key value (KV.HELP lists its own commands)"))
    }
}

extension Destination {
    init(_ client: UInt32, _ slot: UInt32, _ part: UInt32) {
        self.init(client: client, slot: slot, part: part)
    }
}

extension CommandID {
    var isWalk: Bool {
        switch self {
        case .hlen, .hkeys, .hvals, .hgetall, .hscan, .kvList: true
        default: false
        }
    }

    var operationClass: OperationClass {
        switch self {
        case .hset, .hmset, .hsetnx, .kvPut: .put
        case .hget, .hmget, .hexists, .hstrlen, .kvGet: .get
        case .hdel, .kvDel: .delete
        case .hlen, .hkeys, .hvals, .hgetall, .hscan, .kvList: .list
        case .del, .kvCreate, .kvDrop: .table
        default: .other
        }
    }
}
