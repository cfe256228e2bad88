// One operation's answer on its way to the client, and how errors are written.

import KVBase
import RESP
import WireProtocol

/// What a node answered to one operation. Valid as long as the frame it lies in.
struct OperationAnswer {
    var error: ErrorCode?
    var flags: ResponseFlags
    var sequencer: Sequencer
    var payload: UnsafeRawBufferPointer

    var isFound: Bool { flags.contains(.found) }

    /// The error with its sentence; nil when the operation succeeded.
    var databaseError: DatabaseError? {
        guard let error else { return nil }
        if error == .conditionFailed {
            let found =
                sequencer == .zero ? "there is no record" : "the record has sequencer \(sequencer)"
            return DatabaseError(error, found)
        }
        return DatabaseError(error, String(decoding: payload, as: UTF8.self))
    }
}

extension RESPWriter {
    /// An error reply; its first word tells programs what to do (docs/redis-protocol.md).
    mutating func error(_ error: DatabaseError) {
        switch error.code {
        case .tooLarge: self.error("TOOLARGE", error.message)
        case .conditionFailed: self.error("CONDITION", error.message)
        case .unknownOutcome: self.error("UNKNOWN", error.message)
        case .overloaded: self.error("TRYAGAIN", error.message)
        case .notLeader, .staleEpoch, .unavailable, .deadlineExceeded:
            self.error("UNAVAILABLE", error.message)
        case .unauthenticated: self.error("NOAUTH", error.message)
        case .invalidRequest, .tableNotFound, .tableExists, .storageFailed, .fenced, .refused,
            .malformed:
            self.error("ERR", error.message)
        }
    }

    /// A sequencer as text, without a string in between.
    mutating func bulk(_ sequencer: Sequencer) {
        withUnsafeTemporaryAllocation(byteCount: 34, alignment: 1) { text in
            Self.hex(sequencer.time, digits: 16, into: text, at: 0)
            text[16] = UInt8(ascii: "-")
            Self.hex(UInt64(sequencer.counter), digits: 8, into: text, at: 17)
            text[25] = UInt8(ascii: "-")
            Self.hex(UInt64(sequencer.node.rawValue), digits: 8, into: text, at: 26)
            bulk(UnsafeRawBufferPointer(text))
        }
    }

    private static func hex(
        _ value: UInt64, digits: Int, into text: UnsafeMutableRawBufferPointer, at offset: Int
    ) {
        var rest = value
        for place in stride(from: offset + digits - 1, through: offset, by: -1) {
            let digit = UInt8(rest & 15)
            text[place] = digit < 10 ? UInt8(ascii: "0") + digit : UInt8(ascii: "a") + digit - 10
            rest >>= 4
        }
    }
}
