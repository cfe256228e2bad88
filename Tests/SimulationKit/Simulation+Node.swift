// The shell of a simulated node: feeds events to the core, carries out effects, checks both.

import KVBase
import ReplicationCore

extension Simulation {
    /// One event to one node, or into its socket buffers while it is paused.
    func step(_ node: SimulatedNode, _ input: NodeInput) throws(Violation) {
        guard node.isUp else { return }
        if node.isPaused {
            if node.inbox.count < 10_000 { node.inbox.append(input) }
            return
        }
        effects.removeAll()
        let now = node.localTime(time)
        switch input {
        case .event(let event):
            node.replica!.step(event, now: now, into: &effects)
        case .writes(let operations):
            let payloads = operations.map { operation in
                RegisterMachine.encode(
                    key: operation.key, value: operation.value,
                    padding: Int(operation.value % 40))
            }
            node.replica!.step(.propose(payloads), now: now, into: &effects)
            if let proposed = effects.proposed {
                guard proposed.count == operations.count, !effects.proposalsRefused else {
                    throw Violation(description: "a batch was taken in part at \(node.id)")
                }
                // What an earlier leadership proposed at these indexes was replaced: lost.
                while node.proposals.count > node.proposalsHead,
                    node.proposals[node.proposals.count - 1].index >= proposed.first
                {
                    node.proposals.removeLast()
                }
                for (offset, operation) in operations.enumerated() {
                    let index = LogIndex(proposed.first.rawValue + UInt64(offset))
                    node.proposals.append((proposed.term, index, operation))
                }
            }
        case .read(let operation, let mode):
            let token = nextToken
            nextToken += 1
            node.reads.append((token, operation, mode))
            node.replica!.step(.read(token: token, mode), now: now, into: &effects)
        case .change(let change):
            let token = nextToken
            nextToken += 1
            node.changes.append((token, change))
            node.replica!.step(
                .changeMembership(change, token: token), now: now, into: &effects)
        }
        try carryOut(node)
        try check(node, now: now)
        scheduleTimer(node)
    }

    private func carryOut(_ node: SimulatedNode) throws(Violation) {
        for persist in effects.persists { try persistLater(persist, node) }
        for item in effects.messages { try send(item.message, from: node, to: item.to) }
        for entry in effects.committed {
            try checkers.committed(entry, at: node.id)
            node.applyQueue.append(entry)
        }
        if !effects.committed.isEmpty { scheduleApply(node) }
        for ready in effects.readsReady {
            guard let place = node.reads.firstIndex(where: { $0.token == ready.token }) else {
                throw Violation(description: "a read was answered twice at \(node.id)")
            }
            let read = node.reads.remove(at: place)
            if ready.index <= node.machine.position.index {
                try serve(read.operation, mode: read.mode, node)
            } else {
                node.readyReads.append((ready.index, read.operation))
            }
        }
        for refused in effects.readsRefused { node.reads.removeAll { $0.token == refused.token } }
        for outcome in effects.membershipOutcomes {
            guard let place = node.changes.firstIndex(where: { $0.token == outcome.token }) else {
                throw Violation(description: "a change was answered twice at \(node.id)")
            }
            let change = node.changes.remove(at: place).change
            if outcome.error == nil { try checkOutcome(change, node) }
        }
        for replica in effects.snapshotsNeeded { sendSnapshot(from: node, to: replica) }
    }

    private func checkOutcome(
        _ change: MembershipChange, _ node: SimulatedNode
    ) throws(Violation) {
        report.membershipChanges += 1
        let now = node.replica!.membership
        let holds =
            switch change {
            case .addLearner(let member): now.learners.contains(member)
            case .removeLearner(let replica): !now.contains(replica)
            case .replaceVoters(let voters):
                now
                    == Membership(
                        voters: voters, learners: now.learners)
            }
        if !holds {
            throw Violation(description: "change \(change) answered, membership is \(now)")
        }
    }

