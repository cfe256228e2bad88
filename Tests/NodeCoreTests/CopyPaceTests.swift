import KVBase
import Testing

@testable import NodeCore

@Suite struct CopyPaceTests {
    private static let mebibyte: UInt64 = 1 << 20

    private func instant(_ milliseconds: UInt64) -> Instant {
        Instant.origin + .milliseconds(milliseconds)
    }

    @Test func bucketsAreNarrowAndHoldTheirValues() {
        var bound: UInt64 = 0
        for microseconds in (0..<100_000).map({ UInt32($0) }) + [.max] {
            let bucket = LatencyWindow.bucket(of: microseconds)
            let upper = LatencyWindow.bound(bucket)
            #expect(upper >= UInt64(microseconds))
            #expect(upper <= UInt64(microseconds) * 5 / 4 + 1)
            #expect(upper >= bound)
            bound = upper
        }
    }

    @Test func thePercentileIsOfTheLastSecond() throws {
        var window = LatencyWindow()
        #expect(window.percentile99(requestsMin: 1) == nil)
        for _ in 0..<985 { window.add(microseconds: 1_000) }
        for _ in 0..<15 { window.add(microseconds: 50_000) }
        #expect(try #require(window.percentile99(requestsMin: 1)) >= .milliseconds(50))
        window.advance()
        for _ in 0..<1_000 { window.add(microseconds: 1_000) }
        #expect(try #require(window.percentile99(requestsMin: 1)) < .milliseconds(2))
        #expect(window.percentile99(requestsMin: 2_001) == nil)
        for _ in 0..<4 { window.advance() }
        #expect(window.percentile99(requestsMin: 1) == nil)
    }

    @Test func strainIsMeasuredAgainstTheTimeWithoutACopy() {
        var foreground = ForegroundLatency()
        #expect(foreground.strain == 0)
        func second(_ microseconds: UInt32, isDisturbed: Bool) {
            for _ in 0..<8 {
                for _ in 0..<100 { foreground.add(microseconds: microseconds) }
                foreground.advance(isDisturbed: isDisturbed)
            }
        }
        // Fast requests: the allowance is the bound.
        second(1_000, isDisturbed: false)
        #expect(foreground.bound == ForegroundLatency.allowance)
        second(8_000, isDisturbed: true)
        #expect((80...100).contains(foreground.strain))
        second(30_000, isDisturbed: true)
        #expect(foreground.strain > 250)
        // Requests that are slow by themselves: twice that is the bound.
        for _ in 0..<10 { second(30_000, isDisturbed: false) }
        #expect((45...55).contains(foreground.strain))
        second(70_000, isDisturbed: true)
        #expect(foreground.strain > 100)
    }

    @Test func anIdleNodeIsCopiedAtFullSpeed() {
        var pace = CopyPace(limit: 64 * Self.mebibyte)
        for step in 0..<20 as Range<UInt64> {
            pace.observe(strain: 0, now: instant(step * 100))
            #expect(pace.rate == pace.limit)
            #expect(!pace.isThrottled)
        }
    }

    @Test func thePaceFallsToTheFloorAndRisesAgain() {
        var pace = CopyPace(limit: 64 * Self.mebibyte)
        var now: UInt64 = 0
        pace.observe(strain: 50, now: instant(now))
        #expect(pace.rate == CopyPace.cautious)
        var last = pace.rate
        while !pace.isSlowest {
            now += 500
            pace.observe(strain: 300, now: instant(now))
            #expect(pace.rate < last)
            last = pace.rate
        }
        #expect(pace.rate == CopyPace.floor)
        #expect(pace.isThrottled)
        #expect(pace.duration(bytes: UInt64(pace.chunkBytes)) < .milliseconds(20))
        // Just below the bound it stays, below that it rises, a little at a time.
        pace.observe(strain: 90, now: instant(now + 500))
        #expect(pace.rate == CopyPace.floor)
        now += 1_000
        pace.observe(strain: 70, now: instant(now))
        #expect(pace.rate == 2 * CopyPace.floor)
        // One bad moment between two changes counts.
        pace.observe(strain: 200, now: instant(now + 100))
        pace.observe(strain: 10, now: instant(now + 500))
        #expect(pace.rate < 2 * CopyPace.floor)
        for _ in 0..<100 {
            now += 1_000
            pace.observe(strain: 10, now: instant(now))
        }
        #expect(pace.rate == pace.limit)
    }

    /// A gibibyte within 43 s, unless operators allow less; and they cannot allow next to nothing.
    @Test(
        arguments: [
            (limit: 64 << 20, least: 24 << 20), (limit: 10 << 20, least: 10 << 20),
            (limit: 1 << 20, least: 8 << 20),
        ] as [(limit: UInt64, least: UInt64)])
    func aGroupIsNotKeptWaiting(limit: UInt64, least: UInt64) {
        var pace = CopyPace(ofGroup: limit)
        for step in 0..<50 as Range<UInt64> {
            pace.observe(strain: 500, now: instant(step * 600))
            #expect(pace.rate >= least)
        }
        #expect(pace.rate == least && pace.isSlowest)
    }

    @Test func aLimitBelowTheFloorHolds() {
        var pace = CopyPace(limit: 100_000)
        for step in 0..<50 as Range<UInt64> {
            pace.observe(strain: UInt32(step % 3) * 100, now: instant(step * 600))
            #expect(pace.rate == 100_000)
        }
        #expect(pace.duration(bytes: 50_000) == .milliseconds(500))
    }
}
