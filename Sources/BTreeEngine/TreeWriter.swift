// Writing an overlay into the tree, as one transaction that is synced when it commits.

import CLMDB
import KVBase

extension Tree {
    /// Writes all of `overlay` atomically and durably. On an error the tree is as before.
    func write(_ overlay: Overlay) throws(DatabaseError) {
        var begun: OpaquePointer?
        try check(mdb_txn_begin(environment, nil, 0, &begun), "write to")
        let transaction = begun!
        do throws(DatabaseError) {
            for range in overlay.deleted { try deleteRange(range, transaction) }
            try writeRecords(overlay.records, transaction)
        } catch {
            mdb_txn_abort(transaction)
            throw error
        }
        try check(mdb_txn_commit(transaction), "commit to")
    }

    private func writeRecords(
        _ records: SortedMap, _ transaction: OpaquePointer
    ) throws(DatabaseError) {
        var position = records.startPosition
        while !records.isEnd(position) {
            let isLong = records.withEntry(at: position) { key, _ in Bucket.isLong(key) }
            if isLong {
                position = try mergeBucket(records, from: position, transaction)
                continue
            }
            let code = records.withEntry(at: position) { key, tagged in
                switch Overlay.answer(tagged) {
                case .value(let value): return put(key, value, transaction)
                default: return remove(key, transaction)
                }
            }
            try check(code, "write to")
            position = records.next(position)
        }
    }

    /// Rewrites one bucket with all of its changes, which lie side by side in `records`. Returns the
    /// position behind them.
    private func mergeBucket(
        _ records: SortedMap, from start: SortedMap.Position, _ transaction: OpaquePointer
    ) throws(DatabaseError) -> SortedMap.Position {
        let name = records.withEntry(at: start) { key, _ in Bytes(Bucket.name(of: key)) }
        var merged: Bytes = []
        var position = start
        var isDamaged = false
        let code = name.withUnsafeBytes { name in
            var key = MDB_val(name)
            var data = MDB_val()
            let found = mdb_get(transaction, database, &key, &data)
            guard found == 0 || found == MDB_NOTFOUND else { return found }
            let nothing = UnsafeRawBufferPointer(start: nil, count: 0)
            guard let content = found == 0 ? SealedValue.open(data.bytes, of: name) : nothing
            else {
                isDamaged = true
                return 0
            }
            var old = Bucket.Reader(content)
            var oldRecord = old.next()
            while !records.isEnd(position) {
                let isInside = records.withEntry(at: position) { key, tagged in
                    guard key.starts(with: name) else { return false }
                    let rest = Bucket.rest(of: key)
                    while let kept = oldRecord, compareBytes(kept.rest, rest) < 0 {
                        Bucket.append(kept.rest, kept.value, to: &merged)
                        oldRecord = old.next()
                    }
                    if let same = oldRecord, compareBytes(same.rest, rest) == 0 {
                        oldRecord = old.next()
                    }
                    if case .value(let value) = Overlay.answer(tagged) {
                        Bucket.append(rest, value, to: &merged)
                    }
                    return true
                }
                guard isInside else { break }
                position = records.next(position)
            }
            while let kept = oldRecord {
                Bucket.append(kept.rest, kept.value, to: &merged)
                oldRecord = old.next()
            }
            isDamaged = old.isDamaged
            return isDamaged ? 0 : store(merged, name, transaction)
        }
        if isDamaged { throw name.withUnsafeBytes { damage(in: $0) } }
        try check(code, "write to")
        return position
    }

