// A shard on its way from another group: the new owner's leader copies it, and fetches at once what
// an operation must know of a key that is not copied yet.

import EventLoop
import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import StorageAPI
import WireProtocol

/// What the leader of a group that takes shards over has asked for. Everything that must survive a
/// leader is in the replicated state; this is lost with the leadership and begun anew.
struct ShardCopies {
    static let pageBytesMax: UInt32 = 256 << 10
    /// Silence after which the next replica of the former owner is asked.
    static let answerWait = Nanoseconds.milliseconds(500)
    /// An operation that learns nothing of its key in this time is given back.
    static let operationWait = Nanoseconds.seconds(3)
    static let waitingOperationsMax = 10_000
    static let waitingPagesMax = 256

    struct Chunk {
        var shard: ShardID
        var cursor: Bytes
        var token: UInt64
        var asked: Instant
        /// Logged: the cursor moves when it is applied.
        var isLogged = false
        var bytes: UInt64 = 0
        var records: UInt64 = 0
    }

    /// What was copied under this leadership, and whether the controller wants the copy to rest.
    struct Account {
        var epoch: Epoch
        var bytes: UInt64 = 0
        var records: UInt64 = 0
        var heldUntil = Instant.origin
    }

    /// Operations on one key, in their order, that wait for what the former owner holds of it.
    struct Fetch {
        var shard: ShardID
        var epoch: Epoch
        var routedKey: Bytes
        var token: UInt64
        var asked: Instant
        var deadline: Instant
        var operations: [(bytes: Bytes, waiter: Waiter)]
    }

    /// A page of a list, which waits for what the former owners hold of it.
    struct Page {
        struct Part {
            var request: ShardReadRequest
            var asked: Instant
            var answer: ShardRecords?
        }

        var operation: Bytes
        var waiter: Waiter
        var deadline: Instant
        var parts: [Part]
    }

    var chunks: [Chunk] = []
    var accounts = SortedRecords<ShardID, Account>()
    var pages: [Page] = []
    var fetches: [Fetch] = []
    var waitingOperations = 0
    var pace: CopyPace
    /// No chunk is asked for before: the copy gives way to requests.
    var notBefore = Instant.origin
    var isTimerSet = false
    /// Which replica of the former owner to ask; moves on when one does not answer.
    var turn = 0

    init(bytesPerSecond: UInt64) { pace = CopyPace(limit: bytesPerSecond) }
}

extension GroupReplica {
    // MARK: The former owner

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

