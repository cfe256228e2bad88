// The controller's part in moves of the metadata: the verbs, freezing, and following a mark.

import ControllerCore
import Digest
import EtcdMetadata
import EventLoop
import Glibc
import KVBase
import MetadataCore
import MetadataStore
import SystemdSupport
import WireProtocol

/// What a controller knows of moves that are not behind it.
struct MoveState {
    /// Acts no more, though it may: a move is under way, or done.
    var isFrozen = false
    /// The one that this controller does, or the last that came to nothing.
    var migration: MetadataMigration?
    /// What is to be told in the audit log when this controller acts again.
    var untold: (error: DatabaseError, request: MoveMark.Request)?
    /// The one that this controller follows, and since when.
    var following: (move: MetadataMove, since: Instant)?
    var isLeaving = false
    var leaderlessSince: Instant?
    /// An empty controller has said that the metadata is not here.
    var isTold = false
    /// For what others ask.
    var jobs: BackgroundJobs?
}

extension ControllerServer {
    /// Of controllers among themselves, and of tools that want to know what one controller knows.
    static let peerVerbs = ["metadata.home", "metadata.check", "metadata.prepare"]

    /// How long the acting controller waits for the others to have the mark.
    private static let markPatience = Nanoseconds.seconds(2)
    private static let markPause = Nanoseconds.milliseconds(300)
    /// Without a leader for so long, a controller asks the others whether the metadata has left.
    private static let leaderPatience = Nanoseconds.seconds(2)
    private static let preparePatience = Nanoseconds.seconds(10)

    // MARK: Verbs

    func serveMoves(_ request: AdminRequest, _ token: UInt32, _ session: ControllerSession) {
        let arguments = request.arguments ?? AdminRequest.Arguments()
        switch request.verb {
        case "metadata.home": session.adminSuccess(token, homeView())
        case "metadata.check":
            let to: MetadataForm = arguments.to == "etcd" ? .etcd : .embedded
            checkTarget(to, arguments.endpoints ?? [], arguments.prefix ?? "") {
                [unowned self, weak session] in
                switch $0 {
                case .success: session?.adminSuccess(token, PeerCheck(name: settings.core.name))
                case .failure(let error): session?.adminFailure(token, error)
                }
            }
        default:
            prepare(arguments) { [weak session] in
                switch $0 {
                case .success(let prepared): session?.adminSuccess(token, prepared)
                case .failure(let error): session?.adminFailure(token, error)
                }
            }
        }
    }

    private func homeView() -> HomeView {
        let move = moves.following?.move ?? settings.move
        return HomeView(
            name: settings.core.name, form: "\(settings.form)",
            configured: "\(settings.configured)", acting: isActing, obstacle: home.obstacle,
            cluster: hex(home.cluster),
            revision: home.state?.revision.rawValue ?? 0, move: move.map { MoveView($0) },
            moveBytes: move.map { HexText.encode($0.encode()) }, migration: moves.migration?.view,
            staleness: settings.staleness)
    }

    func stalenessFinding() -> FindingView? {
        settings.staleness.map {
            FindingView(
                code: "RK061", severity: "notice",
                text: "settings of controller \(settings.core.name): \($0)",
                advice: "change them on every controller; kvctl metadata show tells which")
        }
    }

    /// `metadata.migrate`: answered when the checks are over, and with `dryRun` nothing else happens.
    func migrate(
        _ request: AdminRequest, _ token: UInt32, _ session: ControllerSession
    ) throws(DatabaseError) {
        let arguments = request.arguments ?? AdminRequest.Arguments()
        let dryRun = arguments.dryRun == true
        guard let text = arguments.to,
            let to = ["etcd": MetadataForm.etcd, "embedded": .embedded][text]
        else { throw DatabaseError(.invalidRequest, "to is etcd or embedded") }
        guard to != settings.form else {
            throw DatabaseError(
                .refused, "the metadata is kept \(to == .etcd ? "in etcd" : "embedded") already")
        }
        if let running = moves.migration, running.failure == nil {
            throw DatabaseError(.refused, "a move to \(running.to) is under way")
        }
        let endpoints =
            to == .etcd ? arguments.endpoints ?? [] : settings.etcd?.etcd.endpoints ?? []
        let prefix =
            to == .etcd ? arguments.prefix ?? "rangekeeper/" : settings.etcd?.etcd.prefix ?? ""
        guard !endpoints.isEmpty else {
            throw DatabaseError(.invalidRequest, "a move to etcd needs its endpoints")
        }
        let known = auditRequest(token, of: session.id)
        let migration = try MetadataMigration(
            to: to, endpoints: endpoints, prefix: prefix,
            request: known
                ?? MoveMark.Request(number: 0, caller: "", address: "", verb: request.verb),
            server: self)
        moves.migration?.close()
        moves.migration = migration
        migration.check { [unowned self, weak session, id = session.id] result in
            if case .failure(let error) = result {
                moves.migration = nil
                migration.close()
                auditAnswer(error, token, of: id)
                session?.adminFailure(token, error)
                return
            }
            let state = home.state
            session?.adminSuccess(
                token,
                MigrationPlanView(
                    id: hex(migration.id), from: "\(settings.form)", to: "\(to)",
                    endpoints: endpoints, prefix: prefix, records: state?.records.count ?? 0,
                    revision: state?.revision.rawValue ?? 0, controllers: migration.controllers,
                    absent: migration.absent.sorted(), dryRun: dryRun))
            if dryRun {
                moves.migration = nil
                migration.close()
            } else {
                migration.begin()
            }
        }
    }

