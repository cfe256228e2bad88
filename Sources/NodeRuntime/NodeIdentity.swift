// Who this node is: written into every data directory when a controller admits it.

import Glibc
import KVBase
import ReplicatedLog

/// Invariant: a data directory belongs to one node of one cluster for ever. A wiped directory has
/// no identity, so its node registers as a new one.
struct NodeIdentity: Hashable {
    var node: NodeID
    var cluster: UInt64
    /// Position of the directory in the node's configuration, and how many there are.
    var disk: Int
    var diskCount: Int

    private static let fileName = "identity"

    /// The identity in a directory; nil for a fresh one.
    static func read(directory: String) throws(DatabaseError) -> NodeIdentity? {
        let path = "\(directory)/\(fileName)"
        guard let bytes = try DurableFile.read(path) else { return nil }
        let fields = String(decoding: bytes, as: UTF8.self).split(separator: "\n").map {
            $0.split(separator: " ", maxSplits: 1).map(String.init)
        }
        func value(_ key: String) throws(DatabaseError) -> String {
            guard let field = fields.first(where: { $0.count == 2 && $0[0] == key }) else {
                throw DatabaseError(.storageFailed, "\(path): no \(key)")
            }
            return field[1]
        }
        guard try value("format") == "1", let node = UInt32(try value("node")),
            let cluster = UInt64(try value("cluster"), radix: 16),
            let disk = Int(try value("disk")), let count = Int(try value("disks"))
        else { throw DatabaseError(.storageFailed, "\(path) is damaged or of another version") }
        return NodeIdentity(node: NodeID(node), cluster: cluster, disk: disk, diskCount: count)
    }

    func write(directory: String) throws(DatabaseError) {
        let text = """
            format 1
            node \(node)
            cluster \(hex(cluster))
            disk \(disk)
            disks \(diskCount)

            """
        try DurableFile.replace("\(directory)/\(Self.fileName)", with: Bytes(text.utf8))
    }

    /// The common identity of all directories; nil when all are fresh. Throws when they contradict
    /// each other or the configuration.
    static func readAll(directories: [String]) throws(DatabaseError) -> NodeIdentity? {
        var found: [(String, NodeIdentity?)] = []
        for (position, directory) in directories.enumerated() {
            let identity = try read(directory: directory)
            if let identity, identity.disk != position || identity.diskCount != directories.count {
                throw DatabaseError(
                    .storageFailed,
                    "\(directory) was data directory \(identity.disk + 1) of \(identity.diskCount)"
                        + " and is now \(position + 1) of \(directories.count):"
                        + " keep the order and number of data directories")
            }
            found.append((directory, identity))
        }
        guard let first = found.first(where: { $0.1 != nil }), let identity = first.1 else {
            return nil
        }
        for (directory, other) in found {
            guard let other else {
                throw DatabaseError(
                    .storageFailed,
                    "\(directory) is empty but \(first.0) belongs to node \(identity.node):"
                        + " a lost data directory means a new node; empty the others too")
            }
            guard other.node == identity.node, other.cluster == identity.cluster else {
                throw DatabaseError(
                    .storageFailed,
                    "\(directory) belongs to node \(other.node), \(first.0) to \(identity.node)")
            }
        }
        return identity
    }
}
