// Reply order, patterns and cursors.

import KVBase
import RouterCore
import Testing

@Suite struct ReplyRingTests {
    /// Finishes slots in any order, as a session does, and watches what comes out.
    @Test(arguments: 1...20 as ClosedRange<UInt64>)
    func repliesComeOutInOrder(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var ring = ReplyRing()
        var stash: [UInt32] = []
        var waiting: [UInt32] = []
        var output: [UInt32] = []
        for _ in 0..<3_000 {
            if waiting.isEmpty || (random.chance(1, in: 2) && ring.count < 100) {
                waiting.append(ring.open(kind: 1, now: .origin))
                continue
            }
            let serial = waiting.remove(at: Int(random.below(UInt64(waiting.count))))
            #expect(ring[serial].kind == 1)
            guard ring.isHead(serial) else {
                ring.stash(serial, stash.count..<stash.count + 1)
                stash.append(serial)
                continue
            }
            output.append(serial)
            ring.popHead()
            while let range = ring.popStashedHead() { output.append(stash[range.lowerBound]) }
            if ring.stashedCount == 0 { stash = [] }
        }
        #expect(output == Array(0..<UInt32(output.count)), "seed \(seed)")
        #expect(ring.count == waiting.count + ring.stashedCount)
    }

    @Test(arguments: [
        ("*", "", true), ("*", "abc", true), ("a*c", "abbc", true), ("a*c", "abbd", false),
        ("a?c", "abc", true), ("a?c", "ac", false), ("[a-c]x", "bx", true),
        ("[a-c]x", "dx", false), ("[^a-c]x", "dx", true), ("[^a-c]x", "ax", false),
        ("\\*", "*", true), ("\\*", "a", false), ("[\\]]", "]", true),
        ("h[ae]llo*", "hallo!", true),
        ("", "", true), ("", "a", false), ("**a**", "bab", true), ("a*b*c", "axbxbxc", true),
        ("[c-a]", "b", true), ("[ab", "a", true),
    ])
    func patternsMatchAsInRedis(pattern: String, text: String, isMatch: Bool) {
        #expect(GlobPattern(Bytes(pattern.utf8)).matches(Bytes(text.utf8)) == isMatch)
    }

    @Test func aPatternOfManyStarsTakesNoExponentialTime() {
        let pattern = GlobPattern(Bytes(String(repeating: "a*", count: 200).utf8) + [0x62])
        #expect(!pattern.matches(Bytes(repeating: 0x61, count: 5_000)))
    }

    @Test func cursorsAreForgottenOldestFirst() {
        var table = CursorTable(capacity: 3)
        let name = Bytes("t".utf8)
        let ids = (0..<5).map { table.remember(table: name, lastKey: [$0]) }
        #expect(ids.map { table.lastKey(of: $0, table: name) } == [nil, nil, [2], [3], [4]])
        #expect(table.lastKey(of: ids[4], table: Bytes("u".utf8)) == nil)
        #expect(table.lastKey(of: 0, table: name) == nil)
        #expect(table.lastKey(of: 999, table: name) == nil)
    }
}
