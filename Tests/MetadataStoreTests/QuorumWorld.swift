// Controllers in one thread: replicas of the metadata group with simulated disks, network and time.

import KVBase
import MetadataCore
import MetadataStore
import ReplicationCore

/// What goes wrong, each in thousandths.
struct QuorumFaults {
    var lost: UInt64 = 0
    var duplicated: UInt64 = 0
    /// Longest delay of a message and of a write.
    var delay = Nanoseconds.zero
    var writeDelay = Nanoseconds.zero
}

/// One controller: its replica while it runs, and its disk.
final class SimulatedController: QuorumOutlet {
    let id: ReplicaID
    let name: String
    unowned let world: QuorumWorld
    var store: QuorumMetadataStore?
    /// Rises with every start: what an earlier life sent off does not come back to the next one.
    private(set) var life = 0
    private(set) var failure: DatabaseError?

    // The disk.
    var image: MetadataImage
    private var hardState = HardState()
    private var compacted: LogPosition
    private var entries: [LogEntry] = []

    init(_ world: QuorumWorld, _ id: ReplicaID, _ name: String, image: MetadataImage) {
        self.world = world
        self.id = id
        self.name = name
        self.image = image
        compacted = image.position
        hardState.term = image.position.term
    }

    var isUp: Bool { store != nil }
    var replica: MetadataReplica? { store?.replica }

    func start() {
        life += 1
        let restored = RestoredState(
            hardState: hardState, applied: image.position, membership: image.membership,
            entries: entries, compacted: compacted)
        store = QuorumMetadataStore(
            replica: MetadataReplica(
                id: id, image: image, restored: restored, tuning: MetadataReplica.tuning,
                seed: world.random.next(), now: world.now),
            outlet: self, clock: { [unowned world] in world.now })
    }

    func crash() { store = nil }

    /// The directory is emptied: what comes back is nobody.
    func takeSnapshot() {
        guard let image = replica?.image, image.position.index > self.image.position.index else {
            return
        }
        self.image = image
        if let last = entries.last, last.index >= image.position.index {
            entries.removeAll { $0.index <= image.position.index }
            compacted = image.position
        }
        store?.handle(.replication(.compact(upTo: image.position.index)))
    }

    private func write(_ persist: Persist) {
        if let new = persist.hardState { hardState = new }
        if let snapshot = persist.snapshot {
            compacted = snapshot
            entries.removeAll()
        }
        for entry in persist.entries {
            entries.removeAll { $0.index >= entry.index }
            entries.append(entry)
        }
    }

    // MARK: Outlet

    func persist(_ persist: Persist) {
        let life = life
        world.later(world.writeDelay(), after: &writtenAt) { [unowned self] in
            guard self.life == life, isUp else { return }
            write(persist)
            store?.handle(.replication(.persisted(persist.ticket)))
        }
    }

    private var writtenAt = Instant.origin

    func send(_ message: Message, to replica: ReplicaID) {
        world.send(from: id, to: replica) { [unowned self] target in
            target.store?.handle(.replication(.message(from: id, message)))
        }
    }

    func sendImage(to target: ReplicaID) {
        guard let image = replica?.image else { return }
        let life = life
        let origin = id
        world.send(from: id, to: target, isReliable: true) { receiver in
            guard let replica = receiver.replica else { return }
            if replica.core.needsSnapshot(at: image.position) {
                receiver.image = image
            }
            receiver.store?.handle(.installed(image, from: origin))
        }
        world.later(.milliseconds(50)) { [unowned self] in
            guard self.life == life else { return }
            store?.handle(
                .replication(
                    .snapshotSent(to: target, position: image.position, succeeded: true)))
        }
    }

    func welcome(_ member: ControllerMember) {
        guard world.controller(member.replica) == nil else {
            // Its disk knows the id already.
            store?.handle(.welcomed(member.replica))
            return
        }
        guard world.vacant.contains(member.name), !world.isCut(id, member.replica) else { return }
        world.vacant.removeAll { $0 == member.name }
        world.add(member)
        store?.handle(.welcomed(member.replica))
    }

    func roleChanged() {}
    func storeFailed(_ error: DatabaseError) { failure = error }
}

final class QuorumWorld {
    private(set) var now = Instant(nanoseconds: 1_000_000_000)
    var random: SeededRandom
    var faults = QuorumFaults()
    private(set) var controllers: [SimulatedController] = []
    /// Running empty controllers that nobody welcomed yet.
    var vacant: [String] = []
    private var cut: [(ReplicaID, ReplicaID)] = []
    private var events: [(at: Instant, order: UInt64, body: () -> Void)] = []
    private var eventsIssued: UInt64 = 0
    /// Called after every event.
    var check: () -> Void = {}

