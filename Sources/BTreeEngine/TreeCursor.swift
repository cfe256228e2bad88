// Records of the tree in order, those of buckets among them.

import CLMDB
import KVBase

/// Walks forward as one transaction sees the tree. The lent bytes are valid until the next move.
final class TreeCursor {
    private let tree: Tree
    private let cursor: OpaquePointer
    private var bucket: Bucket.Reader?
    /// The whole key of a record in a bucket: its name, then the rest.
    private var longKey = UnsafeMutableRawBufferPointer(start: nil, count: 0)
    private var longKeyCount = 0
    private var shortKey = UnsafeRawBufferPointer(start: nil, count: 0)
    private(set) var isValid = false
    private(set) var value = UnsafeRawBufferPointer(start: nil, count: 0)

    init(_ tree: Tree, _ transaction: OpaquePointer) throws(DatabaseError) {
        self.tree = tree
        var opened: OpaquePointer?
        try tree.check(mdb_cursor_open(transaction, tree.database, &opened), "scan")
        cursor = opened!
    }

    deinit {
        mdb_cursor_close(cursor)
        longKey.deallocate()
    }

    /// Precondition: `isValid`.
    var key: UnsafeRawBufferPointer {
        bucket == nil
            ? shortKey
            : UnsafeRawBufferPointer(start: longKey.baseAddress, count: longKeyCount)
    }

    /// Moves to the first record whose key is not below `from`.
    func seek(_ from: UnsafeRawBufferPointer) throws(DatabaseError) {
        let name = Bucket.name(of: from)
        try move(from.isEmpty ? MDB_FIRST : MDB_SET_RANGE, name)
        guard Bucket.isLong(from) else { return }
        // In the bucket of this name: on to the rest.
        while isValid, compareBytes(key, from) < 0 { try next() }
    }

    func next() throws(DatabaseError) {
        if bucket != nil, try nextInBucket() { return }
        try move(MDB_NEXT, UnsafeRawBufferPointer(start: nil, count: 0))
    }

    private func move(
        _ operation: MDB_cursor_op, _ target: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        var operation = operation
        var name = MDB_val(target)
        while true {
            var data = MDB_val()
            let code = mdb_cursor_get(cursor, &name, &data, operation)
            bucket = nil
            isValid = code == 0
            if code == MDB_NOTFOUND { return }
            try tree.check(code, "scan")
            let content = try tree.content(data.bytes, of: name.bytes)
            guard Bucket.isLong(name.bytes) else {
                shortKey = name.bytes
                value = content
                return
            }
            bucket = Bucket.Reader(content)
            reserveLongKey(Bucket.nameBytes)
            longKey.copyMemory(from: name.bytes)
            if try nextInBucket() { return }
            operation = MDB_NEXT
        }
    }

    private func nextInBucket() throws(DatabaseError) -> Bool {
        guard let record = bucket!.next() else {
            if bucket!.isDamaged {
                throw tree.damage(
                    in: UnsafeRawBufferPointer(rebasing: longKey[..<Bucket.nameBytes]))
            }
            return false
        }
        longKeyCount = Bucket.nameBytes + record.rest.count
        reserveLongKey(longKeyCount)
        UnsafeMutableRawBufferPointer(rebasing: longKey[Bucket.nameBytes...])
            .copyMemory(from: record.rest)
        value = record.value
        return true
    }

    private func reserveLongKey(_ count: Int) {
        guard count > longKey.count else { return }
        let larger = UnsafeMutableRawBufferPointer.allocate(
            byteCount: max(count, 2 * longKey.count), alignment: 16)
        larger.copyMemory(from: UnsafeRawBufferPointer(longKey))
        longKey.deallocate()
        longKey = larger
    }
}
