// Moves the metadata of a live cluster to the other store; run by the acting controller.
//
// check: every controller that answers can use the target.
// freeze: this controller acts no more, though it is the only one that may; nothing changes any more.
// copy: the frozen state with the mark of the move goes to the target, where it does not count yet, and
//       is read back. The backup gets the last revisions of the old store, whose history stays there.
// mark: the same mark is the last mutation of the old store. This is the moment of the move: before it
//       the old store goes on, after it every controller follows the mark.
// Whoever follows makes the target count. See docs/decisions/0013-moving-the-metadata-of-a-live-cluster.md.

import ControllerCore
import Digest
import EtcdMetadata
import EventLoop
import KVBase
import MetadataCore
import MetadataStore
import Synchronization
import SystemdSupport

final class MetadataMigration {
    enum Phase: String { case check, freeze, copy, mark }

    /// Records copied, counted by the thread that copies.
    private final class Progress: Sendable { let count = Atomic<Int>(0) }

    private static let checkTimeout = Nanoseconds.seconds(15)
    private static let prepareTimeout = Nanoseconds.seconds(300)
    private static let backupPatience = Nanoseconds.seconds(5)

    let id = UInt64.random(in: 1...UInt64.max)
    let to: MetadataForm
    private let endpoints: [String]
    private let prefix: String
    private let request: MoveMark.Request
    private unowned let server: ControllerServer
    private let jobs: BackgroundJobs
    private let transfer: EtcdTransfer
    private let progress = Progress()
    private(set) var phase = Phase.check
    private(set) var failure: String?
    private var records = 0
    /// The others that answer, by name.
    private var present: [(name: String, address: String)] = []
    private(set) var absent: [String] = []
    private var objections: [String] = []
    /// In which everything since the freeze happens.
    private var leadership: UInt64?
    private var checked: (Result<Void, DatabaseError>) -> Void = { _ in }
    private var waiting = 0

    /// Throws when the target cannot be that of this cluster.
    init(
        to: MetadataForm, endpoints: [String], prefix: String, request: MoveMark.Request,
        server: ControllerServer
    ) throws(DatabaseError) {
        self.to = to
        self.endpoints = endpoints
        self.prefix = prefix
        self.request = request
        self.server = server
        jobs = BackgroundJobs(server.loop)
        var settings = try server.settings.etcdAt(endpoints, prefix).etcd
        // Nobody waits on the loop for it.
        settings.attemptTimeout = .seconds(5)
        settings.patience = .seconds(15)
        transfer = try EtcdTransfer(settings)
    }

    var view: MigrationView {
        MigrationView(
            id: hex(id), to: "\(to)", phase: phase.rawValue,
            copied: progress.count.load(ordering: .relaxed), records: records, failure: failure)
    }

    var controllers: [String] { [server.settings.core.name] + present.map(\.name) }

    func close() {
        transfer.close()
        jobs.close()
    }

    // MARK: Check

    /// Asks every controller whether it can use the target. Changes nothing.
    func check(_ completion: @escaping (Result<Void, DatabaseError>) -> Void) {
        checked = completion
        let own = server.settings.core.name
        let others = server.controllerViews().filter { $0.name != own }
        if let problem = server.backupProblem {
            objections.append(
                "\(problem); see to it first, for what it lacks could not be had later")
        }
        waiting = others.count + 1
        server.checkTarget(to, endpoints, prefix) { [weak self] result in
            if case .failure(let error) = result {
                self?.objections.append("\(own): \(error.message)")
            }
            self?.oneChecked()
        }
        for other in others {
            server.ask(
                other.rpc, "metadata.check", targetArguments, timeout: Self.checkTimeout
            ) { [weak self] (result: Result<PeerCheck, DatabaseError>) in
                self?.checked(other, result)
            }
        }
    }

    private var targetArguments: AdminRequest.Arguments {
        var arguments = AdminRequest.Arguments()
        arguments.to = "\(to)"
        arguments.endpoints = endpoints
        arguments.prefix = prefix
        return arguments
    }

    private func checked(_ other: ControllerView, _ result: Result<PeerCheck, DatabaseError>) {
        switch result {
        case .success(let answer) where answer.name != other.name:
            objections.append("\(other.rpc) is \(answer.name), not \(other.name)")
        case .success: present.append((other.name, other.rpc))
        case .failure(let error) where error.code == .unavailable && !other.reachable:
            absent.append(other.name)
        case .failure(let error) where error.code == .unavailable:
            let seen = server.settings.form == .embedded ? "as not reachable" : "no more"
            objections.append(
                "\(other.name): \(error.message): start it, or wait until kvctl controller list shows it "
                    + seen)
        case .failure(let error): objections.append("\(other.name): \(error.message)")
        }
        oneChecked()
    }

