// What the loop counts; other threads read it for metrics.

import Synchronization

/// Written by the event loop's thread alone, with plain relaxed stores, so counting costs no locked
/// instruction; read by the metrics thread.
final class NodeCounters: Sendable {
    private let values = Slots()

    private final class Slots: Sendable {
        let requestFrames = Atomic<UInt64>(0)
        let requests = Atomic<UInt64>(0)
        let gets = Atomic<UInt64>(0)
        let lists = Atomic<UInt64>(0)
        let proposedEntries = Atomic<UInt64>(0)
        let proposedOperations = Atomic<UInt64>(0)
        let appliedEntries = Atomic<UInt64>(0)
        let engineBatches = Atomic<UInt64>(0)
        let peerMessages = Atomic<UInt64>(0)
    }

    var requestFrames: UInt64 {
        get { values.requestFrames.load(ordering: .relaxed) }
        set { values.requestFrames.store(newValue, ordering: .relaxed) }
    }
    var requests: UInt64 {
        get { values.requests.load(ordering: .relaxed) }
        set { values.requests.store(newValue, ordering: .relaxed) }
    }
    var gets: UInt64 {
        get { values.gets.load(ordering: .relaxed) }
        set { values.gets.store(newValue, ordering: .relaxed) }
    }
    var lists: UInt64 {
        get { values.lists.load(ordering: .relaxed) }
        set { values.lists.store(newValue, ordering: .relaxed) }
    }
    var proposedEntries: UInt64 {
        get { values.proposedEntries.load(ordering: .relaxed) }
        set { values.proposedEntries.store(newValue, ordering: .relaxed) }
    }
    var proposedOperations: UInt64 {
        get { values.proposedOperations.load(ordering: .relaxed) }
        set { values.proposedOperations.store(newValue, ordering: .relaxed) }
    }
    var appliedEntries: UInt64 {
        get { values.appliedEntries.load(ordering: .relaxed) }
        set { values.appliedEntries.store(newValue, ordering: .relaxed) }
    }
    var engineBatches: UInt64 {
        get { values.engineBatches.load(ordering: .relaxed) }
        set { values.engineBatches.store(newValue, ordering: .relaxed) }
    }
    var peerMessages: UInt64 {
        get { values.peerMessages.load(ordering: .relaxed) }
        set { values.peerMessages.store(newValue, ordering: .relaxed) }
    }
}