    /// Invariants that one event at one node can break.
    private func check(_ node: SimulatedNode, now: Instant) throws(Violation) {
        guard let replica = node.replica else { return }
        if replica.term < node.seenTerm || replica.commit < node.seenCommit {
            throw Violation(description: "term or commit of \(node.id) went back")
        }
        if replica.term < node.promisedTerm {
            throw Violation(
                description: "\(node.id) forgot term \(node.promisedTerm) that it answered in")
        }
        node.seenTerm = replica.term
        node.seenCommit = replica.commit
        guard replica.applied <= replica.commit, replica.compacted.index <= replica.applied,
            replica.lastPosition == node.log.last
        else {
            throw Violation(description: "positions of \(node.id) contradict: \(describeGroup())")
        }
        if replica.retainedBytes
            > options.tuning.restoreBytesMax + 2 * options.tuning.uncommittedBytesMax + 1 << 20
        {
            throw Violation(description: "\(node.id) retains \(replica.retainedBytes) bytes")
        }
        guard replica.role == .leader else {
            node.wasLeader = false
            return
        }
        if !node.wasLeader {
            node.wasLeader = true
            report.leaderships += 1
            try checkers.leads(node.id, in: replica.term, log: node.log)
        }
        checkers.leaderCommitted(replica.commit, in: replica.term)
        guard replica.canServeReads(at: now) else { return }
        for other in nodes where other !== node {
            if let rival = other.replica, rival.canServeReads(at: other.localTime(time)) {
                throw Violation(
                    description: "two leases: \(node.id) in term \(replica.term),"
                        + " \(other.id) in term \(rival.term)")
            }
        }
    }

    func scheduleTimer(_ node: SimulatedNode) {
        guard let replica = node.replica else { return }
        let deadline = replica.nextDeadline(now: node.localTime(time))
        let at = node.trueTime(deadline, now: time)
        guard at < node.timerAt else { return }
        node.timerAt = at
        heap.push(.timer(place(node.id), incarnation: node.incarnation), at: at)
    }

    // MARK: Disk

    private func persistLater(_ persist: Persist, _ node: SimulatedNode) throws(Violation) {
        if let first = persist.entries.first {
            var previousTerm = node.log.term(at: first.index.previous()) ?? .none
            let old = node.log.term(at: .none)
            precondition(old == nil || old == Term.none)
            for entry in persist.entries {
                try checkers.appended(entry, previousTerm: previousTerm, by: node.id)
                previousTerm = entry.term
            }
        }
        let before = node.log.entries.last { $0.kind == .membership }
        node.log.write(persist)
        if persist.entries.contains(where: { $0.kind == .membership }), let before {
            try checkMembershipChain(node, from: before.index)
        }
        node.diskQueue.append(persist)
        if node.diskBatch.isEmpty { startDiskBatch(node) }
        if options.canary == .lyingDisk {
            heap.push(
                .diskDone(place(node.id), incarnation: node.incarnation | 1 << 63), at: time)
        }
    }

    private func checkMembershipChain(
        _ node: SimulatedNode, from index: LogIndex
    ) throws(Violation) {
        var previous: Membership?
        for entry in node.log.entries where entry.kind == .membership && entry.index >= index {
            let next = try? Membership.decode(entry.payload)
            if let previous, let next { try checkers.changed(from: previous, to: next) }
            previous = next
        }
    }

    private func startDiskBatch(_ node: SimulatedNode) {
        guard !node.diskQueue.isEmpty else { return }
        swap(&node.diskBatch, &node.diskQueue)
        var micros = diskRandom.below(options.diskMicrosMax) + 50
        if options.diskStalls, !isHealing, diskRandom.chance(1, in: 500) {
            micros = diskRandom.below(3_000_000)
        }
        heap.push(
            .diskDone(place(node.id), incarnation: node.incarnation), at: time + micros * 1_000)
    }

