// What one controller of the metadata group keeps on its disk, and how a directory of an earlier form
// becomes one of this form.
//
// In the directory: `LOCK`, `identity`, `snapshot-I` (I: 16 hexadecimal digits, the log index up to
// which it holds everything) and `log/`, a replicated log with one group. The identity is written last
// when a directory is made: without it nothing there counts, with it everything must be there.

import Checksum
import Glibc
import KVBase
import MetadataCore
import ReplicatedLog
import ReplicationCore
import Threads

/// Which replica of which cluster's metadata group this directory is.
public struct QuorumIdentity: Hashable, Sendable {
    /// The cluster's id.
    public var cluster: UInt64
    public var replica: ReplicaID
    /// The controller's name when it was made.
    public var name: String

    public init(cluster: UInt64, replica: ReplicaID, name: String) {
        self.cluster = cluster
        self.replica = replica
        self.name = name
    }
}

/// A directory that was read back.
public struct OpenedQuorum {
    public var identity: QuorumIdentity
    public var image: MetadataImage
    public var restored: RestoredState
    public var log: ReplicatedLog
    /// Length of the newest snapshot in bytes; 0 when there is none.
    public var snapshotBytes: Int
}

/// One process owns it, by the lock. Its functions block.
public final class QuorumFiles: Sendable {
    public let directory: String
    private let lock: DirectoryLock
    private static let magic: UInt64 = 0x3130_4D55_5251_4B52  // "RKQRUM01"
    private static let snapshotMagic: UInt64 = 0x3130_504E_5351_4B52  // "RKQSNP01"
    /// Log bytes above the newest snapshot at which the next one is due.
    public static let snapshotAfterBytes = 16 << 20

    /// Takes the directory, which is made when it is not there.
    public init(directory: String) throws(DatabaseError) {
        self.directory = directory
        try DurableFile.createDirectory(directory)
        lock = try DirectoryLock(directory: directory)
    }

    // MARK: Identity

