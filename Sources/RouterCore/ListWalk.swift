// A sorted list over the shards and groups of one table, asked page by page.
//
// A RANGE table is walked shard after shard. Of a HASH table every group that holds shards of it is
// asked for its part, and the parts are merged by key.

import KVBase
import ShardCore

/// One list command under way.
///
/// Invariant: `records` are in order of key, and every record of the table up to the last of them
/// that the query covers is among them; so after a change of the shards the walk goes on behind it.
public struct ListWalk: Sendable {
    public struct Query: Sendable {
        public var table: Bytes
        public var from: Bytes = []
        public var isFromExclusive = false
        /// Exclusive; nil for no end.
        public var to: Bytes?
        /// Most records, and most bytes of keys and values, before the walk stops.
        public var limit = Limits.listPageDefault
        public var bytesMax = Limits.listPageBytesMax
        public var isCountOnly = false
        public var isQuorum = false

        public init(table: Bytes) { self.table = table }
    }

    /// One page to ask for.
    public struct Request: Sendable {
        /// To be given back with the page.
        public var source: UInt32
        public var table: TableID
        /// Of the first part; the request names all of them.
        public var location: ShardLocation
        public var page: ListRequest
    }

    /// The part of the list that one group holds.
    private struct Source {
        var group: GroupID
        var parts: [ListRequest.Part]
        var buffer: [ListedRecord] = []
        var next = 0
        var cursor: Bytes
        var isExclusive: Bool
        var hasMore = true

        var isEmpty: Bool { next == buffer.count }
    }

    public let query: Query
    public private(set) var records: [ListedRecord] = []
    /// Records found; equals `records.count` unless only the count was asked for.
    public private(set) var count: UInt64 = 0
    /// There may be records behind the last one.
    public private(set) var hasMore = false
    /// Requests whose page has not come.
    public private(set) var asked = 0
    /// Raised by `restart`, so that pages of an older plan can be told apart.
    public private(set) var plan: UInt32 = 0

    /// Plans made anew before the walk gives up: shards do not change that often.
    private static let plansMax: UInt32 = 200

    private var byteCount = 0
    private var cursor: Bytes
    private var isExclusive: Bool
    private var partitioning = Partitioning.range
    private var table = TableID.none
    private var sources: [Source] = []
    /// RANGE: where the asked shard ends.
    private var shardEnd: Bytes?

    public init(_ query: Query) {
        self.query = query
        cursor = query.from
        isExclusive = query.isFromExclusive
    }

    /// The first requests. Empty: the walk is over, since the table is not there.
    public mutating func start(_ map: ClusterMap) -> [Request] {
        guard query.limit > 0, let named = query.table.withUnsafeBytes({ map.table(named: $0) })
        else { return [] }
        table = named.table.id
        partitioning = named.table.partitioning
        if partitioning == .range { return [askShard(named)] }
        makeSources(named)
        return askSources()
    }

    /// Plans anew after the shards changed, with pages of the old plan ignored. Nil: it changes too
    /// often.
    public mutating func restart(_ map: ClusterMap) -> [Request]? {
        guard plan < Self.plansMax else { return nil }
        plan += 1
        asked = 0
        if partitioning != .range {
            // What lies in the sources is asked for again.
            sources = []
            if query.isCountOnly { count = 0 }
        }
        return start(map)
    }

    /// Takes a page; returns what to ask next. The walk is over when nothing is returned and
    /// `asked` is zero.
    public mutating func receive(source: UInt32, _ page: ListPage, _ map: ClusterMap) -> [Request] {
        precondition(asked > 0)
        asked -= 1
        return partitioning == .range
            ? receiveShard(page, map) : receiveSource(Int(source), page)
    }

    // MARK: RANGE

    private mutating func askShard(_ named: ClusterMap.NamedTable) -> Request {
        let (location, end) = cursor.withUnsafeBytes { named.index.locateWithEnd($0) }
        shardEnd = end
        asked = 1
        let parts = [ListRequest.Part(shard: location.shard, epoch: location.epoch)]
        return Request(
            source: 0, table: table, location: location,
            page: page(parts, cursor, isExclusive: isExclusive))
    }

