import KVBase
import Testing

@Suite struct KeyTests {
    /// The definition, one byte at a time.
    private func slowOrder(_ left: Bytes, _ right: Bytes) -> Int {
        for (a, b) in zip(left, right) where a != b { return a < b ? -1 : 1 }
        return left.count - right.count
    }

    @Test(arguments: 1...20)
    func orderIsByUnsignedBytes(seed: Int) {
        var random = SeededRandom(seed: UInt64(seed))
        for _ in 0..<500 {
            let left = (0..<Int(random.below(20))).map { _ in UInt8(random.below(3)) &* 127 }
            var right = (0..<Int(random.below(20))).map { _ in UInt8(random.below(3)) &* 127 }
            // Long common prefixes reach the comparison by words.
            if random.chance(1, in: 2) { right = left + right }
            #expect(
                compareBytes(left, right).signum() == slowOrder(left, right).signum(),
                "\(left) \(right)")
        }
    }

    @Test func rangesAreHalfOpen() {
        let range = KeyRange(start: [1], end: [3])
        #expect(range.contains([1]) && range.contains([2, 255]))
        #expect(!range.contains([]) && !range.contains([3]))
        #expect(KeyRange.all.contains([]) && KeyRange.all.contains([255, 255]))
        #expect(KeyRange(start: [2], end: [2]).isEmpty && !range.isEmpty && !KeyRange.all.isEmpty)
    }

    /// Hash tables are placed by it: these values must never change.
    @Test func stableHashStaysAsItIs() {
        func hash(_ text: String) -> UInt64 {
            Array(text.utf8).withUnsafeBytes { stableHash($0) }
        }
        #expect(hash("") == 0x25FC_6DD3_6CE0_4B20)
        #expect(hash("a") == 0x270A_EB36_A957_26CF)
        #expect(hash("user:1000") == 0x4F45_2F16_80D4_65AE)
    }

    @Test func stableHashSpreadsOverPowersOfTwo() {
        var counts = Array(repeating: 0, count: 16)
        for number in 0..<16_000 {
            let hash = Array("user:\(number)".utf8).withUnsafeBytes { stableHash($0) }
            counts[Int(hash >> 60)] += 1
        }
        // 1,000 expected, standard deviation about 31.
        #expect(counts.allSatisfy { (800...1_200).contains($0) }, "\(counts)")
    }

    @Test(arguments: [
        ("users", true), ("a", true), ("A-b.c:d", true), ("", false), ("_system", false),
        ("a b", false), ("ü", false), ("a\n", false), (String(repeating: "a", count: 128), true),
        (String(repeating: "a", count: 129), false),
    ])
    func tableNames(name: String, isValid: Bool) {
        #expect(Array(name.utf8).withUnsafeBytes { Limits.isValidTableName($0) } == isValid)
    }
}

@Suite struct TimeTests {
    @Test func instantsSaturate() {
        #expect(Instant.origin + .seconds(1) == Instant(nanoseconds: 1_000_000_000))
        #expect(Instant(nanoseconds: .max - 1) + .seconds(1) == .distantFuture)
        #expect(Instant.origin - Instant(nanoseconds: 5) == .zero)
        #expect(Instant(nanoseconds: 7) - Instant(nanoseconds: 5) == Nanoseconds(2))
        #expect(Nanoseconds(3) - Nanoseconds(5) == .zero)
    }

    @Test func timersRoundUp() {
        #expect(Nanoseconds(0).millisecondsRoundedUp == 0)
        #expect(Nanoseconds(1).millisecondsRoundedUp == 1)
        #expect(Nanoseconds.milliseconds(2).millisecondsRoundedUp == 2)
        #expect(Nanoseconds(2_000_001).millisecondsRoundedUp == 3)
    }
}

@Suite struct SeededRandomTests {
    /// Seeds name runs: the sequence must never change (SplitMix64's published values for seed 0).
    @Test func repeatsBySeed() {
        var random = SeededRandom(seed: 0)
        #expect(random.next() == 0xE220_A839_7B1D_CDAF)
        #expect(random.next() == 0x6E78_9E6A_A1B9_65F4)
        #expect(random.next() == 0x06C4_5D18_8009_454F)
    }

    @Test func forksDoNotDependOnLaterUse() {
        var first = SeededRandom(seed: 5)
        var second = SeededRandom(seed: 5)
        var forkOfFirst = first.fork()
        var forkOfSecond = second.fork()
        _ = first.next()
        #expect(forkOfFirst.next() == forkOfSecond.next())
        #expect(forkOfFirst.next() != second.next())
    }
}

@Suite struct JSONTextTests {
    @Test func escapes() {
        #expect(JSONText.quoted("a\"b\\c\n\r\t\u{1}\u{7F}ü/") == #""a\"b\\c\n\r\t\u0001\u007fü/""#)
    }
}
