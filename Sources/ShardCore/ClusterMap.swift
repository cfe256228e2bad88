// The whole cluster map in memory, as routers hold it and controllers publish it.

import KVBase

/// Tables with their shards, groups with their leaders, and nodes, at one revision.
///
/// Records are kept in arrays sorted by id (tables also by name), so that every walk over them is in
/// a fixed order.
public struct ClusterMap: Sendable {
    public private(set) var revision: Revision = .none
    public private(set) var tables = SortedRecords<TableID, Table>()
    public private(set) var shards = SortedRecords<ShardID, Shard>()
    public private(set) var groups = SortedRecords<GroupID, Group>()
    public private(set) var nodes = SortedRecords<NodeID, Node>()
    public private(set) var leaders = SortedRecords<GroupID, GroupLeader>()
    /// Names of active tables in byte order, with the place of each table's shards.
    private var names: [NamedTable] = []

    /// An active table with its shard index.
    public struct NamedTable: Sendable {
        public var name: Bytes
        public var table: Table
        public var index: ShardIndex

        /// Where `key` lives.
        public func locate(key: UnsafeRawBufferPointer) -> ShardLocation {
            guard case .hash(let count) = table.partitioning else { return index.locate(key) }
            let range = table.partitioning.virtualRange(of: key)
            // One shard per virtual range, unless a later version splits within one.
            if index.count == Int(count) { return index[Int(range)] }
            return table.partitioning.routedKey(key).withUnsafeBytes { index.locate($0) }
        }
    }

    /// The home of one key.
    public struct Route: Hashable, Sendable {
        public var table: TableID
        public var location: ShardLocation

        public init(table: TableID, location: ShardLocation) {
            self.table = table
            self.location = location
        }
    }

    public init() {}

    /// Takes over an update. False when it does not follow this map's revision, or leaves a table
    /// that its shards do not tile: the caller asks for a full one.
    public mutating func apply(_ update: MapUpdate) -> Bool {
        if update.isFull {
            let oldLeaders = leaders
            self = ClusterMap()
            // Leaders are soft state, newest term wins, whatever its source.
            leaders = oldLeaders
        } else if update.from != revision {
            return false
        }
        var touched: [TableID] = []
        for change in update.changes { apply(change, touched: &touched) }
        revision = update.to
        // The list has one place per change, so it is short except for a full update.
        touched.sort()
        var previous: TableID?
        var shardsByTable: [Shard] = []
        if touched.count > 8 {
            shardsByTable = shards.elements.sorted { $0.table < $1.table }
        }
        var consistent = true
        for table in touched where table != previous {
            previous = table
            let own =
                shardsByTable.isEmpty
                ? shards.elements.filter { $0.table == table }
                : Self.slice(shardsByTable, of: table)
            if !reindex(table, shards: own) { consistent = false }
        }
        return consistent
    }

    /// Records who leads a group; false when something at least as new is known.
    @discardableResult
    public mutating func observeLeader(_ leader: GroupLeader) -> Bool {
        if let known = leaders[leader.group] {
            if known.term > leader.term { return false }
            if known.term == leader.term, known.node == leader.node { return false }
        }
        leaders.set(leader, for: leader.group)
        return true
    }

    /// The active table of that name.
    public func table(named name: UnsafeRawBufferPointer) -> NamedTable? {
        let position = namePosition(name)
        guard position < names.count,
            names[position].name.withUnsafeBytes({ compareBytes($0, name) }) == 0
        else { return nil }
        return names[position]
    }

    /// Where `key` of the active table of that name lives; nil when there is no such table. Copies
    /// nothing: this is what a router asks once per operation.
    public func route(tableNamed name: UnsafeRawBufferPointer, key: UnsafeRawBufferPointer)
        -> Route?
    {
        let position = namePosition(name)
        guard position < names.count,
            names[position].name.withUnsafeBytes({ compareBytes($0, name) }) == 0
        else { return nil }
        return Route(
            table: names[position].table.id, location: names[position].locate(key: key))
    }

