// One controller's copy of the metadata: the replication core, the state that its log adds up to, and
// the requests that wait.
//
// Deterministic like the core below it: events in, effects out, time an argument. Comparisons are made
// when an entry is applied, so every copy decides alike; who asked is answered by the leader alone.

import KVBase
import ReplicationCore

public enum MetadataReplicaEvent: Sendable {
    /// For the replication core. Snapshots come by `installed`, never by this.
    case replication(Event)
    /// Requests in order; each is answered once, in this order, among reads and keep-alives too.
    case submit([(token: UInt64, command: MetadataCommand)])
    /// Answered `.done` when the state shows everything that was submitted before it, and everything
    /// that any leader had answered before the read was asked for.
    case read(token: UInt64)
    case keepAlive(token: UInt64, LeaseID)
    /// An image from a leader is durable here and replaces the state.
    case installed(MetadataImage, from: ReplicaID)
    /// A new controller has written down that it is this replica.
    case welcomed(ReplicaID)
}

/// What a step wants done, in the order of the fields.
public struct MetadataEffects: Sendable {
    public var persists: [Persist] = []
    public var messages: [(to: ReplicaID, message: Message)] = []
    /// Followers that need an image: send one, then `.snapshotSent`.
    public var snapshotsNeeded: [ReplicaID] = []
    /// Of revisions that were applied now.
    public var events: [MetadataEvent] = []
    public var answers: [(token: UInt64, result: Result<MetadataAnswer, MetadataError>)] = []
    /// The state was replaced as a whole: there are no events for what changed.
    public var isStateReplaced = false
    /// Controllers to be told their replica id. Only ever asked for while no other leader can exist.
    public var welcomes: [ControllerMember] = []
    /// Role, term, known leader or `isServing` changed.
    public var roleChanged = false
    /// The log holds what this program cannot read: the replica must stop.
    public var failure: DatabaseError?

    public init() {}
}

public struct MetadataReplica: Sendable {
    /// The one group of controllers.
    public static let group = GroupID(1)
    /// Most bytes of one encoded command: an append message with it must fit into a frame.
    public static let commandBytesMax = 15 << 20
    /// Requests that wait.
    public static let pendingMax = 100_000

    enum Wait: Sendable {
        case unproposed(Bytes)
        case entry(LogIndex, Term)
        /// Not asked for at the core yet.
        case unasked
        /// Asked; must see at least this index.
        case asked(LogIndex)
        /// May be answered once this is applied.
        case readable(LogIndex)
        case ended(Result<MetadataAnswer, MetadataError>)
    }

    struct Pending: Sendable {
        var token: UInt64
        var wait: Wait
    }

    public internal(set) var core: Replica
    public internal(set) var image: MetadataImage
    /// In order of submission.
    var pending: [Pending] = []
    /// The term that `pending` belongs to; none when this replica does not lead.
    var leadingTerm = Term.none
    var servingTerm = Term.none
    /// Leases whose end is on its way through the log.
    var endingLeases: [LeaseID] = []
    var memberships = MembershipWork()

    /// `restored` is what the log held above `image`.
    public init(
        id: ReplicaID, image: MetadataImage, restored: RestoredState, tuning: Tuning,
        seed: UInt64, now: Instant
    ) {
        self.image = image
        core = Replica(
            group: Self.group, id: id, tuning: tuning, restored: restored, seed: seed, now: now)
    }

    /// Times for controllers. Nobody nominates here, so the wait for a leader is short; the pre-vote
    /// and the voters' promises keep a late heartbeat from costing a healthy leader its term.
    public static var tuning: Tuning {
        var tuning = Tuning()
        tuning.fallbackElectionTimeout = .milliseconds(400)
        return tuning
    }

    public var id: ReplicaID { core.id }
    public var isLeader: Bool { core.role == .leader }
    /// Leads, and has applied everything that earlier leaders committed.
    public var isServing: Bool { isLeader && servingTerm == core.term }

    /// Whether at `now` no other leader can exist, so that this replica's word is the cluster's.
    public func isAlone(at now: Instant) -> Bool { isServing && core.canServeReads(at: now) }

    /// Forgets history for watches; nobody else's matter.
    public mutating func compactHistory(below revision: Revision) {
        image.state.compact(below: revision)
    }

