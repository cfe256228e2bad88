// The whole cluster map in memory, as routers hold it and controllers publish it.

import KVBase

extension Revision {
    /// A revision of the cluster map as people read it, `1.17`: the controller term that made it, and
    /// its number in that term.
    public var ofMap: String { "\(rawValue >> 32).\(rawValue & 0xFFFF_FFFF)" }
}

/// Tables with their shards, groups with their leaders, and nodes, at one revision.
///
/// Records are kept sorted by id, active tables by name with their shards packed (`ShardIndex`), so
/// that every walk over them is in a fixed order.
public struct ClusterMap: Sendable {
    public private(set) var revision: Revision = .none
    public private(set) var tables = SortedRecords<TableID, Table>()
    public private(set) var groups = SortedRecords<GroupID, Group>()
    public private(set) var nodes = SortedRecords<NodeID, Node>()
    public private(set) var leaders = SortedRecords<GroupID, GroupLeader>()
    /// Active tables in byte order of their names.
    private var names: [NamedTable] = []
    /// Shards of tables that are not in `names`: not there yet, not active, or not tiled.
    private var loose = SortedRecords<TableID, LooseShards>()
    /// An update of which not all pieces have come.
    private var incoming: Incoming?
    private let scope: MapScope

    /// An active table with its shard index.
    public struct NamedTable: Sendable {
        public var name: Bytes
        public var table: Table
        public var index: ShardIndex

