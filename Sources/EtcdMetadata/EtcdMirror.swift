// A copy of everything below the prefix, kept up to date by own transactions and by the watch.

import KVBase
import MetadataCore

/// Pure: no I/O, no clock. The invariant: `state` is what the mutations 1...`head.sequence` add up to.
struct EtcdMirror {
    private(set) var state = RevisionedState()
    private(set) var head = EtcdHead()
    /// The etcd revision at which the head was written; 0 when there is none yet.
    private(set) var headModRevision: UInt64 = 0
    /// For look-up only.
    private(set) var leases: [LeaseID: EtcdLease] = [:]
    /// Leases whose etcd lease lives. For look-up only.
    private(set) var alive: Set<LeaseID> = []
    /// The parts of the large mutation that the head names, and of those that may be named next.
    private(set) var parts: [PartSet] = []
    /// Controllers with a session, sorted by name.
    private(set) var controllers: [EtcdPlace] = []
    private(set) var election: EtcdElectionRecord?
    /// The newest mutation made by this store's own writer number.
    private(set) var ownSequence: UInt64 = 0
    /// Why what is in etcd does not follow from what the copy is made of. Nothing is right from then on.
    private(set) var loss: String?
    let layout: EtcdLayout
    let writer: UInt64

    struct PartSet {
        var writer: UInt64
        var sequence: UInt64
        /// By index.
        var parts: [Int: Bytes]
    }

    /// Parts of mutations that nobody finished; more than a few are never under way.
    private static let partSetsMax = 16

    init(layout: EtcdLayout, writer: UInt64) {
        self.layout = layout
        self.writer = writer
    }

    /// Leases of which nobody keeps the etcd lease alive any more.
    var endedLeases: [LeaseID] { state.leases.map(\.id).filter { !alive.contains($0) } }

    // MARK: Whole images

    /// Takes an image over. True when mutations lie between the copy and the image: their events are lost.
    mutating func take(_ image: EtcdImage) -> Bool {
        let isReplaced = image.state != nil
        if let state = image.state { self.state = state }
        head = image.head
        headModRevision = image.headModRevision
        leases = image.leases
        alive = image.alive
        parts = image.parts
        controllers = image.controllers
        election = image.election
        if head.writer == writer { ownSequence = max(ownSequence, head.sequence) }
        return isReplaced
    }

    // MARK: Mutations

    /// Applies the mutation that makes `new` of the head; the event when it made a revision.
    mutating func apply(
        _ mutation: MetadataMutation, lease: EtcdLease?, head new: EtcdHead,
        modRevision: UInt64
    ) throws(DatabaseError) -> MetadataEvent? {
        precondition(new.sequence == head.sequence + 1)
        let event = state.apply(mutation, now: .origin)
        guard state.revision == new.revision else {
            throw DatabaseError(
                .storageFailed,
                "metadata in etcd: mutation \(new.sequence) should make revision \(new.revision), "
                    + "and makes \(state.revision)")
        }
        switch mutation {
        case .leaseGranted(let id, _):
            leases[id] = lease
            alive.insert(id)
        case .leaseEnded(let id):
            leases[id] = nil
            alive.remove(id)
        case .changes: break
        }
        head = new
        headModRevision = modRevision
        if new.writer == writer { ownSequence = new.sequence }
        return event
    }

    /// The parts that were just put for the mutation that comes next.
    mutating func hold(_ set: PartSet) {
        parts.removeAll { $0.writer == set.writer && $0.sequence == set.sequence }
        parts.append(set)
        if parts.count > Self.partSetsMax { parts.removeFirst() }
    }

    /// Nothing is known any more of mutations that nobody finished.
    mutating func dropParts() { parts.removeAll() }

    mutating func compact(below revision: Revision) { state.compact(below: revision) }

    /// A head that was read. The same mutation may have been put further in its places.
    mutating func observe(_ new: EtcdHead, modRevision: UInt64) {
        guard new.sequence == head.sequence, modRevision > headModRevision else { return }
        head = new
        headModRevision = modRevision
        if new.staged == nil {
            parts.removeAll { $0.writer == new.writer && $0.sequence == new.sequence }
        }
    }

    /// The changes of one part of the mutation that the head names.
    func stagedChanges(_ index: UInt32) throws(DatabaseError) -> [MetadataChange] {
        guard
            let set = parts.first(where: {
                $0.writer == head.writer && $0.sequence == head.sequence
            }), let bytes = set.parts[Int(index)]
        else {
            throw DatabaseError(
                .storageFailed,
                "metadata in etcd: part \(index) of mutation \(head.sequence) is gone")
        }
        return try EtcdPart.decode(bytes)
    }

    // MARK: Another history

    /// What to say when there is no head any more.
    var deleted: String {
        "the metadata in etcd below \(String(decoding: layout.prefix, as: UTF8.self)) was deleted: "
            + "mutation \(head.sequence), revision \(state.revision.rawValue), was there"
    }

