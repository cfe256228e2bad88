// Moving a cluster's metadata into etcd and out of it, and what a controller that starts finds there.

import KVBase
import MetadataCore

/// Calls block. Every step compares the head, so nothing of it mixes with what somebody else does meanwhile.
public struct EtcdTransfer: Sendable {
    private let gateway: EtcdGateway
    private let layout: EtcdLayout
    private let prefix: String

    public init(_ settings: EtcdSettings) throws(DatabaseError) {
        gateway = try EtcdGateway(settings)
        layout = EtcdLayout(prefix: settings.prefix)
        prefix = settings.prefix
    }

    /// Ends a call under way; everything later fails.
    public func close() { gateway.close() }

    /// What stands below the prefix.
    public enum Content: Hashable, Sendable {
        case nothing
        /// Brought by the move `id`, and not valid yet.
        case incoming(id: UInt64, cluster: UInt64)
        /// Nil where nobody noted where to.
        case moved(MetadataMove?)
        case metadata(revision: Revision)
    }

    public func look() throws(DatabaseError) -> Content {
        let (record, _) = try head()
        guard let record else { return .nothing }
        switch try EtcdHead.Mark(record.value) {
        case .incoming(let id, let cluster, _): return .incoming(id: id, cluster: cluster)
        case .moved(let move): return .moved(move)
        case .head(let head): return .metadata(revision: head.revision)
        }
    }

    /// The records whose keys begin with one of `prefixes`, as etcd holds them at this moment.
    public func records(under prefixes: [Bytes]) throws(DatabaseError) -> [MetadataRecord] {
        try EtcdImageReader(gateway: gateway, layout: layout, known: nil).records(under: prefixes)
    }

    // MARK: Into etcd

    /// Whether the metadata of `cluster` may come here: throws `.refused` when there is anything that could
    /// be needed, and what etcd says when it cannot be read and written. `name` names who tries.
    public func check(cluster: UInt64, name: String) throws(DatabaseError) {
        try checkEmpty(try head(), cluster)
        let key = layout.prefix + Bytes("trial/\(name)".utf8)
        for operation in [EtcdOperation.put(key: key, value: [], lease: 0), .delete(key: key)] {
            _ = try failing { () throws(EtcdFailure) in
                try gateway.transact(EtcdTransaction(success: [operation]))
            }
        }
    }

    private func checkEmpty(
        _ found: (record: EtcdRecord?, sessions: [EtcdPlace]), _ cluster: UInt64
    ) throws(DatabaseError) {
        let occupied = DatabaseError(
            .refused,
            "there is metadata below \(prefix) in etcd already: name another etcd.prefix, or delete what is "
                + "there (etcdctl del --prefix \(prefix))")
        if let record = found.record {
            switch try? EtcdHead.Mark(record.value) {
            case .incoming(_, cluster, _), .moved(nil): break
            case .moved(let move?) where move.cluster == cluster: break
            default: throw occupied
            }
        }
        guard found.sessions.isEmpty else {
            throw DatabaseError(
                .refused,
                "controllers run on \(prefix) in etcd already: "
                    + found.sessions.map(\.name).joined(separator: ", "))
        }
    }

    /// Puts `state` below the prefix, where there must be none, as what the move `id` brings; it does not count
    /// until `complete`. What an earlier attempt left is removed. `progress` is told how many records there are.
    public func bring(
        _ state: RevisionedState, id: UInt64, cluster: UInt64, progress: (Int) -> Void = { _ in }
    ) throws(DatabaseError) {
        precondition(state.leases.isEmpty && state.revision != .none)
        let found = try head()
        try checkEmpty(found, cluster)
        var new = EtcdHead()
        new.sequence = state.revision.rawValue
        new.writer = id
        new.revision = state.revision
        new.leaseHighest = state.leaseHighest
        // First of all: no controller founds a cluster here from now on.
        let mark = EtcdHead.Mark.incoming(id: id, cluster: cluster, new).encode()
        let mod = try step(
            [.put(key: layout.head, value: mark, lease: 0)]
                + [layout.data, layout.lease, layout.alive, layout.part].map { .deletePrefix($0) },
            head: found.record?.modRevision ?? 0)
        var batch: [EtcdOperation] = []
        var bytes = 0
        var done = 0
        var position = state.records.startPosition
        while !state.records.isEnd(position) {
            var key: Bytes = []
            state.records.withEntry(at: position) { raw, _ in key = Bytes(raw) }
            position = state.records.next(position)
            guard let record = state.get(key) else { continue }
            let value = EtcdValue.encode(record)
            guard value.count + key.count < EtcdPart.bytesMax else {
                throw DatabaseError(.tooLarge, "a record of \(value.count) bytes: etcd takes 1 MiB")
            }
            if batch.count == EtcdPart.changesMax
                || bytes + value.count + key.count > EtcdPart.bytesMax
            {
                _ = try step(batch, head: mod)
                done += batch.count
                progress(done)
                batch.removeAll()
                bytes = 0
            }
            batch.append(.put(key: layout.data(key), value: value, lease: 0))
            bytes += value.count + key.count + 64
        }
        _ = try step(batch, head: mod)
        progress(done + batch.count)
        // A probe of what is there now, and of nothing else.
        let there = try read(id: id)
        guard there.revision == state.revision, there.leaseHighest == state.leaseHighest,
            there.records.count == state.records.count,
            there.range(prefix: []) == state.range(prefix: [])
        else {
            throw DatabaseError(
                .storageFailed,
                "what was written to etcd reads otherwise: \(there.records.count) records at revision "
                    + "\(there.revision), not \(state.records.count) at \(state.revision)")
        }
    }

