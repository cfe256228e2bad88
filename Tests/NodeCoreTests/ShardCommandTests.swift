import KVBase
import NodeCore
import ReplicationCore
import ShardCore
import Testing

/// The rules of one group. What several groups do together is in `MigrationSimulationTests`.
@Suite struct ShardCommandTests {
    private let shard = Shard(
        id: ShardID(1), table: TableID(1), range: .all, group: GroupID(1), epoch: Epoch(1),
        state: .active)
    private let low = Sequencer(time: 1, counter: 0, node: NodeID(1))
    private let high = Sequencer(time: 9, counter: 0, node: NodeID(1))

    private func group(holding: Bool, _ partitioning: Partitioning = .range) throws -> GroupState {
        var state = GroupState(
            membership: Membership(voters: [Member(replica: ReplicaID(1), node: NodeID(1))]))
        if holding {
            var writer = ByteWriter()
            OwnedShard(shard: shard, partitioning: partitioning).encode(into: &writer)
            _ = try writer.bytes.withUnsafeBytes { try state.apply(.createShard, $0) }
        }
        return state
    }

    private func activated(epoch: UInt32, from: UInt32) -> ShardCommand {
        var moved = shard
        moved.epoch = Epoch(epoch)
        return .activate(moved, .range, from: GroupID(from), floor: high)
    }

