// How one request of the store is carried out: what is asked of etcd next, and what its answer means.

import KVBase
import MetadataCore
import MetadataStore

/// The request under way.
struct EtcdWork {
    enum Request {
        case commit(MetadataTransaction, EtcdMetadataStore.Completion<Revision>)
        case read((Result<Void, MetadataError>) -> Void)
        case grant(Nanoseconds, EtcdMetadataStore.Completion<LeaseID>)
        case keepAlive(LeaseID, EtcdMetadataStore.Completion<Void>)
        /// Nil: nobody asked; its time has passed.
        case revoke(LeaseID, EtcdMetadataStore.Completion<Void>?)

        func fail(_ error: MetadataError) {
            switch self {
            case .commit(_, let completion): completion(.failure(error))
            case .read(let completion): completion(.failure(error))
            case .grant(_, let completion): completion(.failure(error))
            case .keepAlive(_, let completion): completion(.failure(error))
            case .revoke(_, let completion): completion?(.failure(error))
            }
        }
    }

    let request: Request
    /// The copy shows everything that was there when the request was submitted.
    var isConfirmed = false
    /// The etcd lease of a grant.
    var granted: UInt64 = 0
    var plan: EtcdPlan?
    /// The mutation that was sent and may be there: it is settled by whose the mutation of this number is.
    var sent: UInt64?

    init(_ request: Request) { self.request = request }
}

/// A mutation against one head.
struct EtcdPlan {
    var mutation: MetadataMutation
    var lease: EtcdLease?
    var base: UInt64
    var head: EtcdHead
    /// Of a large one.
    var parts: [[MetadataChange]] = []
    var staged = 0
    var transaction = EtcdTransaction()
}

extension EtcdMetadataStore {
    /// Takes the request under way one step further, or ends it.
    func proceed() {
        guard let work else { return }
        if let sent = work.sent {
            if mirror.ownSequence == sent { return succeeded(work.request) }
            guard mirror.head.sequence >= sent else {
                guard let plan = work.plan else { return }
                return call(.write(plan.transaction))
            }
            // Another store's came first.
            self.work?.sent = nil
            self.work?.plan = nil
        }
        switch work.request {
        case .read: confirmed { succeeded(work.request) }
        case .commit(let transaction, _):
            if let objection = mirror.state.objection(to: transaction) {
                confirmed { failed(objection) }
            } else if transaction.changes.isEmpty {
                confirmed { succeeded(work.request) }
            } else {
                mutate(.changes(transaction.changes), nil)
            }
        case .grant(let ttl, _):
            let second = Nanoseconds.seconds(1).count
            guard work.granted != 0 else {
                return call(.grant(seconds: max(1, (ttl.count + second - 1) / second)))
            }
            mutate(
                .leaseGranted(LeaseID(mirror.head.leaseHighest.rawValue + 1), ttl: ttl),
                EtcdLease(etcd: work.granted, ttl: ttl))
        case .keepAlive(let lease, _):
            guard let known = mirror.leases[lease], mirror.alive.contains(lease) else {
                return confirmed { failed(.leaseNotFound(lease)) }
            }
            call(.keepAlive(known.etcd))
        case .revoke(let lease, _):
            guard mirror.state.hasLease(lease) else {
                return confirmed { failed(.leaseNotFound(lease)) }
            }
            mutate(.leaseEnded(lease), mirror.leases[lease])
        }
    }

    /// Goes on once the copy is known to be new enough.
    private func confirmed(_ body: () -> Void) {
        if work?.isConfirmed == true { body() } else { call(.confirm) }
    }

    private func failed(_ error: MetadataError) {
        guard let work else { return }
        self.work = nil
        finish(work.request, error)
    }

    /// Answers from the copy, in which the mutation is the newest one or further ones followed by now.
    private func succeeded(_ request: EtcdWork.Request) {
        let revision = work?.plan?.head.revision ?? mirror.state.revision
        let lease = work?.plan?.head.leaseHighest ?? .none
        let etcdLease = work?.plan?.lease?.etcd
        work = nil
        switch request {
        case .commit(_, let completion): answer { completion(.success(revision)) }
        // At once: a read sees no later change of the copy.
        case .read(let completion): completion(.success(()))
        case .grant(_, let completion): answer { completion(.success(lease)) }
        case .keepAlive(_, let completion): answer { completion(.success(())) }
        case .revoke(let id, let completion):
            ending.remove(id)
            if let etcdLease { forget(etcdLease) }
            if let completion { answer { completion(.success(())) } }
        }
    }

    // MARK: Mutations

