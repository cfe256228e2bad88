// The numbering and the recent history of the cluster map that followers hold.
//
// The map has a sequence of its own in each controller term: revision = term * 2^32 + sequence. It
// rises across controllers because terms do, and changes of leaders need no durable revision. A
// follower with a revision of another term, or of too long ago, gets the whole map.

import KVBase
import ShardCore

struct MapJournal: Sendable {
    /// Changes kept for followers that come back.
    static let changesMax = 50_000

    private(set) var revision: Revision = .none
    private var updates: [MapUpdate] = []
    private var changeCount = 0

    mutating func begin(term: Term) {
        precondition(term.rawValue < 1 << 32)
        revision = Revision(term.rawValue << 32)
        updates = []
        changeCount = 0
    }

    mutating func append(_ changes: [MapChange]) -> MapUpdate {
        let update = MapUpdate(
            isFull: false, from: revision, to: revision.next(), changes: changes)
        revision = update.to
        updates.append(update)
        changeCount += changes.count
        if changeCount > Self.changesMax {
            let dropped = max(1, updates.count / 2)
            changeCount -= updates[..<dropped].reduce(0) { $0 + $1.changes.count }
            updates.removeFirst(dropped)
        }
        return update
    }

    /// The steps from `known` to now; nil when they are not known.
    func updates(since known: Revision) -> [MapUpdate]? {
        if known == revision { return [] }
        guard let first = updates.first, known >= first.from, known < revision else { return nil }
        return Array(updates[Int(known.rawValue - first.from.rawValue)...])
    }

    /// The whole map.
    func full(_ changes: [MapChange]) -> MapUpdate {
        MapUpdate(isFull: true, from: .none, to: revision, changes: changes)
    }
}

extension Controller {
    /// The revision of the map that followers hold when they have everything.
    public var mapRevision: Revision { map.revision }

    /// What brings a follower at `known` to the present, in order: nothing, the steps it missed, or
    /// the whole map. Each may be more than a frame holds: `MapUpdate.pieces`.
    public func mapUpdates(since known: Revision) -> [MapUpdate] {
        if let updates = map.updates(since: known) { return updates }
        var changes: [MapChange] = []
        for node in nodes.elements { changes.append(.node(node.record)) }
        for group in groups.elements {
            changes.append(.group(group.record))
            if group.leader.term != .none { changes.append(.leader(group.leader)) }
        }
        let visible = tables.elements.filter { $0.state == .active }
        let all = visible.count == tables.count
        for shard in shards.elements where all || tables[shard.table]?.state == .active {
            changes.append(.shard(shard))
        }
        for table in visible { changes.append(.table(table)) }
        return [map.full(changes)]
    }
}