    public mutating func step(
        _ event: MetadataReplicaEvent, now: Instant, into effects: inout MetadataEffects
    ) {
        let wasServing = isServing
        switch event {
        case .replication(let event): run(event, now: now, into: &effects)
        case .submit(let requests):
            for (token, command) in requests { submit(token, command, into: &effects) }
        case .read(let token): add(Pending(token: token, wait: .unasked), into: &effects)
        case .keepAlive(let token, let lease):
            add(Pending(token: token, wait: .ended(keepAlive(lease, now: now))), into: &effects)
        case .installed(let image, let from):
            install(image, from: from, now: now, into: &effects)
        case .welcomed(let replica):
            if isServing, image.roster[replica]?.isJoined == false {
                propose([.joined(replica)], now: now, into: &effects)
            }
        }
        settle(now: now, into: &effects)
        if case .replication(.tick) = event, isServing {
            endLeases(now: now, into: &effects)
            workOnMembership(now: now, into: &effects)
            settle(now: now, into: &effects)
        }
        if wasServing != isServing { effects.roleChanged = true }
    }

    /// When a tick is needed next.
    public func nextDeadline(now: Instant) -> Instant { core.nextDeadline(now: now) }

    // MARK: Requests

    private mutating func submit(
        _ token: UInt64, _ command: MetadataCommand, into effects: inout MetadataEffects
    ) {
        let payload = command.encoded()
        let wait: Wait =
            payload.count <= Self.commandBytesMax
            ? .unproposed(payload)
            : .ended(
                .failure(
                    .failed(
                        DatabaseError(
                            .tooLarge, "a transaction of \(payload.count) bytes does not fit"))))
        add(Pending(token: token, wait: wait), into: &effects)
    }

    private mutating func add(_ request: Pending, into effects: inout MetadataEffects) {
        guard pending.count < Self.pendingMax else {
            effects.answers.append(
                (
                    request.token,
                    .failure(.failed(DatabaseError(.overloaded, "too many requests wait")))
                ))
            return
        }
        pending.append(request)
    }

    private mutating func keepAlive(
        _ lease: LeaseID, now: Instant
    ) -> Result<MetadataAnswer, MetadataError> {
        guard isServing else { return .failure(.failed(notLeading)) }
        guard !endingLeases.contains(lease), image.state.keepAlive(lease, now: now) else {
            return .failure(.leaseNotFound(lease))
        }
        return .success(.done)
    }

    /// What a request that was surely not carried out is answered.
    var notLeading: DatabaseError {
        guard let leader = image.roster[core.leader] else {
            return DatabaseError(.unavailable, "this controller does not lead the metadata group")
        }
        return DatabaseError(
            .unavailable,
            "this controller does not lead the metadata group; \(leader.name) does")
    }

    private static let outcomeUnknown = DatabaseError(
        .unknownOutcome, "the leader of the metadata group changed before the answer")

    // MARK: The core

    /// Steps the core and carries out what it says here.
    mutating func run(_ event: Event, now: Instant, into effects: inout MetadataEffects) {
        var out = Effects()
        core.step(event, now: now, into: &out)
        effects.persists.append(contentsOf: out.persists)
        effects.messages.append(contentsOf: out.messages)
        effects.snapshotsNeeded.append(contentsOf: out.snapshotsNeeded)
        if out.roleChanged { effects.roleChanged = true }
        if let proposed = out.proposed { logged(proposed) }
        for (token, index) in out.readsReady { readReady(token, index) }
        for (token, refusal) in out.readsRefused { readRefused(token, refusal) }
        for (token, error) in out.membershipOutcomes {
            memberships.ended(token, error, now: now)
        }
        guard !out.committed.isEmpty else { return }
        for entry in out.committed where effects.failure == nil {
            apply(entry, now: now, into: &effects)
        }
        run(.applied(image.position.index), now: now, into: &effects)
    }

    private mutating func apply(
        _ entry: LogEntry, now: Instant, into effects: inout MetadataEffects
    ) {
        do throws(DatabaseError) {
            switch entry.kind {
            case .noop: break
            case .membership: image.membership = try Membership.decode(entry.payload)
            case .command:
                let command = try MetadataCommand.decode(entry.payload)
                let (result, event) = image.apply(command, now: now)
                if case .endLease(let lease) = command { endingLeases.removeAll { $0 == lease } }
                if let event { effects.events.append(event) }
                answer(entry, result)
            }
            image.position = LogPosition(index: entry.index, term: entry.term)
        } catch {
            effects.failure = DatabaseError(
                .storageFailed,
                "metadata log entry \(entry.index) cannot be read: \(error.message)")
        }
    }

