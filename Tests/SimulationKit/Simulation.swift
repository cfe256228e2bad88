// A whole group on simulated clocks, network and disks, driven by one seed.
//
// A run has two phases: faults under load, in which nothing wrong may ever happen; then everything
// heals, and all that is left must finish soon.

import KVBase
import ReplicationCore

/// What a run did; printed by `kvsim` and compared by tests.
public struct SimulationReport: Sendable {
    public var seed: UInt64
    /// The command that runs the same simulation again.
    public var repeatCommand: String
    /// Nil: every invariant held and the group came to rest.
    public var failure: String?
    /// Over every event of the run.
    public var digest: UInt64 = 0
    public var simulatedNanoseconds: UInt64 = 0
    public var events: UInt64 = 0
    public var committed = 0
    public var acknowledgedWrites = 0
    public var leaseReads = 0
    public var quorumReads = 0
    public var leaderships = 0
    public var crashes = 0
    public var snapshots = 0
    public var membershipChanges = 0
    public var transfers = 0
}

enum SimulationEvent {
    case deliver(from: ReplicaID, to: ReplicaID, Message)
    case unreachable(ReplicaID, at: ReplicaID)
    case timer(Int, incarnation: UInt64)
    case diskDone(Int, incarnation: UInt64)
    case apply(Int, incarnation: UInt64)
    case flush(Int, incarnation: UInt64)
    case client
    case fault
    case controller
    case admin
    case nominate(ReplicaID, Term)
    case heal(UInt64)
    case resume(Int, incarnation: UInt64)
    case restart(Int)
    /// A crash and an immediate restart.
    case bounce(Int)
    case snapshotArrives(from: Int, incarnation: UInt64, to: ReplicaID, RegisterMachine)
    case snapshotReport(
        Int, incarnation: UInt64, to: ReplicaID, position: LogPosition, succeeded: Bool)
    case progressCheck
}

public final class Simulation {
    let options: SimulationOptions
    let group = GroupID(1)
    var time: UInt64 = 1_000_000_000
    var heap = EventHeap<SimulationEvent>()
    var nodes: [SimulatedNode] = []
    var checkers = Checkers()
    var trace = TraceDigest()
    var report: SimulationReport
    var effects = Effects()
    /// `blocked[from][to]`: nothing passes.
    var blocked: [[Bool]]
    var partitionNumber: UInt64 = 0
    var isHealing = false
    var nextValue: UInt64 = 1
    var nextToken: UInt64 = 1
    var settledWrites = 0
    var settledReads = 0
    var isSettled = false
    static let nodesMax = 12
    static let settleWritesMin = 20
    static let settleReadsMin = 5
    static let settleSecondsMax: UInt64 = 60

    var networkRandom: SeededRandom
    var diskRandom: SeededRandom
    var faultRandom: SeededRandom
    var clientRandom: SeededRandom
    var controllerRandom: SeededRandom
    var replicaRandom: SeededRandom

    public init(_ options: SimulationOptions) {
        self.options = options
        report = SimulationReport(seed: options.seed, repeatCommand: options.repeatCommand)
        var random = SeededRandom(seed: options.seed)
        networkRandom = random.fork()
        diskRandom = random.fork()
        faultRandom = random.fork()
        clientRandom = random.fork()
        controllerRandom = random.fork()
        replicaRandom = random.fork()
        blocked = Array(
            repeating: Array(repeating: false, count: Self.nodesMax), count: Self.nodesMax)
        let members = (1...UInt32(options.replicas)).map {
            Member(replica: ReplicaID($0), node: NodeID($0))
        }
        for _ in members { addNode(membership: Membership(voters: members)) }
    }

    /// Runs to the end or to the first broken invariant.
    public static func run(_ options: SimulationOptions) -> SimulationReport {
        Simulation(options).run()
    }

    func run() -> SimulationReport {
        do throws(Violation) {
            try runPhases()
        } catch {
            report.failure = "at \(time / 1_000_000) ms: \(error.description)"
        }
        report.digest = trace.value
        report.simulatedNanoseconds = time
        report.committed = checkers.chosenCount
        return report
    }

    private func runPhases() throws(Violation) {
        let faultsEnd = time + options.seconds * 1_000_000_000
        heap.push(.client, at: time)
        heap.push(.fault, at: time + 200_000_000)
        heap.push(.controller, at: time)
        heap.push(.admin, at: time + 1_000_000_000)
        try runEvents(until: faultsEnd) { false }
        try healEverything()
        heap.push(.progressCheck, at: time)
        try settle()
        loseMinority()
        try settle()
    }

