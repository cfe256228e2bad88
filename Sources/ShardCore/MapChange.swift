// What controllers tell those who follow the cluster map.

import KVBase

/// One change of the cluster map. Records replace earlier ones of the same id.
public enum MapChange: Hashable, Sendable {
    case table(Table)
    case tableRemoved(TableID)
    case shard(Shard)
    case shardRemoved(ShardID, TableID)
    case group(Group)
    case groupRemoved(GroupID)
    case node(Node)
    case nodeRemoved(NodeID)
    case leader(GroupLeader)

    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .table(let table):
            writer.write(UInt8(1))
            table.encode(into: &writer)
        case .tableRemoved(let id):
            writer.write(UInt8(2))
            writer.write(id)
        case .shard(let shard):
            writer.write(UInt8(3))
            shard.encode(into: &writer)
        case .shardRemoved(let id, let table):
            writer.write(UInt8(4))
            writer.write(id)
            writer.write(table)
        case .group(let group):
            writer.write(UInt8(5))
            group.encode(into: &writer)
        case .groupRemoved(let id):
            writer.write(UInt8(6))
            writer.write(id)
        case .node(let node):
            writer.write(UInt8(7))
            node.encode(into: &writer)
        case .nodeRemoved(let id):
            writer.write(UInt8(8))
            writer.write(id)
        case .leader(let leader):
            writer.write(UInt8(9))
            leader.encode(into: &writer)
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        switch try reader.readUInt8() {
        case 1: self = .table(try Table(from: &reader))
        case 2: self = .tableRemoved(try reader.read())
        case 3: self = .shard(try Shard(from: &reader))
        case 4: self = .shardRemoved(try reader.read(), try reader.read())
        case 5: self = .group(try Group(from: &reader))
        case 6: self = .groupRemoved(try reader.read())
        case 7: self = .node(try Node(from: &reader))
        case 8: self = .nodeRemoved(try reader.read())
        case 9: self = .leader(try GroupLeader(from: &reader))
        case let kind: throw DatabaseError(.malformed, "map change of kind \(kind)")
        }
    }
}