    private func mutate(_ mutation: MetadataMutation, _ lease: EtcdLease?) {
        if case .closed = fence {
            return failed(
                .failed(DatabaseError(.unavailable, "this controller may not change metadata")))
        }
        if mirror.head.staged != nil { return place() }
        if work?.plan?.base != mirror.headModRevision || work?.plan?.mutation != mutation {
            do throws(DatabaseError) {
                work?.plan = try plan(mutation, lease)
            } catch {
                return failed(.failed(error))
            }
        }
        guard let plan = work?.plan else { return }
        if plan.staged < plan.parts.count {
            call(.stage(stage(plan)))
        } else {
            work?.sent = plan.head.sequence
            call(.write(plan.transaction))
        }
    }

    private func plan(
        _ mutation: MetadataMutation, _ lease: EtcdLease?
    ) throws(DatabaseError) -> EtcdPlan {
        var head = mirror.head
        head.sequence += 1
        head.writer = mirror.writer
        var plan = EtcdPlan(
            mutation: mutation, lease: lease, base: mirror.headModRevision, head: head)
        var operations: [EtcdOperation] = []
        var changes: [MetadataChange] = []
        switch mutation {
        case .changes(let list): changes = list
        case .leaseGranted(let id, _):
            head.leaseHighest = id
            operations = [
                .put(key: layout.lease(id), value: lease?.encode() ?? [], lease: 0),
                .put(key: layout.alive(id), value: [], lease: lease?.etcd ?? 0),
            ]
        case .leaseEnded(let id):
            operations = [.delete(key: layout.lease(id)), .delete(key: layout.alive(id))]
            let keys = mirror.state.leases.first { $0.id == id }?.keys ?? []
            changes = keys.map { .delete(key: $0) }
        }
        if !changes.isEmpty { head.revision = head.revision.next() }
        for change in changes where EtcdPart.byteCount(change) > EtcdPart.bytesMax {
            throw DatabaseError(
                .tooLarge,
                "a record of \(EtcdPart.byteCount(change)) bytes: etcd takes requests of 1.5 MiB, so a "
                    + "record has at most \(EtcdPart.bytesMax)")
        }
        let parts = EtcdPart.cut(changes)
        if parts.count > 1 {
            plan.parts = parts
            head.staged = EtcdHead.Staged(count: UInt32(parts.count), next: 0)
        } else {
            operations += changes.map { operation($0, at: head.revision) }
        }
        operations.append(.put(key: layout.head, value: head.encode(), lease: 0))
        plan.head = head
        plan.transaction = guarded(operations)
        return plan
    }

    /// `operations` when the head is as this copy knows it and the election as the fence wants it.
    private func guarded(_ operations: [EtcdOperation]) -> EtcdTransaction {
        var comparisons: [EtcdComparison] = [
            .modRevision(key: layout.head, mirror.headModRevision)
        ]
        if mirror.headModRevision != 0 {
            // In an etcd that was restored another mutation may have the same etcd revision.
            comparisons.append(.value(key: layout.head, mirror.head.encode()))
        }
        return EtcdTransaction(
            comparisons: comparisons + fenced,
            success: operations, failure: [.get(key: layout.head), .get(key: layout.election)])
    }

    private var fenced: [EtcdComparison] {
        guard case .held(let revision) = fence else { return [] }
        return [.createRevision(key: layout.election, revision)]
    }

    private func operation(_ change: MetadataChange, at revision: Revision) -> EtcdOperation {
        switch change {
        case .put(let key, let value, let lease):
            let created = mirror.state.get(key)?.createRevision ?? revision
            return .put(
                key: layout.data(key),
                value: EtcdValue.encode(
                    MetadataRecord(
                        key: key, value: value, createRevision: created, modRevision: revision,
                        lease: lease)), lease: 0)
        case .delete(let key): return .delete(key: layout.data(key))
        }
    }

    private func stage(_ plan: EtcdPlan) -> EtcdTransaction {
        let key = layout.part(
            writer: plan.head.writer, sequence: plan.head.sequence, index: plan.staged)
        return EtcdTransaction(
            comparisons: fenced,
            success: [.put(key: key, value: EtcdPart.encode(plan.parts[plan.staged]), lease: 0)],
            failure: [.get(key: layout.head), .get(key: layout.election)])
    }

    /// Puts the next part of the newest mutation into its places. Any store may: all do the same.
    private func place() {
        guard let staged = mirror.head.staged else { return }
        let changes: [MetadataChange]
        do throws(DatabaseError) {
            changes = try mirror.stagedChanges(staged.next)
        } catch {
            return fail(error)
        }
        var operations = changes.map { change -> EtcdOperation in
            // As the copy has it: the mutation is the newest one.
            guard case .put(let key, _, _) = change, let record = mirror.state.get(key) else {
                return .delete(key: layout.data(change.key))
            }
            return .put(key: layout.data(key), value: EtcdValue.encode(record), lease: 0)
        }
        operations.append(
            .delete(
                key: layout.part(
                    writer: mirror.head.writer, sequence: mirror.head.sequence,
                    index: Int(staged.next))))
        var head = mirror.head
        let next = staged.next + 1
        head.staged =
            next < staged.count ? EtcdHead.Staged(count: staged.count, next: next) : nil
        operations.append(.put(key: layout.head, value: head.encode(), lease: 0))
        call(.place(guarded(operations), head: head))
    }

