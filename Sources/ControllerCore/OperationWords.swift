// Kinds and steps of operations in words for people; programs get the names of the cases.

/// Cases with a name for programs, their own, and words for people.
public protocol Worded: CaseIterable {
    var words: String { get }
}

extension Worded {
    /// Of a case as programs get it; one of a later version stays as it is.
    public static func words(for name: String) -> String {
        allCases.first { "\($0)" == name }?.words ?? name
    }
}

extension OperationRecord.Kind: Worded {
    /// `replace replica`, `move`.
    public var words: String {
        switch self {
        case .replaceReplica: "replace replica"
        case .replaceNode: "replace node"
        case .addReplica: "add replica"
        case .verifyBackup: "verify"
        case .drain, .transfer, .split, .move, .merge, .rebalance, .backup, .restore: "\(self)"
        }
    }
}

extension OperationRecord.Step: Worded {
    /// `catching up`, `handing over`.
    public var words: String {
        switch self {
        case .creating: "creating the replica"
        case .adding: "adding the replica"
        case .catchingUp: "catching up"
        case .swapping: "swapping replicas"
        case .retracting: "taking the replica out"
        case .forming: "preparing"
        case .splitting: "cutting"
        case .switching: "handing over"
        case .declining: "undoing the hand-over"
        case .verifying: "comparing replicas"
        case .finishing: "ending the copy"
        case .merging: "joining"
        case .moving, .done, .cancelled, .failed, .proposed, .copying, .writing, .reading: "\(self)"
        }
    }
}