    private func enqueueImport(
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

    /// True when the operation waits here until the former owner told what it holds of the key.
    /// Operations on a key that is being fetched wait behind it, so that their order stays.
    ///
    /// `node.storageKey` holds the operation's key.
    func holds(
        _ operation: Operation, _ owned: OwnedShard, waiter: Waiter
    ) throws(DatabaseError) -> Bool {
        guard owned.phase != .owned || !copies.fetches.isEmpty,
            !operation.flags.contains(.previousImported)
        else { return false }
        let key = node.storageKey
        let routedKey = Bytes(key.routedKey)
        let place = copies.fetches.firstIndex {
            $0.shard == operation.shard && $0.routedKey == routedKey
        }
        var former = GroupID.none
        if place == nil {
            guard case .importing(let source, _, .some) = owned.phase else { return false }
            former = source
            let dependsOnPrevious =
                operation.code == .get
                || !operation.flags.isDisjoint(with: [.conditional, .wantsPrevious])
            guard dependsOnPrevious,
                !owned.isNewest(try storedVersion(key.bytes), key.routedKey)
            else { return false }
        }
        guard copies.waitingOperations < ShardCopies.waitingOperationsMax else {
            node.metrics.copyQueueFull.increment()
            throw DatabaseError(
                .overloaded, "too many operations wait for shard \(operation.shard)")
        }
        copies.waitingOperations += 1
        if let place {
            copies.fetches[place].operations.append((Bytes(operation.bytes), waiter))
            return true
        }
        let now = node.now
        let fetch = ShardCopies.Fetch(
            shard: owned.shard.id, epoch: owned.shard.epoch, routedKey: routedKey,
            token: node.random.next(), asked: now, deadline: now + ShardCopies.operationWait,
            operations: [(Bytes(operation.bytes), waiter)])
        copies.fetches.append(fetch)
        ask(fetch, of: former)
        return true
    }

    private func ask(_ fetch: ShardCopies.Fetch, of source: GroupID) {
        ask(
            ShardReadRequest(
                source: source, target: group, shard: fetch.shard, epoch: fetch.epoch,
                token: fetch.token, from: fetch.routedKey, to: fetch.routedKey + [0],
                bytesMax: 1))
    }

    /// The former owner has spoken: its record is logged in front of the operations.
    private func resume(_ answer: ShardRecords, _ place: Int) {
        guard isSound(answer) else { return }
        let fetch = copies.fetches.remove(at: place)
        copies.waitingOperations -= fetch.operations.count
        guard core.canPropose, let owned = try? state.owned(fetch.shard, fetch.epoch) else {
            for (_, waiter) in fetch.operations { answerNotLeader(waiter) }
            return
        }
        do throws(DatabaseError) {
            if let record = answer.records.first {
                if try read(fetch, from: record, owned) { return }
                try enqueueImport(record, owned)
            }
        } catch {
            for (_, waiter) in fetch.operations { node.answer(waiter, error: error) }
            return
        }
        for (bytes, waiter) in fetch.operations {
            var marked = bytes
            marked[Operation.flagsOffset] |= OperationFlags.previousImported.rawValue
            marked.withUnsafeBytes { bytes in
                var reader = ByteReader(bytes)
                guard let operation = try? Operation(from: &reader) else { return }
                node.carryOut(operation, on: self, waiter)
            }
        }
    }

    /// Answers when nothing but reads waits, no write of the key is under way, and the former
    /// owner's record is the newer one: nothing need be logged then. False when it is otherwise.
    private func read(
        _ fetch: ShardCopies.Fetch, from record: ShardRecords.Record, _ owned: OwnedShard
    ) throws(DatabaseError) -> Bool {
        let key = StorageLayout.key(store, owned.shard.table, fetch.routedKey)
        let index = pendingKeys.index(hash: key.withUnsafeBytes { stableHash($0) })
        // A shard whose copy is finished keeps no tombstones: only its own records count then.
        guard owned.isImporting, index <= state.applied.index, core.canServeReads(at: node.now)
        else { return false }
        let isOlder = try key.withRawBytes { (key) throws(DatabaseError) in
            try storedVersion(key).map { $0.sequencer >= record.sequencer } ?? false
        }
        guard !isOlder else { return false }
        var wantsValue: [Bool] = []
        for (bytes, _) in fetch.operations {
            let isRead = bytes.withUnsafeBytes { bytes in
                var reader = ByteReader(bytes)
                guard let operation = try? Operation(from: &reader), operation.code == .get,
                    !operation.flags.contains(.quorumRead)
                else { return false }
                wantsValue.append(!operation.flags.contains(.withoutValue))
                return true
            }
            guard isRead else { return false }
        }
        node.metrics.gets.increment(by: UInt64(fetch.operations.count))
        for (position, (_, waiter)) in fetch.operations.enumerated() {
            guard !record.isTombstone else {
                node.answer(waiter, flags: [], sequencer: .zero)
                continue
            }
            record.value.withUnsafeBytes {
                node.answer(
                    waiter, flags: .found, sequencer: record.sequencer,
                    payload: wantsValue[position] ? $0 : nil)
            }
        }
        return true
    }

    private func expireFetches(_ now: Instant) {
        guard !copies.fetches.isEmpty else { return }
        var expired: [ShardCopies.Fetch] = []
        copies.fetches.removeAll {
            let isExpired = $0.deadline <= now
            if isExpired { expired.append($0) }
            return isExpired
        }
        for fetch in expired {
            copies.waitingOperations -= fetch.operations.count
            for (_, waiter) in fetch.operations {
                node.answer(
                    waiter,
                    error: DatabaseError(
                        .unavailable, "the former group of shard \(fetch.shard) does not answer"))
            }
        }
        for place in copies.fetches.indices
        where now - copies.fetches[place].asked >= ShardCopies.answerWait {
            copies.fetches[place].asked = now
            copies.turn += 1
            let fetch = copies.fetches[place]
            guard case .importing(let source, _, _) = state.shards[fetch.shard]?.phase else {
                continue
            }
            ask(fetch, of: source)
        }
    }

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
