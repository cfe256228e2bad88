// Creating and dropping tables: what routers and kvctl ask of the acting controller.

import KVBase

public enum TableRequest: Hashable, Sendable {
    /// `splitPoints`: start keys of the second and later shards of a RANGE table, in rising order.
    /// `ifMissing`: an existing table of the name is success (what HSET on a new name asks).
    case create(
        name: String, partitioning: Partitioning, engine: EngineKind, replicas: UInt8?,
        splitPoints: [Bytes], ifMissing: Bool)
    case drop(name: String)
    /// Nothing but an answer: when it comes, the asker's map is at least as new as when it asked.
    /// A router asks before it says that a table does not exist.
    case confirmMap

    public func encode(into writer: inout ByteWriter) {
        switch self {
        case .create(
            let name, let partitioning, let engine, let replicas, let splits, let ifMissing):
            writer.write(UInt8(1))
            writer.write(name)
            partitioning.encode(into: &writer)
            writer.write(engine.rawValue)
            writer.write(replicas ?? 0)
            writer.write(list: splits) { writer, key in writer.write(key) }
            writer.write(ifMissing)
        case .drop(let name):
            writer.write(UInt8(2))
            writer.write(name)
        case .confirmMap: writer.write(UInt8(3))
        }
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        switch try reader.readUInt8() {
        case 1:
            let name = try reader.readString()
            let partitioning = try Partitioning(from: &reader)
            let engine: EngineKind = try reader.readEnum()
            let replicas = try reader.readUInt8()
            let splits = try reader.readList(elementBytesMin: 4) {
                (reader) throws(DatabaseError) in try reader.readBytes()
            }
            self = .create(
                name: name, partitioning: partitioning, engine: engine,
                replicas: replicas == 0 ? nil : replicas, splitPoints: splits,
                ifMissing: try reader.readBool())
        case 2: self = .drop(name: try reader.readString())
        case 3: self = .confirmMap
        case let kind: throw DatabaseError(.malformed, "table request of kind \(kind)")
        }
    }
}
