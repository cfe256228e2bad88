// This controller's replica of the metadata group on its disk and its network: founding, joining,
// the log, its own snapshots. Those that travel are in QuorumNode+Images.swift.
//
// Threads: everything here runs on the loop's thread, except the log writer's and the background
// jobs'. So a slow metadata disk delays answers that wait for it, and nothing else.

import EventLoop
import Glibc
import KVBase
import MetadataCore
import MetadataStore
import Metrics
import RPC
import ReplicatedLog
import ReplicationCore
import SystemdSupport
import WireProtocol

final class QuorumNode {
    struct Settings: Sendable {
        var name: String
        /// Where the others reach this controller.
        var address: String
        /// The founding members, this one included; empty for one alone.
        var peers: [Peer]
        /// False where metadata was moved to: what is not there any more must not begin anew.
        var mayFound = true
        /// Of the replica, and of the form for one process that it replaced.
        var directory: String
        var olderDirectory: String
    }

    struct Peer: Hashable, Sendable {
        var name: String
        var address: String
    }

    /// A controller of this cluster with a copy of the metadata that is not of this group, when it last said so.
    struct Stray {
        var place: ControllerIntroduction.Place
        var heardAt: Instant
        /// Its group was made after this one: it is this one that should not be there.
        var isNewer: Bool
    }

    let settings: Settings
    let loop: EventLoop
    let log: ComponentLog
    let metrics: QuorumMetrics
    private let controllerMetrics: ControllerMetrics
    let files: QuorumFiles
    let jobs: BackgroundJobs
    private(set) var links: QuorumLinks
    private(set) var identity: QuorumIdentity?
    /// Nil until this controller is a member.
    private(set) var store: QuorumMetadataStore?
    /// Leadership came or went; called at the end of a turn.
    var onChange: () -> Void = {}
    var onFailure: (DatabaseError) -> Void = { _ in }
    var onMove: (MetadataMove) -> Void = { _ in }

    // Disk.
    private(set) var replicated: ReplicatedLog?
    var staged: [PersistTicket] = []
    private var inFlight: [(number: UInt64, tickets: [PersistTicket])] = []
    private var durable: Mailbox<Result<UInt64, DatabaseError>>?
    var bytesSinceSnapshot = 0
    private var isWritingSnapshot = false

    // Network.
    private var known: [ControllerIntroduction.Place] = []
    /// As they introduced themselves here, the newest word of each.
    private var heard: [ControllerIntroduction.Place] = []
    private var rosterSeen = ControllerRoster()
    private var strays: [Stray] = []
    var senders: [ImageSender] = []
    /// Whose image is being made. For look-up only.
    var encoding: Set<ReplicaID> = []
    var receiver: ImageReceiver?
    var isInstalling = false
    var isChanged = false
    private var isClosed = false
    private var saidWaiting = ""
    /// After so long without an introduction it counts as gone.
    private static let strayPatience = Nanoseconds.seconds(10)
    /// Whom a first introduction did not reach (it was empty then) is tried again.
    private static let introductionInterval = Nanoseconds.milliseconds(250)
    private var introducedAt = Instant.origin

    init(
        settings: Settings, loop: EventLoop, transport: RPCTransport, log: ComponentLog,
        metrics: QuorumMetrics, controllerMetrics: ControllerMetrics, hello: @escaping () -> Hello
    ) throws(DatabaseError) {
        self.settings = settings
        self.loop = loop
        self.log = log
        self.metrics = metrics
        self.controllerMetrics = controllerMetrics
        files = try QuorumFiles(directory: settings.directory)
        jobs = BackgroundJobs(loop)
        links = QuorumLinks(transport: transport, log: log, hello: hello)
        links.opened = { [unowned self] in opened($0) }
        links.introduced = { [unowned self] in introduced($0) }
        links.closed = { [unowned self] in closed($0) }
    }

    /// Opens what is there, founds the group alone, or waits for the others.
    func start() throws(DatabaseError) {
        let known = try files.convert(
            older: settings.olderDirectory, name: settings.name, address: settings.address,
            now: loop.now, cluster: Self.cluster(in:))
        if let known {
            try open(known)
        } else if !settings.mayFound {
            sayOnce("waits to be welcomed by the controllers that have the metadata")
        } else if settings.peers.allSatisfy({ $0.name == settings.name }) {
            try found(UInt64.random(in: 1...UInt64.max))
        } else if isFounder {
            links.update(
                settings.peers.filter { $0.name != settings.name }.map {
                    ControllerIntroduction.Place(
                        replica: .none, name: $0.name, address: $0.address)
                })
        }
        loop.schedule(
            after: MetadataReplica.tuning.tickInterval,
            repeating: MetadataReplica.tuning.tickInterval
        ) { [unowned self] in tick() }
    }

