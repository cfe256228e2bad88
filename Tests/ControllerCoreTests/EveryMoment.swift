// Tests that repeat one story with a fault at each moment at which it may matter.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

enum EveryMoment {
    /// Runs `workload` on a fresh cluster once per transaction that it stores and whether that one counts
    /// or is lost: the controller crashes there, and another one goes on. `check` runs on until the end
    /// and says what must hold then; that all is converged is always asked.
    ///
    /// Without a crash the workload must store `storesMin` transactions, and `checkModel` must hold.
    static func crashController(
        storesMin: Int, in cluster: () -> ClusterSimulation,
        _ workload: (ClusterSimulation) -> Void,
        checkModel: (ClusterSimulation) -> Void = { _ in },
        check: (ClusterSimulation, Comment) -> Void
    ) {
        let model = cluster()
        let quiet = model.storeCount
        workload(model)
        checkModel(model)
        #expect(model.storeCount - quiet >= storesMin)
        guard model.storeCount > quiet else { return }
        for step in quiet + 1...model.storeCount {
            for keepsLast in [true, false] {
                let simulation = cluster()
                simulation.crashAfterStores = step
                simulation.crashKeepsLast = keepsLast
                workload(simulation)
                let comment: Comment = "crash at store \(step), kept: \(keepsLast)"
                check(simulation, comment)
                ControllerSimulationTests.expectConverged(simulation, comment)
            }
        }
    }

    /// In which steps operations were cancelled, and how they ended.
    struct Cancellations {
        var from: Set<OperationRecord.Step> = []
        var ends: Set<OperationRecord.Step> = []
    }

    /// Cancels the newest operation of the cluster at each of `moments`, in milliseconds; `cluster` gives
    /// one in which that much time has passed since the operation began. `check` is told the operation
    /// as it is `settling` later.
    static func cancel(
        at moments: [UInt64], settling: Nanoseconds, in cluster: (UInt64) -> ClusterSimulation,
        check: (ClusterSimulation, OperationRecord?, Comment) -> Void
    ) -> Cancellations {
        var seen = Cancellations()
        for moment in moments {
            let simulation = cluster(moment)
            guard let operation = simulation.controller?.operations.last?.record else {
                Issue.record("no operation after \(moment) ms")
                return seen
            }
            seen.from.insert(operation.step)
            simulation.operate(2, .cancel(operation.id))
            simulation.run(for: settling)
            let comment: Comment = "cancelled after \(moment) ms in step \(operation.step)"
            #expect(simulation.operationAnswers[RequestID(2)] != nil, comment)
            let end = simulation.store.durable.operations.first { $0.id == operation.id }
            if let end { seen.ends.insert(end.step) }
            #expect(end?.step == .cancelled || end?.step == .done, comment)
            check(simulation, end, comment)
            ControllerSimulationTests.expectConverged(simulation, comment)
        }
        return seen
    }
}

extension ClusterSimulation {
    /// Why the operation asked for with `number` was refused.
    func refusal(_ number: UInt64) -> String {
        guard case .failure(let error) = operationAnswers[RequestID(number)] else {
            return "no error"
        }
        return error.message
    }
}
