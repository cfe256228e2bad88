// The replicated form under crashes, partitions, lost and repeated messages and slow disks: what was
// answered as done is done, what was answered as refused is not, and nobody disagrees.

import KVBase
import MetadataCore
import MetadataStore
import ReplicationCore
import Testing

/// Clients of all controllers at once, and what they were answered.
private final class QuorumOracle {
    enum Answer {
        case waiting
        case done(Revision)
        case refused, unknown
    }

    let world: QuorumWorld
    let seed: UInt64
    private var answers: [Answer] = []
    /// The image that was first seen at each log index.
    private var digests: [UInt64: Bytes] = [:]
    private var leaders: [UInt64: ReplicaID] = [:]
    private(set) var readsAnswered = 0

    init(_ world: QuorumWorld, seed: UInt64) {
        self.world = world
        self.seed = seed
        world.check = { [unowned self] in check() }
    }

    var doneCount: Int {
        answers.count { if case .done = $0 { true } else { false } }
    }

    private func check() {
        var alone = 0
        for controller in world.controllers {
            guard let replica = controller.replica else { continue }
            if replica.isAlone(at: world.now) { alone += 1 }
            if replica.isLeader {
                let known = leaders[replica.core.term.rawValue]
                #expect(known == nil || known == controller.id, "two leaders, seed \(seed)")
                leaders[replica.core.term.rawValue] = controller.id
            }
            let index = replica.image.position.index.rawValue
            guard index > 0 else { continue }
            var writer = ByteWriter()
            replica.image.encode(into: &writer)
            let known = digests[index]
            #expect(
                known == nil || known == writer.bytes,
                "\(controller.name) differs at entry \(index), seed \(seed)")
            digests[index] = writer.bytes
        }
        #expect(alone <= 1, "\(alone) controllers may act, seed \(seed)")
    }

    private func key(_ operation: Int) -> Bytes { Bytes("op/\(operation)".utf8) }

    /// One transaction that leaves its own key behind and bumps a counter, at whichever controller.
    func write(at controller: SimulatedController, guess: Bool) {
        guard let store = controller.store else { return }
        let operation = answers.count
        answers.append(.waiting)
        var transaction = MetadataTransaction(changes: [
            .put(key: key(operation), value: [], lease: .none),
            .put("counter", "\(operation)"),
        ])
        if guess {
            let seen = store.state.get(Bytes("counter".utf8))?.modRevision ?? .none
            transaction.comparisons = [.init("counter", at: seen)]
        }
        store.commit(transaction) { [unowned self] result in
            switch result {
            case .success(let revision): answers[operation] = .done(revision)
            case .failure(.conditionFailed): answers[operation] = .refused
            case .failure(.failed(let error)) where error.code == .unavailable:
                answers[operation] = .refused
            case .failure: answers[operation] = .unknown
            }
        }
    }

    /// A read that is answered shows everything that was answered as done before it was asked.
    func read(at controller: SimulatedController) {
        guard let store = controller.store else { return }
        let before = answers.indices.filter { if case .done = answers[$0] { true } else { false } }
        store.range(prefix: Bytes("op/".utf8)) { [unowned self] result in
            guard case .success(let snapshot) = result else { return }
            readsAnswered += 1
            let there = Set(snapshot.records.map(\.key))
            for operation in before {
                #expect(
                    there.contains(key(operation)),
                    "a read misses operation \(operation), seed \(seed)")
            }
        }
    }

    func conclude() throws {
        let leader = try #require(world.leader)
        let state = try #require(leader.store).state
        var revisions: Set<Revision> = []
        for operation in answers.indices {
            let record = state.get(key(operation))
            switch answers[operation] {
            case .done(let revision):
                #expect(record?.createRevision == revision, "operation \(operation), seed \(seed)")
                #expect(revisions.insert(revision).inserted, "revision twice, seed \(seed)")
            case .refused:
                #expect(record == nil, "operation \(operation) was refused, seed \(seed)")
            case .waiting, .unknown: break
            }
        }
    }
}

