// A backup that an operator asks for, and its verification, over changes of the controller.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct BackupOperationTests {
    private static func backup(_ simulation: ClusterSimulation) -> OperationRecord? {
        simulation.store.durable.operations.last { $0.kind == .backup }
    }

    private static func cluster(seed: UInt64) -> ClusterSimulation {
        let simulation = HotShardTests.cluster(seed: seed, .even(10, rate: 1), nodes: 4, groups: 2)
        simulation.run(for: .seconds(10))
        return simulation
    }

    @Test func endsWithWhatWasWritten() throws {
        let simulation = Self.cluster(seed: 1)
        simulation.operate(1, .backup)
        simulation.run(for: .milliseconds(50))
        let open = try #require(Self.backup(simulation))
        #expect(open.step == .writing)
        simulation.operate(2, .backup)
        simulation.operate(3, .pause(open.id))
        simulation.run(for: .seconds(2))
        #expect(ShardOperationTests.failure(simulation, 2).contains("works on the backup"))
        #expect(ShardOperationTests.failure(simulation, 3).contains("has no place to rest"))
        let record = try #require(Self.backup(simulation))
        #expect(record.step == .done && record.outcome == "a snapshot is there")
        #expect(simulation.backups == 1)
        simulation.operate(4, .reverse(record.id))
        simulation.run(for: .seconds(1))
        #expect(ShardOperationTests.failure(simulation, 4).contains("nothing to take back"))
    }

    @Test func failsWithTheReason() throws {
        let simulation = Self.cluster(seed: 2)
        simulation.backupOutcome = .failure(DatabaseError(.unavailable, "the disk is away"))
        simulation.operate(1, .backup)
        simulation.run(for: .seconds(2))
        let record = try #require(Self.backup(simulation))
        #expect(record.step == .failed && record.outcome == "the disk is away")
    }

    @Test func isWrittenByTheNextController() throws {
        let simulation = Self.cluster(seed: 3)
        simulation.operate(1, .backup)
        simulation.run(for: .milliseconds(100))
        #expect(Self.backup(simulation)?.step == .writing)
        simulation.crashController()
        simulation.run(for: .seconds(10))
        #expect(Self.backup(simulation)?.step == .done, "\(simulation.log.suffix(30))")
        #expect(simulation.backups == 1, "that of the dead one did not come about")
    }

    @Test func aCancelledOneIsNotTakenForDone() throws {
        let simulation = Self.cluster(seed: 4)
        simulation.operate(1, .backup)
        simulation.run(for: .milliseconds(50))
        let open = try #require(Self.backup(simulation))
        simulation.operate(2, .cancel(open.id))
        simulation.run(for: .seconds(2))
        #expect(Self.backup(simulation)?.step == .cancelled)
        #expect(simulation.backups == 1)
    }

    private static func verification(_ simulation: ClusterSimulation) -> OperationRecord? {
        simulation.store.durable.operations.last { $0.kind == .verifyBackup }
    }

    @Test func aVerificationRunsBesideABackupAndOverAChangeOfTheController() throws {
        let simulation = Self.cluster(seed: 5)
        simulation.operate(1, .verifyBackup)
        simulation.operate(2, .backup)
        simulation.run(for: .milliseconds(50))
        #expect(Self.verification(simulation)?.step == .reading)
        #expect(Self.backup(simulation)?.step == .writing)
        simulation.operate(3, .verifyBackup)
        simulation.run(for: .milliseconds(50))
        #expect(ShardOperationTests.failure(simulation, 3).contains("works on the backup"))
        simulation.crashController()
        simulation.run(for: .seconds(10))
        #expect(Self.verification(simulation)?.step == .done, "\(simulation.log.suffix(30))")
        #expect(simulation.verifications == 1, "that of the dead one did not come about")
    }

    @Test func aVerificationThatFindsDamageFailsAndOneThatIsCancelledStops() throws {
        let simulation = Self.cluster(seed: 6)
        simulation.backupOutcome = .failure(DatabaseError(.storageFailed, "2 findings"))
        simulation.operate(1, .verifyBackup)
        simulation.run(for: .seconds(2))
        let failed = try #require(Self.verification(simulation))
        #expect(failed.step == .failed && failed.outcome == "2 findings")
        simulation.operate(2, .verifyBackup)
        simulation.run(for: .milliseconds(50))
        let open = try #require(Self.verification(simulation))
        simulation.operate(3, .cancel(open.id))
        simulation.run(for: .seconds(2))
        #expect(Self.verification(simulation)?.step == .cancelled)
        #expect(simulation.verificationsStopped == [open.id])
    }
}
