// Operations on shards with crashes at every stored step, cancellations and pauses at every moment,
// leaders that die, commands that come late or twice, and all of it at once.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct ShardOperationFaultTests {
    private typealias Base = ShardOperationTests

    private static let split = OperationRequest.split(
        SplitRequest(table: "t", at: Bytes("f".utf8), to: .group(GroupID(2))))

    /// A split whose upper half moves, then a merge with another group's shard.
    private func workload(_ simulation: ClusterSimulation) {
        simulation.operate(1, Self.split)
        simulation.run(for: .seconds(2))
        simulation.operate(2, .merge(ShardID(1)))
        simulation.run(for: .seconds(2))
    }

    @Test func resumesAfterACrashAtEveryStoredStep() {
        EveryMoment.crashController(
            storesMin: 16, in: { Base.cluster(seed: 1) }, workload,
            checkModel: { model in #expect(Base.steps(model) == [.done, .done]) },
            check: { simulation, comment in
                simulation.run(for: .seconds(8))
                #expect(Base.steps(simulation).allSatisfy { $0 == .done }, comment)
            })
    }

    @Test func cancelsAtEveryMoment() {
        var outcomes: [String] = []
        let moments = Array(stride(from: UInt64(0), to: 280, by: 2))
        let seen = EveryMoment.cancel(at: moments, settling: .seconds(3)) { moment in
            let simulation = Base.cluster(seed: 2)
            simulation.operate(1, Self.split)
            simulation.run(for: .milliseconds(moment))
            return simulation
        } check: { simulation, operation, comment in
            outcomes.append(operation?.outcome ?? "")
            let upper = Base.shards(simulation).first { $0.id == ShardID(3) }
            let group = GroupID(operation?.step == .done ? 2 : 1)
            #expect(upper == nil || upper?.group == group, comment)
        }
        #expect(seen.ends == [.cancelled, .done])
        #expect(
            seen.from.isSuperset(of: [
                .forming, .splitting, .switching, .copying, .verifying, .finishing,
            ]), "\(seen.from)")
        for text in ["before anything moved", "the cut stays", "turned round", "stays in group 1"] {
            #expect(outcomes.contains { $0.contains(text) }, "nothing with '\(text)'")
        }
    }

    @Test func pausesAtEveryMoment() {
        var held: Set<OperationRecord.Step> = []
        for moment in 0..<70 as Range<UInt64> {
            let simulation = Base.cluster(seed: 3)
            simulation.operate(1, Self.split)
            simulation.run(for: .microseconds(moment * 4_000))
            simulation.operate(2, .pause(OperationID(1)))
            simulation.run(for: .seconds(2))
            let comment: Comment = "paused after \(moment * 4) ms"
            let before = simulation.store.durable.operations.last
            guard case .success = simulation.operationAnswers[RequestID(2)] else {
                #expect(before?.step == .done, comment)
                continue
            }
            if let before { held.insert(before.step) }
            #expect(
                [.forming, .copying, .verifying, .done].contains(before?.step), comment)
            simulation.run(for: .seconds(60))
            #expect(simulation.store.durable.operations.last?.step == before?.step, comment)
            if moment % 2 == 0 {
                simulation.operate(3, .resume(OperationID(1)))
                simulation.run(for: .seconds(5))
                #expect(Base.steps(simulation) == [.done], comment)
            } else if before?.isFinished == false {
                simulation.operate(3, .cancel(OperationID(1)))
                simulation.run(for: .seconds(5))
                #expect(Base.steps(simulation) == [.cancelled], comment)
            }
            ControllerSimulationTests.expectConverged(simulation, comment)
        }
        #expect(held.isSuperset(of: [.forming, .copying, .verifying]))
    }

    /// The leaders of the source, of the target, or both die at some moment, with the cancellation or
    /// without.
    @Test(arguments: [GroupID(1), GroupID(2)], [true, false])
    func leadersDieAtEveryMoment(group: GroupID, cancels: Bool) {
        for moment in stride(from: UInt64(0), to: 220, by: 6) {
            let simulation = Base.cluster(seed: 4)
            simulation.operate(1, Self.split)
            simulation.run(for: .milliseconds(moment))
            let leader = simulation.leader(of: group)
            if cancels { simulation.operate(2, .cancel(OperationID(1))) }
            if let index = simulation.nodes.firstIndex(where: { $0.id == leader }) {
                simulation.crash(node: index)
            }
            simulation.run(for: .seconds(3))
            let comment: Comment = "the leader of group \(group) died after \(moment) ms"
            let last = simulation.store.durable.operations.last
            #expect(last?.isFinished == true, comment)
            #expect(cancels || last?.step == .done, comment)
            for index in simulation.nodes.indices { simulation.start(node: index) }
            simulation.run(for: .seconds(4))
            ControllerSimulationTests.expectConverged(simulation, comment)
        }
    }

    /// A controller that does not know that it was deposed changes nothing.
    @Test func aDeposedControllerIsRefused() {
        var refused = 0
        for moment in stride(from: UInt64(0), to: 240, by: 4) {
            var options = Base.options()
            // The old one is sure of its nodes.
            options.settings.nodeSuspectAfter = .seconds(60)
            let simulation = Base.cluster(seed: 5, options)
            simulation.operate(1, Self.split)
            simulation.run(for: .milliseconds(moment))
            guard var old = simulation.controller else { return }
            let connections = simulation.nodes.map(\.connection)
            simulation.crashController()
            simulation.run(for: .seconds(4))
            let before = simulation.store.revision
            var effects = ControllerEffects()
            old.step(.tick, now: simulation.now, into: &effects)
            old.step(
                .operationRequest(RequestID(7), .cancel(OperationID(1))), now: simulation.now,
                into: &effects)
            var index = 0
            while index < effects.list.count {
                let effect = effects.list[index]
                index += 1
                switch effect {
                case .store(let transaction, let ticket):
                    guard case .failure(let error) = simulation.store.commit(transaction) else {
                        Issue.record("a deposed controller stored something after \(moment) ms")
                        continue
                    }
                    old.step(.storeFailed(ticket, error), now: simulation.now, into: &effects)
                case .send(let connection, let batch):
                    guard let node = connections.firstIndex(of: connection) else { continue }
                    for command in batch.commands {
                        refused += 1
                        #expect(
                            batch.controllerTerm < simulation.nodes[node].seenControllerTerm,
                            "a node would take \(command)")
                    }
                default: break
                }
            }
            #expect(simulation.store.revision == before)
            simulation.run(for: .seconds(2))
            #expect(Base.steps(simulation).allSatisfy { $0 == .done }, "after \(moment) ms")
            ControllerSimulationTests.expectConverged(simulation, "deposed after \(moment) ms")
        }
        #expect(refused > 0)
    }

    @Test(arguments: 0..<48)
    func survivesChaos(seed: UInt64) {
        var draw = SeededRandom(seed: seed &+ 7_000)
        var options = Base.options(nodes: 3 + Int(draw.below(3)), spares: Int(draw.below(3)))
        options.settings.groupsInitial = 2 + Int(draw.below(2))
        options.settings.repairAfter = .seconds(1)
        options.settings.nodeDownAfter = .seconds(2)
        options.settings.movesPerGroupMax = 1 + Int(draw.below(2))
        options.settings.sparesReserved = Int(draw.below(2))
        options.settings.releaseAfter = [.zero, .seconds(2), .seconds(3_600)][Int(draw.below(3))]
        options.lostPerMille = draw.chance(1, in: 2) ? draw.below(200) : 0
        options.latePerMille = draw.chance(1, in: 2) ? draw.below(500) : 0
        options.repeatedPerMille = draw.chance(1, in: 2) ? draw.below(500) : 0
        options.chunks = 1 + Int(draw.below(12))
        let simulation = ClusterSimulation(seed: seed, options)
        simulation.run(for: .seconds(4))
        simulation.request(
            9_000, ControllerSimulationTests.create("t", splits: ["g", "p"], ifMissing: true))
        simulation.request(
            9_001,
            ControllerSimulationTests.create("h", .hash(virtualRanges: 8), ifMissing: true))
        // Groups that are formed for moves and left behind by others go under half of the seeds.
        if seed % 2 == 1 {
            simulation.operate(9_002, .configure(name: "groups.empty.after", value: "1s"))
        }
        let count = UInt64(options.nodes + options.spares)
        for number in 1...90 as ClosedRange<UInt64> {
            simulation.run(for: .milliseconds(draw.below(500)))
            let node = Int(draw.below(count))
            let shards = simulation.controller?.shards.elements.map(\.id) ?? []
            let shard =
                shards.isEmpty
                ? ShardID(1) : shards[Int(draw.below(UInt64(shards.count)))]
            let open = simulation.controller?.openOperations.map(\.record.id) ?? []
            let operation =
                open.isEmpty
                ? OperationID(1) : open[Int(draw.below(UInt64(open.count)))]
            switch draw.below(20) {
            case 0: simulation.crash(node: node)
            case 1, 2, 3: simulation.start(node: node)
            case 4: simulation.disconnect(node)
            case 5, 6: simulation.crashController()
            case 7: simulation.operate(number, .cancel(operation))
            case 8: simulation.operate(number, .pause(operation))
            case 9: simulation.operate(number, .resume(operation))
            case 10: simulation.operate(number, .reverse(OperationID(1 + UInt32(draw.below(20)))))
            case 11: simulation.operate(number, .merge(shard))
            case 12, 13:
                simulation.operate(
                    number,
                    .split(
                        SplitRequest(
                            table: "t", at: Bytes([UInt8(97 + draw.below(26)), 97]),
                            to: draw.chance(1, in: 2) ? .any : nil)))
            case 14:
                simulation.operate(number, .move(shard, to: draw.chance(1, in: 4) ? .new : .any))
            case 15: simulation.operate(number, .drain(node: "node-\(node + 1)"))
            case 16: simulation.operate(number, .endDrain(node: "node-\(node + 1)"))
            case 17 where draw.chance(1, in: 8): simulation.request(number, .drop(name: "h"))
            default: simulation.operate(number, .move(shard, to: .any))
            }
        }
        simulation.lostPerMille = 0
        simulation.latePerMille = 0
        simulation.repeatedPerMille = 0
        for index in simulation.nodes.indices { simulation.start(node: index) }
        simulation.run(for: .seconds(12))
        for round in 0..<3 as Range<UInt64> {
            simulation.operate(900 + round, .configure(name: "release.after", value: "0s"))
            for status in simulation.controller?.openOperations ?? [] {
                let id = status.record.id
                let number = 1_000 + round * 1_000 + UInt64(id.rawValue) * 2
                if status.record.work == nil, status.record.kind != .replaceReplica {
                    simulation.operate(number, .cancel(id))
                } else {
                    simulation.operate(number, .resume(id))
                }
            }
            simulation.run(for: .seconds(15))
        }
        ControllerSimulationTests.expectConverged(simulation, "seed \(seed)")
    }
}
