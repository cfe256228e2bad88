import KVBase
import NodeCore
import ShardCore
import Testing

/// What a node's load looks like to the meter: requests spread evenly over time, a report a second.
private struct MeteredNode {
    var meter: LoadMeter
    var now = Instant(nanoseconds: 5_000_000_000)
    var shards: [OwnedShard]
    var generator: SeededRandom
    var reads: UInt64 = 0
    var writes: UInt64 = 0
    let group = GroupID(7)

    init(_ shards: [OwnedShard], seed: UInt64) {
        self.shards = shards
        meter = LoadMeter(seed: seed, now: now)
        generator = SeededRandom(seed: seed &+ 1)
    }

    mutating func count(_ shard: Int, _ key: Bytes, isWrite: Bool = false) {
        if isWrite { writes += 1 } else { reads += 1 }
        key.withUnsafeBytes {
            meter.count(shards[shard], group: group, isWrite: isWrite, routedKey: $0)
        }
    }

    mutating func report() -> LoadReport {
        let shards = shards
        let totals = LoadMeter.GroupTotals(group: group, reads: reads, writes: writes)
        return meter.report([totals], now: now) { _, id in shards.first { $0.shard.id == id } }
    }

    /// `perSecond` requests a second to the first shard; the report after the last second.
    mutating func run(
        seconds: Int, perSecond: Int, isWrite: Bool = false, _ key: (inout SeededRandom) -> Bytes
    ) -> LoadReport {
        var last = LoadReport(groups: [], shards: [])
        for _ in 0..<seconds {
            for _ in 0..<perSecond { count(0, key(&generator), isWrite: isWrite) }
            now = now + .seconds(1)
            last = report()
        }
        return last
    }
}

@Suite struct LoadMeterTests {
    private static func shard(
        _ id: UInt32 = 1, from: String = "", to: String? = nil,
        _ partitioning: Partitioning = .range
    ) -> OwnedShard {
        OwnedShard(
            shard: Shard(
                id: ShardID(id), table: TableID(1),
                range: KeyRange(start: Bytes(from.utf8), end: to.map { Bytes($0.utf8) }),
                group: GroupID(7), epoch: Epoch(3), state: .active), partitioning: partitioning)
    }

    private static func key(_ number: UInt64) -> Bytes {
        let digits = String(number)
        return Bytes((String(repeating: "0", count: 8 - digits.utf8.count) + digits).utf8)
    }

    /// The share of `keys` below `cut`, in percent.
    private static func percent(below cut: Bytes, of keys: [Bytes]) -> Int {
        keys.count(where: { compareBytes($0, cut) < 0 }) * 100 / keys.count
    }

    // MARK: Rates

    @Test func ratesAreThoseOfTheLastTenSeconds() {
        var node = MeteredNode([Self.shard()], seed: 1)
        _ = node.report()
        var report = node.run(seconds: 5, perSecond: 400) { Self.key($0.below(100)) }
        #expect(report.groups == [GroupLoad(group: node.group, reads: 200, writes: 0)])
        #expect(report.shards.map(\.reads) == [200])
        report = node.run(seconds: 15, perSecond: 400) { Self.key($0.below(100)) }
        #expect(report.groups == [GroupLoad(group: node.group, reads: 400, writes: 0)])
        // A part of the window before still counts.
        report = node.run(seconds: 4, perSecond: 900, isWrite: true) { Self.key($0.below(100)) }
        #expect(report.shards.map(\.reads) == [240])
        #expect(report.shards.map(\.writes) == [360])
        // Nothing is asked any more: gone after two windows.
        report = node.run(seconds: 20, perSecond: 0) { _ in [] }
        #expect(report.groups == [GroupLoad(group: node.group, reads: 0, writes: 0)])
        #expect(report.shards.isEmpty)
    }

    @Test func aGroupThatComesIsNotChargedWithItsPast() {
        var node = MeteredNode([Self.shard()], seed: 2)
        node.reads = 1_000_000
        #expect(node.report().groups == [GroupLoad(group: node.group, reads: 0, writes: 0)])
        node.reads += 50
        node.now = node.now + .seconds(5)
        #expect(node.report().groups == [GroupLoad(group: node.group, reads: 5, writes: 0)])
        // Another replica leads meanwhile.
        _ = node.meter.report([], now: node.now) { _, _ in nil }
        node.reads += 50
        #expect(node.report().groups == [GroupLoad(group: node.group, reads: 0, writes: 0)])
    }