    public func identity() throws(DatabaseError) -> QuorumIdentity? {
        guard let bytes = try DurableFile.read(path("identity")) else { return nil }
        do throws(DatabaseError) {
            guard bytes.count > 4 else { throw DatabaseError(.malformed, "it is too short") }
            let body = Bytes(bytes.dropLast(4))
            return try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
                guard try reader.readUInt64() == Self.magic else {
                    throw DatabaseError(.malformed, "it is not an identity of this version")
                }
                let identity = QuorumIdentity(
                    cluster: try reader.readUInt64(), replica: try reader.read(),
                    name: try reader.readString())
                guard try reader.readUInt32() == crc32c(body) else {
                    throw DatabaseError(.malformed, "its checksum does not match")
                }
                return identity
            }
        } catch {
            throw DatabaseError(
                .storageFailed, "\(path("identity")) is damaged: \(error.message)")
        }
    }

    /// Makes the directory that of a replica: of the founder with its first image, or of a new member
    /// that knows nothing yet. A crash in between leaves a directory without identity.
    public func create(
        _ identity: QuorumIdentity, image: MetadataImage?,
        operations: FileOperations = .system
    ) throws(DatabaseError) {
        try clear()
        let (log, _) = try ReplicatedLog.open(
            directory: path("log"), options: Self.logOptions(operations))
        defer { log.close() }
        log.stageCreation(group: MetadataReplica.group, replica: identity.replica)
        let written = Latch<Result<UInt64, DatabaseError>>()
        log.onDurable = { written.open($0) }
        _ = try log.submit()
        _ = try written.wait().get()
        if let image { _ = try write(image) }
        var writer = ByteWriter()
        writer.write(Self.magic)
        writer.write(identity.cluster)
        writer.write(identity.replica)
        writer.write(identity.name)
        writer.write(crc32c(writer.bytes))
        try DurableFile.replace(path("identity"), with: writer.take())
    }

    /// Removes what an interrupted creation left.
    private func clear() throws(DatabaseError) {
        for name in try listDirectory(directory) where Self.index(of: name) != nil {
            unlink(path(name))
        }
        guard access(path("log"), F_OK) == 0 else { return }
        for name in try listDirectory(path("log")) where name != "." && name != ".." {
            unlink(path("log") + "/" + name)
        }
    }

    // MARK: Opening

    /// Reads the replica back. Leases run anew from `now`.
    ///
    /// Throws `.storageFailed` that names the file when something is damaged or missing.
    public func open(
        _ identity: QuorumIdentity, now: Instant, operations: FileOperations = .system
    ) throws(DatabaseError) -> OpenedQuorum {
        var image = MetadataImage()
        var snapshotBytes = 0
        _ = unlink(path("snapshot.new"))
        if let newest = try snapshots().last {
            (image, snapshotBytes) = try readSnapshot(newest, now: now)
        }
        var options = Self.logOptions(operations)
        options.expectExisting = true
        let (log, groups) = try ReplicatedLog.open(directory: path("log"), options: options)
        guard let group = groups.first(where: { $0.group == MetadataReplica.group }),
            group.replica == identity.replica
        else {
            throw DatabaseError(
                .storageFailed,
                "\(path("log")) does not hold replica \(identity.replica) of the metadata group")
        }
        guard group.compacted.index <= image.position.index else {
            throw DatabaseError(
                .storageFailed,
                "\(path("log")) starts behind entry \(group.compacted.index), and the newest "
                    + "snapshot ends at \(image.position.index): a snapshot is missing")
        }
        // What the snapshot holds was committed in its term, so that term was seen here.
        var hardState = group.hardState
        if hardState.term < image.position.term { hardState = HardState(term: image.position.term) }
        log.release(group: MetadataReplica.group, upTo: image.position)
        return OpenedQuorum(
            identity: identity, image: image,
            restored: RestoredState(
                hardState: hardState, applied: image.position, membership: image.membership,
                entries: group.entries, compacted: group.compacted),
            log: log, snapshotBytes: snapshotBytes)
    }

    private static func logOptions(_ operations: FileOperations) -> LogOptions {
        var options = LogOptions()
        options.segmentBytes = 8 << 20
        options.operations = operations
        return options
    }

    // MARK: Snapshots

    /// Makes `image` a durable snapshot and removes older ones; returns its length in bytes. On any
    /// thread, one at a time.
    public func write(_ image: MetadataImage) throws(DatabaseError) -> Int {
        try write(encoded: Self.encode(image), index: image.position.index)
    }

    /// As `write`, of an image that was encoded before, by another controller perhaps.
    public func write(encoded bytes: Bytes, index: LogIndex) throws(DatabaseError) -> Int {
        let temporary = path("snapshot.new")
        let descriptor = try createFile(temporary)
        defer { close(descriptor) }
        try writeAll(descriptor, bytes, name: temporary)
        guard fsyncRetryingInterrupts(descriptor) == 0 else {
            throw systemError("fsync \(temporary)")
        }
        let name = Self.name(index)
        guard rename(temporary, path(name)) == 0 else {
            throw systemError("rename \(path(name))")
        }
        try syncDirectory()
        for old in try snapshots() where old < index { unlink(path(Self.name(old))) }
        return bytes.count
    }

    /// The bytes of a snapshot, in a file as on the network: magic 8, image, CRC32C of all before 4.
    public static func encode(_ image: MetadataImage) -> Bytes {
        var writer = ByteWriter(
            reserving: image.state.records.byteCount + image.state.records.count * 16 + 4_096)
        writer.write(snapshotMagic)
        image.encode(into: &writer)
        writer.write(crc32c(writer.bytes))
        return writer.take()
    }

    public static func decode(_ bytes: Bytes, now: Instant) throws(DatabaseError)
        -> MetadataImage
    {
        guard bytes.count > 12 else { throw DatabaseError(.malformed, "\(bytes.count) bytes") }
        let matches = bytes.withUnsafeBytes { raw in
            let body = UnsafeRawBufferPointer(rebasing: raw[..<(raw.count - 4)])
            return crc32c(body)
                == UInt32(
                    littleEndian: raw.loadUnaligned(fromByteOffset: body.count, as: UInt32.self))
        }
        guard matches else { throw DatabaseError(.malformed, "the checksum does not match") }
        return try ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
            guard try reader.readUInt64() == snapshotMagic else {
                throw DatabaseError(.malformed, "not a snapshot of this version")
            }
            let image = try MetadataImage(from: &reader, now: now)
            _ = try reader.readUInt32()
            return image
        }
    }

    private func readSnapshot(_ index: LogIndex, now: Instant) throws(DatabaseError)
        -> (MetadataImage, Int)
    {
        let name = path(Self.name(index))
        let bytes = try readFile(name)
        do throws(DatabaseError) {
            let image = try Self.decode(bytes, now: now)
            guard image.position.index == index else {
                throw DatabaseError(.malformed, "it ends at entry \(image.position.index)")
            }
            return (image, bytes.count)
        } catch {
            throw DatabaseError(.storageFailed, "\(name) is damaged: \(error.message)")
        }
    }

    private func snapshots() throws(DatabaseError) -> [LogIndex] {
        try listDirectory(directory).compactMap(Self.index).sorted()
    }

    // MARK: Helpers

    private func path(_ name: String) -> String { "\(directory)/\(name)" }

    private func syncDirectory() throws(DatabaseError) {
        let descriptor = Glibc.open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
        guard descriptor >= 0 else { throw systemError("open \(directory)") }
        defer { close(descriptor) }
        guard fsyncRetryingInterrupts(descriptor) == 0 else {
            throw systemError("fsync \(directory)")
        }
    }

    private static func name(_ index: LogIndex) -> String {
        "snapshot-" + hex(index.rawValue)
    }

    private static func index(of name: String) -> LogIndex? {
        let prefix = "snapshot-"
        guard name.hasPrefix(prefix) else { return nil }
        return UInt64(hex: name.dropFirst(prefix.utf8.count)).map { LogIndex($0) }
    }
}

