// Operations, plans, decisions and findings as operators see them.

import ControllerCore
import KVBase
import MetadataBackup
import ShardCore

struct OperationView: Encodable {
    var id: UInt32
    var kind: String
    var step: String
    var finished: Bool
    var origin: String
    var reason: String
    var outcome: String
    /// What is waited for, or why the newest command was refused.
    var note: String
    var parent: UInt32?
    var group: UInt32?
    /// Nodes; operations on shards have `work`.
    var from: String?
    var to: String?
    var work: WorkView?
    /// It goes no further until it is resumed.
    var paused: Bool
    /// It ends, or ended, by taking back what it did.
    var cancelled: Bool
    /// Of the records to copy, as far as they are counted; of a backup: of the bytes to store and to read back.
    var bytesDone: UInt64?
    var bytesTotal: UInt64?
    var recordsDone: UInt64?
    /// Of the copy under way, over the last ten seconds, and until it has all at this pace; written as null while
    /// unknown.
    var bytesPerSecond = Nullable<UInt64>(nil)
    var secondsLeft = Nullable<UInt64>(nil)
    /// The copy rests because requests on the nodes involved take too long.
    var throttled: Bool?
    var percent: Int
    /// Log entries that the new replica is behind its leader.
    var lag: UInt64?
    var startedAt: UInt64
    var changedAt: UInt64
    var endedAt: UInt64?
    var formerCopy: FormerCopyView?
}

extension OperationView {
    /// A third each: the records are encoded, the bytes stored, and read back.
    mutating func show(_ storing: BackupProgress) {
        let (third, done, total): (Int, Int, Int)
        switch storing {
        case .encoding(let records, let all):
            (third, done, total) = (0, records, all)
            note = "encoding \(all) records"
            recordsDone = UInt64(records)
        case .storing(let bytes, let all):
            (third, done, total) = (1, bytes, all)
            note = "storing"
        case .readingBack(let bytes, let all):
            (third, done, total) = (2, bytes, all)
            note = "reading back"
        }
        percent = min(99, (third * 100 + done * 100 / max(total, 1)) / 3)
        guard third > 0 else { return }
        bytesDone = UInt64((third - 1) * total + done)
        bytesTotal = UInt64(2 * total)
    }
}

/// What the group that a shard came from still holds of it.
struct FormerCopyView: Encodable {
    var group: UInt32
    /// Wall clock in milliseconds since 1970 at which it is to be deleted.
    var until: UInt64
    /// Why it is there although its time has come.
    var note: String
}

/// What an operation on a shard works on.
struct WorkView: Encodable {
    var table: String
    var shard: UInt32
    /// The key of the cut; `hash:N` of a HASH table.
    var cut: String?
    var upper: UInt32?
    var neighbour: UInt32?
    /// The shard that goes to another group.
    var moving: UInt32?
    var source: UInt32
    var target: UInt32?
    /// It is on its way back to `source`.
    var turned: Bool
}

struct OperationsView: Encodable {
    var operations: [OperationView]
}

/// A node or group that was not taken.
struct SkippedView: Encodable {
    var node: String?
    var group: UInt32?
    var reason: String
}

struct ReplacementView: Encodable {
    var group: UInt32
    /// Nil when a replica is added.
    var from: String?
    var to: String
    var disk: UInt8
    var bytes: UInt64
    var freeBytes: UInt64?
    var skipped: [SkippedView]
}

struct StartedView: Encodable {
    /// Nil when the request left nothing to do.
    var operation: OperationView?
}

struct DecisionView: Encodable {
    var number: UInt64
    var at: UInt64
    var text: String
    var nodes: [String]
    var group: UInt32?
    var shard: UInt32?
    var operation: UInt32?
}

struct DecisionsView: Encodable {
    var decisions: [DecisionView]
}

extension ClusterViews {
    var openOperations: [OperationStatus] {
        controller.storedOperations.filter { !$0.record.isFinished }
    }

    func operations() -> [OperationView] { controller.storedOperations.map { view($0) } }

    func operation(_ id: OperationID) -> OperationView? {
        controller.storedOperation(id).map { view($0) }
    }

