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
