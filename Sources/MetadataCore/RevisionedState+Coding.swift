// The bytes of a metadata state, as snapshots hold them.

import KVBase

extension RevisionedState {
    /// Revision 8, highest lease 8, leases (count 4; id 8, ttl 8), record count 8, records (key; a
    /// value of create revision 8, mod revision 8, lease 8 and the bytes). No history.
    public func encode(into writer: inout ByteWriter) {
        writer.write(revision)
        writer.write(leaseHighest)
        writer.write(list: leases) { writer, lease in
            writer.write(lease.id)
            writer.write(lease.ttl.count)
        }
        writer.write(UInt64(records.count))
        // Stored values carry their revisions and lease in front.
        var position = records.startPosition
        while !records.isEnd(position) {
            records.withEntry(at: position) { key, stored in
                writer.write(key)
                writer.write(stored)
            }
            position = records.next(position)
        }
    }

    /// Leases run anew from `now`.
    public init(from reader: inout ByteReader, now: Instant) throws(DatabaseError) {
        let revision: Revision = try reader.read()
        let leaseHighest: LeaseID = try reader.read()
        let leases = try reader.readList(elementBytesMin: 16) {
            (reader) throws(DatabaseError) -> (LeaseID, Nanoseconds) in
            (try reader.read(), Nanoseconds(try reader.readUInt64()))
        }
        var records: [MetadataRecord] = []
        for _ in 0..<(try reader.readUInt64()) {
            let key = try reader.readBytes()
            var stored = ByteReader(try reader.readSlice())
            let create: Revision = try stored.read()
            let mod: Revision = try stored.read()
            let lease: LeaseID = try stored.read()
            records.append(
                MetadataRecord(
                    key: key, value: Bytes(try stored.readRaw(stored.remaining)),
                    createRevision: create, modRevision: mod, lease: lease))
        }
        self.init(
            revision: revision, records: records, leases: leases, leaseHighest: leaseHighest,
            now: now)
    }
}
