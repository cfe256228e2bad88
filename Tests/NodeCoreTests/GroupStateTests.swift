import KVBase
import NodeCore
import ReplicationCore
import ShardCore
import Testing

@Suite struct GroupStateTests {
    private let membership = Membership(voters: [Member(replica: ReplicaID(1), node: NodeID(1))])

    private func owned(_ id: UInt32, epoch: UInt32 = 1) -> OwnedShard {
        OwnedShard(
            shard: Shard(
                id: ShardID(id), table: TableID(1), range: .all, group: GroupID(1),
                epoch: Epoch(epoch), state: .active), partitioning: .range)
    }

    private func apply(
        _ state: inout GroupState, _ code: OperationCode, _ shard: OwnedShard
    ) throws -> OwnedShard? {
        var writer = ByteWriter()
        shard.encode(into: &writer)
        return try writer.bytes.withUnsafeBytes { try state.apply(code, $0) }
    }

    @Test func aShardIsOwnedFromCreationToDrop() throws {
        var state = GroupState(membership: membership)
        #expect(throws: DatabaseError.self) { try state.owned(ShardID(1), Epoch(1)) }
        let created = try apply(&state, .createShard, owned(1))
        #expect(created == nil)
        #expect(try state.owned(ShardID(1), Epoch(1)) == owned(1))
        #expect(throws: DatabaseError.self) { try state.owned(ShardID(1), Epoch(2)) }
        let dropped = try apply(&state, .dropShard, owned(1))
        #expect(dropped == owned(1))
        #expect(throws: DatabaseError.self) { try state.owned(ShardID(1), Epoch(1)) }
    }

    @Test func repeatedCommandsChangeNothing() throws {
        var state = GroupState(membership: membership)
        _ = try apply(&state, .createShard, owned(1))
        let created = try apply(&state, .createShard, owned(1))
        #expect(created == nil)
        #expect(state.shards.count == 1)
        _ = try apply(&state, .dropShard, owned(1))
        let repeated = try apply(&state, .dropShard, owned(1))
        #expect(repeated == nil)
    }

    @Test func commandsOfAnotherEpochAreFenced() throws {
        var state = GroupState(membership: membership)
        _ = try apply(&state, .createShard, owned(1, epoch: 5))
        #expect(throws: DatabaseError.self) { try apply(&state, .createShard, owned(1, epoch: 4)) }
        #expect(throws: DatabaseError.self) { try apply(&state, .dropShard, owned(1, epoch: 4)) }
        #expect(try state.owned(ShardID(1), Epoch(5)) == owned(1, epoch: 5))
    }

    @Test(arguments: [0, 200, 2_000, Limits.keyBytesMax])
    func aGroupTakesNoMoreShardsThanAFrameCarries(keyBytes: Int) throws {
        var state = GroupState(membership: membership)
        var refusal: DatabaseError?
        var id: UInt32 = 0
        while refusal == nil {
            id += 1
            var shard = owned(id)
            shard.shard.range = KeyRange(start: Bytes(repeating: 1, count: keyBytes), end: nil)
            do {
                _ = try apply(&state, .createShard, shard)
            } catch {
                refusal = error as? DatabaseError
                break
            }
        }
        #expect(refusal?.code == .tooLarge)
        #expect(state.shards.count == Int(id) - 1)
        #expect(state.shards.count <= Limits.groupShardsMax)
        var writer = ByteWriter()
        state.encode(into: &writer)
        // With room for a chunk of records.
        #expect(writer.count <= Limits.frameBytesMax - (4 << 20))
        // Nothing is lost by the refusal: what is there can go, and then there is room again.
        _ = try apply(&state, .dropShard, owned(1))
        _ = try apply(&state, .createShard, owned(id))
        #expect(state.shards.count == Int(id) - 1)
    }

    @Test func survivesItsEncoding() throws {
        var state = GroupState(membership: membership)
        for id in 1...20 as ClosedRange<UInt32> { _ = try apply(&state, .createShard, owned(id)) }
        var writer = ByteWriter()
        state.encode(into: &writer)
        let position = LogPosition(index: LogIndex(9), term: Term(2))
        let floor = Sequencer(time: 5, counter: 6, node: NodeID(7))
        let read = try ByteReader.decode(writer.bytes) { (reader) throws(DatabaseError) in
            try GroupState(from: &reader, applied: position, floor: floor)
        }
        #expect(Array(read.shards.elements) == Array(state.shards.elements))
        #expect(read.membership == membership)
        #expect(read.applied == position)
        #expect(read.floor == floor)
    }
}

