// What can happen to the controller: the one door in.

import KVBase
import ShardCore

/// A connection of a node, named by the shell. Never reused by one process.
public struct ConnectionID: Hashable, Comparable, Sendable {
    public var number: UInt64
    public init(_ number: UInt64) { self.number = number }
    public static func < (left: ConnectionID, right: ConnectionID) -> Bool {
        left.number < right.number
    }
}

/// A request that waits for an answer, named by the shell. Never reused by one process.
public struct RequestID: Hashable, Comparable, Sendable {
    public var number: UInt64
    public init(_ number: UInt64) { self.number = number }
    public static func < (left: RequestID, right: RequestID) -> Bool { left.number < right.number }
}

/// Names one `store` effect; rises by one with each.
public struct StoreTicket: Hashable, Comparable, Sendable {
    public var number: UInt64
    public init(_ number: UInt64) { self.number = number }
    public static func < (left: StoreTicket, right: StoreTicket) -> Bool {
        left.number < right.number
    }
}

public enum ControllerEvent: Sendable {
    /// Take the controller term. The first event, once.
    case start
    /// Time passed: call at least every 25 ms.
    case tick
    /// The transaction is durable at this revision. Transactions complete in the order they were
    /// issued.
    case stored(StoreTicket, Revision)
    /// The transaction was refused or the store failed: the controller resigns.
    case storeFailed(StoreTicket, DatabaseError)
    /// The lease under which this controller acts has ended.
    case leaseLost
    case register(ConnectionID, NodeRegistration)
    case heartbeat(ConnectionID, NodeHeartbeat)
    case outcomes(ConnectionID, [CommandOutcome])
    /// The node on this connection was refused or reset by `node`.
    case unreachable(ConnectionID, node: NodeID)
    case connectionClosed(ConnectionID)
    case tableRequest(RequestID, TableRequest)
    case operationRequest(RequestID, OperationRequest)
    /// What `.backUp` or `.verifyBackup` asked for has ended: what was written or read, or what is wrong.
    case backupEnded(OperationID, Result<String, DatabaseError>)
    /// To be stored before what follows; made with the present `auditHead`.
    case audit(AuditEntry)
    /// The wall clock in milliseconds since 1970, for records that operators read. Once a second.
    case clock(UInt64)
}
