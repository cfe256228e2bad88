import KVBase
import Testing

@Suite struct SequencerTests {
    @Test func ordersByTimeThenCounterThenNode() {
        let sorted = [
            Sequencer.zero, Sequencer(time: 0, counter: 0, node: NodeID(1)),
            Sequencer(time: 0, counter: 1, node: NodeID(0)),
            Sequencer(time: 1, counter: 0, node: NodeID(0)),
            Sequencer(time: .max, counter: .max, node: NodeID(.max)),
        ]
        for (i, a) in sorted.enumerated() {
            for (j, b) in sorted.enumerated() {
                #expect((a < b) == (i < j))
                #expect((a.description < b.description) == (i < j))
            }
            #expect(Sequencer(a.description) == a)
        }
    }

    @Test(arguments: [
        "", "0", "0-0-0", "0000000000000000-00000000", "000000000000000g-00000000-00000000",
        "0000000000000000-00000000-00000000-", "+000000000000000-0000000-00000000",
    ])
    func wrongTextIsRefused(text: String) {
        #expect(Sequencer(text) == nil)
    }
}

@Suite struct SequencerClockTests {
    /// Whatever the wall clock does, a later sequencer is higher.
    @Test(arguments: 1...50)
    func risesUnderClockJumps(seed: Int) {
        var random = SeededRandom(seed: UInt64(seed))
        var clock = SequencerClock(node: NodeID(3))
        var wall: UInt64 = 1_700_000_000_000_000_000
        var highest = Sequencer.zero
        for step in 0..<2_000 {
            switch random.below(8) {
            case 0: wall = 0
            case 1: wall -= min(wall, random.below(10_000_000_000))
            case 2: wall += random.below(10_000_000_000_000)
            case 3: break
            default: wall += random.below(1_000)
            }
            if random.chance(1, in: 10) {
                // Another node's sequencer, applied from the log.
                let seen = Sequencer(
                    time: wall &+ random.below(5_000_000_000),
                    counter: UInt32(truncatingIfNeeded: random.next()),
                    node: NodeID(UInt32(random.below(9))))
                clock.observe(seen)
                if highest < seen { highest = seen }
                continue
            }
            let count = UInt32(random.below(1_000) + 1)
            let first = clock.issue(count, wallClock: wall)
            #expect(first > highest, "seed \(seed), step \(step), wall clock \(wall)")
            #expect(first.node == NodeID(3))
            highest = first.advanced(by: count - 1)
            #expect(clock.floor == highest, "seed \(seed), step \(step)")
        }
    }

    @Test func followsTheWallClockWhenItCan() {
        var clock = SequencerClock(node: NodeID(1))
        #expect(
            clock.issue(5, wallClock: 100) == Sequencer(time: 100, counter: 0, node: NodeID(1)))
        #expect(
            clock.issue(1, wallClock: 100) == Sequencer(time: 100, counter: 5, node: NodeID(1)))
        #expect(clock.issue(1, wallClock: 99) == Sequencer(time: 100, counter: 6, node: NodeID(1)))
        #expect(
            clock.issue(1, wallClock: 101) == Sequencer(time: 101, counter: 0, node: NodeID(1)))
    }

    @Test func fullCounterMovesTheTime() {
        var clock = SequencerClock(node: NodeID(1))
        let seen = Sequencer(time: 100, counter: .max - 2, node: NodeID(2))
        clock.observe(seen)
        let next = clock.issue(10, wallClock: 0)
        #expect(next == Sequencer(time: 101, counter: 0, node: NodeID(1)))
        clock.observe(seen)
        #expect(clock.floor == next.advanced(by: 9), "a lower one changes nothing")
    }

    @Test func startsAboveAShardHandedOverByAFasterClock() {
        var clock = SequencerClock(node: NodeID(1))
        let handedOver = Sequencer(time: 5_000, counter: 7, node: NodeID(9))
        clock.observe(handedOver)
        #expect(clock.issue(1, wallClock: 10) > handedOver)
    }
}
