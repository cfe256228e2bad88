// Which moves may copy at the same time: so many per group, per disk, per node and in all. The others
// wait in their first step, and say for what.

import KVBase
import ShardCore

extension Controller {
    /// What a waiting operation waits for.
    func obstacle(to record: OperationRecord, _ work: ShardWork) -> String? {
        guard let owner = shards[work.shard] else { return "there is no shard \(work.shard)" }
        guard serving(owner.group) != nil else {
            return "group \(owner.group) has no serving leader"
        }
        guard work.moving != .none else { return nil }
        if let former = formerShard(inTheWayOf: work) {
            return "group \(former.group) gives up its former copy of shard \(former.shard) first"
        }
        for group in [work.source, work.target] where serving(group) == nil {
            if groups[group]?.record.state != .active { return "group \(group) is being formed" }
            return "group \(group) has no serving leader"
        }
        let moving = openOperations.filter { status in
            status.record.id != record.id && hasBegun(status)
                && status.record.work.map { $0.moving != .none } == true
        }
        guard moving.count < runtime[.movesMax] else {
            return "\(moving.count) shards move already, at most \(runtime[.movesMax]) at a time"
        }
        for group in [work.source, work.target] {
            let busy = moving.filter {
                $0.record.work?.source == group || $0.record.work?.target == group
            }
            if busy.count >= settings.movesPerGroupMax, let first = busy.first {
                return "group \(group) takes part in operation \(first.record.id)"
            }
        }
        return busyPlace(for: work, beside: moving.compactMap(\.record.work))
    }

    /// Whether an operation on shards has left its first step, or is leaving it.
    func hasBegun(_ status: OperationStatus) -> Bool {
        switch status.isStoring ? status.storing : status.record.step {
        case .proposed, .forming, .done, .cancelled, .failed: false
        default: true
        }
    }

    /// A disk or node that takes part in as many of the moves as it may.
    private func busyPlace(for work: ShardWork, beside moving: [ShardWork]) -> String? {
        let others = moving.map(places)
        for place in places(of: work) {
            let onNode = others.count { $0.contains { $0.node == place.node } }
            let onDisk = others.count {
                $0.contains { ($0.node, $0.disk) == (place.node, place.disk) }
            }
            if onDisk >= runtime[.movesPerDiskMax] {
                return "\(name(place.node)) takes part in \(plural(onDisk, "move")) on disk "
                    + "\(place.disk), at most \(runtime[.movesPerDiskMax]) at a time"
            }
            if onNode >= runtime[.movesPerNodeMax] {
                return "\(name(place.node)) takes part in \(plural(onNode, "move")), at most "
                    + "\(runtime[.movesPerNodeMax]) at a time"
            }
        }
        return nil
    }

    /// Where a move reads, which is where the source's leader is, and where it writes.
    private func places(of work: ShardWork) -> [Placement] {
        let reader = groups[work.source]?.record.placements.first {
            $0.node == serving(work.source)
        }
        let writers = groups[work.target]?.record.placements ?? []
        return (reader.map { [$0] } ?? []) + writers
    }
}
