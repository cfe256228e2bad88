// Who waits for answers of the core.

import ControllerCore
import KVBase

/// Requests that the core has taken and not answered yet.
struct Requesters {
    /// `isRepeatable`: doing it twice changes nothing more.
    enum Requester {
        case router(ConnectionID, token: UInt32, isRepeatable: Bool)
        case tool(ConnectionID, token: UInt32, table: String?)
        case operation(ConnectionID, token: UInt32)
    }

    private var waiting: [RequestID: Requester] = [:]
    private var issued: UInt64 = 0

    /// Returns the number by which the answer finds back.
    mutating func add(_ requester: Requester) -> RequestID {
        issued += 1
        let id = RequestID(issued)
        waiting[id] = requester
        return id
    }

    mutating func remove(_ request: RequestID) -> Requester? {
        waiting.removeValue(forKey: request)
    }
}
