// Who acts on the group: clients, the controller that nominates, the operator who changes members.

import KVBase
import ReplicationCore

extension Simulation {
    // MARK: Clients

    func runClient() throws(Violation) {
        guard !isHealing else { return }
        heap.push(
            .client, at: time + (100 + clientRandom.below(options.clientMicrosMax)) * 1_000)
        // Any node that calls itself leader, deposed or paused ones included.
        let leaders = nodes.indices.filter { nodes[$0].replica?.role == .leader }
        guard !leaders.isEmpty else { return }
        let node = nodes[leaders[Int(clientRandom.below(UInt64(leaders.count)))]]
        switch clientRandom.below(4) {
        case 0:
            try step(node, .read(newOperation(), .lease))
        case 1:
            try step(node, .read(newOperation(), .quorum))
        default:
            let count = clientRandom.chance(1, in: 4) ? 1 + clientRandom.below(6) : 1
            try step(node, .writes((0..<count).map { _ in newOperation() }))
        }
    }

    private func newOperation() -> ClientOperation {
        defer { nextValue += 1 }
        let key = Int(clientRandom.below(UInt64(RegisterMachine.keyCount)))
        return ClientOperation(key: key, value: nextValue, floor: checkers.floor(of: key))
    }

    /// Answers the client whose proposal this entry is, if this node took it.
    func acknowledge(_ entry: LogEntry, _ node: SimulatedNode) throws(Violation) {
        while node.proposalsHead < node.proposals.count,
            node.proposals[node.proposalsHead].index <= entry.index
        {
            let proposal = node.proposals[node.proposalsHead]
            node.proposalsHead += 1
            guard proposal.index == entry.index, proposal.term == entry.term else { continue }
            try checkers.wrote(
                key: proposal.operation.key, version: entry.index.rawValue,
                floor: proposal.operation.floor)
            report.acknowledgedWrites += 1
            if isHealing { settledWrites += 1 }
        }
        if node.proposalsHead == node.proposals.count, node.proposalsHead > 0 {
            node.proposals.removeAll(keepingCapacity: true)
            node.proposalsHead = 0
        }
    }

    func serve(
        _ operation: ClientOperation, mode: ReadMode, _ node: SimulatedNode
    ) throws(Violation) {
        let version = node.machine.versions[operation.key]
        try checkers.read(
            key: operation.key, version: version, floor: operation.floor, by: node.id, mode: mode)
        if mode == .lease { report.leaseReads += 1 } else { report.quorumReads += 1 }
        if isHealing { settledReads += 1 }
    }

    func serveReady(_ node: SimulatedNode) throws(Violation) {
        let position = node.machine.position.index
        while let place = node.readyReads.firstIndex(where: { $0.index <= position }) {
            let read = node.readyReads.remove(at: place)
            try serve(read.operation, mode: .quorum, node)
        }
    }

    // MARK: Controller

    /// Names the most advanced reachable replica when no leader is in sight; an erratic controller
    /// also names anyone at any time, at odd terms, twice.
    func runController() {
        heap.push(
            .controller, at: time + (100 + controllerRandom.below(200)) * 1_000_000)
        if options.controller == .dead { return }
        let running = nodes.filter { $0.isRunning }
        let hasLeader = running.contains { $0.replica?.role == .leader }
        let errs = options.controller == .erratic && controllerRandom.chance(1, in: 4)
        guard !running.isEmpty, !hasLeader || (errs && !isHealing) else { return }
        var nominee = running[0]
        for node in running {
            let best = nominee.replica!.lastPosition
            let other = node.replica!.lastPosition
            if other.term > best.term || (other.term == best.term && other.index > best.index) {
                nominee = node
            }
        }
        var term = running.reduce(Term.none) { max($0, $1.replica!.term) }.next()
        if errs {
            nominee = running[Int(controllerRandom.below(UInt64(running.count)))]
            term = Term(max(term.rawValue + controllerRandom.below(3), 2) - 1)
            let second = running[Int(controllerRandom.below(UInt64(running.count)))]
            heap.push(
                .nominate(second.id, term), at: time + controllerRandom.below(400) * 1_000_000)
        }
        heap.push(
            .nominate(nominee.id, term), at: time + controllerRandom.below(50) * 1_000_000)
    }

    // MARK: Operator

    func runAdmin() throws(Violation) {
        guard !isHealing, options.membershipChanges || options.transfers else { return }
        heap.push(.admin, at: time + (200 + faultRandom.below(3_000)) * 1_000_000)
        let leaders = nodes.filter { $0.replica?.role == .leader }
        guard !leaders.isEmpty else { return }
        let leader = leaders[Int(faultRandom.below(UInt64(leaders.count)))]
        let membership = leader.replica!.membership
        if options.transfers, !options.membershipChanges || faultRandom.chance(1, in: 4) {
            let voters = membership.voters
            guard !voters.isEmpty else { return }
            let target = voters[Int(faultRandom.below(UInt64(voters.count)))]
            report.transfers += 1
            try step(leader, .event(.transferLeadership(to: target.replica)))
            return
        }
        switch faultRandom.below(5) {
        case 0, 1:
            guard nodes.count < Self.nodesMax else { return }
            let new = addNode(membership: .empty)
            try step(leader, .change(.addLearner(new.member)))
        case 2:
            let learners = membership.learners
            guard let learner = learners.first, faultRandom.chance(1, in: 3) else { return }
            try step(leader, .change(.removeLearner(learner.replica)))
        default:
            var pool = membership.voters + membership.learners
            let count = 1 + faultRandom.below(UInt64(min(5, pool.count)))
            var voters: [Member] = []
            for _ in 0..<count {
                voters.append(pool.remove(at: Int(faultRandom.below(UInt64(pool.count)))))
            }
            try step(leader, .change(.replaceVoters(voters)))
        }
    }

    // MARK: Liveness

    /// Drives the healed group until new writes and reads succeed and every member holds everything.
    func checkProgress() throws(Violation) {
        heap.push(.progressCheck, at: time + 50_000_000)
        let leaders = nodes.filter {
            $0.isRunning && $0.replica?.canServeReads(at: $0.localTime(time)) == true
        }
        guard let leader = leaders.first else { return }
        if settledWrites < Self.settleWritesMin || settledReads < Self.settleReadsMin {
            try step(leader, .writes([newOperation()]))
            try step(leader, .read(newOperation(), .lease))
            try step(leader, .read(newOperation(), .quorum))
            return
        }
        guard let replica = leader.replica, !replica.membership.isJoint, leader.changes.isEmpty,
            leader.reads.isEmpty, leader.readyReads.isEmpty
        else { return }
        isSettled = replica.membership.all.allSatisfy { member in
            let node = self.node(member.replica)
            return !node.isRunning
                || node.machine.position.index == replica.lastPosition.index
                    && node.replica?.applied == node.machine.position.index
        }
    }
}