    func ask<Value: Decodable>(
        _ address: String, _ verb: String, _ arguments: AdminRequest.Arguments,
        timeout: Nanoseconds, _ completion: @escaping (Result<Value, DatabaseError>) -> Void
    ) {
        PeerRequest.send(
            verb, arguments, to: address, transport: transport,
            hello: Hello(role: .operatorTool, cluster: home.cluster, name: settings.core.name),
            timeout: timeout, completion)
    }

    private var moveJobs: BackgroundJobs {
        if let jobs = moves.jobs { return jobs }
        let jobs = BackgroundJobs(loop)
        moves.jobs = jobs
        return jobs
    }

    /// Whether this controller could use the target.
    func checkTarget(
        _ to: MetadataForm, _ endpoints: [String], _ prefix: String,
        _ completion: @escaping (Result<Void, DatabaseError>) -> Void
    ) {
        let (name, cluster, data) = (settings.core.name, home.cluster, settings.files.data)
        guard to == .etcd else {
            let isWritable = access(data, W_OK) == 0
            return completion(
                isWritable
                    ? .success(()) : .failure(DatabaseError(.refused, "\(data) cannot be written")))
        }
        if let objection = MetadataPlace.objection(
            toMoveTo: endpoints, prefix, configured: settings.configured,
            endpoints: settings.configuredEtcd.endpoints, prefix: settings.configuredEtcd.prefix)
        {
            return completion(.failure(DatabaseError(.refused, objection)))
        }
        do throws(DatabaseError) {
            var etcd = try settings.etcdAt(endpoints, prefix).etcd
            etcd.patience = .seconds(4)
            let transfer = try EtcdTransfer(etcd)
            moveJobs.run("etcd-check") { () throws(DatabaseError) in
                do throws(DatabaseError) {
                    try transfer.check(cluster: cluster, name: name)
                } catch {
                    // To whoever asked this controller answers, though etcd does not.
                    throw DatabaseError(.refused, error.message)
                }
            } _: {
                completion($0)
            }
        } catch {
            completion(.failure(DatabaseError(.refused, error.message)))
        }
    }

    /// Makes this controller's copy of a group, once its copy of the state is as far as it must be.
    func prepare(
        _ arguments: AdminRequest.Arguments, since: Instant? = nil,
        _ completion: @escaping (Result<PreparedView, DatabaseError>) -> Void
    ) {
        let began = since ?? loop.now
        do throws(DatabaseError) {
            let move = try MetadataMove(try HexText.decode(try required(arguments.move, "move")))
            guard settings.form == .etcd, move.to == .embedded, move.cluster == home.cluster else {
                throw DatabaseError(.refused, "this is no copy of that metadata")
            }
            guard let state = home.state, state.revision.next() <= move.revision else {
                throw DatabaseError(.refused, "the metadata has changed since")
            }
            guard state.revision.next() == move.revision, state.leases.isEmpty else {
                guard loop.now - began < Self.preparePatience else {
                    throw DatabaseError(
                        .refused, "the copy of etcd is at revision \(state.revision) and lags")
                }
                loop.schedule(after: .milliseconds(20)) { [weak self] in
                    self?.prepare(arguments, since: began, completion)
                }
                return
            }
            var changes: [MetadataChange] = []
            for pair in try required(arguments.changes, "changes") where pair.count == 2 {
                changes.append(
                    .put(
                        key: try HexText.decode(pair[0]), value: try HexText.decode(pair[1]),
                        lease: .none))
            }
            let (files, name, now) = (settings.files, settings.core.name, loop.now)
            moveJobs.run("meta-prepare") { [changes] () throws(DatabaseError) in
                var final = state
                final.apply(.changes(changes), now: now)
                let written = try files.prepare(move, name: name, state: final)
                return PreparedView(
                    records: written.records.count, digest: MoveDigest.of(written))
            } _: {
                completion($0)
            }
        } catch {
            completion(.failure(error))
        }
    }

