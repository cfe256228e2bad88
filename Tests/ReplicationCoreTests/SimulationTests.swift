// The simulator on a bounded number of seeds; `kvsim` runs as many as one likes.

import SimulationKit
import Testing

struct SimulationTests {
    /// Seeds that once failed stay here for good.
    static let failedOnce: [UInt64] = [728]

    private func check(_ report: SimulationReport) {
        #expect(report.failure == nil, "repeat with: kvsim --seed \(report.seed) --seconds 10")
        // A run in which nothing happened proves nothing.
        #expect(report.acknowledgedWrites >= 20, "seed \(report.seed)")
        #expect(report.leaderships >= 1, "seed \(report.seed)")
    }

    @Test(arguments: failedOnce) func seedThatFailedOnce(_ seed: UInt64) {
        check(Simulation.run(SimulationOptions(seed: seed, seconds: 10)))
    }

    @Test func seeds() {
        var total = (writes: 0, crashes: 0, snapshots: 0, changes: 0, transfers: 0)
        for seed in 1...60 as ClosedRange<UInt64> {
            let report = Simulation.run(SimulationOptions(seed: seed, seconds: 10))
            check(report)
            total.writes += report.acknowledgedWrites
            total.crashes += report.crashes
            total.snapshots += report.snapshots
            total.changes += report.membershipChanges
            total.transfers += report.transfers
        }
        // Every kind of trouble came up somewhere.
        #expect(total.writes > 5_000)
        #expect(total.crashes > 100)
        #expect(total.snapshots > 20)
        #expect(total.changes > 20)
        #expect(total.transfers > 20)
    }

    @Test func equalSeedsGiveEqualTraces() {
        for seed in 1...5 as ClosedRange<UInt64> {
            let first = Simulation.run(SimulationOptions(seed: seed, seconds: 5))
            let second = Simulation.run(SimulationOptions(seed: seed, seconds: 5))
            #expect(first.digest == second.digest, "seed \(seed)")
            #expect(first.events == second.events, "seed \(seed)")
        }
        let one = Simulation.run(SimulationOptions(seed: 1, seconds: 5))
        let other = Simulation.run(SimulationOptions(seed: 2, seconds: 5))
        #expect(one.digest != other.digest)
    }

    /// A driver that breaks what the core relies on must be caught, or the checkers see nothing.
    @Test(arguments: Canary.allCases) func canaryIsCaught(_ canary: Canary) {
        var failure: String?
        for seed in 1...60 as ClosedRange<UInt64> where failure == nil {
            failure =
                Simulation.run(SimulationOptions(seed: seed, seconds: 20, canary: canary)).failure
        }
        #expect(failure != nil)
    }
}