@Suite struct QuorumSimulationTests {
    @Test(arguments: 0..<24)
    func survivesFaults(seed: UInt64) throws {
        let members = seed % 3 == 0 ? 5 : 3
        let world = QuorumWorld(members: members, seed: seed)
        let oracle = QuorumOracle(world, seed: seed)
        world.faults = QuorumFaults(
            lost: seed % 4 == 1 ? 50 : 5, duplicated: 20, delay: .milliseconds(4),
            writeDelay: .milliseconds(seed % 2 == 0 ? 2 : 30))
        for _ in 0..<250 {
            let some = world.controllers[
                Int(world.random.below(UInt64(world.controllers.count)))]
            switch world.random.below(40) {
            case 0: some.crash()
            case 1: world.isolate(some.id)
            case 2, 3: world.heal()
            case 4: some.takeSnapshot()
            case 5:
                if let leader = world.leader { world.isolate(leader.id) }
            case 6: world.leader?.crash()
            default: break
            }
            for controller in world.controllers where !controller.isUp {
                if world.random.chance(1, in: 15) { controller.start() }
            }
            for controller in world.controllers {
                if world.random.chance(1, in: 3) { oracle.write(at: controller, guess: false) }
                if world.random.chance(1, in: 6) { oracle.write(at: controller, guess: true) }
                if world.random.chance(1, in: 6) { oracle.read(at: controller) }
            }
            world.pass(.milliseconds(10 + world.random.below(60)))
        }
        world.heal()
        world.faults = QuorumFaults()
        for controller in world.controllers where !controller.isUp { controller.start() }
        #expect(world.wait { world.leader != nil }, "seed \(seed)")
        oracle.read(at: try #require(world.leader))
        world.pass(.seconds(3))
        try oracle.conclude()
        #expect(oracle.doneCount > 5, "seed \(seed)")
        #expect(oracle.readsAnswered > 0, "seed \(seed)")
        let positions = Set(world.controllers.compactMap { $0.replica?.image.position })
        #expect(positions.count == 1, "all stand at one position, seed \(seed)")
        #expect(world.controllers.allSatisfy { $0.failure == nil }, "seed \(seed)")
    }

    /// A disk is lost and its controller comes back as another member, while controllers crash.
    @Test(arguments: 0..<8)
    func replacesALostController(seed: UInt64) throws {
        let world = QuorumWorld(members: 3, seed: seed)
        let oracle = QuorumOracle(world, seed: seed)
        world.faults = QuorumFaults(
            lost: 10, duplicated: 10, delay: .milliseconds(3), writeDelay: .milliseconds(3))
        #expect(world.wait { world.leader != nil })
        let lost = ReplicaID(UInt32(1 + seed % 3))
        world.destroy(lost)
        func leads(_ body: (SimulatedController) -> Bool) -> Bool {
            world.leader.map(body) ?? false
        }
        #expect(world.wait { leads { $0.id != lost } }, "seed \(seed)")
        // Without the dead one's dismissal its name is not given away.
        let name = "c\(lost)"
        var refusal: DatabaseError?
        world.leader?.store?.submit(.admit(name: name, address: "elsewhere:1")) {
            if case .failure(.failed(let error)) = $0 { refusal = error }
        }
        #expect(world.wait { refusal != nil }, "seed \(seed)")
        #expect(refusal?.code == .refused, "seed \(seed)")

        func repeating(_ command: MetadataCommand, until isDone: () -> Bool) -> Bool {
            world.wait(.seconds(60)) {
                if isDone() { return true }
                if world.random.chance(1, in: 40), let leader = world.leader {
                    leader.store?.submit(command) { _ in }
                }
                if world.random.chance(1, in: 300) { world.leader?.crash() }
                for controller in world.controllers where !controller.isUp {
                    if world.random.chance(1, in: 30) { controller.start() }
                }
                if world.random.chance(1, in: 20), let leader = world.leader {
                    oracle.write(at: leader, guess: false)
                }
                return false
            }
        }
        #expect(
            repeating(.dismiss(lost)) {
                leads { $0.replica?.image.roster.member(named: name) == nil }
            }, "seed \(seed)")
        world.vacant = [name]
        #expect(
            repeating(.admit(name: name, address: "\(name):1")) {
                leads { leader in
                    guard let replica = leader.replica,
                        let member = replica.image.roster.member(named: name)
                    else { return false }
                    return member.replica > ReplicaID(3)
                        && replica.core.membership.voters.contains {
                            $0.replica == member.replica
                        }
                }
            }, "seed \(seed)")
        for controller in world.controllers where !controller.isUp { controller.start() }
        #expect(world.wait { world.leader != nil }, "seed \(seed)")
        world.faults = QuorumFaults()
        world.pass(.seconds(2))
        try oracle.conclude()
        #expect(world.leader?.replica?.core.membership.voters.count == 3, "seed \(seed)")
    }

    @Test func aMinorityAnswersNothing() throws {
        let world = QuorumWorld(members: 3, seed: 1)
        #expect(world.wait { world.leader != nil })
        let old = try #require(world.leader)
        let store = try #require(old.store)
        world.isolate(old.id)
        var outcome: Result<Revision, MetadataError>?
        store.commit(MetadataTransaction(changes: [.put("a", "1")])) { outcome = $0 }
        #expect(world.wait { outcome != nil })
        // It may yet be on its way: neither done nor refused.
        guard case .failure(.failed(let error)) = outcome else {
            Issue.record("answered \(String(describing: outcome))")
            return
        }
        #expect(error.code == .unknownOutcome)
        outcome = nil
        store.commit(MetadataTransaction(changes: [.put("b", "1")])) { outcome = $0 }
        world.settle()
        guard case .failure(.failed(let refused)) = outcome else {
            Issue.record("answered \(String(describing: outcome))")
            return
        }
        #expect(refused.code == .unavailable)
        #expect(world.wait { world.leader != nil && world.leader?.id != old.id })
        world.heal()
        world.pass(.seconds(1))
        #expect(store.state.get(Bytes("b".utf8)) == nil)
        #expect(old.replica?.isLeader == false)
    }

    @Test func dismissalIsRefusedWhereTheMajorityWouldBeLost() throws {
        let world = QuorumWorld(members: 3, seed: 2)
        #expect(world.wait { world.leader != nil })
        world.pass(.seconds(1))
        let leader = try #require(world.leader)
        let others = world.controllers.filter { $0.id != leader.id }
        func objection(_ name: String) -> DatabaseError? {
            leader.replica?.objection(toDismissing: name, now: world.now)
        }
        #expect(objection(others[0].name) == nil)
        #expect(objection("nobody")?.code == .refused)
        others[1].crash()
        world.pass(.seconds(2))
        #expect(objection(others[1].name) == nil, "the dead one may go")
        let refusal = try #require(objection(others[0].name))
        #expect(refusal.message.contains("start \(others[1].name)"))
        let alone = QuorumWorld(members: 1, seed: 3)
        #expect(alone.wait { alone.leader != nil })
        let only = alone.leader?.replica?.objection(toDismissing: "c1", now: alone.now)
        #expect(only?.message.contains("only controller") == true)
    }

    @Test func theSameSeedGivesTheSameRun() throws {
        func run() -> Bytes {
            let world = QuorumWorld(members: 3, seed: 11)
            let oracle = QuorumOracle(world, seed: 11)
            world.faults = QuorumFaults(lost: 20, duplicated: 20, delay: .milliseconds(5))
            for step in 0..<100 {
                if step == 40 { world.leader?.crash() }
                for controller in world.controllers { oracle.write(at: controller, guess: false) }
                world.pass(.milliseconds(20))
            }
            var writer = ByteWriter()
            for controller in world.controllers {
                controller.replica?.image.encode(into: &writer)
            }
            return writer.take()
        }
        #expect(run() == run())
    }
}
