// A shard on its way from another group: the new owner's leader copies it, chunk by chunk, through its own
// log. What an operation must know of a key that is not copied yet is fetched at once
// (GroupReplica+Fetches.swift).

import EventLoop
import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import WireProtocol

extension GroupReplica {
    // MARK: The copy

    /// Asks for the next chunk of every shard that is being copied, and again where no answer came.
    /// Called every tick and after every chunk.
    func continueCopies() {
        guard isLeader, core.canPropose, !isFailed else { return }
        let now = node.now
        expireFetches(now)
        expirePages(now)
        guard hasImports || !copies.chunks.isEmpty else { return }
        for id in imports {
            guard let owned = state.shards[id],
                case .importing(let source, _, let cursor) = owned.phase
            else { continue }
            if let place = copies.chunks.firstIndex(where: { $0.shard == id }) {
                let chunk = copies.chunks[place]
                let isSilent = now - chunk.asked >= ShardCopies.answerWait
                guard chunk.cursor != cursor || isSilent else { continue }
                if chunk.cursor != cursor { account(for: chunk, of: owned) }
                if isSilent, !chunk.isLogged { copies.turn += 1 }
                copies.chunks.remove(at: place)
            }
            guard let cursor, now >= copies.accounts[id]?.heldUntil ?? .origin else { continue }
            guard now >= copies.notBefore else {
                awaitPace(now)
                continue
            }
            let token = node.random.next()
            copies.chunks.append(
                ShardCopies.Chunk(
                    shard: owned.shard.id, cursor: cursor, token: token, asked: now))
            ask(
                ShardReadRequest(
                    source: source, target: group, shard: owned.shard.id,
                    epoch: owned.shard.epoch, token: token, from: cursor, to: nil,
                    bytesMax: copies.pace.chunkBytes, isGentle: copies.pace.isSlowest))
        }
    }

    /// Ticks are too far apart for a fast copy.
    private func awaitPace(_ now: Instant) {
        guard !copies.isTimerSet else { return }
        copies.isTimerSet = true
        node.loop.schedule(after: copies.notBefore - now) { [weak self] in
            self?.copies.isTimerSet = false
            self?.continueCopies()
        }
    }

    /// The chunk is applied: the cursor stands behind it.
    private func account(for chunk: ShardCopies.Chunk, of owned: OwnedShard) {
        guard chunk.isLogged else { return }
        var account = account(of: owned)
        account.bytes += chunk.bytes
        account.records += chunk.records
        copies.accounts.set(account, for: owned.shard.id)
    }

    private func account(of owned: OwnedShard) -> ShardCopies.Account {
        if let known = copies.accounts[owned.shard.id], known.epoch == owned.shard.epoch {
            return known
        }
        return ShardCopies.Account(epoch: owned.shard.epoch)
    }

    /// Lets the copy of a shard rest for a while; operations still fetch what they need.
    func holdCopy(of shard: ShardID) {
        guard let owned = state.shards[shard] else { return }
        var account = account(of: owned)
        account.heldUntil = node.now + NodeCommand.holdTime
        copies.accounts.set(account, for: shard)
    }

    /// Of every copy that this replica leads.
    func copyReports() -> [CopyReport] {
        guard isLeader, core.canPropose, !isFailed else { return [] }
        return imports.compactMap { id in
            guard let owned = state.shards[id],
                case .importing(_, _, let cursor) = owned.phase
            else { return nil }
            let account = account(of: owned)
            return CopyReport(
                shard: id, epoch: owned.shard.epoch, isWhole: cursor == nil,
                bytes: account.bytes, records: account.records, isThrottled: copies.pace.isThrottled
            )
        }
    }

    func ask(_ request: ShardReadRequest) {
        guard let placements = node.map.groups[request.source]?.placements, !placements.isEmpty
        else { return }
        let target = placements[copies.turn % placements.count].node
        if target == node.identity.node {
            guard let replica = node.replica(request.source) else {
                copies.turn += 1
                return
            }
            if request.to == nil, !request.isGentle { node.noteDisturbance() }
            node.selfAnswers.append(replica.answer(request))
            return
        }
        node.peers.send(.shardRead, to: target) { request.encode(into: &$0) }
    }