    /// The end of a turn: requests go to the group, records to the disk.
    func endTurn() {
        guard !isClosed else { return }
        repeat {
            store?.flush()
            submitLog()
            followRoster()
            let wasChanged = isChanged
            isChanged = false
            if wasChanged { onChange() }
        } while isChanged
    }

    /// Writes what was submitted and lets go of the directory.
    func close() {
        guard !isClosed else { return }
        isClosed = true
        links.close()
        jobs.close()
        replicated?.close()
    }

    var replica: MetadataReplica? { store?.replica }

    /// The member that leads, as far as this controller knows.
    var leadingMember: ControllerMember? {
        guard let replica else { return nil }
        return replica.image.roster[replica.core.leader]
    }

    // MARK: Founding and opening

    /// The cluster id in a state of the form for one process; a new one when there is none yet.
    private static func cluster(in state: RevisionedState) throws(DatabaseError) -> UInt64 {
        guard let record = state.get(Bytes("controller/cluster".utf8)) else {
            return UInt64.random(in: 1...UInt64.max)
        }
        return try ByteReader.decode(record.value) { (reader) throws(DatabaseError) in
            try reader.readUInt64()
        }
    }

    /// The first by name founds the group; the others wait until they are welcomed.
    private var isFounder: Bool {
        settings.peers.map(\.name).min() == settings.name
    }

    private func found(_ cluster: UInt64) throws(DatabaseError) {
        let founded = QuorumIdentity(
            cluster: cluster, replica: ReplicaID(1), name: settings.name)
        var image = MetadataImage(
            founder: settings.name, address: settings.address, state: RevisionedState())
        for peer in settings.peers where peer.name != settings.name {
            _ = try image.admit(name: peer.name, address: peer.address)
        }
        try files.create(founded, image: image)
        log.notice(
            "founds the metadata group", [LogField("members", image.roster.members.count)])
        try open(founded)
    }

    private func open(_ identity: QuorumIdentity) throws(DatabaseError) {
        guard identity.name == settings.name else {
            throw DatabaseError(
                .refused,
                "\(settings.directory) belongs to controller \(identity.name), not "
                    + "\(settings.name); start it under that name or name another directory")
        }
        var operations = FileOperations.system
        let duration = controllerMetrics.fsyncDuration
        operations.synchronize = { file in
            let began = Self.monotonicNow()
            let code = FileOperations.system.synchronize(file)
            if code == 0 { duration.observe(Self.monotonicNow() - began) }
            return code
        }
        let opened = try files.open(identity, now: loop.now, operations: operations)
        let mailbox = loop.makeMailbox(capacity: 1 << 12) {
            [unowned self] (results: [Result<UInt64, DatabaseError>]) in
            for result in results { didPersist(result) }
        }
        durable = mailbox
        opened.log.onDurable = { _ = mailbox.post($0) }
        replicated = opened.log
        self.identity = identity
        metrics.snapshotBytes.set(Int64(opened.snapshotBytes))
        let isAlone =
            opened.restored.membership.all.count == 1
            && !opened.restored.entries.contains { $0.kind == .membership }
        let tuning = MetadataReplica.tuning
        // One that is alone promised nothing to anyone: no need to wait for promises to run out.
        let now = loop.now
        let since =
            isAlone ? Instant(nanoseconds: (now - .origin - tuning.leaseDuration).count) : now
        let replica = MetadataReplica(
            id: identity.replica, image: opened.image, restored: opened.restored, tuning: tuning,
            seed: UInt64.random(in: 0...UInt64.max), now: since)
        let store = QuorumMetadataStore(
            replica: replica, outlet: self, clock: { [loop] in loop.now })
        self.store = store
        followRoster()
        if isAlone { store.handle(.replication(.nominate(replica.core.term.next()))) }
    }