    @Test func theBusiestShardsAreNamed() {
        let shards = (1...300).map { Self.shard(UInt32($0)) }
        var node = MeteredNode(shards, seed: 3)
        var report = LoadReport(groups: [], shards: [])
        for _ in 0..<30 {
            for (place, _) in shards.enumerated() {
                // Shard n is asked n times a second.
                for _ in 0...place { node.count(place, Self.key(node.generator.below(1_000))) }
            }
            node.now = node.now + .seconds(1)
            report = node.report()
        }
        #expect(report.shards.map(\.shard.rawValue) == (237...300).reversed())
        #expect(report.shards.map(\.reads) == (237...300).reversed())
        #expect(report.groups.map(\.operations) == [300 * 301 / 2])
        // Each in its turn, the keys of all of them were evaluated.
        #expect(report.shards.filter { $0.median == nil }.map(\.shard) == [])
    }

    @Test func shardsThatWentAreLeftOut() {
        var node = MeteredNode([Self.shard(1), Self.shard(2)], seed: 4)
        for _ in 0..<100 {
            node.count(0, Self.key(1))
            node.count(1, Self.key(1))
        }
        node.now = node.now + .seconds(1)
        #expect(node.report().shards.map(\.shard) == [ShardID(1), ShardID(2)])
        node.shards.removeFirst()
        #expect(node.report().shards.map(\.shard) == [ShardID(2)])
    }

    // MARK: Keys

    /// The median of a steady load halves it. Of 128 to 256 samples the standard error is 4.4 to 3.1
    /// points of a hundred; 14 is beyond three of them.
    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func theMedianHalvesAnEvenLoad(seed: UInt64) throws {
        var node = MeteredNode([Self.shard()], seed: seed)
        var keys: [Bytes] = []
        let report = node.run(seconds: 15, perSecond: 1_000) {
            keys.append(Self.key($0.below(10_000)))
            return keys[keys.count - 1]
        }
        let load = try #require(report.shards.first)
        let median = try #require(load.median)
        let percent = Self.percent(below: median, of: keys)
        #expect((36...64).contains(percent), "seed \(seed): \(percent) % below")
        #expect(load.hottest == nil && load.hottestPercent == 0)
        #expect(load.epoch == Epoch(3))
    }

    /// Nine requests of ten go to a tenth of the keys.
    @Test(arguments: 1...8 as ClosedRange<UInt64>)
    func theMedianHalvesASkewedLoad(seed: UInt64) throws {
        var node = MeteredNode([Self.shard()], seed: seed)
        var keys: [Bytes] = []
        let report = node.run(seconds: 25, perSecond: 2_000) {
            let isHot = $0.chance(9, in: 10)
            keys.append(Self.key(isHot ? 7_000 + $0.below(1_000) : $0.below(10_000)))
            return keys[keys.count - 1]
        }
        let median = try #require(report.shards.first?.median)
        let percent = Self.percent(below: median, of: keys)
        #expect((36...64).contains(percent), "seed \(seed): \(percent) % below")
        #expect(Self.key(7_000).lexicographicallyPrecedes(median))
        #expect(median.lexicographicallyPrecedes(Self.key(8_000)))
    }

    @Test func aSingleHotKeyIsNamedAndNotHalved() throws {
        var node = MeteredNode([Self.shard()], seed: 5)
        let report = node.run(seconds: 15, perSecond: 1_000) {
            $0.chance(8, in: 10) ? Self.key(500) : Self.key($0.below(1_000))
        }
        let load = try #require(report.shards.first)
        #expect(load.median == nil)
        #expect(load.hottest == Self.key(500))
        #expect((70...90).contains(load.hottestPercent), "\(load.hottestPercent) %")
    }

