// The network between simulated nodes, and the faults of network, processes and clocks.

import KVBase
import ReplicationCore

extension Simulation {
    func send(_ message: Message, from node: SimulatedNode, to replica: ReplicaID) throws(Violation)
    {
        if case .voteResponse(let term, false, true, _) = message {
            try checkers.voted(node.id, for: replica, in: term)
            node.promisedTerm = max(node.promisedTerm, term)
        }
        if case .appendResponse(let term, true, _, _) = message {
            node.promisedTerm = max(node.promisedTerm, term)
        }
        if case .append(_, _, let entries, _) = message,
            entries.count > options.tuning.appendEntriesMax
        {
            throw Violation(description: "an append of \(entries.count) entries")
        }
        guard place(replica) < nodes.count, replica != node.id else {
            throw Violation(description: "\(node.id) sends to \(replica)")
        }
        if !isHealing {
            if networkRandom.chance(options.lossPermille, in: 1_000) { return }
            if networkRandom.chance(options.duplicatePermille, in: 1_000) {
                transmit(message, from: node, to: replica)
            }
        }
        transmit(message, from: node, to: replica)
    }

    private func transmit(_ message: Message, from node: SimulatedNode, to replica: ReplicaID) {
        guard !blocked[place(node.id)][place(replica)] else { return }
        let target = self.node(replica)
        guard target.isUp else {
            // A refused connection is noticed, now and then.
            if networkRandom.chance(1, in: 20), case .heartbeat = message {
                // Peers learn of a broken connection soon, each in its own time.
                for peer in nodes where peer.isRunning && peer.id != replica {
                    let delay = networkRandom.below(options.delayMicrosMax) * 1_000
                    heap.push(.unreachable(replica, at: peer.id), at: time + delay)
                }
            }
            return
        }
        var micros = 50 + networkRandom.below(isHealing ? 1_000 : options.delayMicrosMax)
        if !isHealing, networkRandom.chance(options.straysPermille, in: 1_000) {
            micros = networkRandom.below(1_000_000)
        }
        heap.push(.deliver(from: node.id, to: replica, message), at: time + micros * 1_000)
    }

    // MARK: Faults

    func injectFault() {
        guard !isHealing else { return }
        heap.push(
            .fault, at: time + (50 + faultRandom.below(options.faultMillisMax)) * 1_000_000)
        var kinds: [() -> Void] = []
        if options.partitions { kinds += [splitGroup, isolateLeader, bridge] }
        if options.oneWayPartitions { kinds += [breakSomeLinks, muteLeader] }
        if options.crashes { kinds += [crashOne, crashOne, crashLeader, crashAll] }
        if options.pauses { kinds += [pauseOne, pauseLeader] }
        if options.crashes, options.partitions { kinds += [bounceVoter] }
        guard !kinds.isEmpty else { return }
        kinds[Int(faultRandom.below(UInt64(kinds.count)))]()
    }

    private func randomPlace() -> Int { Int(faultRandom.below(UInt64(nodes.count))) }

    private func leaderPlace() -> Int {
        let leaders = nodes.indices.filter { nodes[$0].replica?.role == .leader }
        return leaders.isEmpty
            ? randomPlace() : leaders[Int(faultRandom.below(UInt64(leaders.count)))]
    }

    private func partition(_ isBlocked: (Int, Int) -> Bool) {
        partitionNumber += 1
        for from in 0..<Self.nodesMax {
            for to in 0..<Self.nodesMax { blocked[from][to] = isBlocked(from, to) }
        }
        let length = (100 + faultRandom.below(4_000)) * 1_000_000
        heap.push(.heal(partitionNumber), at: time + length)
    }

    func healLinks() {
        for from in 0..<Self.nodesMax {
            for to in 0..<Self.nodesMax { blocked[from][to] = false }
        }
    }

    private func splitGroup() {
        let sides = faultRandom.next()
        partition { from, to in (sides >> from & 1) != (sides >> to & 1) }
    }

    private func isolateLeader() {
        let leader = leaderPlace()
        partition { from, to in from == leader || to == leader }
    }