    private mutating func answer(
        _ entry: LogEntry, _ result: Result<MetadataAnswer, MetadataError>
    ) {
        for place in pending.indices {
            guard case .entry(let index, let term) = pending[place].wait else { continue }
            if index == entry.index, term == entry.term { pending[place].wait = .ended(result) }
            // Logged in order: the first that waits is the only one that can be meant.
            return
        }
    }

    private mutating func install(
        _ image: MetadataImage, from: ReplicaID, now: Instant, into effects: inout MetadataEffects
    ) {
        let isNeeded = core.needsSnapshot(at: image.position)
        if isNeeded {
            self.image = image
            effects.isStateReplaced = true
        }
        run(
            .snapshotInstalled(
                position: image.position, membership: image.membership, from: from), now: now,
            into: &effects)
    }

    // MARK: Leading

    /// Brings the requests that wait in step with the core: proposes, reads, fails, answers.
    private mutating func settle(now: Instant, into effects: inout MetadataEffects) {
        if leadingTerm != .none, !isLeader || leadingTerm != core.term { failAll() }
        if isLeader {
            if leadingTerm == .none {
                leadingTerm = core.term
                image.state.restartLeases(now: now)
                endingLeases.removeAll()
                memberships = MembershipWork()
            }
            if core.canPropose {
                servingTerm = core.term
                proposePending(now: now, into: &effects)
            }
        } else if !pending.isEmpty {
            failAll()
        }
        deliver(into: &effects)
    }

    private mutating func failAll() {
        leadingTerm = .none
        for place in pending.indices {
            switch pending[place].wait {
            case .ended: break
            case .entry: pending[place].wait = .ended(.failure(.failed(Self.outcomeUnknown)))
            default: pending[place].wait = .ended(.failure(.failed(notLeading)))
            }
        }
    }

    private mutating func proposePending(now: Instant, into effects: inout MetadataEffects) {
        let payloads = pending.compactMap { request -> Bytes? in
            guard case .unproposed(let payload) = request.wait else { return nil }
            return payload
        }
        if !payloads.isEmpty { run(.propose(payloads), now: now, into: &effects) }
        guard isLeader else { return }
        for place in pending.indices {
            guard case .unasked = pending[place].wait else { continue }
            pending[place].wait = .asked(core.lastPosition.index)
            run(.read(token: pending[place].token, .quorum), now: now, into: &effects)
            guard isLeader else { return }
        }
    }

    /// Commands of the replica's own, which nobody waits for.
    mutating func propose(
        _ commands: [MetadataCommand], now: Instant, into effects: inout MetadataEffects
    ) {
        guard core.canPropose, !pending.contains(where: \.isUnproposed) else { return }
        run(.propose(commands.map { $0.encoded() }), now: now, into: &effects)
    }

    /// The entries got these places. Those of the replica's own are proposed when nobody waits.
    private mutating func logged(_ proposed: (term: Term, first: LogIndex, count: Int)) {
        var index = proposed.first
        for place in pending.indices where pending[place].isUnproposed {
            pending[place].wait = .entry(index, proposed.term)
            index = index.next()
        }
    }

    private mutating func readReady(_ token: UInt64, _ index: LogIndex) {
        guard let place = pending.firstIndex(where: { $0.token == token }),
            case .asked(let barrier) = pending[place].wait
        else { return }
        pending[place].wait = .readable(max(index, barrier))
    }

    private mutating func readRefused(_ token: UInt64, _ refusal: ReadRefusal) {
        guard let place = pending.firstIndex(where: { $0.token == token }) else { return }
        pending[place].wait =
            refusal == .notReady ? .unasked : .ended(.failure(.failed(notLeading)))
    }

    /// Answers from the front as far as answers are there.
    private mutating func deliver(into effects: inout MetadataEffects) {
        var count = 0
        scan: while count < pending.count {
            switch pending[count].wait {
            case .ended(let result): effects.answers.append((pending[count].token, result))
            case .readable(let index) where index <= image.position.index:
                effects.answers.append((pending[count].token, .success(.done)))
            default: break scan
            }
            count += 1
        }
        pending.removeFirst(count)
    }

    private mutating func endLeases(now: Instant, into effects: inout MetadataEffects) {
        let expired = image.state.expiredLeases(now: now).filter { !endingLeases.contains($0) }
        guard !expired.isEmpty, core.canPropose, !pending.contains(where: \.isUnproposed) else {
            return
        }
        endingLeases += expired
        propose(expired.map { .endLease($0) }, now: now, into: &effects)
    }
}

extension MetadataReplica.Pending {
    var isUnproposed: Bool {
        if case .unproposed = wait { return true }
        return false
    }
}