    private func settle() throws(Violation) {
        settledWrites = 0
        settledReads = 0
        isSettled = false
        try runEvents(until: time + Self.settleSecondsMax * 1_000_000_000) { self.isSettled }
        guard isSettled else { throw Violation(description: "not settled: \(describeGroup())") }
    }

    private func runEvents(until end: UInt64, stop: () -> Bool) throws(Violation) {
        while !stop(), let (at, event) = heap.pop() {
            if at > end {
                heap.push(event, at: at)
                break
            }
            time = max(time, at)
            report.events += 1
            try handle(event)
        }
        time = max(time, stop() ? time : end)
    }

    private func handle(_ event: SimulationEvent) throws(Violation) {
        trace.add(time)
        switch event {
        case .deliver(let from, let to, let message):
            trace.add(UInt64(from.rawValue) << 32 | UInt64(to.rawValue))
            trace.add(message)
            try step(node(to), .event(.message(from: from, message)))
        case .unreachable(let replica, let peer):
            try step(node(peer), .event(.unreachable(replica)))
        case .timer(let place, let incarnation):
            let node = nodes[place]
            guard node.incarnation == incarnation, node.isUp, node.timerAt == time else { return }
            node.timerAt = .max
            trace.add(UInt64(place))
            try step(node, .event(.tick))
        case .diskDone(let place, let incarnation):
            try finishDiskBatch(nodes[place], incarnation: incarnation)
        case .apply(let place, let incarnation):
            try applyNext(nodes[place], incarnation: incarnation)
        case .flush(let place, let incarnation):
            try finishFlush(nodes[place], incarnation: incarnation)
        case .client:
            try runClient()
        case .fault:
            injectFault()
        case .controller:
            runController()
        case .nominate(let replica, let term):
            try step(node(replica), .event(.nominate(term)))
        case .admin:
            try runAdmin()
        case .heal(let number):
            if number == partitionNumber { healLinks() }
        case .resume(let place, let incarnation):
            if nodes[place].incarnation == incarnation { try resume(nodes[place]) }
        case .restart(let place):
            start(nodes[place])
        case .bounce(let place):
            bounce(nodes[place])
        case .snapshotArrives(let from, let incarnation, let to, let machine):
            try receiveSnapshot(from: from, incarnation: incarnation, to: node(to), machine)
        case .snapshotReport(let place, let incarnation, let to, let position, let succeeded):
            guard nodes[place].incarnation == incarnation else { return }
            try step(
                nodes[place],
                .event(.snapshotSent(to: to, position: position, succeeded: succeeded)))
        case .progressCheck:
            try checkProgress()
        }
    }

    func node(_ replica: ReplicaID) -> SimulatedNode { nodes[place(replica)] }
    func place(_ replica: ReplicaID) -> Int { Int(replica.rawValue) - 1 }

    @discardableResult
    func addNode(membership: Membership) -> SimulatedNode {
        let id = ReplicaID(UInt32(nodes.count + 1))
        let bound = options.driftPartsPerMillionMax
        let skew = bound == 0 ? 0 : Int64(faultRandom.below(2 * bound)) - Int64(bound)
        let node = SimulatedNode(
            id: id, membership: membership, clockOffset: faultRandom.below(1 << 40),
            partsPerMillion: skew)
        nodes.append(node)
        start(node)
        return node
    }

    func start(_ node: SimulatedNode) {
        guard !node.isUp else { return }
        node.start(
            group: group, tuning: options.tuning, seed: replicaRandom.next(), time: time,
            forgetsPromise: options.canary == .forgottenPromise)
        scheduleTimer(node)
    }

    func describeGroup() -> String {
        nodes.map { node in
            guard let replica = node.replica else { return "\(node.id) down" }
            let lists = [replica.membership.voters, replica.membership.outgoing]
                .map { list in list.map { $0.replica.description }.joined(separator: ",") }
            return "\(node.id) \(node.isPaused ? "paused " : "")\(replica.role)"
                + " term \(replica.term) last \(replica.lastPosition.index)"
                + " commit \(replica.commit) applied \(replica.applied)"
                + " voters \(lists[0])/\(lists[1])"
        }.joined(separator: "; ") + "; writes \(settledWrites) reads \(settledReads)"
    }
}
