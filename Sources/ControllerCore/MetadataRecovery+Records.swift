// The recovered metadata as records, with every counter above what can have been issued.

import KVBase
import ShardCore

extension MetadataRecovery {
    func result(
        _ cluster: UInt64, _ older: [MetadataRecord], _ revision: Revision
    ) -> RecoveredMetadata {
        var transaction = MetadataTransaction()
        let term = nextTerm()
        transaction.put(StoreKey.cluster) { $0.write(cluster) }
        transaction.put(StoreKey.term) {
            $0.write(term)
            $0.write("restore")
        }
        let ids = nextIDs()
        transaction.put(ids)
        transaction.put(StoreKey.nextOperation) { $0.write(nextOperation) }
        transaction.put(StoreKey.restored) {
            $0.write(ids.node)
            $0.write(clock)
        }
        for node in nodes.elements { transaction.put(node) }
        for group in groups.elements {
            transaction.put(group)
            putNomination(of: group, into: &transaction)
        }
        for table in tables.elements { transaction.put(table) }
        for shard in shards.elements { transaction.put(shard) }
        for operation in operations {
            transaction.put(StoreKey.operation(operation.id)) { operation.encode(into: &$0) }
        }
        for former in former {
            transaction.put(StoreKey.former(former.operation)) { former.encode(into: &$0) }
        }
        for replica in retired.elements {
            transaction.put(StoreKey.retired(replica.replica)) { replica.encode(into: &$0) }
        }
        putDecisions(into: &transaction)
        putAudit(into: &transaction)
        var records = transaction.changes.compactMap { change -> MetadataRecord? in
            guard case .put(let key, let value, _) = change else { return nil }
            return MetadataRecord(
                key: key, value: value, createRevision: revision, modRevision: revision,
                lease: .none)
        }
        records += older.filter(isKept).map { record in
            MetadataRecord(
                key: record.key, value: record.value, createRevision: revision,
                modRevision: revision, lease: .none)
        }
        records.sort { compareBytes($0.key, $1.key) < 0 }
        return RecoveredMetadata(
            cluster: cluster, revision: revision, records: records, controllerTerm: term,
            findings: findings, nodes: nodes.count, groups: groups.count,
            unconfirmed: known.elements.filter { !$0.isConfirmed }.map(\.id), tables: tables.count,
            shards: shards.count,
            moves: operations.count { $0.origin == "restore" && !$0.isFinished })
    }

    /// What only operators and rules know stays as it was.
    private func isKept(_ record: MetadataRecord) -> Bool {
        let key = record.key
        let number = StoreKey.number(of: key)
        if key.starts(with: StoreKey.historyPrefix) { return shards[ShardID(number)] != nil }
        let ofNodes = [StoreKey.heldPrefix, StoreKey.weightPrefix, StoreKey.maintenancePrefix]
        if ofNodes.contains(where: { key.starts(with: $0) }) { return nodes[NodeID(number)] != nil }
        let known = [StoreKey.settingPrefix, StoreKey.decisionPrefix, StoreKey.auditPrefix]
        return known.contains { key.starts(with: $0) }
    }

    private func nextTerm() -> Term {
        let seen =
            holdings.map(\.controllerTerm.rawValue)
            + holdings.map {
                $0.mapRevision.rawValue >> 32
            }
        return Term(max(base.term.rawValue, seen.max() ?? 0) + Self.termJump)
    }

    private func nextIDs() -> IDAllocators {
        var next = ids
        next.node = max(next.node, (nodes.last?.id.rawValue ?? 0) + 1) + Self.idJump
        next.group = max(next.group, (known.last?.id.rawValue ?? 0) + 1) + Self.idJump
        next.table = max(next.table, (tables.last?.id.rawValue ?? 0) + 1) + Self.idJump
        var replica: UInt32 = 0
        var shard = shards.last?.id.rawValue ?? 0
        for holding in holdings.flatMap(\.replicas) {
            let members = holding.voters.map(\.replica) + holding.learners + [holding.replica]
            replica = max(replica, members.max()?.rawValue ?? 0)
            shard = max(shard, holding.shards.last?.shard.id.rawValue ?? 0)
        }
        for group in groups.elements {
            replica = max(replica, group.group.placements.map(\.replica).max()?.rawValue ?? 0)
        }
        next.replica = max(next.replica, replica + 1) + Self.idJump
        next.shard = max(next.shard, shard + 1) + Self.shardJump
        return next
    }

    /// No term that may have been handed out is handed out again.
    private func putNomination(
        of record: GroupRecord, into transaction: inout MetadataTransaction
    ) {
        let id = record.group.id
        let stored = base.nominations.first { $0.0 == id }?.1.term ?? .none
        let term = max(stored, known[id]?.highestTerm ?? .none)
        guard term != .none, let nominee = record.group.placements.first?.replica else { return }
        let nomination = Nomination(term: term.next(), nominee: nominee)
        transaction.put(StoreKey.nomination(id)) { nomination.encode(into: &$0) }
    }

    /// What was made of what.
    var summary: String {
        "restored from \(origin) and from what \(holdings.count) nodes hold: \(findings.count) findings"
    }

    /// The restore itself, behind what the older state's audit log has.
    private func putAudit(into transaction: inout MetadataTransaction) {
        var head = auditHead
        let number = head.next
        for event in [
            AuditEntry.Event.requested(arguments: request.arguments),
            .answered(request: number, isDone: true, text: summary),
        ] {
            let entry = AuditEntry(
                after: head, at: clock, caller: request.caller, address: "no controller",
                verb: request.verb, event: event, hash: request.hash)
            transaction.audit(entry, behind: &head)
        }
        transaction.put(StoreKey.auditHead) { head.encode(into: &$0) }
    }

    private func putDecisions(into transaction: inout MetadataTransaction) {
        var number = base.decisions.last?.number ?? 0
        for operation in operations where ended.contains(operation.id) {
            number += 1
            let decision = Decision(
                number: number, at: clock, nodes: [], group: operation.group,
                operation: operation.id, shard: operation.work?.shard ?? .none,
                text: "operation \(operation.id) is \(operation.step): \(operation.outcome)")
            transaction.put(StoreKey.decision(number)) { decision.encode(into: &$0) }
        }
    }
}
