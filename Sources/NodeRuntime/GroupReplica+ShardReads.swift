// The former owner of a shard: what lies behind its fence is read by the group that takes the shard over.

import KVBase
import NodeCore
import ShardCore
import StorageAPI

extension GroupReplica {
    /// Answers from what lies behind the fence.
    func answer(_ request: ShardReadRequest) -> ShardRecords {
        do throws(DatabaseError) {
            guard !isFailed, !isInstallingSnapshot else {
                throw DatabaseError(.unavailable, "replica \(id) is not whole")
            }
            let held = try state.readable(request.shard, request.epoch)
            guard case .fenced = held.phase else {
                throw DatabaseError(.staleEpoch, "shard \(request.shard) is not fenced here")
            }
            var range = held.shard.range
            if compareBytes(range.start, request.from) < 0 { range.start = request.from }
            if let to = request.to, range.end.map({ compareBytes(to, $0) < 0 }) ?? true {
                range.end = to
            }
            return try read(range, of: held, request)
        } catch {
            if error.code == .storageFailed { disk.fail(error) }
            return ShardRecords(target: request.target, token: request.token, error: error)
        }
    }

    private func read(
        _ range: KeyRange, of held: OwnedShard, _ request: ShardReadRequest
    ) throws(DatabaseError) -> ShardRecords {
        var records: [ShardRecords.Record] = []
        var bytes = 0
        var next: Bytes?
        var isDamaged = false
        guard !range.isEmpty else {
            return ShardRecords(target: request.target, token: request.token)
        }
        let prefix = StorageLayout.keyPrefixByteCount
        try engine.scan(StorageLayout.range(store, held.shard.table, range)) { key, value in
            if bytes >= request.bytesMax {
                next = Bytes(key[prefix...])
                return false
            }
            guard let record = StoredRecord(value) else {
                isDamaged = true
                return false
            }
            records.append(
                ShardRecords.Record(
                    routedKey: Bytes(key[prefix...]), sequencer: record.sequencer,
                    isTombstone: record.isTombstone, value: Bytes(record.value)))
            bytes += key.count + value.count
            return true
        }
        if isDamaged {
            throw DatabaseError(.storageFailed, "a record of shard \(held.shard.id) is damaged")
        }
        var answer = ShardRecords(
            target: request.target, token: request.token, to: next, records: records)
        answer.strain = node.foreground.strain
        return answer
    }
}
