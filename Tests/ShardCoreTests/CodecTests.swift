import KVBase
import ShardCore
import Testing

@Suite struct CodecTests {
    private func roundTrip<Value: Equatable>(
        _ value: Value, _ encode: (Value, inout ByteWriter) -> Void,
        _ decode: (inout ByteReader) throws(DatabaseError) -> Value
    ) throws {
        var writer = ByteWriter()
        encode(value, &writer)
        #expect(try ByteReader.decode(writer.bytes, decode) == value)
        // Every cut is an error, never a trap.
        for count in 0..<writer.bytes.count {
            #expect(throws: DatabaseError.self) {
                try ByteReader.decode(Bytes(writer.bytes[..<count]), decode)
            }
        }
    }

    private let shard = Shard(
        id: ShardID(7), table: TableID(3), range: KeyRange(start: [1], end: [2, 0]),
        group: GroupID(4), epoch: Epoch(9), state: .active)
    private let group = Group(
        id: GroupID(4), engine: .btree,
        placements: [Placement(replica: ReplicaID(1), node: NodeID(2), disk: 0)], state: .creating)

    @Test func mapUpdates() throws {
        let table = Table(
            id: TableID(3), name: "stocks", partitioning: .hash(virtualRanges: 64), engine: .lsm,
            replicas: 3, state: .dropping)
        let node = Node(
            id: NodeID(2), name: "node-2", rpcAddress: "a:1", adminAddress: "a:2", zone: "z",
            isSpare: true, diskCount: 2)
        let leader = GroupLeader(group: GroupID(4), term: Term(5), node: NodeID(2))
        let update = MapUpdate(
            isFull: false, from: Revision(1), to: Revision(2),
            changes: [
                .table(table), .tableRemoved(TableID(1)), .shard(shard),
                .shardRemoved(ShardID(1), TableID(2)), .group(group), .groupRemoved(GroupID(9)),
                .node(node), .nodeRemoved(NodeID(8)), .leader(leader),
            ])
        try roundTrip(
            update, { $0.encode(into: &$1) },
            { (reader) throws(DatabaseError) in try MapUpdate(from: &reader) })
    }

    @Test func shardCommands() throws {
        let id = shard.id
        let commands: [ShardCommand] = [
            .split(id, Epoch(9), at: [1, 2], into: ShardID(8)),
            .fence(id, Epoch(9), to: GroupID(5)),
            .activate(
                shard, .hash(virtualRanges: 8), from: GroupID(5),
                floor: Sequencer(time: 1, counter: 2, node: NodeID(3))),
            .advance(id, Epoch(10), from: [1], to: [1, 7]),
            .advance(id, Epoch(10), from: [1], to: nil),
            .finish(id, Epoch(10)), .release(id, Epoch(11)), .decline(id, Epoch(10)),
        ]
        for command in commands {
            #expect(command.shard == id)
            try roundTrip(
                command, { $0.encode(into: &$1) },
                { (reader) throws(DatabaseError) in try ShardCommand(from: &reader) })
        }
    }

    @Test func nodeMessages() throws {
        let commands = NodeCommands(
            controllerTerm: Term(2), sequence: 17,
            commands: [
                NodeCommand(id: 1, action: .createReplica(group, ReplicaID(1))),
                NodeCommand(id: 2, action: .nominate(GroupID(4), ReplicaID(1), Term(3))),
                NodeCommand(id: 3, action: .transferLeadership(GroupID(4), to: ReplicaID(2))),
                NodeCommand(id: 4, action: .createShard(shard, .hash(virtualRanges: 8))),
                NodeCommand(id: 5, action: .dropShard(shard)),
                NodeCommand(id: 6, action: .createLearner(group, group.placements[0])),
                NodeCommand(id: 7, action: .addLearner(GroupID(4), group.placements[0])),
                NodeCommand(id: 8, action: .removeLearner(GroupID(4), ReplicaID(9))),
                NodeCommand(id: 9, action: .replaceVoters(GroupID(4), group.placements)),
                NodeCommand(
                    id: 10, action: .removeReplica(GroupID(4), ReplicaID(9), reason: "replaced")),
                NodeCommand(
                    id: 11, action: .shard(GroupID(4), .fence(shard.id, Epoch(9), to: GroupID(5)))),
            ])
        try roundTrip(
            commands, { $0.encode(into: &$1) },
            { (reader) throws(DatabaseError) in try NodeCommands(from: &reader) })
        let heartbeat = NodeHeartbeat(
            node: NodeID(1), incarnation: 2, sequence: 3, mapRevision: Revision(4),
            loopDelay: .milliseconds(5),
            disks: [
                DiskReport(
                    path: "d", state: .slow, totalBytes: 1, freeBytes: 2, dataBytes: 3)
            ],
            replicas: [
                ReplicaReport(
                    group: GroupID(1), replica: ReplicaID(2), role: .leader, state: .active,
                    term: Term(3), lastTerm: Term(3), lastIndex: LogIndex(4), commit: LogIndex(4),
                    applied: LogIndex(3), leader: ReplicaID(2), isServing: true)
            ],
            shards: [ShardReport(shard: ShardID(1), epoch: Epoch(2), bytes: 3, records: 4)])
        try roundTrip(
            heartbeat, { $0.encode(into: &$1) },
            { (reader) throws(DatabaseError) in try NodeHeartbeat(from: &reader) })
        let outcome = CommandOutcome(
            id: 4, controllerTerm: Term(1), error: DatabaseError(.refused, "no"))
        try roundTrip(
            outcome, { $0.encode(into: &$1) },
            { (reader) throws(DatabaseError) in try CommandOutcome(from: &reader) })
    }

    @Test func lists() throws {
        let request = ListRequest(
            parts: [.init(shard: ShardID(1), epoch: Epoch(2))], from: [1], isFromExclusive: true,
            to: [9], limit: 500)
        try roundTrip(
            request, { $0.encode(into: &$1) },
            { (reader) throws(DatabaseError) in try ListRequest(from: &reader) })
        let page = ListPage(
            count: 1, hasMore: true, lastKey: [5],
            records: [
                ListedRecord(
                    key: [5], value: [6],
                    sequencer: Sequencer(time: 1, counter: 2, node: NodeID(3)))
            ])
        try roundTrip(
            page, { $0.encode(into: &$1) },
            { (reader) throws(DatabaseError) in try ListPage(from: &reader) })
    }

    @Test func tableRequests() throws {
        let create = TableRequest.create(
            name: "t", partitioning: .range, engine: .lsm, replicas: 5, splitPoints: [[1], [2]],
            ifMissing: true)
        try roundTrip(
            create, { $0.encode(into: &$1) },
            { (reader) throws(DatabaseError) in try TableRequest(from: &reader) })
    }

    @Test func operationsAreReadWhereTheyLie() throws {
        var writer = ByteWriter()
        let key: Bytes = [1, 2, 3]
        let value: Bytes = [4, 5]
        let expected = Sequencer(time: 7, counter: 8, node: NodeID(9))
        key.withUnsafeBytes { key in
            value.withUnsafeBytes { value in
                writer.writeOperation(
                    group: GroupID(1), shard: ShardID(2), epoch: Epoch(3), code: .put,
                    flags: .wantsPrevious, expected: expected, key: key, value: value)
            }
        }
        try writer.bytes.withUnsafeBytes { bytes in
            var reader = ByteReader(bytes)
            let operation = try Operation(from: &reader)
            #expect(reader.isAtEnd)
            #expect(operation.group == GroupID(1))
            #expect(operation.shard == ShardID(2))
            #expect(operation.epoch == Epoch(3))
            #expect(operation.flags == [.wantsPrevious, .conditional])
            #expect(operation.expected == expected)
            #expect(Bytes(operation.key) == key)
            #expect(Bytes(operation.value) == value)
            #expect(operation.bytes.count == writer.bytes.count)
        }
    }

    @Test func oversizedOperationsAreRefused() {
        var writer = ByteWriter()
        let empty = UnsafeRawBufferPointer(start: nil, count: 0)
        writer.writeOperation(
            group: GroupID(1), shard: ShardID(2), epoch: Epoch(3), code: .put, key: empty,
            value: empty)
        writer.patch(UInt32(Limits.keyBytesMax + 1), at: 16)
        let bytes = writer.bytes
        #expect(throws: DatabaseError.self) {
            try bytes.withUnsafeBytes { bytes in
                var reader = ByteReader(bytes)
                _ = try Operation(from: &reader)
            }
        }
    }
}