    /// With nothing else to do.
    func tidy(now: Instant) {
        if outage != nil {
            // Whether etcd is back.
            if now >= retryAt { call(.confirm) }
            return
        }
        if isDoubted {
            isDoubted = false
            return call(.confirm)
        }
        guard fence != .closed else { return }
        if mirror.head.staged != nil { return place() }
        guard case .held = fence, !mirror.parts.isEmpty else { return }
        // Of mutations that were never finished, by controllers that may not finish them any more.
        call(.sweep(guarded([.deletePrefix(layout.part)])))
    }

    /// Ends leases that nobody keeps alive.
    func endLeases() {
        guard fence != .closed else { return }
        for lease in mirror.endedLeases where !ending.contains(lease) {
            ending.insert(lease)
            waiting.append(.revoke(lease, nil))
        }
    }

    // MARK: Answers

    func answered(_ call: EtcdCall, _ answer: EtcdAnswer) {
        switch (call, answer) {
        case (.confirm, .transaction(let answer)):
            see(answer.records.first?.first)
            work?.isConfirmed = true
        case (.write, .transaction(let answer)): written(answer)
        case (.stage, .transaction(let answer)):
            if answer.succeeded { work?.plan?.staged += 1 } else { deposed(answer) }
        case (.place(_, let head), .transaction(let answer)):
            if answer.succeeded {
                mirror.observe(head, modRevision: answer.header.revision)
            } else {
                deposed(answer)
            }
        case (.sweep, .transaction(let answer)):
            mirror.dropParts()
            if !answer.succeeded { deposed(answer) }
        case (.grant, .lease(let lease)): work?.granted = lease
        case (.keepAlive, .lives(let lives)):
            guard let work, case .keepAlive(let lease, _) = work.request else { return }
            if lives { succeeded(work.request) } else { failed(.leaseNotFound(lease)) }
        default: break
        }
    }

    private func written(_ answer: EtcdTransactionAnswer) {
        guard let plan = work?.plan else { return }
        guard answer.succeeded else {
            statistics.conflicts += 1
            if case .some(let record) = answer.records.first?.first,
                let head = try? EtcdHead(record.value), head.sequence >= plan.head.sequence
            {
                // Whose it is shows when the copy has come to it.
                return see(record)
            }
            work?.sent = nil
            work?.plan = nil
            return deposed(answer)
        }
        guard mirror.head.sequence < plan.head.sequence else { return }
        do throws(DatabaseError) {
            if !plan.parts.isEmpty {
                var parts: [Int: Bytes] = [:]
                for (index, changes) in plan.parts.enumerated() {
                    parts[index] = EtcdPart.encode(changes)
                }
                mirror.hold(
                    EtcdMirror.PartSet(
                        writer: plan.head.writer, sequence: plan.head.sequence, parts: parts))
            }
            let event = try mirror.apply(
                plan.mutation, lease: plan.lease, head: plan.head,
                modRevision: answer.header.revision)
            if let event { publish(event) }
        } catch {
            fail(error)
        }
    }

    /// A comparison failed: another head, or another controller is elected.
    private func deposed(_ answer: EtcdTransactionAnswer) {
        if case .held(let revision) = fence {
            let held = answer.records.dropFirst().first?.first?.createRevision ?? 0
            if held != revision {
                fence = .closed
                if work != nil {
                    failed(
                        .failed(DatabaseError(.fenced, "another controller was elected in etcd")))
                }
            }
        }
        see(answer.records.first?.first)
    }

    /// The head as it is in etcd.
    private func see(_ record: EtcdRecord?) {
        guard let record else {
            if sequenceAtCall != 0 { wentBack(EtcdHead(), isThere: false) }
            return
        }
        do throws(DatabaseError) {
            let head = try EtcdHead(record.value)
            // An answer shows at least what was known when it was asked for; the watch may have
            // brought more since.
            guard head.sequence >= sequenceAtCall else { return wentBack(head, isThere: true) }
            guard head.sequence >= mirror.head.sequence else { return }
            if head.sequence == mirror.head.sequence, head.writer != mirror.head.writer {
                return wentBack(head, isThere: true)
            }
            mirror.observe(head, modRevision: record.modRevision)
            awaited = max(awaited, head.sequence)
        } catch {
            fail(error)
        }
    }

    /// Etcd will not have the request.
    func refused(_ code: UInt64, _ message: String) {
        guard work != nil else { return }
        failed(.failed(DatabaseError(.refused, "etcd refuses: \(message)")))
    }
}