    private static func monotonicNow() -> Instant {
        var now = timespec()
        clock_gettime(CLOCK_MONOTONIC, &now)
        return Instant(nanoseconds: UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec))
    }

    /// All founding members are there and empty: nothing was ever founded.
    private func maybeFound() {
        guard store == nil, isFounder, settings.mayFound else { return }
        for peer in settings.peers where peer.name != settings.name {
            guard let hello = links.links.first(where: { $0.place.name == peer.name })?.peer else {
                return sayOnce("waits for \(peer.name) at \(peer.address) to found the group with")
            }
            guard hello.role == .controller, hello.name == peer.name else {
                return sayOnce("\(peer.address) is \(hello.name), not \(peer.name)")
            }
            guard hello.node != .none || hello.cluster == 0 else {
                return sayOnce(
                    "\(peer.name) keeps the metadata of a cluster in etcd: to join it, set metadata = etcd "
                        + "and etcd.endpoints as there, and no peers")
            }
            guard hello.node == .none else {
                return sayOnce(
                    "\(peer.name) belongs to a group already: waits to be added; see: kvctl "
                        + "controller add")
            }
        }
        do throws(DatabaseError) {
            links.update([])
            try found(UInt64.random(in: 1...UInt64.max))
        } catch {
            onFailure(error)
        }
    }

    private func sayOnce(_ text: String) {
        guard text != saidWaiting else { return }
        saidWaiting = text
        log.notice(text)
    }

    // MARK: Disk

    private func submitLog() {
        guard let replicated, replicated.hasStaged, store?.failure == nil else { return }
        do throws(DatabaseError) {
            guard let number = try replicated.submit() else { return }
            inFlight.append((number, staged))
            staged.removeAll()
        } catch {
            store?.fail(error)
        }
    }

    private func didPersist(_ result: Result<UInt64, DatabaseError>) {
        switch result {
        case .failure(let error): store?.fail(error)
        case .success(let number):
            while let first = inFlight.first, first.number <= number {
                inFlight.removeFirst()
                for ticket in first.tickets { store?.handle(.replication(.persisted(ticket))) }
            }
        }
    }

    private func maybeWriteSnapshot() {
        guard bytesSinceSnapshot >= QuorumFiles.snapshotAfterBytes, !isWritingSnapshot,
            !isInstalling, let image = replica?.image
        else { return }
        isWritingSnapshot = true
        bytesSinceSnapshot = 0
        let files = files
        jobs.run("meta-snapshot") { () throws(DatabaseError) in
            try files.write(image)
        } _: { [unowned self] result in
            isWritingSnapshot = false
            switch result {
            case .failure(let error): store?.fail(error)
            case .success(let bytes):
                metrics.snapshotBytes.set(Int64(bytes))
                metrics.snapshots.increment()
                release(image.position)
            }
        }
    }

    private func release(_ position: LogPosition) {
        guard let replica, position.index <= replica.core.lastPosition.index else { return }
        replicated?.release(group: MetadataReplica.group, upTo: position)
        store?.handle(.replication(.compact(upTo: position.index)))
    }

    // MARK: Time

    private func tick() {
        guard let store else { return maybeFound() }
        store.handle(.replication(.tick))
        maybeWriteSnapshot()
        for sender in senders where sender.isSilent(at: loop.now) { end(sender, false) }
        guard loop.now - introducedAt >= Self.introductionInterval else { return }
        introducedAt = loop.now
        for link in links.links where link.peer != nil && !link.isIntroduced { opened(link) }
    }

    /// Controllers that answer, this one included: by the leader's heartbeats, or by connections.
    var reachableCount: Int {
        guard let replica else { return 1 }
        return replica.image.roster.members.count { isReachable($0.replica) }
    }

    func isReachable(_ member: ReplicaID) -> Bool {
        guard let replica else { return false }
        if member == replica.id { return true }
        if replica.isLeader, let seen = replica.progress(of: member, now: loop.now) {
            return seen.isLive
        }
        return links[member]?.isIntroduced ?? false
    }

    // MARK: Network

    /// Dials whom the roster names, or, before there is one, whom a welcome named.
    private func followRoster() {
        guard let replica, let identity else { return }
        let roster = replica.image.roster
        guard roster != rosterSeen else { return }
        rosterSeen = roster
        guard !roster.members.isEmpty else { return }
        known = roster.members.map {
            ControllerIntroduction.Place(
                replica: $0.replica, name: $0.name, address: $0.address)
        }
        dial(identity)
        isChanged = true
    }

    /// Dials whom the roster names, and who introduced itself where the roster does not say so yet: a
    /// copy that is behind learns from the leader that it cannot know.
    private func dial(_ identity: QuorumIdentity) {
        var places = known
        for place in heard {
            if let index = places.firstIndex(where: { $0.replica == place.replica }) {
                places[index].address = place.address
            } else if place.replica > rosterSeen.highest {
                places.append(place)
            }
        }
        links.update(places.filter { $0.replica != identity.replica })
    }

    func introduction(to place: ControllerIntroduction.Place, mayAdopt: Bool)
        -> ControllerIntroduction?
    {
        guard let identity else { return nil }
        return ControllerIntroduction(
            cluster: identity.cluster,
            sender: ControllerIntroduction.Place(
                replica: identity.replica, name: settings.name, address: settings.address),
            target: place, mayAdopt: mayAdopt, known: known)
    }

    private func opened(_ link: QuorumLink) {
        guard let introduction = introduction(to: link.place, mayAdopt: false) else {
            return maybeFound()
        }
        // One that is empty and did not join yet waits for the leader's welcome.
        if link.peer?.node == NodeID.none,
            replica?.image.roster[link.place.replica]?.isJoined == false
        {
            return
        }
        link.send(.introduction) { introduction.encode(into: &$0) }
    }

    private func introduced(_ link: QuorumLink) {
        store?.handle(.welcomed(link.place.replica))
        isChanged = true
    }

    private func closed(_ link: QuorumLink) {
        store?.handle(.replication(.unreachable(link.place.replica)))
        for sender in senders where sender.target == link.place.replica { end(sender, false) }
    }

    /// A controller dialled and said who it is. The replica it speaks for from now on; nil when this
    /// controller cannot listen to it yet.
    func receive(
        _ introduction: ControllerIntroduction, on connection: RPCConnection
    ) throws(DatabaseError) -> ReplicaID? {
        if identity == nil { try adopt(introduction) }
        guard let identity, let replica else { return nil }
        guard introduction.cluster == identity.cluster else {
            throw DatabaseError(
                .refused, "\(introduction.sender.name) is a controller of another cluster")
        }
        let sender = introduction.sender.replica
        let roster = replica.image.roster
        let isUnknown = roster[sender] == nil && sender <= roster.highest
        let isNewer = sender > roster.highest && introduction.target.replica != identity.replica
        if isUnknown || isNewer {
            strays.removeAll { $0.place.name == introduction.sender.name }
            strays.append(
                Stray(place: introduction.sender, heardAt: loop.now, isNewer: isNewer))
        }
        guard introduction.target.replica == identity.replica else {
            throw DatabaseError(
                .fenced,
                "\(settings.name) is replica \(identity.replica) of the metadata group, not "
                    + "\(introduction.target.replica)")
        }
        if isUnknown {
            throw DatabaseError(
                .fenced,
                "\(introduction.sender.name) was removed from the controllers; empty its data "
                    + "directory, then: kvctl controller add \(introduction.sender.name) "
                    + introduction.sender.address)
        }
        if roster.members.isEmpty { known = introduction.known }
        heard.removeAll { $0.replica == sender }
        heard.append(introduction.sender)
        dial(identity)
        if replica.isServing, let member = roster[sender],
            member.address != introduction.sender.address
        {
            store?.submit(.moved(sender, address: introduction.sender.address)) { _ in }
        }
        connection.send(.introduced) { $0.write(identity.replica) }
        return sender
    }

    func strays(now: Instant) -> [Stray] {
        strays.filter { now - $0.heardAt < Self.strayPatience }
    }

    /// Becomes the replica that the leader says, when this directory is empty.
    private func adopt(_ introduction: ControllerIntroduction) throws(DatabaseError) {
        let target = introduction.target
        guard target.name == settings.name else {
            throw DatabaseError(
                .refused, "this is controller \(settings.name), not \(target.name)")
        }
        guard introduction.mayAdopt else {
            return sayOnce(
                "the group knows \(settings.name) as replica \(target.replica), which is not in this "
                    + "directory: waits to be welcomed; after a lost disk: kvctl controller remove "
                    + "\(settings.name), then kvctl controller add")
        }
        let adopted = QuorumIdentity(
            cluster: introduction.cluster, replica: target.replica, name: settings.name)
        links.update([])
        try files.create(adopted, image: nil)
        log.notice("joins the metadata group", [LogField("replica", target.replica)])
        try open(adopted)
    }

    func receive(_ messages: inout ByteReader, from sender: ReplicaID) throws(DatabaseError) {
        while !messages.isAtEnd {
            let message = try PeerMessage(from: &messages)
            guard message.from == sender, message.to == identity?.replica,
                message.group == MetadataReplica.group
            else { throw DatabaseError(.fenced, "a message that is not for this controller") }
            store?.handle(.replication(.message(from: sender, message.message)))
        }
    }
}
