// Moving a cluster's metadata into etcd and out of it, while no controller runs.

import KVBase
import MetadataCore

/// Calls block. Every step compares the head, so nothing of it mixes with a controller that starts meanwhile.
public struct EtcdTransfer {
    private let gateway: EtcdGateway
    private let layout: EtcdLayout
    private let prefix: String

    public init(_ settings: EtcdSettings) throws(DatabaseError) {
        gateway = try EtcdGateway(settings)
        layout = EtcdLayout(prefix: settings.prefix)
        prefix = settings.prefix
    }

    /// What stands below the prefix.
    public enum Content {
        case nothing
        /// Taken out by `seal`.
        case moved
        /// Without leases: who held one is not there any more. `seal` wants the number.
        case metadata(RevisionedState, head: UInt64)
    }

    /// Throws `.refused` when a controller has a session.
    public func read() throws(DatabaseError) -> Content {
        let (record, _) = try head()
        guard let record else { return .nothing }
        if EtcdHead.isMoved(record.value) { return .moved }
        let image = try failing { () throws(EtcdFailure) in
            try EtcdImageReader(gateway: gateway, layout: layout, known: nil).read()
        }
        try refuseSessions(image.controllers)
        guard var state = image.state, image.headModRevision == record.modRevision else {
            throw DatabaseError(.refused, "the metadata in etcd changed while it was read")
        }
        for lease in state.leases { state.apply(.leaseEnded(lease.id), now: .origin) }
        return .metadata(state, head: image.headModRevision)
    }

    /// Marks the metadata as taken out, so that no controller starts from it any more.
    public func seal(head: UInt64) throws(DatabaseError) {
        try step(
            [.put(key: layout.head, value: EtcdHead.moved, lease: 0)], head: head,
            "a controller changed the metadata in etcd: stop all controllers and begin anew")
    }

    /// Makes `state` the metadata below the prefix, where there must be none. The head comes last: without
    /// it nothing else counts, and what an interrupted transfer left is removed by the next one.
    public func write(_ state: RevisionedState) throws(DatabaseError) {
        precondition(state.leases.isEmpty && state.revision != .none)
        let (record, sessions) = try head()
        if let record, !EtcdHead.isMoved(record.value) {
            throw DatabaseError(
                .refused, "there is metadata below \(prefix) in etcd already")
        }
        try refuseSessions(sessions)
        let mod = record?.modRevision ?? 0
        let changed = "something else wrote below \(prefix) in etcd meanwhile"
        try step(
            [layout.data, layout.lease, layout.alive, layout.part].map { .deletePrefix($0) },
            head: mod, changed)
        var batch: [EtcdOperation] = []
        var bytes = 0
        for record in state.range(prefix: []) {
            let value = EtcdValue.encode(record)
            guard value.count + record.key.count < EtcdPart.bytesMax else {
                throw DatabaseError(.tooLarge, "a record of \(value.count) bytes: etcd takes 1 MiB")
            }
            if batch.count == EtcdPart.changesMax
                || bytes + value.count + record.key.count > EtcdPart.bytesMax
            {
                try step(batch, head: mod, changed)
                batch.removeAll()
                bytes = 0
            }
            batch.append(.put(key: layout.data(record.key), value: value, lease: 0))
            bytes += value.count + record.key.count + 64
        }
        try step(batch, head: mod, changed)
        var new = EtcdHead()
        new.sequence = state.revision.rawValue
        new.writer = UInt64.random(in: 1...UInt64.max)
        new.revision = state.revision
        new.leaseHighest = state.leaseHighest
        try step(
            [.put(key: layout.head, value: new.encode(), lease: 0)], head: mod, changed)
    }

    // MARK: Helpers

    private func head() throws(DatabaseError) -> (EtcdRecord?, [EtcdPlace]) {
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

    private func refuseSessions(_ places: [EtcdPlace]) throws(DatabaseError) {
        guard !places.isEmpty else { return }
        throw DatabaseError(
            .refused,
            "stop all controllers first; these have sessions in etcd: "
                + places.map(\.name).joined(separator: ", "))
    }

    /// One transaction while the head is as it was. It may be sent twice: its own outcome is no objection.
    private func step(
        _ operations: [EtcdOperation], head: UInt64, _ objection: String
    ) throws(DatabaseError) {
        guard !operations.isEmpty else { return }
        let answer = try failing { () throws(EtcdFailure) in
            try gateway.transact(
                EtcdTransaction(
                    comparisons: [.modRevision(key: layout.head, head)], success: operations,
                    failure: [.get(key: layout.head)]))
        }
        if answer.succeeded { return }
        if case .put(layout.head, let value, _) = operations[0],
            answer.records.first?.first?.value == value
        {
            return
        }
        throw DatabaseError(.refused, objection)
    }

    private func failing<Value>(
        _ body: () throws(EtcdFailure) -> Value
    ) throws(DatabaseError) -> Value {
        do throws(EtcdFailure) {
            return try body()
        } catch {
            throw DatabaseError(.unavailable, "etcd does not answer: \(error.message)")
        }
    }
}