    /// Deletes the records of the tree in `range`.
    private func deleteRange(
        _ range: KeyRange, _ transaction: OpaquePointer
    ) throws(DatabaseError) {
        var opened: OpaquePointer?
        try check(mdb_cursor_open(transaction, database, &opened), "write to")
        let cursor = opened!
        defer { mdb_cursor_close(cursor) }
        // A bucket that the range begins in has a name below its start, cut to the name's length.
        let start = Bytes(range.start.prefix(Bucket.nameBytes))
        var damaged: DatabaseError?
        var code: Int32 = start.withUnsafeBytes { start in
            var name = MDB_val(start)
            var data = MDB_val()
            return mdb_cursor_get(
                cursor, &name, &data, start.isEmpty ? MDB_FIRST : MDB_SET_RANGE)
        }
        while code == 0 {
            var name = MDB_val()
            var data = MDB_val()
            code = mdb_cursor_get(cursor, &name, &data, MDB_GET_CURRENT)
            guard code == 0 else { break }
            if let end = range.end, end.withUnsafeBytes({ compareBytes(name.bytes, $0) }) >= 0 {
                return
            }
            if Bucket.isLong(name.bytes) {
                guard let kept = remains(of: name.bytes, data.bytes, without: range) else {
                    damaged = damage(in: name.bytes)
                    break
                }
                // The name lies in a page that the change may move.
                let copy = Bytes(name.bytes)
                if kept.isEmpty {
                    code = mdb_cursor_del(cursor, 0)
                } else {
                    code = copy.withUnsafeBytes { store(kept, $0, transaction) }
                }
                if code != 0 { break }
                code = copy.withUnsafeBytes { seekBehind(cursor, $0) }
            } else {
                code = mdb_cursor_del(cursor, 0)
                // The cursor now stands on the record behind, or behind the last one of a page.
                if code == 0 { code = mdb_cursor_get(cursor, &name, &data, MDB_NEXT) }
            }
        }
        if let damaged { throw damaged }
        if code != MDB_NOTFOUND { try check(code, "write to") }
    }

    func seekBehind(_ cursor: OpaquePointer, _ name: UnsafeRawBufferPointer) -> Int32 {
        var found = MDB_val(name)
        var data = MDB_val()
        var code = mdb_cursor_get(cursor, &found, &data, MDB_SET_RANGE)
        if code == 0, compareBytes(found.bytes, name) == 0 {
            code = mdb_cursor_get(cursor, &found, &data, MDB_NEXT)
        }
        return code
    }

    /// What a bucket holds outside `range`; nil when it is damaged.
    private func remains(
        of name: UnsafeRawBufferPointer, _ stored: UnsafeRawBufferPointer, without range: KeyRange
    ) -> Bytes? {
        guard let bucket = SealedValue.open(stored, of: name) else { return nil }
        var kept: Bytes = []
        var key = Bytes(name)
        var reader = Bucket.Reader(bucket)
        while let record = reader.next() {
            key.removeSubrange(Bucket.nameBytes...)
            key.append(contentsOf: record.rest)
            if !range.contains(key) { Bucket.append(record.rest, record.value, to: &kept) }
        }
        return reader.isDamaged ? nil : kept
    }

    /// Writes a bucket, or removes it when nothing is left in it.
    private func store(
        _ bucket: Bytes, _ name: UnsafeRawBufferPointer, _ transaction: OpaquePointer
    ) -> Int32 {
        bucket.isEmpty
            ? remove(name, transaction) : bucket.withUnsafeBytes { put(name, $0, transaction) }
    }

    private func put(
        _ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer,
        _ transaction: OpaquePointer
    ) -> Int32 {
        var name = MDB_val(key)
        var data = MDB_val()
        data.mv_size = value.count + SealedValue.checksumBytes
        let code = mdb_put(transaction, database, &name, &data, UInt32(MDB_RESERVE))
        guard code == 0 else { return code }
        let place = UnsafeMutableRawBufferPointer(start: data.mv_data, count: data.mv_size)
        SealedValue.write(value, of: key, to: place)
        return 0
    }

    private func remove(
        _ key: UnsafeRawBufferPointer, _ transaction: OpaquePointer
    ) -> Int32 {
        var name = MDB_val(key)
        let code = mdb_del(transaction, database, &name, nil)
        return code == MDB_NOTFOUND ? 0 : code
    }
}
