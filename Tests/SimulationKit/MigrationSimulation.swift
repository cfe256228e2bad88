// Splits and moves between a few groups under faults: everything late, repeated, reordered or lost.

import KVBase
import NodeCore
import ShardCore

/// One run: groups whose logs are linearized already, routers with old maps, clients, a controller
/// that repeats every command it ever sent, and crashes. After every event the invariants of
/// docs/internals/migration.md are checked. The same seed gives the same run.
public struct MigrationSimulation {
    static let groupCount = 3
    static let routerCount = 3
    static let clientCount = 6
    static let keys: [Bytes] = (0..<14).map { [UInt8(ascii: "a") + $0] }
    static let table = TableID(1)

    enum Event {
        case apply(Int)
        case follow(Int)
        case crash
        case checkpoint
        case client(Int)
        case timeout(client: Int, operation: Int)
        case request(MigrationRequest)
        case response(MigrationResponse)
        case command(attempt: Int)
        case outcome(attempt: Int, MigrationOutcome)
        case controller
        case pull(Int)
        case chunkRequest(MigrationChunkRequest)
        case chunk(MigrationChunk)
        case keyRequest(MigrationRequest, from: GroupID)
        case keyAnswer(MigrationRequest, MigrationRecord?)
    }

    /// What a run did: a run that did little shows little.
    public struct Report: Sendable {
        public var events = 0
        public var splits = 0
        public var moves = 0
        public var reversals = 0
        public var givenUp = 0
        public var crashes = 0
        public var writes = 0
        public var reads = 0
        public var dualReads = 0
        public var importsFirst = 0
        public var refusedCommands = 0
        public var merges = 0
        public var refusedMerges = 0
        /// Moves that waited until their target had given up what it held of the keys before.
        public var formerInTheWay = 0
        public var verifications = 0
        public var comparisons = 0
        public var holds = 0

        public init() {}
    }

    let canary: MigrationCanary?
    var random: SeededRandom
    var now: UInt64 = 1_000
    var heap = EventHeap<Event>()
    var groups: [MigrationGroup]
    var map: [Shard]
    var routerMaps: [[Shard]]
    var controller = MigrationController()
    var clients: [MigrationClient]
    var oracle = MigrationOracle()
    var isFaulty = true
    var skews: [UInt64]
    var nextValue: UInt64 = 1
    var nextOperation = 1
    let delayMax: UInt64
    let lossPercent: UInt64
    public private(set) var report = Report()

    public init(seed: UInt64, canary: MigrationCanary? = nil) {
        self.canary = canary
        random = SeededRandom(seed: seed)
        delayMax = [5, 30, 200][Int(random.below(3))]
        lossPercent = [0, 2, 10][Int(random.below(3))]
        groups = (1...Self.groupCount).map {
            MigrationGroup(id: GroupID(UInt32($0)), canary: canary)
        }
        skews = []
        for _ in 0..<Self.groupCount { skews.append(random.below(2_000)) }
        let shard = Shard(
            id: ShardID(1), table: Self.table, range: .all, group: GroupID(1), epoch: Epoch(1),
            state: .active)
        map = [shard]
        routerMaps = [[Shard]](repeating: map, count: Self.routerCount)
        clients = [MigrationClient](repeating: MigrationClient(), count: Self.clientCount)
        var writer = ByteWriter()
        OwnedShard(shard: shard, partitioning: .range).encode(into: &writer)
        groups[0].propose(
            [
                (
                    Self.operation(
                        .createShard, shard: shard.id, epoch: shard.epoch, value: writer.bytes),
                    .none
                )
            ], wallClock: 1)
    }

    /// Runs for `eventCount` events with faults, then without until the controller is done.
    public mutating func run(events eventCount: Int) throws(Violation) -> Report {
        try catchUp(0)
        for client in 0..<Self.clientCount { heap.push(.client(client), at: now) }
        heap.push(.controller, at: now + 50)
        heap.push(.crash, at: now + 500)
        heap.push(.checkpoint, at: now + 100)
        for group in 0..<Self.groupCount {
            heap.push(.pull(group), at: now + 20)
            heap.push(.follow(group), at: now + 20)
        }
        while report.events < eventCount { try next() }
        isFaulty = false
        controller.isDraining = true
        let bound = eventCount + 50_000
        while controller.move != nil || !controller.former.isEmpty {
            guard report.events < bound else {
                throw Violation(description: "the move never ends: \(controller)")
            }
            try next()
        }
        report.comparisons = groups.reduce(0) { $0 + $1.comparisons }
        return report
    }

