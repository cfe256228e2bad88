// From a parsed command to the code that carries it out, and the refusals that commands share.

import KVBase
import RESP
import RouterCore

extension ClientSession {
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

    // MARK: Checks

    func checkSizes(
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

    // MARK: Refusals

    func refuseArity(_ name: String) {
        reply(
            DatabaseError(.invalidRequest, "wrong number of arguments for '\(name)' command"))
    }

    func refuseTooMany(_ fields: Int) {
        reply(
            DatabaseError(
                .tooLarge, "\(fields) fields; one command has at most \(Limits.commandFieldsMax)"))
    }

    func refuseSequencer() {
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