    private mutating func receiveShard(_ page: ListPage, _ map: ClusterMap) -> [Request] {
        count += UInt64(page.count)
        for (place, record) in page.records.enumerated() {
            take(record)
            if isFull {
                hasMore = place + 1 < page.records.count || page.hasMore || hasShardsLeft
                return []
            }
        }
        if page.hasMore {
            cursor = page.lastKey
            isExclusive = true
        } else {
            guard hasShardsLeft, let end = shardEnd else { return [] }
            cursor = end
            isExclusive = false
        }
        guard let named = query.table.withUnsafeBytes({ map.table(named: $0) }),
            named.table.id == table
        else { return [] }
        return [askShard(named)]
    }

    private var hasShardsLeft: Bool {
        guard let end = shardEnd else { return false }
        return query.to.map { compareBytes(end, $0) < 0 } ?? true
    }

    // MARK: HASH

    private mutating func makeSources(_ named: ClusterMap.NamedTable) {
        var groups: [(group: GroupID, part: ListRequest.Part)] = []
        named.index.forEachLocation { location in
            groups.append((location.group, .init(shard: location.shard, epoch: location.epoch)))
        }
        groups.sort {
            $0.group != $1.group ? $0.group < $1.group : $0.part.shard < $1.part.shard
        }
        for (group, part) in groups {
            if sources.last?.group == group {
                sources[sources.count - 1].parts.append(part)
            } else {
                sources.append(
                    Source(group: group, parts: [part], cursor: cursor, isExclusive: isExclusive))
            }
        }
    }

    private mutating func receiveSource(_ place: Int, _ page: ListPage) -> [Request] {
        count += query.isCountOnly ? UInt64(page.count) : 0
        sources[place].buffer = page.records
        sources[place].next = 0
        sources[place].hasMore = page.hasMore
        if page.hasMore {
            sources[place].cursor = page.lastKey
            sources[place].isExclusive = true
        }
        if query.isCountOnly { return page.hasMore ? [ask(place)] : [] }
        guard asked == 0 else { return [] }
        merge()
        return isFull ? [] : askSources()
    }

    /// Moves records over in order, as long as no source that is not at its end is empty.
    private mutating func merge() {
        while !isFull {
            var lowest: Int?
            for place in sources.indices {
                guard !sources[place].isEmpty else {
                    if sources[place].hasMore { return }
                    continue
                }
                if let best = lowest, compareBytes(head(best), head(place)) <= 0 { continue }
                lowest = place
            }
            guard let lowest else { return }
            let record = sources[lowest].buffer[sources[lowest].next]
            sources[lowest].next += 1
            take(record)
            count += 1
            cursor = record.key
            isExclusive = true
        }
        hasMore = sources.contains { !$0.isEmpty || $0.hasMore }
    }

    private func head(_ place: Int) -> Bytes { sources[place].buffer[sources[place].next].key }

    private mutating func askSources() -> [Request] {
        var requests: [Request] = []
        for place in sources.indices where sources[place].isEmpty && sources[place].hasMore {
            requests.append(ask(place))
        }
        return requests
    }

    private mutating func ask(_ place: Int) -> Request {
        asked += 1
        let source = sources[place]
        return Request(
            source: UInt32(place), table: table,
            location: ShardLocation(
                shard: source.parts[0].shard, epoch: source.parts[0].epoch, group: source.group),
            page: page(source.parts, source.cursor, isExclusive: source.isExclusive))
    }

    // MARK: Helpers

    private func page(_ parts: [ListRequest.Part], _ from: Bytes, isExclusive: Bool) -> ListRequest
    {
        let left = query.isCountOnly ? Limits.listPageMax : query.limit - records.count
        return ListRequest(
            parts: parts, from: from, isFromExclusive: isExclusive, to: query.to,
            limit: UInt32(min(left, Limits.listPageMax)),
            bytesMax: UInt32(min(query.bytesMax, Limits.listPageBytesMax)),
            isCountOnly: query.isCountOnly)
    }

    private mutating func take(_ record: ListedRecord) {
        byteCount += record.key.count + record.value.count
        records.append(record)
    }

    private var isFull: Bool { records.count >= query.limit || byteCount >= query.bytesMax }
}