    func finishDiskBatch(_ node: SimulatedNode, incarnation: UInt64) throws(Violation) {
        let isLie = incarnation >> 63 == 1
        guard node.incarnation == incarnation & ~(1 << 63) else { return }
        if isLie {
            let queue = node.diskBatch + node.diskQueue
            if let last = queue.last { try step(node, .event(.persisted(last.ticket))) }
            return
        }
        let batch = node.diskBatch
        node.diskBatch.removeAll()
        for persist in batch { node.disk.write(persist) }
        startDiskBatch(node)
        guard let last = batch.last else { return }
        try step(node, .event(.persisted(last.ticket)))
    }

    // MARK: Engine

    private func scheduleApply(_ node: SimulatedNode) {
        guard !node.isApplying, node.applyHead < node.applyQueue.count else { return }
        node.isApplying = true
        let delay = diskRandom.below(1_000_000)
        heap.push(.apply(place(node.id), incarnation: node.incarnation), at: time + delay)
    }

    func applyNext(_ node: SimulatedNode, incarnation: UInt64) throws(Violation) {
        guard node.incarnation == incarnation, node.isUp else { return }
        if node.isPaused {
            heap.push(.apply(place(node.id), incarnation: incarnation), at: time + 10_000_000)
            return
        }
        node.isApplying = false
        let end = node.applyQueue.count
        for place in node.applyHead..<end {
            let entry = node.applyQueue[place]
            guard entry.index == node.machine.position.index.next() else {
                throw Violation(description: "\(node.id) was handed \(entry.index) out of order")
            }
            guard options.canary == .lyingDisk || node.disk.term(at: entry.index) == entry.term
            else {
                throw Violation(
                    description: "\(node.id) applies \(entry.index), which is not on its disk")
            }
            node.machine.apply(entry)
            try checkers.applied(node.machine, at: node.id)
            try acknowledge(entry, node)
        }
        node.applyQueue.removeAll(keepingCapacity: true)
        node.applyHead = 0
        if !node.isFlushing {
            node.isFlushing = true
            let delay = diskRandom.below(options.flushMillisMax) * 1_000_000
            heap.push(.flush(place(node.id), incarnation: incarnation), at: time + delay)
        }
        let position = node.machine.position.index
        try step(node, .event(.applied(position)))
        try serveReady(node)
    }

    func finishFlush(_ node: SimulatedNode, incarnation: UInt64) throws(Violation) {
        guard node.incarnation == incarnation, node.isRunning else {
            if node.incarnation == incarnation { node.isFlushing = false }
            return
        }
        node.isFlushing = false
        node.durableMachine = node.machine
        let position = node.machine.position
        try step(node, .event(.compact(upTo: position.index)))
        guard let replica = node.replica else { return }
        node.log.compact(through: replica.compacted)
        if node.disk.term(at: replica.compacted.index) != nil {
            node.disk.compact(through: replica.compacted)
        }
    }

    // MARK: Snapshots

    private func sendSnapshot(from node: SimulatedNode, to replica: ReplicaID) {
        let delay = (networkRandom.below(300) + 5) * 1_000_000
        heap.push(
            .snapshotArrives(
                from: place(node.id), incarnation: node.incarnation, to: replica, node.machine),
            at: time + delay)
    }

    func receiveSnapshot(
        from: Int, incarnation: UInt64, to node: SimulatedNode, _ machine: RegisterMachine
    ) throws(Violation) {
        let sender = nodes[from].id
        let isLost =
            !node.isRunning || blocked[from][place(node.id)]
            || (!isHealing && networkRandom.chance(options.lossPermille, in: 1_000))
        if !isLost, let replica = node.replica, replica.needsSnapshot(at: machine.position) {
            report.snapshots += 1
            node.machine = machine
            node.durableMachine = machine
            node.applyQueue.removeAll()
            if node.log.term(at: machine.position.index) != machine.position.term {
                node.log.write(Persist(ticket: PersistTicket(0), snapshot: machine.position))
            }
            let event = Event.snapshotInstalled(
                position: machine.position, membership: machine.membership, from: sender)
            try step(node, .event(event))
            try serveReady(node)
        }
        heap.push(
            .snapshotReport(
                from, incarnation: incarnation, to: node.id, position: machine.position,
                succeeded: !isLost), at: time + networkRandom.below(20_000_000))
    }
}
