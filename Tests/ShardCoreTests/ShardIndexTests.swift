import KVBase
import ShardCore
import Testing

private func shard(_ id: UInt32, _ start: String, _ end: String?, table: UInt32 = 1) -> Shard {
    Shard(
        id: ShardID(id), table: TableID(table),
        range: KeyRange(start: Bytes(start.utf8), end: end.map { Bytes($0.utf8) }),
        group: GroupID(id % 2 + 1), epoch: Epoch(1), state: .active)
}

@Suite struct ShardIndexTests {
    @Test func findsTheShardOfEachKey() throws {
        let index = try #require(
            ShardIndex(tiling: [shard(3, "m", nil), shard(1, "", "g"), shard(2, "g", "m")]))
        for (key, expected) in [
            ("", 1), ("a", 1), ("f\u{7f}", 1), ("g", 2), ("l", 2), ("m", 3), ("zz", 3),
        ] as [(String, UInt32)] {
            let found = Bytes(key.utf8).withUnsafeBytes { index.locate($0) }
            #expect(found.shard == ShardID(expected), "key \(key)")
        }
        var ranges: [KeyRange] = []
        index.forEachRange { ranges.append($1) }
        #expect(ranges == [shard(1, "", "g"), shard(2, "g", "m"), shard(3, "m", nil)].map(\.range))
        let end = Bytes("h".utf8).withUnsafeBytes { index.locateWithEnd($0).end }
        #expect(end == Bytes("m".utf8))
    }

    @Test(arguments: [
        [],
        [shard(1, "", "g")],
        [shard(1, "a", nil)],
        [shard(1, "", "g"), shard(2, "h", nil)],
        [shard(1, "", "h"), shard(2, "g", nil)],
        [shard(1, "", "g"), shard(2, "g", "g"), shard(3, "g", nil)],
        [shard(1, "", nil), shard(2, "g", nil)],
    ])
    func refusesShardsThatDoNotTile(_ shards: [Shard]) {
        #expect(ShardIndex(tiling: shards) == nil)
    }

    @Test func agreesWithLinearSearchOnRandomTilings() throws {
        for seed in 0..<50 as Range<UInt64> {
            var random = SeededRandom(seed: seed)
            var cuts: [Bytes] = (0..<random.below(60)).map { _ in
                (0..<(1 + random.below(4))).map { _ in UInt8(random.below(4)) }
            }
            cuts = cuts.sorted { compareBytes($0, $1) < 0 }.reduce(into: []) {
                if $0.last != $1 { $0.append($1) }
            }
            var shards: [Shard] = []
            for position in 0...cuts.count {
                shards.append(
                    Shard(
                        id: ShardID(UInt32(position + 1)), table: TableID(1),
                        range: KeyRange(
                            start: position == 0 ? [] : cuts[position - 1],
                            end: position == cuts.count ? nil : cuts[position]),
                        group: GroupID(1), epoch: Epoch(1), state: .active))
            }
            let index = try #require(ShardIndex(tiling: shards), "seed \(seed)")
            for _ in 0..<200 {
                let key: Bytes = (0..<random.below(6)).map { _ in UInt8(random.below(4)) }
                let expected = shards.first { $0.range.contains(key) }
                let found = key.withUnsafeBytes { index.locate($0) }
                #expect(found.shard == expected?.id, "seed \(seed), key \(key)")
            }
        }
    }
}