    private func view(_ status: OperationStatus) -> OperationView {
        let record = status.record
        var view = OperationView(
            id: record.id.rawValue, kind: "\(record.kind)", step: "\(record.step)",
            finished: record.isFinished, origin: record.origin, reason: record.reason,
            outcome: record.outcome, note: status.note,
            parent: record.parent == .none ? nil : record.parent.rawValue,
            group: record.group == .none ? nil : record.group.rawValue,
            from: record.old.node == .none ? nil : nodeName(record.old.node),
            to: record.new.node == .none ? nil : nodeName(record.new.node),
            work: record.work.map(view), paused: record.isPaused, cancelled: record.isCancelled,
            percent: 0, startedAt: record.startedAt, changedAt: record.changedAt,
            endedAt: record.endedAt == 0 ? nil : record.endedAt,
            formerCopy: controller.former[record.id].map { former in
                FormerCopyView(
                    group: former.record.group.rawValue,
                    until: controller.releaseTime(of: former.record), note: former.note)
            })
        if record.step == .done { view.percent = 100 }
        switch record.kind {
        case .replaceReplica, .addReplica:
            if !record.isFinished { addProgress(status, to: &view) }
        case .replaceNode, .drain: addParts(record, to: &view)
        case .rebalance: addSteps(status, to: &view)
        case .split, .move, .merge: addCopy(status, to: &view)
        case .backup: if !record.isFinished, let storing { view.show(storing) }
        case .verifyBackup:
            if !record.isFinished, let verifying, verifying.operation == record.id,
                verifying.total > 0
            {
                view.note = "\(verifying.done) of \(verifying.total) objects"
                view.percent = percent(
                    UInt64(verifying.done), of: UInt64(verifying.total), below: 100)
            }
        case .transfer, .restore: break
        }
        // A copy that is held rests for the sake of nobody.
        if record.isPaused, view.throttled == true { view.throttled = false }
        return view
    }

    /// Of each kind with an operation under way: how far the oldest one is.
    func percents() -> [OperationRecord.Kind: Int] {
        var percents: [OperationRecord.Kind: Int] = [:]
        for open in openOperations where open.record.step != .proposed {
            if percents[open.record.kind] == nil {
                percents[open.record.kind] = view(open).percent
            }
        }
        return percents
    }

    private func addProgress(_ status: OperationStatus, to view: inout OperationView) {
        let record = status.record
        let held = controller.bytes(of: record.group)
        let total = max(held, status.copied.bytes)
        view.bytesTotal = total
        view.bytesDone = record.step == .swapping ? total : status.copied.bytes
        view.percent =
            record.step == .swapping ? 99 : percent(status.copied.bytes, of: held, below: 100)
        addPace(of: status, to: &view)
        guard
            let leader = controller.groups[record.group]?.reports.compactMap({ $0 })
                .filter({ $0.role == .leader }).max(by: { $0.term < $1.term }),
            let member = leader.members.first(where: { $0.replica == record.new.replica })
        else { return }
        let last = leader.lastIndex.rawValue
        view.lag = last - min(last, member.match.rawValue)
    }

    private func percent(_ done: UInt64, of total: UInt64, below limit: Int) -> Int {
        total == 0 ? 0 : Int(min(Double(limit - 1), Double(done) / Double(total) * 100))
    }

    /// How fast the copy of the step goes, and how long it takes still. A copy that is held has neither.
    private func addPace(of copying: OperationStatus, to view: inout OperationView) {
        guard !view.paused, !copying.record.isPaused, !copying.record.isFinished,
            let pace = copying.copied.bytesPerSecond(now: now)
        else { return }
        view.bytesPerSecond.value = pace
        guard let done = view.bytesDone, let total = view.bytesTotal, done < total else { return }
        view.secondsLeft.value = (total - done + pace - 1) / pace
    }

    private func view(_ work: ShardWork) -> WorkView {
        let table = controller.tables[work.table]
        func number(_ id: ShardID) -> UInt32? { id == .none ? nil : id.rawValue }
        return WorkView(
            table: table?.name ?? "table \(work.table)", shard: work.shard.rawValue,
            cut: work.cut.map { cut in
                table.map { KeyText.bound(cut, of: $0.partitioning) } ?? KeyText.text(cut)
            }, upper: number(work.upper), neighbour: number(work.neighbour),
            moving: number(work.moving), source: work.source.rawValue,
            target: work.target == .none ? nil : work.target.rawValue, turned: work.isTurned)
    }

