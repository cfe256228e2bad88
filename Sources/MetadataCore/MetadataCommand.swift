// What the log of the metadata group carries: requests, decided when they are applied.

import KVBase

/// An entry of the replicated log. Whether it succeeds is decided at apply, alike on every replica.
public enum MetadataCommand: Hashable, Sendable {
    /// Its comparisons are made when it is applied.
    case transaction(MetadataTransaction)
    case grantLease(ttl: Nanoseconds)
    /// Ends a lease, revoked or run out; only the leader's clock says which leases have.
    case endLease(LeaseID)
    /// A new controller under a new replica id.
    case admit(name: String, address: String)
    /// The controller's disk holds its identity.
    case joined(ReplicaID)
    /// The controller listens elsewhere now.
    case moved(ReplicaID, address: String)
    /// The controller shall leave the group.
    case dismiss(ReplicaID)
    /// The controller has left the group.
    case forget(ReplicaID)
}

/// What a command that was carried out answers.
public enum MetadataAnswer: Hashable, Sendable {
    case revision(Revision)
    case lease(LeaseID)
    case replica(ReplicaID)
    case done
}

extension MetadataCommand {
    public func encoded() -> Bytes {
        var writer = ByteWriter()
        switch self {
        case .transaction(let transaction):
            writer.write(UInt8(1))
            writer.write(list: transaction.comparisons) { writer, comparison in
                writer.write(comparison.key)
                writer.write(comparison.modRevision)
            }
            writer.write(list: transaction.changes) { writer, change in
                change.encode(into: &writer)
            }
        case .grantLease(let ttl):
            writer.write(UInt8(2))
            writer.write(ttl.count)
        case .endLease(let lease):
            writer.write(UInt8(3))
            writer.write(lease)
        case .admit(let name, let address):
            writer.write(UInt8(4))
            writer.write(name)
            writer.write(address)
        case .joined(let replica):
            writer.write(UInt8(5))
            writer.write(replica)
        case .moved(let replica, let address):
            writer.write(UInt8(6))
            writer.write(replica)
            writer.write(address)
        case .dismiss(let replica):
            writer.write(UInt8(7))
            writer.write(replica)
        case .forget(let replica):
            writer.write(UInt8(8))
            writer.write(replica)
        }
        return writer.take()
    }

    public static func decode(_ payload: Bytes) throws(DatabaseError) -> MetadataCommand {
        try ByteReader.decode(payload) { (reader) throws(DatabaseError) in
            switch try reader.readUInt8() {
            case 1:
                let comparisons = try reader.readList(elementBytesMin: 12) {
                    (reader) throws(DatabaseError) in
                    MetadataTransaction.Comparison(
                        key: try reader.readBytes(), modRevision: try reader.read())
                }
                let changes = try reader.readList(elementBytesMin: 5) {
                    (reader) throws(DatabaseError) in try MetadataChange(from: &reader)
                }
                return .transaction(
                    MetadataTransaction(comparisons: comparisons, changes: changes))
            case 2: return .grantLease(ttl: Nanoseconds(try reader.readUInt64()))
            case 3: return .endLease(try reader.read())
            case 4:
                return .admit(name: try reader.readString(), address: try reader.readString())
            case 5: return .joined(try reader.read())
            case 6: return .moved(try reader.read(), address: try reader.readString())
            case 7: return .dismiss(try reader.read())
            case 8: return .forget(try reader.read())
            case let kind: throw DatabaseError(.malformed, "metadata command of kind \(kind)")
            }
        }
    }
}