    private func oneChecked() {
        waiting -= 1
        guard waiting == 0 else { return }
        present.sort { $0.name < $1.name }
        if to == .embedded, controllers.count > ControllerRoster.membersMax {
            objections.append(
                "a group has at most \(ControllerRoster.membersMax) controllers, and \(controllers.count) "
                    + "run: stop some first")
        }
        let completion = checked
        checked = { _ in }
        completion(
            objections.isEmpty
                ? .success(())
                : .failure(
                    DatabaseError(
                        .refused, "nothing is moved: " + objections.sorted().joined(separator: "; ")
                    )))
    }

    // MARK: Freeze

    func begin() {
        guard server.isActing else {
            return fail(DatabaseError(.notLeader, "this controller does not act any more"))
        }
        phase = .freeze
        leadership = server.home.leadership
        server.freeze(DatabaseError(.unavailable, "the metadata is being moved to \(to)"))
        endLeases()
    }

    /// Whether this controller may still act, and nobody did in between.
    func leadershipChanged() {
        guard phase != .check, failure == nil, server.home.leadership != leadership else { return }
        fail(
            DatabaseError(.unavailable, "another controller may act: nothing was moved by this one")
        )
    }

    private func endLeases() {
        guard let store = server.home.metadata else {
            return fail(DatabaseError(.unavailable, "the metadata cannot be read"))
        }
        // Behind everything that was submitted before.
        store.range(prefix: Bytes("controller/".utf8)) { [weak self] result in
            guard let self, self.failure == nil else { return }
            guard case .success = result, let state = server.home.state else {
                return fail(DatabaseError(.unavailable, "the metadata cannot be read"))
            }
            for lease in state.leases { store.revoke(lease.id) { _ in } }
            guard !state.leases.isEmpty else { return copy(state) }
            endLeases()
        }
    }

    // MARK: Copy

    private func copy(_ state: RevisionedState) {
        let now = EventLoop.wallClockNanoseconds() / 1_000_000
        let own = server.settings
        // Above every replica id of an earlier group: ids follow each other from the clock's seconds.
        let first = UInt32(truncatingIfNeeded: now / 1_000)
        let places = [(own.core.name, own.ownAddress)] + present.map { ($0.name, $0.address) }
        let members = places.enumerated().map { index, place in
            MetadataMove.Member(
                replica: ReplicaID(first + UInt32(index)), name: place.0, address: place.1)
        }
        let move = MetadataMove(
            id: id, to: to, revision: state.revision.next(), cluster: server.home.cluster, at: now,
            caller: request.caller, endpoints: endpoints, prefix: prefix,
            members: to == .embedded ? members : [])
        let transaction: MetadataTransaction
        do throws(DatabaseError) {
            transaction = try MoveMark.transaction(
                state.get, move: move.encode(), request: request,
                said: "moved to \(to) by revision \(move.revision)", at: now, hash: SHA256.digest)
        } catch {
            return fail(error)
        }
        var final = state
        final.apply(.changes(transaction.changes), now: server.loop.now)
        precondition(final.revision == move.revision)
        phase = .copy
        records = final.records.count
        server.log.notice(
            "moves the metadata",
            [
                LogField("to", "\(to)"), LogField("revision", move.revision),
                LogField("records", records), LogField("move", hex(id)),
            ])
        switch to {
        case .etcd: bring(final, move, transaction)
        case .embedded: prepare(final, move, transaction)
        }
    }

    private func bring(
        _ state: RevisionedState, _ move: MetadataMove, _ transaction: MetadataTransaction
    ) {
        jobs.run("meta-move") { [transfer, progress] () throws(DatabaseError) in
            try transfer.bring(state, id: move.id, cluster: move.cluster) {
                progress.count.store($0, ordering: .relaxed)
            }
        } _: { [weak self] (result: Result<Void, DatabaseError>) in
            guard let self, self.failure == nil else { return }
            if case .failure(let error) = result { return fail(error) }
            awaitBackup(before: move) { $0.commit(transaction, move) }
        }
    }