    @Test func oneKeyAloneIsNamed() throws {
        var node = MeteredNode([Self.shard()], seed: 6)
        let load = try #require(
            node.run(seconds: 12, perSecond: 1_000) { _ in Self.key(3) }.shards.first)
        #expect(load.median == nil)
        #expect(load.hottest == Self.key(3))
        #expect(load.hottestPercent == 100)
    }

    @Test func ofTwoKeysTheUpperBeginsTheUpperHalf() throws {
        var node = MeteredNode([Self.shard()], seed: 7)
        let load = try #require(
            node.run(seconds: 12, perSecond: 1_000) {
                $0.chance(1, in: 2) ? Bytes("aab".utf8) : Bytes("abcdef".utf8)
            }.shards.first)
        #expect(load.median == Bytes("ab".utf8))
        #expect((40...60).contains(load.hottestPercent), "\(load.hottestPercent) %")
    }

    /// Keys rise with each insert: what halves the inserts of the last seconds lies below all that
    /// come, so no median is given.
    @Test(arguments: 1...8 as ClosedRange<UInt64>, 10...31)
    func insertsInOrderHaveNoMedian(seed: UInt64, seconds: Int) throws {
        var node = MeteredNode([Self.shard()], seed: seed)
        var next: UInt64 = 0
        let report = node.run(seconds: seconds, perSecond: 500, isWrite: true) { _ in
            next += 1
            return Self.key(next)
        }
        let load = try #require(report.shards.first)
        #expect(load.median == nil, "seed \(seed), \(seconds) s")
        #expect(load.hottest == nil)
    }

    @Test func littleIsSaidOfFewSamples() throws {
        var node = MeteredNode([Self.shard()], seed: 8)
        let load = try #require(
            node.run(seconds: 10, perSecond: 20) { Self.key($0.below(1_000)) }.shards.first)
        #expect(load.reads == 20)
        #expect(load.median == nil && load.hottest == nil)
    }

    @Test func theMedianOfAHashTableIsAVirtualRange() throws {
        let partitioning = Partitioning.hash(virtualRanges: 64)
        var node = MeteredNode([Self.shard(1, partitioning)], seed: 9)
        let load = try #require(
            node.run(seconds: 15, perSecond: 1_000) {
                Self.key($0.below(10_000)).withUnsafeBytes { partitioning.routedKey($0) }
            }.shards.first)
        let median = try #require(load.median)
        let range = try #require(
            median.count == 2 ? UInt16(median[0]) << 8 | UInt16(median[1]) : nil)
        #expect((22...42).contains(range), "virtual range \(range)")
        #expect(partitioning.routedRange(ofVirtualRange: range).start == median)
    }

    @Test func oneVirtualRangeIsNotCut() throws {
        let partitioning = Partitioning.hash(virtualRanges: 64)
        var node = MeteredNode([Self.shard(1, partitioning)], seed: 10)
        let key = Self.key(1).withUnsafeBytes { partitioning.routedKey($0) }
        let load = try #require(
            node.run(seconds: 12, perSecond: 1_000) { key.prefix(2) + Self.key($0.below(100)) }
                .shards.first)
        #expect(load.median == nil)
    }

    @Test func longKeysAreNotSampled() throws {
        var node = MeteredNode([Self.shard()], seed: 11)
        let long = Bytes(repeating: 7, count: ShardLoad.sampledKeyBytesMax + 1)
        let load = try #require(node.run(seconds: 12, perSecond: 1_000) { _ in long }.shards.first)
        #expect(load.reads == 1_000)
        #expect(load.median == nil && load.hottest == nil)
        #expect((600...900).contains(node.meter.keysSkipped), "\(node.meter.keysSkipped)")
    }

    @Test func listsCountAsReadsOfTheirShards() throws {
        let hash = Partitioning.hash(virtualRanges: 4)
        var node = MeteredNode([Self.shard(1), Self.shard(2, hash), Self.shard(3, hash)], seed: 12)
        for second in 0..<20 {
            for number in 0..<500 {
                let from = Self.key(UInt64(second + number) * 7 % 1_000)
                node.meter.countList([node.shards[0]], group: node.group, from: from)
                node.meter.countList(Array(node.shards[1...]), group: node.group, from: from)
                node.reads += 2
            }
            node.now = node.now + .seconds(1)
            _ = node.report()
        }
        let report = node.report()
        #expect(report.groups == [GroupLoad(group: node.group, reads: 1_000, writes: 0)])
        #expect(report.shards.map(\.reads) == [500, 500, 500])
        #expect(report.shards.map { $0.median != nil } == [true, false, false])
    }

    @Test func equalInputGivesEqualReports() {
        func run() -> LoadReport {
            var node = MeteredNode([Self.shard()], seed: 13)
            return node.run(seconds: 23, perSecond: 700) { Self.key($0.below(500)) }
        }
        #expect(run() == run())
    }

    // MARK: Changes of shards

    @Test func theHalvesOfASplitTakeOverTheirLoad() throws {
        var node = MeteredNode([Self.shard()], seed: 14)
        // Two thirds fall on the upper half.
        _ = node.run(seconds: 26, perSecond: 2_000) {
            Self.key($0.chance(2, in: 3) ? 500 + $0.below(500) : $0.below(500))
        }
        node.meter.split(ShardID(1), at: Self.key(500), into: ShardID(2))
        node.shards = [
            Self.shard(1, to: "00000500"), Self.shard(2, from: "00000500"),
        ]
        let report = node.report()
        #expect(report.shards.map(\.shard) == [ShardID(2), ShardID(1)])
        let upper = report.shards[0]
        let lower = report.shards[1]
        #expect((1_999...2_000).contains(upper.reads + lower.reads))
        #expect((1_090...1_570).contains(upper.reads), "\(upper.reads) of 2000")
        // Each has a median of its own.
        #expect(node.shards[0].shard.range.contains(try #require(lower.median)))
        #expect(node.shards[1].shard.range.contains(try #require(upper.median)))
        #expect(report.groups.map(\.reads) == [2_000])
    }

    @Test func aMergedShardHasTheLoadOfBoth() throws {
        var node = MeteredNode([Self.shard(1, to: "b"), Self.shard(2, from: "b")], seed: 15)
        for _ in 0..<20 {
            for _ in 0..<300 { node.count(0, Bytes("a".utf8)) }
            for _ in 0..<200 { node.count(1, Bytes("c".utf8), isWrite: true) }
            node.now = node.now + .seconds(1)
            _ = node.report()
        }
        node.meter.merge(ShardID(1), with: ShardID(2))
        node.shards = [Self.shard(1)]
        let report = node.report()
        #expect(report.shards.map(\.shard) == [ShardID(1)])
        #expect(report.shards.map(\.reads) == [300])
        #expect(report.shards.map(\.writes) == [200])
    }

    @Test func aSplitOfWhatNobodyAskedForChangesNothing() {
        var node = MeteredNode([Self.shard(1)], seed: 16)
        node.meter.split(ShardID(1), at: Self.key(500), into: ShardID(2))
        node.meter.merge(ShardID(1), with: ShardID(2))
        #expect(node.report().shards.isEmpty)
    }

    /// Shards come, go, split and merge at random, more of them than are sampled.
    @Test func anyOrderOfEventsIsBorne() {
        var node = MeteredNode([], seed: 17)
        var generator = SeededRandom(seed: 18)
        for round in 0..<60 {
            node.shards = (0..<200).map { _ in Self.shard(1 + UInt32(generator.below(250))) }
            for _ in 0..<2_000 {
                node.count(
                    Int(generator.below(200)), Self.key(generator.below(1_000)),
                    isWrite: generator.chance(1, in: 3))
            }
            for _ in 0..<10 {
                let left = ShardID(1 + UInt32(generator.below(250)))
                let right = ShardID(1 + UInt32(generator.below(250)))
                if generator.chance(1, in: 2) {
                    node.meter.split(left, at: Self.key(generator.below(1_000)), into: right)
                } else if left != right {
                    node.meter.merge(left, with: right)
                }
            }
            node.now = node.now + .seconds(generator.below(15))
            let report = node.report()
            #expect(report.shards.count <= LoadReport.shardsMax, "round \(round)")
            #expect(
                Set(report.shards.map(\.shard)).count == report.shards.count, "round \(round)")
        }
    }
}