    /// What the move `id` has brought so far.
    private func read(id: UInt64) throws(DatabaseError) -> RevisionedState {
        try failing { () throws(EtcdFailure) in
            try EtcdImageReader(gateway: gateway, layout: layout, known: nil, incoming: id).read()
        }.state ?? RevisionedState()
    }

    /// Makes what the move `id` brought valid. For whoever knows that the old store is closed by that move;
    /// may be done by several. Throws `.refused` when something else is there.
    public func complete(id: UInt64) throws(DatabaseError) {
        let (record, _) = try head()
        guard let record, case .incoming(id, _, let head) = try EtcdHead.Mark(record.value) else {
            guard let record, case .head = try EtcdHead.Mark(record.value) else {
                throw DatabaseError(
                    .refused, "what was moved to \(prefix) in etcd is not there any more")
            }
            return
        }
        _ = try step(
            [.put(key: layout.head, value: head.encode(), lease: 0)], head: record.modRevision)
    }

    // MARK: Out of etcd

    /// Closes the metadata below the prefix with the last mutation, that of `move`, which made `records`:
    /// nothing changes it any more. Throws `.refused` when it is not as it was when the state to move was read, or the controller
    /// whose election that is was deposed; any other failure may have happened after the fact.
    public func close(
        with records: [MetadataRecord], move: MetadataMove, election: UInt64
    ) throws(DatabaseError) {
        let (record, _) = try head()
        guard let record, case .head(let head) = try EtcdHead.Mark(record.value),
            head.revision.next() == move.revision
        else { throw Self.changed }
        guard head.staged == nil else {
            throw DatabaseError(.refused, "a large change is still on its way into its places")
        }
        var operations: [EtcdOperation] = [
            .put(key: layout.head, value: EtcdHead.Mark.moved(move).encode(), lease: 0)
        ]
        for record in records {
            operations.append(
                .put(key: layout.data(record.key), value: EtcdValue.encode(record), lease: 0))
        }
        _ = try step(
            operations, head: record.modRevision,
            and: [.createRevision(key: layout.election, election)])
    }

    // MARK: Helpers

    private static let changed = DatabaseError(
        .refused, "something else changed the metadata in etcd meanwhile")

    private func head() throws(DatabaseError) -> (record: EtcdRecord?, sessions: [EtcdPlace]) {
        let answer = try failing { () throws(EtcdFailure) in
            try gateway.transact(EtcdTransaction(success: [.get(key: layout.head)]))
        }
        let page = try failing { () throws(EtcdFailure) in
            try gateway.call(
                EtcdPath.range,
                EtcdRequest.range(
                    from: layout.controller, end: EtcdRequest.end(of: layout.controller),
                    limit: 100, revision: 0))
        }
        let places = try EtcdRangeAnswer(page).records.compactMap { try? EtcdPlace($0.value) }
        return (answer.records.first?.first, places)
    }

    /// One transaction while the head is as it was; answers the etcd revision of the head. It may be sent
    /// twice: its own outcome is no objection.
    private func step(
        _ operations: [EtcdOperation], head: UInt64, and others: [EtcdComparison] = []
    ) throws(DatabaseError) -> UInt64 {
        guard !operations.isEmpty else { return head }
        let answer = try failing { () throws(EtcdFailure) in
            try gateway.transact(
                EtcdTransaction(
                    comparisons: [.modRevision(key: layout.head, head)] + others,
                    success: operations, failure: [.get(key: layout.head)]))
        }
        if answer.succeeded { return answer.header.revision }
        if case .put(layout.head, let value, _) = operations[0],
            let there = answer.records.first?.first, there.value == value
        {
            return there.modRevision
        }
        throw Self.changed
    }

    private func failing<Value>(
        _ body: () throws(EtcdFailure) -> Value
    ) throws(DatabaseError) -> Value {
        do throws(EtcdFailure) {
            return try body()
        } catch {
            if case .refused(_, let message) = error {
                throw DatabaseError(.storageFailed, "etcd refuses: \(message)")
            }
            throw DatabaseError(.unavailable, "etcd does not answer: \(error.message)")
        }
    }
}