    /// Two halves that see each other only through one node.
    private func bridge() {
        let sides = faultRandom.next()
        let middle = randomPlace()
        partition { from, to in
            from != middle && to != middle && (sides >> from & 1) != (sides >> to & 1)
        }
    }

    private func breakSomeLinks() {
        let seed = faultRandom.next()
        partition { from, to in
            SeededRandom.mix(seed ^ UInt64(from * 64 + to)) % 3 == 0
        }
    }

    /// A leader that can send but not hear, or hear but not send.
    private func muteLeader() {
        let leader = leaderPlace()
        let hears = faultRandom.chance(1, in: 2)
        partition { from, to in hears ? from == leader : to == leader }
    }

    private func crashOne() { crash(nodes[randomPlace()]) }
    private func crashLeader() { crash(nodes[leaderPlace()]) }
    private func crashAll() { for node in nodes { crash(node) } }
    /// Cuts one node off from the leader, names it candidate when its own promise has run out, and
    /// restarts a voter that still hears the leader: has it forgotten what it promised?
    private func bounceVoter() {
        let leader = leaderPlace()
        let candidate = randomPlace()
        guard let term = nodes[leader].replica?.term, leader != candidate else { return }
        // The voters restart first, so that the request finds them before the next heartbeat does.
        partition { from, to in
            (from == leader && to == candidate) || (from == candidate && to == leader)
        }
        let wait = options.tuning.leaseDuration.count * 5 / 4
        let late = wait + (3 + faultRandom.below(30)) * 1_000_000
        heap.push(.nominate(nodes[candidate].id, term.next()), at: time + late)
        for place in nodes.indices where place != leader && place != candidate {
            if faultRandom.chance(4, in: 5) { heap.push(.bounce(place), at: time + wait) }
        }
    }

    func bounce(_ node: SimulatedNode) {
        guard !isHealing, node.isUp else { return }
        report.crashes += 1
        node.crash(random: &faultRandom, keepsNothing: options.canary == .lyingDisk)
        heap.push(.restart(place(node.id)), at: time + 2_000_000)
    }

    private func pauseOne() { pause(nodes[randomPlace()]) }
    private func pauseLeader() { pause(nodes[leaderPlace()]) }

    private func crash(_ node: SimulatedNode) {
        guard node.isUp else { return }
        report.crashes += 1
        node.crash(random: &faultRandom, keepsNothing: options.canary == .lyingDisk)
        let quick = faultRandom.chance(1, in: 2)
        let length = (2 + faultRandom.below(quick ? 60 : 5_000)) * 1_000_000
        heap.push(.restart(place(node.id)), at: time + length)
    }

    private func pause(_ node: SimulatedNode) {
        guard node.isRunning else { return }
        node.isPaused = true
        let length = (50 + faultRandom.below(faultRandom.chance(1, in: 2) ? 600 : 8_000))
        heap.push(
            .resume(place(node.id), incarnation: node.incarnation),
            at: time + length * 1_000_000)
    }

    /// Everything that arrived meanwhile is found in the socket buffers, in order.
    func resume(_ node: SimulatedNode) throws(Violation) {
        guard node.isPaused else { return }
        node.isPaused = false
        let inbox = node.inbox
        node.inbox.removeAll()
        for input in inbox { try step(node, input) }
        scheduleTimer(node)
    }

    // MARK: Healing

    func healEverything() throws(Violation) {
        isHealing = true
        healLinks()
        for node in nodes {
            if node.isPaused { try resume(node) }
            start(node)
        }
    }

    /// As many voters as the group can spare die or freeze for good, the leader perhaps among them.
    func loseMinority() {
        let leader = nodes.first {
            $0.replica?.canServeReads(at: $0.localTime(time)) == true
        }
        guard var voters = leader?.replica?.membership.voters else { return }
        for _ in 0..<(voters.count - 1) / 2 {
            let member = voters.remove(at: Int(faultRandom.below(UInt64(voters.count))))
            let lost = node(member.replica)
            if faultRandom.chance(1, in: 2) {
                lost.isPaused = true
            } else {
                lost.crash(random: &faultRandom, keepsNothing: false)
            }
        }
    }
}
