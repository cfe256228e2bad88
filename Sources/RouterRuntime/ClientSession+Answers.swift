// From the answers of operations to the reply of the command that made them.

import KVBase
import RESP
import RouterCore

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
}