    /// Bytes and records that the target of a shard has.
    private func addCopy(_ status: OperationStatus, to view: inout OperationView) {
        let record = status.record
        guard let work = record.work, work.moving != .none || work.bytes > 0 else { return }
        let isKnown = work.bytes > 0
        view.bytesTotal = isKnown ? work.bytes : nil
        switch record.step {
        case .copying:
            let (report, copied) = (controller.copyReports[work.moving], status.copied)
            view.bytesDone = copied.bytes
            view.recordsDone = copied.records
            view.throttled = report?.isThrottled
            if report?.isWhole == true {
                view.bytesTotal = copied.bytes
            } else if isKnown {
                // What is written meanwhile is copied too.
                view.bytesTotal = max(work.bytes, copied.bytes)
            }
            view.percent = percent(copied.bytes, of: view.bytesTotal ?? 0, below: 98)
            addPace(of: status, to: &view)
        case .verifying, .finishing, .merging:
            view.bytesDone = work.bytes
            view.percent = record.step == .verifying ? 98 : 99
        case .done: view.bytesDone = work.bytes
        default: view.bytesDone = 0
        }
    }

    /// Bytes of the groups that moved and of those that are still to move.
    private func addParts(_ record: OperationRecord, to view: inout OperationView) {
        guard !record.isFinished else { return }
        let parts = controller.storedOperations.filter { $0.record.parent == record.id }
        var done: UInt64 = 0
        for part in parts where part.record.step == .done {
            done += controller.bytes(of: part.record.group)
        }
        var total = done
        for group in controller.groups.elements
        where group.record.placements.contains(where: { $0.node == record.old.node }) {
            total += controller.bytes(of: group.record.id)
        }
        let running = parts.first { !$0.record.isFinished }
        if let running {
            let part = self.view(running)
            done += part.bytesDone ?? 0
            // It may have more than was counted.
            let held = controller.bytes(of: running.record.group)
            total += max(held, part.bytesTotal ?? 0) - held
            if view.note.isEmpty {
                view.note =
                    "operation \(running.record.id): group \(running.record.group), "
                    + running.record.step.words
            }
        }
        view.bytesDone = done
        view.bytesTotal = total
        view.percent = percent(done, of: total, below: 100)
        if let running { addPace(of: running, to: &view) }
    }

    /// Of a rebalance: steps that have ended, of all that were foreseen last.
    private func addSteps(_ status: OperationStatus, to view: inout OperationView) {
        guard !status.record.isFinished else { return }
        let parts = controller.storedOperations.filter {
            $0.record.parent == status.record.id
        }
        let total = max(Int(status.reached), parts.count, 1)
        var percents = parts.count(where: \.record.isFinished) * 100
        if let running = parts.first(where: { !$0.record.isFinished }) {
            percents += self.view(running).percent
            if view.note.isEmpty {
                view.note =
                    "step \(parts.count) of about \(total): operation \(running.record.id), "
                    + "\(running.record.kind.words), \(running.record.step.words)"
            }
        }
        view.percent = min(99, percents / total)
    }

    /// The newest decisions last, at most `limit`.
    func decisions(
        about node: NodeID?, _ group: GroupID?, _ shard: ShardID?, _ operation: OperationID?,
        limit: Int
    ) -> DecisionsView {
        let chosen = controller.storedDecisions.filter { decision in
            (node.map { decision.nodes.contains($0) } ?? true)
                && (group.map { decision.group == $0 } ?? true)
                && (shard.map { isAbout($0, decision) } ?? true)
                && (operation.map { decision.operation == $0 } ?? true)
        }
        return DecisionsView(
            decisions: chosen.suffix(limit).map { decision in
                DecisionView(
                    number: decision.number, at: decision.at, text: decision.text,
                    nodes: decision.nodes.map { nodeName($0) },
                    group: decision.group == .none ? nil : decision.group.rawValue,
                    shard: decision.shard == .none ? nil : decision.shard.rawValue,
                    operation: decision.operation == .none ? nil : decision.operation.rawValue)
            })
    }

    /// Decisions name the shard that an operation began with; the others of its work count too.
    private func isAbout(_ shard: ShardID, _ decision: Decision) -> Bool {
        decision.shard == shard
            || controller.storedOperation(decision.operation)?.record.work?.names(shard) == true
    }
}