    /// Active tables in order of name.
    public var activeTables: [NamedTable] { names }

    public func leader(of group: GroupID) -> GroupLeader? { leaders[group] }

    // MARK: - Helpers

    private mutating func apply(_ change: MapChange, touched: inout [TableID]) {
        switch change {
        case .table(let table):
            tables.set(table, for: table.id)
            touched.append(table.id)
        case .tableRemoved(let id):
            tables.remove(id)
            touched.append(id)
        case .shard(let shard):
            shards.set(shard, for: shard.id)
            touched.append(shard.table)
        case .shardRemoved(let id, let table):
            shards.remove(id)
            touched.append(table)
        case .group(let group): groups.set(group, for: group.id)
        case .groupRemoved(let id):
            groups.remove(id)
            leaders.remove(id)
        case .node(let node): nodes.set(node, for: node.id)
        case .nodeRemoved(let id): nodes.remove(id)
        case .leader(let leader): observeLeader(leader)
        }
    }

    private mutating func reindex(_ id: TableID, shards own: [Shard]) -> Bool {
        names.removeAll { $0.table.id == id }
        guard let table = tables[id], table.state == .active else { return true }
        guard let index = ShardIndex(tiling: own) else { return false }
        let name = Bytes(table.name.utf8)
        let position = name.withUnsafeBytes { namePosition($0) }
        names.insert(NamedTable(name: name, table: table, index: index), at: position)
        return true
    }

    private func namePosition(_ name: UnsafeRawBufferPointer) -> Int {
        var low = 0
        var high = names.count
        while low < high {
            let middle = (low + high) / 2
            let order = names[middle].name.withUnsafeBytes { compareBytes($0, name) }
            if order < 0 { low = middle + 1 } else { high = middle }
        }
        return low
    }

    private static func slice(_ shards: [Shard], of table: TableID) -> [Shard] {
        var low = 0
        var high = shards.count
        while low < high {
            let middle = (low + high) / 2
            if shards[middle].table < table { low = middle + 1 } else { high = middle }
        }
        var end = low
        while end < shards.count, shards[end].table == table { end += 1 }
        return Array(shards[low..<end])
    }
}

/// Records in an array sorted by id: walks in a fixed order, finds by binary search.
public struct SortedRecords<ID: IntegerIdentity, Record> {
    private var ids: [ID] = []
    public private(set) var elements: [Record] = []

    public init() {}

    public var count: Int { elements.count }
    public var isEmpty: Bool { elements.isEmpty }
    public var last: Record? { elements.last }

    public subscript(id: ID) -> Record? {
        let position = position(of: id)
        return position < ids.count && ids[position] == id ? elements[position] : nil
    }

    public mutating func set(_ record: Record, for id: ID) {
        let position = position(of: id)
        if position < ids.count, ids[position] == id {
            elements[position] = record
        } else {
            ids.insert(id, at: position)
            elements.insert(record, at: position)
        }
    }

    @discardableResult
    public mutating func remove(_ id: ID) -> Record? {
        let position = position(of: id)
        guard position < ids.count, ids[position] == id else { return nil }
        ids.remove(at: position)
        return elements.remove(at: position)
    }

    /// Changes a record in place; false when there is none.
    @discardableResult
    public mutating func update(_ id: ID, _ body: (inout Record) -> Void) -> Bool {
        let position = position(of: id)
        guard position < ids.count, ids[position] == id else { return false }
        body(&elements[position])
        return true
    }

    private func position(of id: ID) -> Int {
        // Ids are issued in rising order, so most insertions go to the end.
        if let last = ids.last, last < id { return ids.count }
        var low = 0
        var high = ids.count
        while low < high {
            let middle = (low + high) / 2
            if ids[middle] < id { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

extension SortedRecords: Sendable where Record: Sendable {}