@Suite struct PartitioningTests {
    @Test func virtualRangesShareTheKeysEvenly() {
        let partitioning = Partitioning.hash(virtualRanges: 64)
        var counts = [Int](repeating: 0, count: 64)
        for number in 0..<64_000 {
            let key = Bytes("key:\(number)".utf8)
            counts[Int(key.withUnsafeBytes { partitioning.virtualRange(of: $0) })] += 1
        }
        #expect(counts.allSatisfy { $0 > 800 && $0 < 1_200 }, "\(counts)")
    }

    @Test func routedRangesOfVirtualRangesTile() {
        for count in [2, 3, 64, 300] as [UInt16] {
            let partitioning = Partitioning.hash(virtualRanges: count)
            let shards = (0..<count).map {
                Shard(
                    id: ShardID(UInt32($0) + 1), table: TableID(1),
                    range: partitioning.routedRange(ofVirtualRange: $0), group: GroupID(1),
                    epoch: Epoch(1), state: .active)
            }
            let index = ShardIndex(tiling: shards)
            #expect(index?.count == Int(count))
            for number in 0..<1_000 {
                let key = Bytes("k\(number)".utf8)
                let expected = key.withUnsafeBytes { partitioning.virtualRange(of: $0) }
                let routed = key.withUnsafeBytes { partitioning.routedKey($0) }
                let found = routed.withUnsafeBytes { index?.locate($0) }
                #expect(found?.shard == ShardID(UInt32(expected) + 1))
            }
        }
    }

    @Test func aBatchWithoutRoomForItsSequencersIsMalformed() throws {
        var writer = ByteWriter()
        writer.write(Sequencer(time: 1, counter: .max - 1, node: NodeID(1)))
        writer.write(UInt32(2))
        let fits = writer.take()
        let last = try fits.withUnsafeBytes { try CommandBatch($0).last }
        #expect(last.counter == .max)
        writer = ByteWriter()
        writer.write(Sequencer(time: 1, counter: .max - 1, node: NodeID(1)))
        writer.write(UInt32(3))
        let tooMany = writer.take()
        #expect(throws: DatabaseError.self) {
            try tooMany.withUnsafeBytes { _ = try CommandBatch($0) }
        }
    }

    /// Stored data depends on this hash: it may never change.
    @Test func theHashIsPinned() {
        let hashes = ["", "a", "stocks", "0123456789abcdef"].map { text in
            Bytes(text.utf8).withUnsafeBytes { stableHash($0) }
        }
        #expect(hashes == pinnedHashes, "\(hashes)")
    }
}

private let pinnedHashes: [UInt64] = [
    2_737_183_428_366_584_608, 2_813_319_537_248_118_479, 8_952_199_326_745_932_829,
    308_572_448_194_739_456,
]
