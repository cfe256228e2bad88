// The durable form for one process: a log of mutations and a snapshot in one directory.

import KVBase

/// A metadata store on disk. One process owns the directory, by a lock on its file `lock`.
public final class FileMetadataStore: LocalMetadataStore {
    public struct Options: Sendable {
        /// Log bytes after which a snapshot replaces the log.
        public var snapshotAfterLogBytes = 16 << 20
        /// `fsync`, replaceable so that its failure can be tried. 0 is success.
        public var sync: @Sendable (Int32) -> Int32 = { fsyncRetryingInterrupts($0) }

        /// Told how long each successful sync of the log took.
        public var onSync: @Sendable (Nanoseconds) -> Void = { _ in }

        public init() {}
    }

    private let files: MetadataFiles

    /// Opens or founds the store in `directory`, which must exist. Leases run anew from `now`.
    ///
    /// Throws `.storageFailed` that names file and offset when something is damaged, `.refused` when
    /// another process owns the directory.
    public init(directory: String, now: Instant, options: Options = Options())
        throws(DatabaseError)
    {
        let (files, state) = try MetadataFiles.open(directory, now: now, options: options)
        self.files = files
        super.init(state: state, journal: files, now: now)
    }

    /// Bytes of log since the last snapshot.
    public var logBytes: Int { files.logBytes }
}
