// What a router counts, and what other threads may see of it.

import KVBase
import RPC
import RouterCore
import ShardCore
import Synchronization

/// The kinds of commands that metrics tell apart.
enum OperationClass: Int, CaseIterable {
    case get, put, delete, list, table, other

    var name: String { "\(self)" }
}

/// How a command ended, as metrics tell it.
enum CommandResult: Int, CaseIterable {
    case ok, invalid, unknown, unavailable, overloaded, condition, failed

    var name: String { "\(self)" }

    init(_ code: ErrorCode) {
        switch code {
        case .invalidRequest, .tooLarge, .tableNotFound, .tableExists, .unauthenticated, .refused:
            self = .invalid
        case .conditionFailed: self = .condition
        case .unknownOutcome: self = .unknown
        case .notLeader, .staleEpoch, .unavailable, .deadlineExceeded: self = .unavailable
        case .overloaded: self = .overloaded
        case .storageFailed, .fenced, .malformed: self = .failed
        }
    }
}

/// Counters of the loop's thread, copied out now and then.
struct RouterStatistics: Sendable {
    private var commands = [UInt64](
        repeating: 0, count: OperationClass.allCases.count * CommandResult.allCases.count)
    var acceptedClients: UInt64 = 0
    var refusedClients: UInt64 = 0
    var mapUpdates: UInt64 = 0
    /// Turns in which operations were sent or replies written.
    var busyTurns: UInt64 = 0
    /// Commands for a table that the map does not have.
    var unknownTables: UInt64 = 0
    private var slow = [UInt64](repeating: 0, count: OperationClass.allCases.count)

    mutating func countSlow(_ operation: OperationClass) { slow[operation.rawValue] += 1 }
    func slowCount(_ operation: OperationClass) -> UInt64 { slow[operation.rawValue] }

    mutating func count(_ operation: OperationClass, _ result: CommandResult, by amount: UInt64 = 1)
    {
        commands[operation.rawValue * CommandResult.allCases.count + result.rawValue] += amount
    }

    subscript(operation: OperationClass, result: CommandResult) -> UInt64 {
        commands[operation.rawValue * CommandResult.allCases.count + result.rawValue]
    }

    var commandCount: UInt64 { commands.reduce(0, +) }
}

/// A router's state at one moment.
struct RouterSnapshot: Sendable {
    /// Why it is not ready; empty when it is.
    var problems: [String] = ["starting"]
    var statistics = RouterStatistics()
    var core = RouterCounters()
    var revision = Revision.none
    var clients = 0
    var nodesOpen = 0
    var nodes = 0
    var controllerIsConnected = false
    var pendingOperations = 0
    var pendingBytes = 0
    /// Groups without a known leader, or without a connection to it.
    var groupsUnroutable = 0
    /// By node, in order.
    var links: [NodePicture] = []

    struct NodePicture: Sendable {
        var node: NodeID
        var name: String
        var isOpen: Bool
        var unsentBytes: Int
    }

    /// One line for `systemctl status`.
    var sentence: String {
        guard revision != .none else {
            return "waiting for the cluster map: no controller has answered yet"
        }
        var text = "serving \(clients) client\(clients == 1 ? "" : "s")"
        text += ", \(nodesOpen) of \(nodes) nodes connected, map \(revision.ofMap)"
        if let problem = problems.first { text += "; \(problem)" }
        return text
    }
}

/// The last snapshot, for the threads that scrape and probe.
final class RouterStatus: Sendable {
    let clockOffset = ClockOffset()
    private let snapshot = Mutex(RouterSnapshot())

    func publish(_ snapshot: RouterSnapshot) { self.snapshot.withLock { $0 = snapshot } }
    var current: RouterSnapshot { snapshot.withLock { $0 } }
}
