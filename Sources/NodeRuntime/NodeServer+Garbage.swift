// The records of shards and replicas that are gone, deleted a bounded piece at a time.

import KVBase
import ShardCore
import StorageAPI

extension NodeServer {
    /// Keys deleted in one go from a B+ tree, whose checkpoint pays for each of them.
    private static let garbageKeys = 5_000
    /// Ranges deleted in one go from an LSM tree.
    private static let garbageRanges = 256

    func garbageAppeared(_ replica: GroupReplica) {
        if !withGarbage.contains(where: { $0 === replica }) { withGarbage.append(replica) }
    }

    /// Deletes a bounded piece of one replica's garbage.
    func collectGarbage() {
        collectRemoved()
        guard let replica = withGarbage.first, !replica.isInstallingSnapshot else { return }
        guard !replica.isFailed, let range = replica.garbage.first, let end = range.end else {
            withGarbage.removeFirst()
            return
        }
        do throws(DatabaseError) {
            applyScratch.reset()
            var emptied: [KeyRange] = []
            if replica.engineKind == .lsm {
                // A range costs one tombstone whatever it holds; but the state, which has the list of
                // them, is written each time, so several go at once.
                emptied = replica.garbage.prefix(Self.garbageRanges).filter { $0.end != nil }
            } else {
                let piece = try firstPiece(of: range, end: end, replica.engine)
                if piece.end == end {
                    emptied = [range]
                } else if let reached = piece.end {
                    delete(piece.start, reached)
                    replica.garbage[0].start = reached
                }
            }
            for range in emptied { delete(range.start, range.end ?? end) }
            if !emptied.isEmpty {
                replica.garbage.removeAll { emptied.contains($0) }
                replica.putState(applyScratch)
                replica.putCatalog(applyScratch)
            }
            try replica.engine.apply(applyScratch.batch)
            for range in emptied { replica.disk.reclaim(range, of: replica.engine) }
        } catch {
            replica.disk.fail(error)
        }
    }

    private func delete(_ from: Bytes, _ to: Bytes) {
        from.withUnsafeBytes { from in
            to.withUnsafeBytes { to in applyScratch.batch.deleteRange(from: from, to: to) }
        }
    }

    func firstPiece(
        of range: KeyRange, end: Bytes, _ engine: any StorageEngine
    ) throws(DatabaseError) -> KeyRange {
        var count = 0
        var cut: Bytes?
        try engine.scan(range) { key, _ in
            count += 1
            if count > Self.garbageKeys {
                cut = Bytes(key)
                return false
            }
            return true
        }
        return KeyRange(start: range.start, end: cut ?? end)
    }
}
