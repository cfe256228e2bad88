// The one error type that crosses process boundaries: a code to act on, a sentence to read.

/// Why a request failed. Raw values are on the wire: never renumber.
public enum ErrorCode: UInt8, Sendable, CaseIterable {
    /// The request itself is wrong: shape, size, unknown option.
    case invalidRequest = 1
    /// Key, value, name, batch or frame over its limit.
    case tooLarge = 2
    case tableNotFound = 3
    case tableExists = 4
    /// The conditional write found another sequencer.
    case conditionFailed = 5
    /// The replica is not the leader, or has no lease; the message may name the leader.
    case notLeader = 6
    /// The request's shard epoch is not the one the group holds: the router's map is old (or ahead).
    case staleEpoch = 7
    /// The request was not applied and may be repeated: no leader, no majority, starting up.
    case unavailable = 8
    /// The request was sent and its outcome cannot be known; it may have been applied.
    case unknownOutcome = 9
    /// A queue is full; repeat later.
    case overloaded = 10
    /// The deadline passed before the request was sent on: it was not applied.
    case deadlineExceeded = 11
    /// A disk or file failed, or holds damaged data.
    case storageFailed = 12
    /// A command of a deposed controller, an unknown replica, or an old incarnation.
    case fenced = 13
    /// A precondition of an operator command does not hold; the message says what would work.
    case refused = 14
    /// Bytes from a peer that do not follow the protocol.
    case malformed = 15
    /// Name or password not accepted.
    case unauthenticated = 16
}

/// An operating error: a code, a sentence for a person, and the cause where one is known.
public struct DatabaseError: Error, Hashable, Sendable, CustomStringConvertible {
    public var code: ErrorCode
    public var message: String

    public init(_ code: ErrorCode, _ message: String) {
        self.code = code
        self.message = message
    }

    public var description: String { "\(code): \(message)" }
}
