// The tree on disk: one LMDB environment with one unnamed database.

import CLMDB
import Glibc
import KVBase

/// Opens, reads and writes the tree. Reading needs a transaction of the caller; writing happens on
/// one thread at a time.
final class Tree: @unchecked Sendable {
    let path: String
    let environment: OpaquePointer
    let database: MDB_dbi

    init(path: String, options: BTreeOptions) throws(DatabaseError) {
        self.path = path
        var mapBytes = options.mapBytes
        while true {
            do throws(DatabaseError) {
                (environment, database) = try Self.open(path, mapBytes, options.snapshotsMax)
                return
            } catch  where error.message.contains(String(cString: strerror(ENOMEM))) {
                mapBytes /= 2
                if mapBytes < 1 << 30 { throw error }
            }
        }
    }

    func close() { mdb_env_close(environment) }

    /// A read transaction that any thread may use, one at a time.
    func beginRead() throws(DatabaseError) -> OpaquePointer {
        var transaction: OpaquePointer?
        try check(mdb_txn_begin(environment, nil, UInt32(MDB_RDONLY), &transaction), "read")
        guard let transaction else { throw error(EINVAL, "read") }
        return transaction
    }

    /// Lends the value of `key` as `transaction` sees it.
    func get<R>(
        _ key: UnsafeRawBufferPointer, _ transaction: OpaquePointer,
        _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R {
        guard !key.isEmpty else { return body(nil) }
        var name = MDB_val(Bucket.name(of: key))
        var data = MDB_val()
        let code = mdb_get(transaction, database, &name, &data)
        if code == MDB_NOTFOUND { return body(nil) }
        try check(code, "read")
        let content = try content(data.bytes, of: Bucket.name(of: key))
        guard Bucket.isLong(key) else { return body(content) }
        let wanted = Bucket.rest(of: key)
        var reader = Bucket.Reader(content)
        while let record = reader.next() {
            let order = compareBytes(record.rest, wanted)
            if order == 0 { return body(record.value) }
            if order > 0 { break }
        }
        if reader.isDamaged { throw damage(in: Bucket.name(of: key)) }
        return body(nil)
    }

    /// The content of what is stored under `name`, checked.
    func content(
        _ stored: UnsafeRawBufferPointer, of name: UnsafeRawBufferPointer
    ) throws(DatabaseError) -> UnsafeRawBufferPointer {
        guard let content = SealedValue.open(stored, of: name) else { throw damage(in: name) }
        return content
    }

    /// Bytes of the pages in use, and of the file.
    var usedBytes: UInt64 {
        var status = MDB_stat()
        guard mdb_env_stat(environment, &status) == 0 else { return 0 }
        let pages =
            status.ms_branch_pages + status.ms_leaf_pages + status.ms_overflow_pages
        return UInt64(pages) * UInt64(status.ms_psize)
    }

    var fileBytes: UInt64 {
        var status = MDB_stat()
        var info = MDB_envinfo()
        guard mdb_env_stat(environment, &status) == 0, mdb_env_info(environment, &info) == 0
        else { return 0 }
        return UInt64(info.me_last_pgno + 1) * UInt64(status.ms_psize)
    }

    /// Throws unless `code` is 0.
    func check(_ code: Int32, _ what: String) throws(DatabaseError) {
        if code != 0 { throw error(code, what) }
    }

    /// `DatabaseError.isCorruption` goes by the first word, which is RocksDB's.
    func damage(in name: UnsafeRawBufferPointer) -> DatabaseError {
        let start = name.prefix(48).map { hex(UInt64($0), count: 2) }.joined()
        return DatabaseError(
            .storageFailed,
            "Corruption: \(path)/data.mdb: what is stored under the key \(start) (hexadecimal, its "
                + "first 48 bytes) is not what was written")
    }

    private func error(_ code: Int32, _ what: String) -> DatabaseError {
        Self.error(code, what, path)
    }

    private static func error(_ code: Int32, _ what: String, _ path: String) -> DatabaseError {
        // Transactions of readers are bounded by the options, not by the disk.
        let kind: ErrorCode = code == MDB_READERS_FULL ? .overloaded : .storageFailed
        return DatabaseError(kind, "\(what) \(path): \(String(cString: mdb_strerror(code)))")
    }

    private static func open(
        _ path: String, _ mapBytes: Int, _ snapshotsMax: Int
    ) throws(DatabaseError) -> (OpaquePointer, MDB_dbi) {
        var created: OpaquePointer?
        var code = mdb_env_create(&created)
        guard code == 0, let environment = created else { throw error(code, "open", path) }
        code = mdb_env_set_mapsize(environment, mapBytes)
        // Two more than the snapshots: the owner's transaction and that of a size estimate.
        if code == 0 { code = mdb_env_set_maxreaders(environment, UInt32(snapshotsMax + 2)) }
        if code == 0 {
            code = mdb_env_open(environment, path, UInt32(MDB_NOTLS | MDB_NORDAHEAD), 0o640)
        }
        // Slots of processes that died are taken back, so that they pin no pages.
        if code == 0 { code = mdb_reader_check(environment, nil) }
        var transaction: OpaquePointer?
        var database: MDB_dbi = 0
        if code == 0 { code = mdb_txn_begin(environment, nil, 0, &transaction) }
        if code == 0 {
            code = mdb_dbi_open(transaction, nil, 0, &database)
            if code == 0 { code = mdb_txn_commit(transaction) } else { mdb_txn_abort(transaction) }
        }
        if code == 0, Int(mdb_env_get_maxkeysize(environment)) != Bucket.nameBytes {
            code = MDB_INCOMPATIBLE
        }
        guard code == 0 else {
            mdb_env_close(environment)
            throw error(code, "open", path)
        }
        return (environment, database)
    }
}

extension MDB_val {
    init(_ bytes: UnsafeRawBufferPointer) {
        self.init(
            mv_size: bytes.count, mv_data: UnsafeMutableRawPointer(mutating: bytes.baseAddress))
    }

    var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(start: mv_data, count: mv_size) }
}