@Suite struct PendingKeysTests {
    @Test func aReadNeverMissesItsOwnWrite() {
        var keys = PendingKeys()
        var newest: [UInt64: LogIndex] = [:]
        var random = SeededRandom(seed: 1)
        for index in 1...5_000 as ClosedRange<UInt64> {
            let hash = random.below(3_000)
            keys.note(hash: hash, index: LogIndex(index))
            newest[hash] = LogIndex(index)
        }
        for (hash, index) in newest { #expect(keys.index(hash: hash) >= index) }
        #expect(keys.last == LogIndex(5_000))
        keys.limit(to: LogIndex(10))
        #expect(keys.last == LogIndex(10))
        for hash in newest.keys { #expect(keys.index(hash: hash) <= LogIndex(10)) }
    }
}

@Suite struct TouchedKeysTests {
    @Test func comparesKeysNotHashes() {
        var touched = TouchedKeys()
        let sequencer = { (time: UInt64) in Sequencer(time: time, counter: 0, node: NodeID(1)) }
        let keys: [Bytes] = [[1], [2], [3, 3]]
        // All under one hash: a collision.
        for (position, key) in keys.enumerated() {
            key.withUnsafeBytes {
                touched.note($0, hash: 42, .written(sequencer(UInt64(position))))
            }
        }
        keys[1].withUnsafeBytes { touched.note($0, hash: 42, .deleted) }
        func effect(_ key: Bytes) -> TouchedKeys.Effect? {
            key.withUnsafeBytes { touched.effect(on: $0, hash: 42) }
        }
        guard case .written(let first) = effect(keys[0]), case .deleted = effect(keys[1]),
            case .written(let third) = effect(keys[2])
        else {
            Issue.record("effects are lost")
            return
        }
        #expect(first == sequencer(0))
        #expect(third == sequencer(2))
        #expect(effect([9]) == nil)
        touched.removeAll()
        #expect(effect(keys[0]) == nil)
    }

    /// A shard that left and came back in one batch: what it wrote before it left is not there any more.
    @Test func aDeletedRangeForgetsWhatWasWrittenBefore() {
        var touched = TouchedKeys()
        let written = TouchedKeys.Effect.written(
            Sequencer(time: 1, counter: 0, node: NodeID(1)))
        func note(_ key: Bytes) {
            key.withUnsafeBytes { touched.note($0, hash: stableHash($0), written) }
        }
        func isWritten(_ key: Bytes) -> Bool {
            let effect = key.withUnsafeBytes { touched.effect(on: $0, hash: stableHash($0)) }
            return if case .written = effect { true } else { false }
        }
        for key: Bytes in [[1], [2], [3]] { note(key) }
        touched.noteDeletion(of: KeyRange(start: [2], end: [3]))
        #expect(isWritten([1]) && !isWritten([2]) && isWritten([3]))
        note([2])
        #expect(isWritten([2]))
    }
}

@Suite struct StorageLayoutTests {
    @Test func keysSortAsTheirRoutedKeys() {
        let key = StorageKey()
        let store = StoreID(3)
        var previous: Bytes = []
        for text in ["", "a", "aa", "b", "ba"] {
            Bytes(text.utf8).withUnsafeBytes { key.set(store, TableID(2), .range, key: $0) }
            let bytes = Bytes(key.bytes)
            #expect(compareBytes(previous, bytes) < 0)
            #expect(bytes == StorageLayout.key(store, TableID(2), Bytes(text.utf8)))
            let range = StorageLayout.range(store, TableID(2), .all)
            #expect(range.contains(bytes))
            #expect(!StorageLayout.range(store, TableID(1), .all).contains(bytes))
            previous = bytes
        }
    }

    @Test func hashKeysCarryTheirVirtualRange() {
        let key = StorageKey()
        let partitioning = Partitioning.hash(virtualRanges: 16)
        Bytes("stocks".utf8).withUnsafeBytes { raw in
            key.set(StoreID(1), TableID(1), partitioning, key: raw)
            #expect(Bytes(key.routedKey) == partitioning.routedKey(raw))
        }
    }

    /// The promise of DESIGN: at most 30 bytes of overhead per record.
    @Test func overheadIsWithinThirtyBytes() {
        #expect(StorageLayout.recordOverheadMax <= 30)
        #expect(StorageLayout.recordOverheadMax == 27)
    }

    @Test func catalogKeysParse() {
        let key = StorageLayout.catalogKey(GroupID(7), ReplicaID(9))
        let parsed = key.withUnsafeBytes { StorageLayout.parseCatalogKey($0) }
        #expect(parsed?.0 == GroupID(7))
        #expect(parsed?.1 == ReplicaID(9))
        #expect(StorageLayout.catalogRange.contains(key))
        #expect([1, 2].withUnsafeBytes { StorageLayout.parseCatalogKey($0) } == nil)
    }
}
