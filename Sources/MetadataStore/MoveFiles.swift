// What a controller keeps in its data directory about moves of the metadata from one store to the other.
//
// `home`: the last move that this controller knows to be done, magic `RKHOME01` 8, the `MetadataMove`,
// CRC32C 4. `quorum.incoming-ID`: the copy of a group that the move ID is to make; it counts once `home`
// names that move. `quorum.moved-REVISION`: the copy of a group whose metadata has left.

import Checksum
import Glibc
import KVBase
import MetadataCore
import ReplicatedLog
import ReplicationCore

public struct MoveFiles: Sendable {
    private static let magic: UInt64 = 0x3130_454D_4F48_4B52  // "RKHOME01"

    /// The controller's data directory.
    public let data: String

    public init(data: String) { self.data = data }

    private var home: String { data + "/home" }
    public var quorum: String { data + "/quorum" }
    private func incoming(_ move: MetadataMove) -> String { quorum + ".incoming-" + hex(move.id) }

    // MARK: The last move

    public func move() throws(DatabaseError) -> MetadataMove? {
        guard let bytes = try DurableFile.read(home) else { return nil }
        do throws(DatabaseError) {
            guard bytes.count > 12 else { throw DatabaseError(.malformed, "it is too short") }
            let body = Bytes(bytes.dropLast(4))
            return try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
                guard try reader.readUInt64() == Self.magic else {
                    throw DatabaseError(.malformed, "it is not of this version")
                }
                let move = Bytes(try reader.readRaw(body.count - 8))
                guard try reader.readUInt32() == crc32c(body) else {
                    throw DatabaseError(.malformed, "its checksum does not match")
                }
                return try MetadataMove(move)
            }
        } catch {
            throw DatabaseError(.storageFailed, "\(home) is damaged: \(error.message)")
        }
    }

    /// Durable when it returns. `move` must be done: nothing may happen in the store that it left.
    public func note(_ move: MetadataMove) throws(DatabaseError) {
        var writer = ByteWriter()
        writer.write(Self.magic)
        writer.writeRaw(move.encode())
        writer.write(crc32c(writer.bytes))
        try DurableFile.replace(home, with: writer.take())
    }

    /// Puts the note aside, for metadata that is made anew in this directory.
    public func forget() throws(DatabaseError) {
        if access(home, F_OK) == 0 { try rename(home, aside(home + ".old")) }
    }

    // MARK: Copies of groups

    /// Where this controller's metadata is; see `MetadataPlace.find`. Changes nothing.
    public func place(
        configured: MetadataForm, prefix: String, name: String
    ) throws(DatabaseError) -> MetadataPlace {
        let move = try move()
        return try MetadataPlace.find(
            move, configured: configured, prefix: prefix, name: name,
            hasGroup: access(quorum + "/identity", F_OK) == 0,
            hasIncoming: move.map { access(incoming($0) + "/identity", F_OK) == 0 } ?? false)
    }

    /// Brings the directory in step with the place; may be repeated after a crash at any point.
    public func settle(_ place: MetadataPlace) throws(DatabaseError) {
        switch place {
        case .configured, .embedded(_, adopts: false): break
        case .etcd(let move): try retire(move)
        case .embedded(let move, adopts: true):
            try retire(move)
            try rename(incoming(move), quorum)
        }
    }

    private func retire(_ move: MetadataMove) throws(DatabaseError) {
        guard access(quorum, F_OK) == 0 else { return }
        try rename(quorum, aside(quorum + ".moved-\(move.revision)"))
    }

    /// Makes this controller's copy of the group that `move` makes, from the state that it is to hold; reads it
    /// back. Does not count before `note`.
    public func prepare(
        _ move: MetadataMove, name: String, state: RevisionedState
    ) throws(DatabaseError) -> RevisionedState {
        guard let own = move.members.first(where: { $0.name == name }) else {
            throw DatabaseError(.invalidRequest, "\(name) is not among the controllers of the move")
        }
        let files = try QuorumFiles(directory: incoming(move))
        let identity = QuorumIdentity(cluster: move.cluster, replica: own.replica, name: name)
        try files.create(identity, image: try MetadataImage(members: move.members, state: state))
        guard let written = try files.identity() else {
            throw DatabaseError(.storageFailed, "\(incoming(move)) has no identity")
        }
        let opened = try files.open(written, now: .origin)
        opened.log.close()
        return opened.image.state
    }

    /// A name that is not taken.
    private func aside(_ wanted: String) -> String {
        var name = wanted
        var number = 1
        while access(name, F_OK) == 0 {
            number += 1
            name = "\(wanted).\(number)"
        }
        return name
    }

    private func rename(_ from: String, _ to: String) throws(DatabaseError) {
        guard Glibc.rename(from, to) == 0 else { throw systemError("rename \(from) to \(to)") }
        let directory = open(data, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard directory >= 0 else { throw systemError("open \(data)") }
        defer { close(directory) }
        guard fsyncRetryingInterrupts(directory) == 0 else { throw systemError("fsync \(data)") }
    }
}