    /// Refused with this code, and nothing changed.
    private func expectRefusal(
        _ state: inout GroupState, _ command: ShardCommand, _ code: ErrorCode
    ) {
        let before = Array(state.shards.elements)
        let error = #expect(throws: DatabaseError.self) {
            try state.apply(command, sequencer: low)
        }
        #expect(error?.code == code, "\(command)")
        #expect(Array(state.shards.elements) == before, "\(command)")
    }

    @Test func aSplitLeavesTwoShardsThatTile() throws {
        var state = try group(holding: true)
        let split = ShardCommand.split(ShardID(1), Epoch(1), at: [5], into: ShardID(2))
        for _ in 0..<2 { _ = try state.apply(split, sequencer: low) }
        let shards = state.shards.elements.map(\.shard)
        #expect(
            shards.map(\.range) == [KeyRange(start: [], end: [5]), KeyRange(start: [5], end: nil)])
        #expect(shards.map(\.epoch) == [Epoch(2), Epoch(2)])
        #expect(throws: DatabaseError.self) { try state.owned(ShardID(1), Epoch(1)) }
        expectRefusal(
            &state, .split(ShardID(1), Epoch(1), at: [3], into: ShardID(3)), .fenced)
        expectRefusal(
            &state, .split(ShardID(1), Epoch(2), at: [5], into: ShardID(3)), .refused)
        expectRefusal(
            &state, .split(ShardID(2), Epoch(2), at: [5], into: ShardID(3)), .refused)
    }

    @Test func hashTablesAreCutBetweenVirtualRanges() throws {
        var state = try group(holding: true, .hash(virtualRanges: 16))
        expectRefusal(
            &state, .split(ShardID(1), Epoch(1), at: [0, 4, 1], into: ShardID(2)), .refused)
        _ = try state.apply(
            .split(ShardID(1), Epoch(1), at: [0, 4], into: ShardID(2)), sequencer: low)
        #expect(state.shards.count == 2)
    }

    @Test func aFencedShardAnswersTheSourceHalfOnly() throws {
        var state = try group(holding: true)
        let fence = ShardCommand.fence(ShardID(1), Epoch(1), to: GroupID(2))
        let first = try state.apply(fence, sequencer: low)
        #expect(first.floor == low)
        // The floor is the first fence's, however often it is repeated.
        #expect(try state.apply(fence, sequencer: high).floor == low)
        #expect(throws: DatabaseError.self) { try state.owned(ShardID(1), Epoch(1)) }
        #expect(throws: DatabaseError.self) { try state.readable(ShardID(1), Epoch(1)) }
        #expect(try state.readable(ShardID(1), Epoch(2)).shard == shard)
        #expect(throws: DatabaseError.self) { try state.readable(ShardID(1), Epoch(3)) }
        expectRefusal(&state, .fence(ShardID(1), Epoch(1), to: GroupID(3)), .fenced)
        expectRefusal(&state, .release(ShardID(1), Epoch(2)), .refused)
        expectRefusal(&state, .decline(ShardID(1), Epoch(2)), .refused)
        let released = try state.apply(.release(ShardID(1), Epoch(3)), sequencer: high)
        #expect(released.garbage?.shard == shard)
        #expect(throws: DatabaseError.self) { try state.readable(ShardID(1), Epoch(2)) }
        // Late commands do not bring it back; a later move does.
        expectRefusal(&state, activated(epoch: 3, from: 2), .fenced)
        _ = try state.apply(activated(epoch: 4, from: 2), sequencer: high)
        #expect(try state.owned(ShardID(1), Epoch(4)).isImporting)
    }

    @Test func theCopyAdvancesWithoutGapAndFinishes() throws {
        var state = try group(holding: false)
        let id = ShardID(1)
        let activate = activated(epoch: 2, from: 2)
        #expect(try state.apply(activate, sequencer: low).cleared?.shard.id == id)
        #expect(state.floor == high)
        #expect(try state.apply(activate, sequencer: low) == CommandEffect())
        expectRefusal(&state, .finish(id, Epoch(2)), .refused)
        _ = try state.apply(.advance(id, Epoch(2), from: [], to: [5]), sequencer: low)
        expectRefusal(&state, .advance(id, Epoch(2), from: [], to: [5]), .fenced)
        expectRefusal(&state, .advance(id, Epoch(2), from: [6], to: [7]), .fenced)
        expectRefusal(&state, .advance(id, Epoch(2), from: [5], to: [4]), .malformed)
        expectRefusal(&state, .fence(id, Epoch(2), to: GroupID(3)), .refused)
        let held = try state.owned(id, Epoch(2))
        #expect(([4] as Bytes).withUnsafeBytes { held.isFinal($0) })
        #expect(!([5] as Bytes).withUnsafeBytes { held.isFinal($0) })
        _ = try state.apply(.advance(id, Epoch(2), from: [5], to: nil), sequencer: low)
        for _ in 0..<2 { _ = try state.apply(.finish(id, Epoch(2)), sequencer: low) }
        // Requests of the migrating epoch are served on.
        for epoch in 2...3 as ClosedRange<UInt32> {
            #expect(try state.owned(id, Epoch(epoch)).phase == .owned)
        }
        #expect(throws: DatabaseError.self) { try state.owned(id, Epoch(1)) }
    }

    @Test func whatWasNotCopiedIsNotTakenBackAsAWhole() throws {
        var state = try group(holding: false)
        _ = try state.apply(activated(epoch: 2, from: 2), sequencer: low)
        _ = try state.apply(.fence(ShardID(1), Epoch(2), to: GroupID(2)), sequencer: low)
        expectRefusal(&state, activated(epoch: 4, from: 0), .fenced)
        _ = try state.apply(activated(epoch: 4, from: 2), sequencer: low)
        #expect(
            state.shards[ShardID(1)]?.phase
                == .importing(from: GroupID(2), floor: high, cursor: []))
    }

    @Test func aDeclinedMoveIsNotActivated() throws {
        var target = try group(holding: false)
        _ = try target.apply(.decline(ShardID(1), Epoch(2)), sequencer: low)
        expectRefusal(&target, activated(epoch: 2, from: 1), .fenced)
        var source = try group(holding: true)
        _ = try source.apply(.fence(ShardID(1), Epoch(1), to: GroupID(2)), sequencer: low)
        expectRefusal(&source, activated(epoch: 2, from: 0), .fenced)
        _ = try source.apply(activated(epoch: 3, from: 0), sequencer: low)
        #expect(try source.owned(ShardID(1), Epoch(3)).phase == .owned)
    }

    @Test func aMergeTakesInTheRightNeighbour() throws {
        var state = try group(holding: true)
        _ = try state.apply(
            .split(ShardID(1), Epoch(1), at: [5], into: ShardID(2)), sequencer: low)
        _ = try state.apply(
            .split(ShardID(2), Epoch(2), at: [7], into: ShardID(3)), sequencer: low)
        // 1 has epoch 2; 2 and 3 have epoch 3.
        let (left, right) = (ShardID(1), ShardID(2))
        let merges: [(ShardCommand, ErrorCode)] = [
            (.merge(left, Epoch(2), with: ShardID(3), at: Epoch(3)), .refused),
            (.merge(right, Epoch(3), with: left, at: Epoch(2)), .refused),
            (.merge(left, Epoch(2), with: left, at: Epoch(2)), .refused),
            (.merge(left, Epoch(1), with: right, at: Epoch(3)), .fenced),
            (.merge(left, Epoch(2), with: right, at: Epoch(2)), .fenced),
            (.merge(left, Epoch(2), with: ShardID(9), at: Epoch(2)), .fenced),
        ]
        for (command, code) in merges { expectRefusal(&state, command, code) }
        let merge = ShardCommand.merge(left, Epoch(2), with: right, at: Epoch(3))
        #expect(try state.apply(merge, sequencer: low).absorbed == right)
        // Repeated: nothing happens a second time.
        #expect(try state.apply(merge, sequencer: low) == CommandEffect())
        let held = try #require(state.shards[left])
        #expect(held.shard.range == KeyRange(start: [], end: [7]))
        #expect(held.shard.epoch == Epoch(4))
        for (id, epoch) in [(left, 2), (left, 3), (right, 3), (right, 4)] as [(ShardID, UInt32)] {
            let error = #expect(throws: DatabaseError.self) { try state.owned(id, Epoch(epoch)) }
            #expect(error?.code == .staleEpoch)
        }
        #expect(try state.owned(left, Epoch(4)).phase == .owned)
        // No late command brings the neighbour back.
        var late = shard
        late.id = right
        late.epoch = Epoch(4)
        late.table = TableID(2)
        expectRefusal(
            &state, .activate(late, .range, from: GroupID(2), floor: high), .fenced)
        expectRefusal(
            &state, .split(left, Epoch(1), at: [5], into: ShardID(4)), .fenced)
        expectRefusal(
            &state, .split(left, Epoch(4), at: [5], into: right), .fenced)
        // What is on the move is not merged.
        _ = try state.apply(.fence(ShardID(3), Epoch(3), to: GroupID(2)), sequencer: low)
        expectRefusal(
            &state, .merge(left, Epoch(4), with: ShardID(3), at: Epoch(3)), .refused)
    }

    @Test func onlyWhatIsWholeIsVerified() throws {
        let id = ShardID(1)
        var source = try group(holding: true)
        #expect(
            try source.apply(.verify(id, Epoch(1)), sequencer: low).verified?.shard == shard)
        expectRefusal(&source, .verify(id, Epoch(2)), .fenced)
        _ = try source.apply(.fence(id, Epoch(1), to: GroupID(2)), sequencer: low)
        expectRefusal(&source, .verify(id, Epoch(1)), .refused)
        var target = try group(holding: false)
        _ = try target.apply(activated(epoch: 2, from: 2), sequencer: low)
        expectRefusal(&target, .verify(id, Epoch(2)), .refused)
        _ = try target.apply(.advance(id, Epoch(2), from: [], to: nil), sequencer: low)
        let importing = try #require(
            try target.apply(.verify(id, Epoch(2)), sequencer: low).verified)
        let tombstones = [low, high, Sequencer(time: 10, counter: 0, node: NodeID(1))].map {
            RecordVersion(sequencer: $0, isTombstone: true)
        }
        // The floor is `high`: only what was deleted here since says something.
        #expect(tombstones.map { importing.isCompared($0) } == [false, false, true])
        let finished = try target.apply(.finish(id, Epoch(2)), sequencer: low).finished
        #expect(tombstones.map { finished?.isCompared($0) } == [false, false, false])
    }

    /// What a chunk of a copy writes does not grow with the group.
    @Test func cursorsAreSmallHoweverManyShardsThereAre() throws {
        var state = try group(holding: false)
        for number in 1...10_000 as ClosedRange<UInt32> {
            var other = shard
            other.id = ShardID(number)
            other.range = KeyRange(
                start: Bytes("key\(100_000 + number)".utf8),
                end: Bytes("key\(100_001 + number)".utf8))
            var writer = ByteWriter()
            OwnedShard(shard: other, partitioning: .range).encode(into: &writer)
            _ = try writer.bytes.withUnsafeBytes { try state.apply(.createShard, $0) }
        }
        var moved = shard
        moved.id = ShardID(10_001)
        moved.range = KeyRange(start: Bytes("x".utf8), end: nil)
        moved.epoch = Epoch(2)
        _ = try state.apply(
            .activate(moved, .range, from: GroupID(2), floor: high), sequencer: low)
        var whole = ByteWriter()
        state.encode(into: &whole)
        var cursors = ByteWriter()
        state.encodeCursors(into: &cursors)
        #expect(whole.count > 500_000)
        #expect(cursors.count < 30)
    }

    @Test func cursorsAreKeptBesideTheState() throws {
        var state = try group(holding: false)
        _ = try state.apply(activated(epoch: 2, from: 2), sequencer: low)
        var early = ByteWriter()
        state.encode(into: &early)
        var positions: [Bytes] = []
        for (from, to) in [([], [3]), ([3], [5])] as [(Bytes, Bytes)] {
            _ = try state.apply(.advance(ShardID(1), Epoch(2), from: from, to: to), sequencer: low)
            var writer = ByteWriter()
            state.encodeCursors(into: &writer)
            positions.append(writer.take())
        }
        var restored = try ByteReader.decode(early.take()) { (reader) throws(DatabaseError) in
            try GroupState(from: &reader, applied: LogPosition(), floor: low)
        }
        // The newest counts, and one from before the state changes nothing.
        for cursors in positions.reversed() {
            try ByteReader.decode(cursors) { (reader) throws(DatabaseError) in
                try restored.takeCursors(from: &reader)
            }
            #expect(Array(restored.shards.elements) == Array(state.shards.elements))
        }
    }
}