    private mutating func next() throws(Violation) {
        guard let (time, event) = heap.pop() else {
            throw Violation(description: "nothing is left to happen")
        }
        now = time
        report.events += 1
        try handle(event)
        try oracle.check(groups, map: map)
        if controller.move == nil { try oracle.checkIdle(groups, map: map) }
    }

    private mutating func handle(_ event: Event) throws(Violation) {
        switch event {
        case .apply(let group): if groups[group].isBehind { try apply(group) }
        case .follow(let group): try follow(group)
        case .crash:
            if isFaulty {
                let group = Int(random.below(UInt64(Self.groupCount)))
                try groups[group].restart()
                try catchUp(group)
                skews[group] = random.below(2_000)
                report.crashes += 1
            }
            heap.push(.crash, at: now + 50 + random.below(1_500))
        case .checkpoint:
            groups[Int(random.below(UInt64(Self.groupCount)))].takeCheckpoint()
            heap.push(.checkpoint, at: now + 20 + random.below(300))
        case .client(let client): startOperation(client)
        case .timeout(let client, let operation):
            if clients[client].operation?.id == operation { finishOperation(client) }
        case .request(let request): receive(request)
        case .response(let response): try receive(response)
        case .command(let attempt): deliver(attempt)
        case .outcome(let attempt, let outcome): learn(attempt, outcome)
        case .controller: control()
        case .pull(let group): pull(group)
        case .chunkRequest(let request): serve(request)
        case .chunk(let chunk): install(chunk)
        case .keyRequest(let request, let source): serveKey(request, from: source)
        case .keyAnswer(let request, let record): importFirst(request, record)
        }
    }

    // MARK: Helpers

    /// A message: late, sometimes lost, sometimes twice.
    mutating func send(_ event: Event) {
        if isFaulty, random.chance(lossPercent, in: 100) { return }
        heap.push(event, at: now + 1 + random.below(delayMax))
        if isFaulty, random.chance(lossPercent, in: 100) {
            heap.push(event, at: now + 1 + random.below(delayMax * 20))
        }
    }

    mutating func propose(_ group: Int, _ operations: [(Bytes, MigrationWaiter)]) {
        // The leader fell before the entry had a majority.
        if isFaulty, random.chance(lossPercent, in: 200) { return }
        groups[group].propose(operations, wallClock: now + skews[group])
        heap.push(.apply(group), at: now + 1 + random.below(delayMax))
    }

    func groupIndex(_ id: GroupID) -> Int { Int(id.rawValue) - 1 }

    mutating func count(_ body: (inout Report) -> Void) { body(&report) }

    private mutating func catchUp(_ group: Int) throws(Violation) {
        while groups[group].isBehind { try apply(group) }
    }

    /// The follower applies some entries; both replicas forget tombstones in their own time.
    private mutating func follow(_ group: Int) throws(Violation) {
        for _ in 0..<random.below(8) { try groups[group].follow() }
        switch random.below(40) {
        case 0: groups[group].sweepLeader()
        case 1: groups[group].sweepFollower()
        case 2: groups[group].restoreFollower()
        default: break
        }
        heap.push(.follow(group), at: now + 1 + random.below(2 * delayMax))
    }

    private mutating func apply(_ group: Int) throws(Violation) {
        let (outcomes, writes) = try groups[group].applyNext()
        for write in writes {
            try oracle.wrote(write, group: groups[group].id)
            report.writes += 1
        }
        for outcome in outcomes {
            switch outcome.waiter {
            case .none: break
            case .client(let operation):
                send(
                    .response(
                        MigrationResponse(
                            operation: operation, error: outcome.error,
                            version: outcome.error == nil
                                ? RecordVersion(sequencer: outcome.sequencer, isTombstone: false)
                                : nil)))
            case .controller(let attempt): send(.outcome(attempt: attempt, outcome))
            }
        }
    }

    static func operation(
        _ code: OperationCode, shard: ShardID, epoch: Epoch, flags: OperationFlags = [],
        expected: Sequencer? = nil, key: Bytes = [], value: Bytes = []
    ) -> Bytes {
        var writer = ByteWriter()
        key.withUnsafeBytes { key in
            value.withUnsafeBytes { value in
                writer.writeOperation(
                    group: .none, shard: shard, epoch: epoch, code: code, flags: flags,
                    expected: expected, key: key, value: value)
            }
        }
        return writer.take()
    }
}