    /// Members that vote from the start.
    init(members: Int, seed: UInt64) {
        random = SeededRandom(seed: seed)
        var image = MetadataImage(
            founder: "c1", address: "c1:1", state: RevisionedState())
        if members > 1 {
            for number in 2...members {
                _ = try? image.admit(name: "c\(number)", address: "c\(number):1")
            }
        }
        let voters = (1...members).map {
            Member(replica: ReplicaID(UInt32($0)), node: NodeID(UInt32($0)))
        }
        image = image.with(voters: voters)
        for number in 1...members {
            controllers.append(
                SimulatedController(
                    self, ReplicaID(UInt32(number)), "c\(number)", image: image))
        }
        for controller in controllers { controller.start() }
    }

    func controller(_ id: ReplicaID) -> SimulatedController? { controllers.first { $0.id == id } }

    func add(_ member: ControllerMember) {
        let controller = SimulatedController(
            self, member.replica, member.name, image: MetadataImage())
        controllers.append(controller)
        controller.start()
    }

    /// The disk is lost; its replica never comes back.
    func destroy(_ id: ReplicaID) {
        controller(id)?.crash()
        controllers.removeAll { $0.id == id }
    }

    /// The one whose word is the cluster's, if there is one now.
    var leader: SimulatedController? {
        controllers.first { $0.replica?.isAlone(at: now) ?? false }
    }

    // MARK: Network

    func isolate(_ id: ReplicaID) {
        for other in controllers where other.id != id { cut.append((id, other.id)) }
    }

    func heal() { cut.removeAll() }

    func isCut(_ one: ReplicaID, _ other: ReplicaID) -> Bool {
        cut.contains { $0 == (one, other) || $0 == (other, one) }
    }

    func send(
        from: ReplicaID, to: ReplicaID, isReliable: Bool = false,
        _ body: @escaping (SimulatedController) -> Void
    ) {
        var copies = 1
        if !isReliable, random.chance(faults.lost, in: 1_000) { copies = 0 }
        if random.chance(faults.duplicated, in: 1_000) { copies += 1 }
        guard !isCut(from, to) else { return }
        for _ in 0..<copies {
            later(delay(faults.delay)) { [unowned self] in
                guard let target = controller(to), !isCut(from, to) else { return }
                body(target)
            }
        }
    }

    func writeDelay() -> Nanoseconds { delay(faults.writeDelay) }

    private func delay(_ most: Nanoseconds) -> Nanoseconds {
        most == .zero ? .zero : Nanoseconds(random.below(most.count))
    }

    // MARK: Time

    func later(_ delay: Nanoseconds, _ body: @escaping () -> Void) {
        eventsIssued += 1
        events.append((now + delay, eventsIssued, body))
    }

    /// As `later`, but never before what `last` stands for: writes end in order.
    func later(_ delay: Nanoseconds, after last: inout Instant, _ body: @escaping () -> Void) {
        last = max(last, now + delay)
        eventsIssued += 1
        events.append((last, eventsIssued, body))
    }

    /// Carries out everything that is due now; false when nothing was.
    @discardableResult
    private func runDue() -> Bool {
        var ran = false
        while let place = events.indices.filter({ events[$0].at <= now }).min(by: {
            (events[$0].at, events[$0].order) < (events[$1].at, events[$1].order)
        }) {
            let event = events.remove(at: place)
            event.body()
            for controller in controllers { controller.store?.flush() }
            check()
            ran = true
        }
        return ran
    }

    /// Requests go out, and everything runs that needs no time to pass.
    func settle() {
        for controller in controllers { controller.store?.flush() }
        runDue()
    }

    /// Time passes in ticks.
    func pass(_ duration: Nanoseconds) {
        let end = now + duration
        while now < end {
            now = min(end, now + .milliseconds(10))
            for controller in controllers { controller.store?.handle(.replication(.tick)) }
            settle()
            check()
        }
    }

    /// Passes time until `condition`; false when it did not come within `limit`.
    func wait(_ limit: Nanoseconds = .seconds(20), until condition: () -> Bool) -> Bool {
        let end = now + limit
        settle()
        while !condition() {
            guard now < end else { return false }
            pass(.milliseconds(10))
        }
        return true
    }
}
