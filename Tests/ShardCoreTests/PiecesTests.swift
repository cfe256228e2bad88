// What may be larger than a frame is cut in pieces that fit one and lose nothing.

import KVBase
import ShardCore
import Testing

@Suite struct PiecesTests {
    private func shard(_ id: Int, keyBytes: Int) -> Shard {
        Shard(
            id: ShardID(UInt32(id)), table: TableID(1),
            range: KeyRange(
                start: Bytes(repeating: 1, count: keyBytes),
                end: Bytes(repeating: 2, count: keyBytes)), group: GroupID(1), epoch: Epoch(1),
            state: .active)
    }

    private func size(_ encode: (inout ByteWriter) -> Void) -> Int {
        var writer = ByteWriter()
        encode(&writer)
        return writer.count
    }

    @Test(arguments: [(40, Limits.keyBytesMax), (60_000, 500), (0, 0), (1, Limits.keyBytesMax)])
    func mapUpdates(count: Int, keyBytes: Int) {
        let update = MapUpdate(
            isFull: false, from: Revision(3), to: Revision(4),
            changes: (0..<count).map { .shard(shard($0, keyBytes: keyBytes)) })
        let pieces = update.pieces()
        #expect(pieces.flatMap(\.changes) == update.changes)
        #expect(pieces.map(\.piece) == (0..<UInt32(pieces.count)).map { $0 })
        #expect(pieces.map(\.isLast) == pieces.indices.map { $0 + 1 == pieces.count })
        for piece in pieces {
            #expect(piece.from == update.from && piece.to == update.to && !piece.isFull)
            #expect(size(piece.encode) <= Limits.frameBytesMax)
        }
    }

    @Test(arguments: [(40, Limits.keyBytesMax), (100_000, 100), (0, 0)])
    func nodeCommands(count: Int, keyBytes: Int) {
        let commands = NodeCommands(
            controllerTerm: Term(2), sequence: 9,
            commands: (0..<count).map { number in
                let shard = shard(number, keyBytes: keyBytes)
                let action: NodeCommand.Action =
                    switch number % 4 {
                    case 0: .createShard(shard, .range)
                    case 1: .dropShard(shard)
                    case 2:
                        .shard(
                            GroupID(1), .activate(shard, .range, from: GroupID(2), floor: .zero))
                    default:
                        .shard(
                            GroupID(1),
                            .split(shard.id, Epoch(1), at: shard.range.start, into: ShardID(7)))
                    }
                return NodeCommand(id: UInt64(number), action: action)
            })
        let pieces = commands.pieces()
        #expect(pieces.flatMap(\.commands) == commands.commands)
        for piece in pieces {
            #expect(piece.sequence == 9 && piece.controllerTerm == Term(2))
            #expect(size(piece.encode) <= Limits.frameBytesMax)
        }
    }
}