        /// Where `key` lives.
        public func locate(key: UnsafeRawBufferPointer) -> ShardLocation {
            guard case .hash = table.partitioning else { return index.locate(key) }
            // Shards are cut between virtual ranges only, so the key behind it does not count.
            let prefix = table.partitioning.virtualRange(of: key).bigEndian
            return withUnsafeBytes(of: prefix) { index.locate($0) }
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

    private struct Incoming: Sendable {
        var update: MapUpdate
        var nextPiece: UInt32
        /// Where the pieces of a whole map go; one element.
        var map: [ClusterMap]
    }

    /// Shards are left out of a map without them, though an update may hold them.
    public init(_ scope: MapScope = .whole) { self.scope = scope }

    // MARK: Updates

    /// Takes over an update, which may come in pieces: it takes effect as one with the last. False
    /// when it does not follow this map's revision, or leaves a table that its shards do not tile:
    /// the caller asks for a full one.
    public mutating func apply(_ update: MapUpdate) -> Bool {
        guard update.piece == 0, update.isLast else { return applyPiece(update) }
        if let incoming, update.to >= incoming.update.to { self.incoming = nil }
        if update.isFull {
            var whole = ClusterMap(scope)
            let isConsistent = whole.take(update.changes)
            replace(with: whole, at: update.to)
            return isConsistent
        }
        guard update.from == revision else { return false }
        revision = update.to
        return take(update.changes)
    }

    private mutating func applyPiece(_ piece: MapUpdate) -> Bool {
        // Of two senders, the one that knows more counts.
        if let incoming, piece.to < incoming.update.to { return true }
        if piece.piece == 0 {
            incoming = nil
            guard piece.isFull || piece.from == revision else { return false }
            incoming = Incoming(
                update: MapUpdate(
                    isFull: piece.isFull, from: piece.from, to: piece.to, changes: []),
                nextPiece: 0, map: piece.isFull ? [ClusterMap(scope)] : [])
        }
        // The rest of an update of which the beginning was refused.
        guard var held = incoming, held.nextPiece == piece.piece,
            held.update.isFull == piece.isFull, held.update.to == piece.to,
            held.update.from == piece.from
        else { return true }
        // Held once, so that it is changed and not copied.
        incoming = nil
        held.nextPiece += 1
        if !piece.isFull {
            guard held.nextPiece <= MapUpdate.stepPiecesMax else { return false }
            held.update.changes += piece.changes
            if piece.isLast { return apply(held.update) }
            incoming = held
            return true
        }
        let isConsistent = held.map[0].take(piece.changes)
        if piece.isLast {
            replace(with: held.map[0], at: piece.to)
        } else {
            incoming = held
        }
        return isConsistent
    }

    private mutating func replace(with whole: consuming ClusterMap, at revision: Revision) {
        // Leaders are soft state, newest term wins, whatever its source.
        let known = leaders
        let awaited = incoming
        self = whole
        self.revision = revision
        incoming = awaited
        for leader in known.elements { observeLeader(leader) }
    }

    /// Takes over changes as one; false when a table is left that its shards do not tile.
    private mutating func take(_ changes: [MapChange]) -> Bool {
        var touched: [(table: TableID, place: Int)] = []
        for (place, change) in changes.enumerated() {
            switch change {
            case .table(let table):
                setTable(table)
                touched.append((table.id, place))
            case .tableRemoved(let id):
                removeTable(id)
                touched.append((id, place))
            case .shard(let shard): touched.append((shard.table, place))
            case .shardRemoved(_, let table): touched.append((table, place))
            case .group(let group): groups.set(group, for: group.id)
            case .groupRemoved(let id):
                groups.remove(id)
                leaders.remove(id)
            case .node(let node): nodes.set(node, for: node.id)
            case .nodeRemoved(let id): nodes.remove(id)
            case .leader(let leader): observeLeader(leader)
            }
        }
        guard scope == .whole else { return true }
        touched.sort { ($0.table, $0.place) < ($1.table, $1.place) }
        var isConsistent = true
        var rest = touched[...]
        while let table = rest.first?.table {
            let own = rest.prefix { $0.table == table }
            rest = rest.dropFirst(own.count)
            let shards = own.compactMap { entry -> ShardChange? in
                switch changes[entry.place] {
                case .shard(let shard): .set(shard)
                case .shardRemoved(let id, _): .removed(id)
                default: nil
                }
            }
            if !take(shards, of: table) { isConsistent = false }
        }
        return isConsistent
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

    // MARK: Look-up

    /// The active table of that name.
    public func table(named name: UnsafeRawBufferPointer) -> NamedTable? {
        placeOfTable(named: name).map { names[$0] }
    }

    /// Where `key` of the active table of that name lives; nil when there is no such table. Copies
    /// nothing: this is what a router asks once per operation.
    public func route(tableNamed name: UnsafeRawBufferPointer, key: UnsafeRawBufferPointer)
        -> Route?
    {
        guard let place = placeOfTable(named: name) else { return nil }
        return Route(table: names[place].table.id, location: names[place].locate(key: key))
    }

    /// Active tables in order of name.
    public var activeTables: [NamedTable] { names }

    /// Shards of active tables.
    public var shardCount: Int { names.reduce(0) { $0 + $1.index.count } }

    public func leader(of group: GroupID) -> GroupLeader? { leaders[group] }

    // MARK: - Tables

    private mutating func setTable(_ table: Table) {
        let place = tables[table.id].flatMap { placeOfActive($0) }
        tables.set(table, for: table.id)
        guard let place else { return }
        if table.state == .active, names[place].name == Bytes(table.name.utf8) {
            names[place].table = table
        } else {
            // Served under another name, or not any more.
            loose.set(LooseShards(names.remove(at: place).index), for: table.id)
        }
    }

    private mutating func removeTable(_ id: TableID) {
        guard let table = tables.remove(id) else { return }
        if let place = placeOfActive(table) { names.remove(at: place) }
        loose.remove(id)
    }

    /// Takes over changes of one table's shards; false when they leave an active table untiled.
    private mutating func take(_ changes: [ShardChange], of id: TableID) -> Bool {
        let table = tables[id]
        if let place = table.flatMap({ placeOfActive($0) }) {
            if names[place].index.apply(changes) { return true }
            loose.set(LooseShards(names.remove(at: place).index), for: id)
        }
        var shards = loose[id] ?? LooseShards()
        // Else the copy that is kept would have to be copied before it can change.
        loose.remove(id)
        for change in changes { shards.take(change) }
        guard let table else {
            if shards.compact() { loose.set(shards, for: id) }
            return true
        }
        guard table.state == .active else {
            loose.set(shards, for: id)
            return true
        }
        guard let index = shards.tiling() else {
            loose.set(shards, for: id)
            return false
        }
        let name = Bytes(table.name.utf8)
        let place = name.withUnsafeBytes { namePosition($0) }
        names.insert(NamedTable(name: name, table: table, index: index), at: place)
        return true
    }

    /// Where the table is in `names`, if it is.
    private func placeOfActive(_ table: Table) -> Int? {
        let place = Bytes(table.name.utf8).withUnsafeBytes { placeOfTable(named: $0) }
        guard let place, names[place].table.id == table.id else { return nil }
        return place
    }

    private func placeOfTable(named name: UnsafeRawBufferPointer) -> Int? {
        let position = namePosition(name)
        guard position < names.count,
            names[position].name.withUnsafeBytes({ compareBytes($0, name) }) == 0
        else { return nil }
        return position
    }

    /// The first table whose name is not below `name`.
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
}