    func receive(_ answer: ShardRecords) {
        if let place = copies.chunks.firstIndex(where: { $0.token == answer.token }) {
            install(answer, place)
        } else if let place = copies.fetches.firstIndex(where: { $0.token == answer.token }) {
            resume(answer, place)
        } else {
            receivePart(answer)
        }
    }

    func isSound(_ answer: ShardRecords) -> Bool {
        if answer.error == nil, answer.digest == ShardRecords.digest(of: answer.records) {
            return true
        }
        // Asked again, of another replica, once this one counts as silent.
        copies.turn += 1
        return false
    }

    /// Logs a chunk: its records, then the command that moves the cursor behind them.
    private func install(_ answer: ShardRecords, _ place: Int) {
        var chunk = copies.chunks[place]
        guard isSound(answer), !chunk.isLogged, let owned = state.shards[chunk.shard],
            case .importing(_, _, let cursor) = owned.phase, cursor == chunk.cursor
        else { return }
        do throws(DatabaseError) {
            for record in answer.records { try enqueueImport(record, owned) }
            var value = ByteWriter()
            ShardCommand.advance(
                owned.shard.id, owned.shard.epoch, from: chunk.cursor, to: answer.to
            ).encode(into: &value)
            var writer = ByteWriter()
            value.bytes.withUnsafeBytes {
                writer.writeOperation(
                    group: group, shard: owned.shard.id, epoch: owned.shard.epoch,
                    code: .shardCommand, key: UnsafeRawBufferPointer(start: nil, count: 0),
                    value: $0)
            }
            try writer.bytes.withRawBytes { (bytes) throws(DatabaseError) in
                try enqueue(bytes, keyHash: nil, waiter: .noOne)
            }
        } catch {
            // Too much is waiting: the chunk comes again, and its records may come twice.
            return
        }
        chunk.isLogged = true
        chunk.bytes = answer.records.reduce(0) {
            $0 + UInt64($1.routedKey.count + $1.value.count)
        }
        chunk.records = UInt64(answer.records.count)
        let now = node.now
        copies.pace.observe(strain: max(answer.strain, node.foreground.strain), now: now)
        if !copies.pace.isSlowest { node.noteDisturbance() }
        copies.notBefore =
            max(copies.notBefore, chunk.asked) + copies.pace.duration(bytes: chunk.bytes)
        chunk.asked = now
        copies.chunks[place] = chunk
    }

    func enqueueImport(
        _ record: ShardRecords.Record, _ owned: OwnedShard
    ) throws(DatabaseError) {
        let prefix = owned.partitioning == .range ? 0 : 2
        guard record.routedKey.count >= prefix, owned.shard.range.contains(record.routedKey) else {
            throw DatabaseError(.malformed, "a record outside shard \(owned.shard.id)")
        }
        var writer = ByteWriter(reserving: 64 + record.routedKey.count + record.value.count)
        record.routedKey.withUnsafeBytes { routedKey in
            record.value.withUnsafeBytes { value in
                writer.writeOperation(
                    group: group, shard: owned.shard.id, epoch: owned.shard.epoch,
                    code: .importRecord, flags: record.isTombstone ? .tombstone : [],
                    expected: record.sequencer,
                    key: UnsafeRawBufferPointer(rebasing: routedKey[prefix...]), value: value)
            }
        }
        let key = StorageLayout.key(store, owned.shard.table, record.routedKey)
        let hash = key.withUnsafeBytes { stableHash($0) }
        try writer.bytes.withRawBytes { (bytes) throws(DatabaseError) in
            try enqueue(bytes, keyHash: hash, waiter: .noOne)
        }
    }

    // MARK: Operations that depend on the former owner

    /// The leadership is gone: none of what waits here was logged.
    func abandonCopies() {
        let fetches = copies.fetches
        let pages = copies.pages
        copies = ShardCopies(bytesPerSecond: node.settings.copyBytesPerSecond)
        for page in pages { answerNotLeader(page.waiter) }
        for fetch in fetches {
            for (_, waiter) in fetch.operations { answerNotLeader(waiter) }
        }
    }
}