    // MARK: The move that this controller does

    func freeze(_ reason: DatabaseError) {
        moves.isFrozen = true
        standDown(reason)
    }

    /// Acts again, if it may.
    func notMoved(_ error: DatabaseError, _ request: MoveMark.Request) {
        log.warning("the metadata is not moved", [LogField("reason", error.message)])
        moves.untold = (error, request)
        guard moves.following == nil else { return }
        moves.isFrozen = false
        stopBackup()
        leadershipChanged()
    }

    func sayNotMoved() {
        guard let untold = moves.untold else { return }
        moves.untold = nil
        auditFailure(untold.error, of: untold.request)
    }

    func moved(_ move: MetadataMove) {
        log.notice(
            "the metadata is moved",
            [LogField("to", "\(move.to)"), LogField("revision", move.revision)])
        follow(move)
    }

    // MARK: Following

    /// Looks for the mark of a move in this controller's own copy. True when there is one to follow.
    @discardableResult
    func followMark() -> Bool {
        guard moves.following == nil else { return true }
        guard settings.form == .embedded, let state = home.state else { return false }
        do throws(DatabaseError) {
            guard let move = try state.move(), move.to != settings.form else { return false }
            follow(move)
        } catch {
            fail(error)
        }
        return true
    }

    /// Goes where the metadata went: notes it, and begins anew. Nothing happens in the store that it left.
    func follow(_ move: MetadataMove) {
        guard moves.following == nil, !isStopping else { return }
        guard move.to != settings.form, move.revision > settings.move?.revision ?? .none else {
            return fail(
                DatabaseError(
                    .storageFailed,
                    "the metadata says that it moved to \(move.to) by revision \(move.revision), and this "
                        + "controller knows of a later move"))
        }
        freeze(DatabaseError(.unavailable, "the metadata was moved to \(move.to)"))
        do throws(DatabaseError) {
            try settings.files.note(move)
        } catch {
            return fail(error)
        }
        log.notice(
            "follows the metadata",
            [LogField("to", "\(move.to)"), LogField("revision", move.revision)])
        moves.following = (move, loop.now)
    }

    /// Every tick: follows a mark, and leaves when the others have it too.
    func lookForMove() {
        guard !isStopping, !moves.isLeaving, followMark(), let (move, since) = moves.following
        else {
            return
        }
        let elapsed = loop.now - since
        // Whoever leads the group sees to it that the others have the mark, and know that it counts.
        if let quorum, quorum.leadership != nil, elapsed < Self.markPatience {
            guard elapsed >= Self.markPause else { return }
            let others = quorum.replica?.image.roster.members ?? []
            let isBehind = others.contains { member in
                guard let seen = quorum.replica?.progress(of: member.replica, now: loop.now) else {
                    return false
                }
                return seen.isLive && seen.lag > 0
            }
            if isBehind { return }
        }
        moves.isLeaving = true
        onMove("the metadata was moved to \(move.to)")
    }

    /// A controller of the group that was away when the metadata left finds no leader, and one that has lost its
    /// disk no group: the others know.
    func askForMove() {
        guard let quorum, moves.following == nil, home.leader == nil, home.leadership == nil else {
            moves.leaderlessSince = nil
            return
        }
        let since = moves.leaderlessSince ?? loop.now
        moves.leaderlessSince = since
        guard loop.now - since >= Self.leaderPatience else { return }
        moves.leaderlessSince = loop.now
        let members = quorum.replica?.image.roster.members.map { ($0.name, $0.address) }
        let others = members ?? settings.quorum.peers.map { ($0.name, $0.address) }
        for (name, address) in others where name != settings.core.name {
            ask(
                address, "metadata.home", AdminRequest.Arguments(), timeout: .seconds(2)
            ) { [weak self] (result: Result<PeerHome, DatabaseError>) in
                guard case .success(let peer) = result, let text = peer.moveBytes,
                    let bytes = try? HexText.decode(text), let move = try? MetadataMove(bytes)
                else { return }
                self?.learn(move)
            }
        }
    }

    /// Another controller says that the metadata has left.
    private func learn(_ move: MetadataMove) {
        guard home.leader == nil, home.leadership == nil, move.to != settings.form else { return }
        if home.metadata == nil, !moves.isTold,
            let objection = MetadataPlace.objection(to: settings.configured, after: move)
        {
            moves.isTold = true
            log.warning(objection)
        }
        // What is empty is taken in nowhere by itself.
        guard move.cluster == home.cluster, move.revision > home.state?.revision ?? .none else {
            return
        }
        follow(move)
    }
}