    /// What to say of a head that cannot follow the one that the copy knows.
    func wentBack(to other: EtcdHead) -> String {
        let known = "mutation \(head.sequence), revision \(state.revision.rawValue)"
        let found = "mutation \(other.sequence), revision \(other.revision.rawValue)"
        return other.sequence < head.sequence
            ? "the metadata in etcd went back from \(known), to \(found): was an older backup of etcd restored?"
            : "the metadata in etcd is another one: after \(known) came \(found), which does not follow "
                + "from it: was an older backup of etcd restored?"
    }

    // MARK: The watch

    /// Takes the events of whole etcd revisions in order; those of mutations that are known already change
    /// nothing. Throws when the copy must be read anew.
    mutating func take(_ events: [EtcdEvent]) throws(DatabaseError) -> [MetadataEvent] {
        var made: [MetadataEvent] = []
        var index = 0
        while index < events.count {
            let revision = events[index].record.modRevision
            var group: [(EtcdLayout.Place, EtcdEvent)] = []
            while index < events.count, events[index].record.modRevision == revision {
                group.append((layout.place(of: events[index].record.key), events[index]))
                index += 1
            }
            for (place, event) in group { takeAside(place, event) }
            if let event = try takeMutation(group, revision) { made.append(event) }
        }
        return made
    }

    /// What stands beside the mutations.
    private mutating func takeAside(_ place: EtcdLayout.Place, _ event: EtcdEvent) {
        switch place {
        case .alive(let id):
            if event.isDeletion { alive.remove(id) } else { alive.insert(id) }
        case .part(let writer, let sequence, let index):
            takePart(writer, sequence, index, event)
        case .controller(let name):
            controllers.removeAll { $0.name == name }
            if !event.isDeletion, let place = try? EtcdPlace(event.record.value) {
                controllers.append(place)
                controllers.sort { $0.name < $1.name }
            }
        case .election:
            election = event.isDeletion ? nil : EtcdElectionRecord(event.record)
        case .head, .data, .lease, .foreign: break
        }
    }

    private mutating func takePart(
        _ writer: UInt64, _ sequence: UInt64, _ index: Int, _ event: EtcdEvent
    ) {
        // Those of mutations that are in their places already.
        guard !event.isDeletion, sequence >= head.sequence else { return }
        if let at = parts.firstIndex(where: { $0.writer == writer && $0.sequence == sequence }) {
            parts[at].parts[index] = event.record.value
        } else {
            hold(
                PartSet(
                    writer: writer, sequence: sequence, parts: [index: event.record.value]))
        }
    }

    private mutating func takeMutation(
        _ group: [(EtcdLayout.Place, EtcdEvent)], _ revision: UInt64
    ) throws(DatabaseError) -> MetadataEvent? {
        guard let written = group.last(where: { $0.0 == .head })?.1 else { return nil }
        guard !written.isDeletion else {
            // A deletion that the copy began behind is none of its history.
            if revision > headModRevision, headModRevision != 0 { loss = deleted }
            return nil
        }
        let new = try EtcdHead(written.record.value)
        guard new.sequence > head.sequence else {
            if revision > headModRevision,
                new.sequence < head.sequence || new.writer != head.writer
            {
                loss = wentBack(to: new)
            }
            observe(new, modRevision: revision)
            return nil
        }
        guard new.sequence == head.sequence + 1 else {
            throw DatabaseError(.unavailable, "mutations are missing")
        }
        var changes: [MetadataChange] = []
        var granted: (LeaseID, EtcdLease)?
        var ended: LeaseID?
        for (place, event) in group {
            switch place {
            case .data(let key):
                if event.isDeletion {
                    changes.append(.delete(key: key))
                } else {
                    let record = try EtcdValue.decode(event.record.value, key: key)
                    changes.append(.put(key: key, value: record.value, lease: record.lease))
                }
            case .lease(let id):
                if event.isDeletion {
                    ended = id
                } else {
                    granted = (id, try EtcdLease(event.record.value))
                }
            default: break
            }
        }
        if let granted {
            return try apply(
                .leaseGranted(granted.0, ttl: granted.1.ttl), lease: granted.1, head: new,
                modRevision: revision)
        }
        if let ended {
            return try apply(.leaseEnded(ended), lease: nil, head: new, modRevision: revision)
        }
        if let staged = new.staged {
            guard
                let set = parts.first(where: {
                    $0.writer == new.writer && $0.sequence == new.sequence
                })
            else { throw DatabaseError(.unavailable, "parts are missing") }
            for index in 0..<Int(staged.count) {
                guard let bytes = set.parts[index] else {
                    throw DatabaseError(.unavailable, "parts are missing")
                }
                changes += try EtcdPart.decode(bytes)
            }
        }
        return try apply(.changes(changes), lease: nil, head: new, modRevision: revision)
    }
}

/// Who holds the election key.
struct EtcdElectionRecord: Hashable, Sendable {
    var place: EtcdPlace
    /// Names one holding: later transactions compare it.
    var createRevision: UInt64
    var lease: UInt64

    init(place: EtcdPlace, createRevision: UInt64, lease: UInt64) {
        self.place = place
        self.createRevision = createRevision
        self.lease = lease
    }

    init?(_ record: EtcdRecord) {
        guard let place = try? EtcdPlace(record.value) else { return nil }
        self.place = place
        createRevision = record.createRevision
        lease = record.lease
    }
}
