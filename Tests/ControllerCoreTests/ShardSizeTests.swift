// Sizes of shards and groups over cuts, joins and moves, and what plans say of a chosen key.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct ShardSizeTests {
    private typealias Base = ShardOperationTests

    /// 100 records of 10 bytes, `k00000` to `k00099`, in shard 1; shard 2 is empty.
    private static func cluster(seed: UInt64, keeps: Nanoseconds = .seconds(3_600))
        -> ClusterSimulation
    {
        var options = Base.options()
        options.settings.releaseAfter = keeps
        let simulation = Base.cluster(seed: seed, options)
        simulation.traffic = .even(100, bytes: 10)
        simulation.run(for: .seconds(1))
        return simulation
    }

    /// Bytes of shards, as known now; nodes tell nothing from here on.
    private static func sizes(_ simulation: ClusterSimulation) -> [UInt64?] {
        let controller = simulation.controller
        return Base.shards(simulation).map { controller?.shardReports[$0.id]?.bytes }
    }

    /// Nodes count nothing any more.
    private static func stopCounting(_ simulation: ClusterSimulation) {
        simulation.traffic = nil
        simulation.sizes = [:]
    }

    @Test func cutsAndJoinsAreEstimatedUntilTheyAreCounted() throws {
        let simulation = Self.cluster(seed: 1)
        #expect(Self.sizes(simulation) == [1_000, 0])
        let traffic = simulation.traffic
        Self.stopCounting(simulation)
        simulation.operate(
            1, .split(SplitRequest(table: "t", at: Bytes("k00080".utf8), to: nil)))
        simulation.run(for: .seconds(1))
        // Between the marks of 75 % and of the last key.
        #expect(Self.sizes(simulation) == [870, 0, 130])
        #expect(simulation.controller?.estimatedShards == [ShardID(1), ShardID(3)])
        simulation.traffic = traffic
        simulation.run(for: .seconds(1))
        #expect(Self.sizes(simulation) == [800, 0, 200])
        #expect(simulation.controller?.estimatedShards == [])
        Self.stopCounting(simulation)
        simulation.operate(2, .merge(ShardID(1)))
        simulation.run(for: .seconds(1))
        #expect(Self.sizes(simulation) == [1_000, 0])
        ControllerSimulationTests.expectConverged(simulation, "estimates")
    }

    @Test func aMovedShardKeepsItsSizeAndLeavesItBehind() throws {
        let simulation = Self.cluster(seed: 2)
        simulation.holdsCopies = true
        simulation.operate(1, .move(ShardID(1), to: .group(GroupID(2))))
        simulation.run(for: .seconds(2))
        let copying = try #require(simulation.controller)
        #expect(copying.storedOperations.map(\.record.step) == [.copying])
        #expect(Self.sizes(simulation) == [1_000, 0])
        #expect(copying.bytes(of: GroupID(1)) == 1_000 && copying.bytes(of: GroupID(2)) == 1_000)
        simulation.holdsCopies = false
        simulation.run(for: .seconds(3))
        #expect(Base.steps(simulation) == [.done])
        // The former copy: a new replica of group 1 gets it too.
        let done = try #require(simulation.controller)
        #expect(done.former.elements.map(\.record.bytes) == [1_000])
        #expect(done.bytes(of: GroupID(1)) == 1_000)
        simulation.crashController()
        simulation.run(for: .seconds(3))
        #expect(simulation.controller?.bytes(of: GroupID(1)) == 1_000)
        simulation.operate(2, .configure(name: "release.after", value: "0s"))
        simulation.run(for: .seconds(10))
        #expect(simulation.controller?.bytes(of: GroupID(1)) == 0)
    }

    @Test func aChosenKeyIsEstimatedByTheKeysThatAreKnown() throws {
        let simulation = Self.cluster(seed: 3)
        func plan(_ key: String) throws -> ShardPlan {
            let request = SplitRequest(
                table: "t", shard: ShardID(1), at: Bytes(key.utf8), to: .group(GroupID(2)))
            return try #require(
                try simulation.controller?.plan(split: request, now: simulation.now))
        }
        simulation.traffic?.setRate(10)
        simulation.run(for: .seconds(1))
        let above = try plan("l")
        #expect(above.bytes == 0 && above.records == 0 && above.operations == 0 && above.moves)
        #expect(
            above.grounds
                == "the operator chose the key l; about 0 % of the bytes and about 0 % of the requests "
                + "lie above it")
        #expect(above.groupsAfter.map(\.operations) == above.groupsBefore.map(\.operations))
        let quarter = try plan("k00075")
        #expect(quarter.bytes == 250 && quarter.records == 25 && quarter.operations == 250)
        // Nothing is known of the keys: nothing is said of the halves.
        Self.stopCounting(simulation)
        simulation.sizes[ShardID(1)] = ShardReport(
            shard: ShardID(1), epoch: Epoch(1), bytes: 1_000, records: 100)
        simulation.loads[GroupID(1)] = LoadReport(
            groups: [GroupLoad(group: GroupID(1), reads: 900, writes: 100)],
            shards: [ShardLoad(shard: ShardID(1), epoch: Epoch(1), reads: 900, writes: 100)])
        simulation.run(for: .seconds(1))
        let unknown = try plan("k00075")
        #expect(unknown.bytes == nil && unknown.records == nil && unknown.operations == nil)
        #expect(unknown.grounds.hasSuffix("; how much lies above it is not known"))
    }

    @Test func aCopyNeverGoesBack() {
        func at(_ milliseconds: UInt64) -> Instant { .origin + .milliseconds(milliseconds) }
        var snapshot = CopyProgress()
        snapshot.reach(500, now: at(0))
        #expect(snapshot.bytesPerSecond(now: at(0)) == nil)
        snapshot.reach(2_500, now: at(2_000))
        #expect(snapshot.bytes == 2_500 && snapshot.bytesPerSecond(now: at(2_000)) == 1_000)
        // It is sent again.
        snapshot.reach(10, now: at(3_000))
        #expect(snapshot.bytes == 2_500)
        #expect(snapshot.bytesPerSecond(now: at(30_000)) == nil)

        // Another leader goes on where the last one was, and counts from zero.
        var shard = CopyProgress()
        shard.count(bytes: 1_000, records: 10, now: at(0))
        shard.count(bytes: 200, records: 2, now: at(1_000))
        #expect(shard.bytes == 1_200 && shard.records == 12)
        shard.count(bytes: 500, records: 5, now: at(2_000))
        #expect(shard.bytes == 1_500 && shard.records == 15)
        #expect(shard.bytesPerSecond(now: at(2_000)) == 250)
    }
}
