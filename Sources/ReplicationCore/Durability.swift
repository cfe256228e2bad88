// The disk as a peer: what was asked of it, what it has answered, and the messages that wait for it.

import KVBase

/// Invariant: a message that rests on state which is not durable is in `held`, not on the wire.
struct Durability: Sendable {
    /// The disk holds this term (and the vote given in it).
    private(set) var term: Term
    /// The disk holds the log, as it is now, up to here.
    private(set) var index: LogIndex
    private(set) var issued = PersistTicket(0)
    private(set) var completed = PersistTicket(0)

    // Set during a step, turned into a persist at its end.
    var hardStateChanged = false
    /// The lowest entry appended in this step.
    var firstNew: LogIndex?
    var snapshot: LogPosition?
    /// Messages of this step that rest on everything persisted so far and in this step.
    var waiting: [(to: ReplicaID, message: Message)] = []

    private var outstanding: [(ticket: PersistTicket, term: Term, last: LogIndex)] = []
    private var held: [(ticket: PersistTicket, to: ReplicaID, message: Message)] = []
    /// Messages over this bound are dropped, which the protocol survives like any loss.
    private static let heldMax = 4_096

    init(term: Term, index: LogIndex) {
        self.term = term
        self.index = index
    }

    var isDirty: Bool { hardStateChanged || firstNew != nil || snapshot != nil }

    /// The entries from `first` on are about to be replaced.
    mutating func truncated(from first: LogIndex) {
        let last = first.previous()
        index = min(index, last)
        for place in outstanding.indices where outstanding[place].last > last {
            outstanding[place].last = last
        }
        if let new = firstNew, new > first { firstNew = first }
    }

    /// The log was replaced by a snapshot that the engine holds durably.
    mutating func reset(to position: LogPosition) {
        index = position.index
        for place in outstanding.indices { outstanding[place].last = .none }
        firstNew = nil
        snapshot = position
    }

    mutating func appended(_ index: LogIndex) {
        if firstNew == nil { firstNew = index }
    }

    mutating func issue(term: Term, last: LogIndex) -> PersistTicket {
        issued = PersistTicket(issued.number + 1)
        outstanding.append((issued, term, last))
        return issued
    }

    /// Tickets complete in order: this one and all before it are durable.
    mutating func complete(_ ticket: PersistTicket) {
        guard ticket > completed, ticket <= issued else { return }
        completed = ticket
        var count = 0
        while count < outstanding.count, outstanding[count].ticket <= ticket {
            term = max(term, outstanding[count].term)
            index = max(index, outstanding[count].last)
            count += 1
        }
        outstanding.removeFirst(count)
    }

    /// Moves messages of this step to the held ones, or out when nothing is outstanding.
    mutating func hold(into effects: inout Effects) {
        for item in waiting {
            if completed == issued {
                effects.messages.append(item)
            } else if held.count < Self.heldMax {
                held.append((issued, item.to, item.message))
            }
        }
        waiting.removeAll(keepingCapacity: true)
    }

    /// Lets go the messages whose ticket is complete. Those of an older term than `term` serve no
    /// one and are dropped; of several append acknowledgements to one leader the last says it all.
    mutating func release(term: Term, into effects: inout Effects) {
        var count = 0
        while count < held.count, held[count].ticket <= completed { count += 1 }
        for place in 0..<count where held[place].message.term >= term {
            let item = held[place]
            if item.message.isAcknowledgement, place + 1 < count,
                held[place + 1].to == item.to, held[place + 1].message.isAcknowledgement
            {
                continue
            }
            effects.messages.append((item.to, item.message))
        }
        held.removeFirst(count)
    }
}

extension Message {
    fileprivate var isAcknowledgement: Bool {
        if case .appendResponse(_, true, _, _) = self { return true }
        return false
    }
}

extension Replica {
    mutating func persisted(
        _ ticket: PersistTicket, now: Instant, into effects: inout Effects
    ) {
        durability.complete(ticket)
        durability.release(term: hardState.term, into: &effects)
        switch role {
        case .candidate: maybeWin(now: now, into: &effects)
        case .leader: maybeCommit(now: now, into: &effects)
        case .follower, .learner, .preCandidate: break
        }
    }

    /// Sends a message that promises something about durable state.
    mutating func sendWhenDurable(_ message: Message, to replica: ReplicaID) {
        durability.waiting.append((replica, message))
    }

    /// The end of every step: new state to the disk, then what rests on it, then what is committed.
    mutating func flush(into effects: inout Effects) {
        if let position = durability.snapshot {
            durability.snapshot = nil
            let ticket = durability.issue(term: .none, last: .none)
            effects.persists.append(Persist(ticket: ticket, snapshot: position))
        }
        if durability.isDirty {
            var persist = Persist(
                ticket: durability.issue(term: hardState.term, last: log.lastIndex))
            if durability.hardStateChanged { persist.hardState = hardState }
            if let first = durability.firstNew {
                if let shared = sharedSlice, shared.first == first, shared.last == log.lastIndex {
                    persist.entries = shared.entries
                } else {
                    persist.entries = log.slice(from: first)
                }
            }
            durability.hardStateChanged = false
            durability.firstNew = nil
            effects.persists.append(persist)
        }
        sharedSlice = nil
        if !durability.waiting.isEmpty { durability.hold(into: &effects) }
        deliver(into: &effects)
    }

    /// Hands out committed entries, but none that is not durable here: the engine must never be
    /// ahead of the own log.
    private mutating func deliver(into effects: inout Effects) {
        let ready = min(commit, durability.index)
        guard ready > delivered else { return }
        effects.committed.append(contentsOf: log.slice(from: delivered.next(), through: ready))
        delivered = ready
    }
}
