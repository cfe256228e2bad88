// What the controller wants done: the one door out.

import KVBase
import ShardCore

public enum ControllerEffect: Hashable, Sendable {
    /// Make this durable and answer `.stored` or `.storeFailed` with the ticket.
    case store(MetadataTransaction, StoreTicket)
    /// This controller acts from now on, in this term.
    case acting(Term)
    /// Another controller holds the lease: try again with a new snapshot once it is gone.
    case standBy(holder: String)
    /// This controller must not act any more; start anew.
    case resign(DatabaseError)
    /// Answers a registration.
    case admit(ConnectionID, NodeAdmission)
    /// Say goodbye with this error and close.
    case reject(ConnectionID, DatabaseError)
    /// Commands to the node on this connection; may be none, as the answer to a heartbeat.
    case send(ConnectionID, NodeCommands)
    /// To every follower of the map.
    case publish(MapUpdate)
    /// The answer to a table request; nil is success.
    case answer(RequestID, DatabaseError?)
    /// The answer to an operation request: the operation that is stored and under way.
    case operationAnswer(RequestID, Result<OperationID, DatabaseError>)
    /// Store everything, and a snapshot of it, in the backup of the metadata; `.backupEnded` follows.
    case backUp(OperationID)
    /// Read every object of the backup; `.backupEnded` follows.
    case verifyBackup(OperationID)
    /// That verification is not wanted any more.
    case verifyNoMore(OperationID)
    /// For the log: what was decided and on which grounds.
    case decided(String)
}

/// Effects of one step, to be carried out in order.
public struct ControllerEffects: Sendable {
    public private(set) var list: [ControllerEffect] = []
    public init() {}
    public mutating func append(_ effect: ControllerEffect) { list.append(effect) }
    public mutating func removeAll() { list.removeAll(keepingCapacity: true) }
}
