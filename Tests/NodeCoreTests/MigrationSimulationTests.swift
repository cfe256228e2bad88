import KVBase
import SimulationKit
import Testing

@Suite struct MigrationSimulationTests {
    /// The invariants hold after every event of every run, and the runs together did everything.
    @Test func holdsUnderFaults() throws {
        var total = MigrationSimulation.Report()
        for seed in 1...60 as ClosedRange<UInt64> {
            var simulation = MigrationSimulation(seed: seed)
            do {
                let report = try simulation.run(events: 4_000)
                total.splits += report.splits
                total.moves += report.moves
                total.reversals += report.reversals
                total.givenUp += report.givenUp
                total.crashes += report.crashes
                total.dualReads += report.dualReads
                total.importsFirst += report.importsFirst
                total.refusedCommands += report.refusedCommands
                total.merges += report.merges
                total.refusedMerges += report.refusedMerges
                total.formerInTheWay += report.formerInTheWay
                total.verifications += report.verifications
                total.comparisons += report.comparisons
                total.holds += report.holds
            } catch {
                Issue.record("seed \(seed): \(error)")
                return
            }
        }
        #expect(total.splits > 60, "\(total)")
        #expect(total.moves > 300, "\(total)")
        #expect(total.reversals > 80, "\(total)")
        #expect(total.givenUp > 20, "\(total)")
        #expect(total.crashes > 500, "\(total)")
        #expect(total.dualReads > 400, "\(total)")
        #expect(total.importsFirst > 300, "\(total)")
        #expect(total.refusedCommands > 1_000, "\(total)")
        #expect(total.merges > 30, "\(total)")
        #expect(total.refusedMerges > 10, "\(total)")
        #expect(total.formerInTheWay > 10, "\(total)")
        #expect(total.verifications > 300, "\(total)")
        #expect(total.comparisons > 300, "\(total)")
        #expect(total.holds > 100, "\(total)")
    }

    /// A simulation that cannot fail shows nothing.
    @Test(arguments: MigrationCanary.allCases) func findsWhatIsBroken(canary: MigrationCanary) {
        for seed in 1...400 as ClosedRange<UInt64> {
            var simulation = MigrationSimulation(seed: seed, canary: canary)
            do {
                _ = try simulation.run(events: 4_000)
            } catch {
                return
            }
        }
        Issue.record("400 runs with \(canary) broke no invariant")
    }
}