    private func commit(_ transaction: MetadataTransaction, _ move: MetadataMove) {
        guard let store = server.home.metadata else {
            return fail(DatabaseError(.unavailable, "the metadata cannot be read"))
        }
        phase = .mark
        store.commit(transaction) { [weak self] result in
            guard let self, self.failure == nil else { return }
            switch result {
            case .success(let revision):
                precondition(revision == move.revision, "nothing came in between")
                server.moved(move)
            case .failure(.failed(let error)): fail(error)
            case .failure(let error): fail(DatabaseError(.fenced, error.description))
            }
        }
    }

    /// Every controller makes its copy of the group from its own copy of the state, which is the same.
    private func prepare(
        _ state: RevisionedState, _ move: MetadataMove, _ transaction: MetadataTransaction
    ) {
        var arguments = AdminRequest.Arguments()
        arguments.move = HexText.encode(move.encode())
        arguments.changes = transaction.changes.map {
            guard case .put(let key, let value, _) = $0 else {
                preconditionFailure("a mark puts records")
            }
            return [HexText.encode(key), HexText.encode(value)]
        }
        jobs.run("meta-digest") { () throws(DatabaseError) in
            MoveDigest.of(state)
        } _: { [weak self] (result: Result<String, DatabaseError>) in
            guard let self, self.failure == nil else { return }
            let digest: String
            switch result {
            case .failure(let error): return fail(error)
            case .success(let value): digest = value
            }
            waiting = present.count + 1
            let prepared = {
                [weak self] (name: String, result: Result<PreparedView, DatabaseError>) in
                self?.prepared(name, result, digest, state, move, transaction)
            }
            server.prepare(arguments) { prepared(self.server.settings.core.name, $0) }
            for other in present {
                server.ask(
                    other.address, "metadata.prepare", arguments, timeout: Self.prepareTimeout
                ) { prepared(other.name, $0) }
            }
        }
    }

    private func prepared(
        _ name: String, _ result: Result<PreparedView, DatabaseError>, _ digest: String,
        _ state: RevisionedState, _ move: MetadataMove, _ transaction: MetadataTransaction
    ) {
        guard failure == nil else { return }
        switch result {
        case .failure(let error):
            return fail(DatabaseError(.refused, "\(name) has no copy: \(error.message)"))
        case .success(let prepared):
            guard prepared.digest == digest else {
                return fail(
                    DatabaseError(
                        .storageFailed,
                        "the copy of \(name) differs: \(prepared.records) records, not \(records)"))
            }
        }
        waiting -= 1
        progress.count.add(records / (present.count + 1), ordering: .relaxed)
        guard waiting == 0 else { return }
        let marked = transaction.changes.compactMap { state.get($0.key) }
        awaitBackup(before: move) { $0.close(with: marked, move) }
    }

    private func close(with marked: [MetadataRecord], _ move: MetadataMove) {
        guard let election = (server.home as? EtcdNode)?.election, election != 0 else {
            return fail(DatabaseError(.unavailable, "this controller is not elected any more"))
        }
        phase = .mark
        jobs.run("meta-mark") { [transfer] () throws(DatabaseError) in
            try transfer.close(with: marked, move: move, election: election)
        } _: { [weak self] (result: Result<Void, DatabaseError>) in
            guard let self, self.failure == nil else { return }
            if case .failure(let error) = result { return fail(error) }
            server.moved(move)
        }
    }

    // MARK: The backup

    /// The new store's history begins with the mark: goes on when the backup holds everything before it.
    private func awaitBackup(
        before move: MetadataMove, since: Instant? = nil,
        _ goOn: @escaping (MetadataMigration) -> Void
    ) {
        guard failure == nil else { return }
        guard let obstacle = server.backupObstacle(before: move.revision) else { return goOn(self) }
        let began = since ?? server.loop.now
        guard server.loop.now - began < Self.backupPatience else {
            return fail(DatabaseError(.refused, obstacle))
        }
        server.loop.schedule(after: .milliseconds(20)) { [weak self] in
            self?.awaitBackup(before: move, since: began, goOn)
        }
    }

    // MARK: The end

    /// The old store goes on, unless its mark was set after all: then this controller follows like all others.
    private func fail(_ error: DatabaseError) {
        guard failure == nil else { return }
        failure = error.message
        server.notMoved(error, request)
    }
}

enum MoveDigest {
    /// SHA-256 of everything a state holds, in hexadecimal.
    static func of(_ state: RevisionedState) -> String {
        var writer = ByteWriter(reserving: state.records.byteCount + state.records.count * 16 + 64)
        state.encode(into: &writer)
        return HexText.encode(SHA256.digest(writer.take()))
    }
}
