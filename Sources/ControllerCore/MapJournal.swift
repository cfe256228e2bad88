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
}

extension Controller {
    /// The revision of the map that followers hold when they have everything.
    public var mapRevision: Revision { map.revision }

    /// The steps that a follower at `known` missed, none perhaps; nil: it needs the whole map. Each may
    /// be more than a frame holds: `MapUpdate.pieces`.
    public func mapSteps(since known: Revision) -> [MapUpdate]? { map.updates(since: known) }

    /// The whole map, in pieces that fit frames.
    public func wholeMap(_ scope: MapScope = .whole, _ take: (MapUpdate) -> Void) {
        var pieces = MapPieces(to: map.revision)
        for node in nodes.elements { pieces.add(.node(node.record), take) }
        for group in groups.elements {
            pieces.add(.group(group.record), take)
            if group.leader.term != .none { pieces.add(.leader(group.leader), take) }
        }
        let visible = tables.elements.filter { $0.state == .active }
        let all = visible.count == tables.count
        if scope == .whole {
            for shard in shards.elements where all || tables[shard.table]?.state == .active {
                pieces.add(.shard(shard), take)
            }
        }
        for table in visible { pieces.add(.table(table), take) }
        pieces.end(take)
    }

    /// What brings a follower at `known` to the present, in order: nothing, the steps it missed, or
    /// the pieces of the whole map.
    public func mapUpdates(since known: Revision) -> [MapUpdate] {
        if let steps = mapSteps(since: known) { return steps }
        var pieces: [MapUpdate] = []
        wholeMap { pieces.append($0) }
        return pieces
    }
}
