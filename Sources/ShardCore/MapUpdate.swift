// A step of the cluster map, or all of it, in pieces that fit frames.

import KVBase

/// A step of the cluster map from one revision to a later one, or the whole map.
public struct MapUpdate: Hashable, Sendable {
    /// The whole map: forget everything else.
    public var isFull: Bool
    /// The revision this step starts from; a follower at another revision asks for a full one.
    public var from: Revision
    public var to: Revision
    /// What does not fit one frame comes in pieces, numbered from 0, alike in everything else; they
    /// take effect as one, with the last.
    public var piece: UInt32
    public var isLast: Bool
    public var changes: [MapChange]

    public init(
        isFull: Bool, from: Revision, to: Revision, piece: UInt32 = 0, isLast: Bool = true,
        changes: [MapChange]
    ) {
        self.isFull = isFull
        self.from = from
        self.to = to
        self.piece = piece
        self.isLast = isLast
        self.changes = changes
    }

    /// A follower keeps the pieces of a step until the last has come, so their number is bounded.
    static let stepPiecesMax: UInt32 = 64

    /// The same in pieces that fit frames.
    public func pieces(bytesMax: Int = Limits.pieceBytesMax) -> [MapUpdate] {
        var cuts: [Int] = []
        var bytes = 0
        for (place, change) in changes.enumerated() {
            let size = change.encodedBytesMax
            if bytes > 0, bytes + size > bytesMax {
                cuts.append(place)
                bytes = 0
            }
            bytes += size
        }
        if cuts.isEmpty { return [self] }
        return zip([0] + cuts, cuts + [changes.count]).enumerated().map { number, range in
            MapUpdate(
                isFull: isFull, from: from, to: to, piece: UInt32(number),
                isLast: range.1 == changes.count, changes: Array(changes[range.0..<range.1]))
        }
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(isFull)
        writer.write(from)
        writer.write(to)
        writer.write(piece)
        writer.write(isLast)
        writer.write(list: changes) { writer, change in change.encode(into: &writer) }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        isFull = try reader.readBool()
        from = try reader.read()
        to = try reader.read()
        piece = try reader.readUInt32()
        isLast = try reader.readBool()
        changes = try reader.readList(elementBytesMin: 5) { (reader) throws(DatabaseError) in
            try MapChange(from: &reader)
        }
    }
}

/// What a follower of the map wants of it.
public enum MapScope: UInt8, Sendable {
    case whole = 0
    /// Tables, groups, leaders and nodes: what nodes need, which know their shards from their groups.
    case withoutShards = 1

    public func includes(_ change: MapChange) -> Bool {
        switch change {
        case .shard, .shardRemoved: self == .whole
        default: true
        }
    }
}

extension MapUpdate {
    /// The same step as far as `scope` goes. It may be empty, and is a step all the same.
    public func limited(to scope: MapScope) -> MapUpdate {
        guard scope != .whole else { return self }
        var limited = self
        limited.changes.removeAll { !scope.includes($0) }
        return limited
    }
}

/// Cuts a whole map into pieces that fit frames while it is walked, so that it is never held at once.
public struct MapPieces {
    private var piece: MapUpdate
    private var bytes = 0
    private let bytesMax: Int

    /// Of the whole map at the revision `to`.
    public init(to: Revision, bytesMax: Int = Limits.pieceBytesMax) {
        piece = MapUpdate(isFull: true, from: .none, to: to, isLast: false, changes: [])
        self.bytesMax = bytesMax
    }

    /// The next change; a piece that is full goes to `take`.
    public mutating func add(_ change: MapChange, _ take: (MapUpdate) -> Void) {
        let size = change.encodedBytesMax
        if bytes > 0, bytes + size > bytesMax {
            take(piece)
            piece.piece += 1
            piece.changes.removeAll(keepingCapacity: true)
            bytes = 0
        }
        bytes += size
        piece.changes.append(change)
    }

    /// The last piece goes to `take`.
    public consuming func end(_ take: (MapUpdate) -> Void) {
        piece.isLast = true
        take(piece)
    }
}

extension MapChange {
    /// At least the bytes that `encode` writes.
    var encodedBytesMax: Int {
        switch self {
        case .table(let table): 64 + table.name.utf8.count
        case .shard(let shard): 48 + shard.range.start.count + (shard.range.end?.count ?? 0)
        case .group(let group): 64 + 9 * group.placements.count
        case .node(let node):
            64 + node.name.utf8.count + node.rpcAddress.utf8.count + node.adminAddress.utf8.count
                + node.zone.utf8.count
        case .tableRemoved, .shardRemoved, .groupRemoved, .nodeRemoved, .leader: 32
        }
    }
}
