import KVBase
import NodeCore
import ShardCore
import Testing

@Suite struct MiddleKeyTests {
    private func middle(
        _ records: [(key: Bytes, bytes: UInt64)], _ partitioning: Partitioning = .range
    ) -> Bytes? {
        var middle = MiddleKey(partitioning)
        for record in records {
            record.key.withUnsafeBytes { middle.add($0, bytes: record.bytes) }
        }
        return middle.key
    }

    private func key(_ number: Int) -> Bytes {
        let digits = String(number)
        return Bytes((String(repeating: "0", count: 8 - digits.utf8.count) + digits).utf8)
    }

    @Test func tooFewRecordsHaveNoMiddle() {
        #expect(middle([]) == nil)
        #expect(middle([(key(1), 10)]) == nil)
        #expect(middle([(key(1), 10), (key(2), 10)]) == key(2))
    }

    @Test func theMiddleIsShortened() {
        #expect(middle([(Bytes("apple".utf8), 5), (Bytes("pear".utf8), 5)]) == Bytes("p".utf8))
        #expect(middle([(Bytes("ap".utf8), 5), (Bytes("apple".utf8), 5)]) == Bytes("app".utf8))
        #expect(middle([([], 5), ([0], 5)]) == [0])
    }

    /// At most a stride, below 1/250, and one record off.
    @Test(arguments: 1...30 as ClosedRange<UInt64>)
    func theMiddleHalvesTheBytes(seed: UInt64) throws {
        var generator = SeededRandom(seed: seed)
        let count = 2 + Int(generator.below(20_000))
        let bytesMax = 1 + generator.below(generator.chance(1, in: 2) ? 10 : 100_000)
        let records = (0..<count).map { (key: key($0), bytes: 1 + generator.below(bytesMax)) }
        let cut = try #require(middle(records))
        let total = records.reduce(0) { $0 + $1.bytes }
        let below = records.filter { compareBytes($0.key, cut) < 0 }.reduce(0) { $0 + $1.bytes }
        let distance = below > total / 2 ? below - total / 2 : total / 2 - below
        #expect(
            distance <= total / 250 + bytesMax,
            "seed \(seed): \(below) of \(total) bytes below, records up to \(bytesMax)")
    }

    @Test func theSpreadTellsAboutHowMuchLiesBelowAKey() {
        var middle = MiddleKey(.range)
        for number in 0..<2_000 {
            key(number).withUnsafeBytes { middle.add($0, bytes: 50) }
        }
        let spread = middle.spread
        #expect(UInt64(spread.marks.count) == KeySpread.parts)
        #expect(spread.below(key(1_999) + [0]) == KeySpread.whole)
        for number in stride(from: 0, to: 2_000, by: 37) {
            let below = Int(spread.below(key(number)) ?? 0)
            #expect(abs(below - number / 2) <= 130, "\(below) of 1000 below record \(number)")
        }
        #expect(MiddleKey(.range).spread.below(key(1)) == nil)
    }

    @Test func aLargeRecordIsNotCutThrough() {
        #expect(middle([(key(1), 1), (key(2), 1_000), (key(3), 1)]) == key(2))
    }

    @Test func keysTooLongAreNoCut() throws {
        let long = Bytes(repeating: 7, count: 5_000)
        let records = (0..<100).map { (key: long + [UInt8($0)], bytes: UInt64(10)) }
        #expect(middle(records) == nil)
        let cut = try #require(middle(records + [([8], 10), ([9], 10)]))
        #expect(cut == [8])
    }

    @Test(arguments: [64, 4_096] as [UInt16])
    func hashTablesAreCutBetweenVirtualRanges(virtualRanges: UInt16) throws {
        let partitioning = Partitioning.hash(virtualRanges: virtualRanges)
        let keys = (0..<40_000).map { key($0).withUnsafeBytes { partitioning.routedKey($0) } }
            .sorted { compareBytes($0, $1) < 0 }
        let cut = try #require(middle(keys.map { ($0, 100) }, partitioning))
        #expect(cut.count == 2)
        let range = Int(cut[0]) << 8 | Int(cut[1])
        let distance = abs(range * 2 - Int(virtualRanges))
        #expect(distance <= Int(virtualRanges) / 16, "virtual range \(range)")
    }

    @Test func oneVirtualRangeHasNoMiddle() {
        let records = (0..<1_000).map { (key: [0, 5] + key($0), bytes: UInt64(10)) }
        #expect(middle(records, .hash(virtualRanges: 16)) == nil)
    }
}