extension QuorumFiles {
    /// Turns the directory of the earlier form for one process, `older`, into the first replica of a
    /// group: its state becomes the first image. Nothing happens when it holds no store.
    ///
    /// Only when the new form is durable, identity last, `older` is renamed to `older.converted`, so a
    /// crash at any point leaves one of the two forms whole. Returns the identity when there is one.
    public func convert(
        older: String, name: String, address: String, now: Instant,
        cluster: (RevisionedState) throws(DatabaseError) -> UInt64
    ) throws(DatabaseError) -> QuorumIdentity? {
        let old = isDirectory(older) ? try listDirectory(older) : []
        let holdsStore = old.contains { $0.hasPrefix("log-") || $0.hasPrefix("snapshot-") }
        if let identity = try identity() {
            if holdsStore { try retire(older) }
            return identity
        }
        guard holdsStore else { return nil }
        var state: RevisionedState
        do {
            // The lock is let go with `files`, before the directory is renamed.
            let files: MetadataFiles
            (files, state) = try MetadataFiles.open(
                older, now: now, options: FileMetadataStore.Options())
            withExtendedLifetime(files) {}
        }
        let identity = QuorumIdentity(
            cluster: try cluster(state), replica: ReplicaID(1), name: name)
        try create(
            identity, image: MetadataImage(founder: name, address: address, state: state))
        try retire(older)
        return identity
    }

    private func isDirectory(_ path: String) -> Bool {
        var status = stat()
        return stat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }

    private func retire(_ older: String) throws(DatabaseError) {
        guard rename(older, older + ".converted") == 0 else {
            throw systemError("rename \(older)")
        }
    }
}
