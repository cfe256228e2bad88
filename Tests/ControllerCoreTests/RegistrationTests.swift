// Who may join the cluster.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct RegistrationTests {
    typealias Bench = ControllerBench

    @Test func aNewNodeGetsAnIdentityThatIsStoredFirst() throws {
        let bench = try Bench()
        bench.holdsStores = true
        #expect(bench.register(1, Bench.registration("a")).admissions.isEmpty)
        let admission = try #require(bench.release().admissions.first)
        #expect(admission.node == NodeID(1))
        #expect(admission.cluster == 0xC1)
        #expect(admission.controllerTerm == Term(1))
    }

    @Test func aKnownNodeKeepsItsIdentityAndBringsItsNewAddress() throws {
        let bench = try Bench()
        bench.register(1, Bench.registration("a"))
        bench.step(.connectionClosed(ConnectionID(1)))
        var returning = Bench.registration(
            "a", node: NodeID(1), cluster: 0xC1, incarnation: 2, isSpare: true)
        returning.rpcAddress = "elsewhere:9"
        let effects = bench.register(2, returning)
        #expect(effects.admissions.map(\.node) == [NodeID(1)])
        let record = try #require(bench.store.durable.nodes.first)
        #expect(record.rpcAddress == "elsewhere:9")
        #expect(!record.isSpare, "the spare pool is left by operators, not by configuration")
        #expect(effects.published.contains(.node(record)))
    }

    @Test func strangersAreRefused() throws {
        let bench = try Bench()
        bench.register(1, Bench.registration("a"))
        func code(_ registration: NodeRegistration) -> ErrorCode? {
            let effects = bench.register(9, registration)
            #expect(effects.admissions.isEmpty)
            return effects.rejections.first?.code
        }
        // Another cluster, an unknown id, another name, a bad name.
        #expect(code(Bench.registration("b", node: NodeID(1), cluster: 0xC2)) == .refused)
        #expect(code(Bench.registration("b", node: NodeID(7), cluster: 0xC1)) == .fenced)
        #expect(code(Bench.registration("b", node: NodeID(1), cluster: 0xC1)) == .fenced)
        #expect(code(Bench.registration("a~1")) == .invalidRequest)
        #expect(code(Bench.registration("")) == .invalidRequest)
        let refused = bench.store.durable.decisions.filter { $0.text.hasPrefix("refused node") }
        #expect(refused.map(\.nodes) == [[NodeID(1)], [NodeID(7)], [NodeID(1)], [], []])
        #expect(bench.store.durable.nodes.count == 1)
    }

    @Test func aRemovedNodeIsToldSoAndNotedOnce() throws {
        let bench = try Bench()
        bench.register(1, Bench.registration("a", incarnation: 5))
        bench.step(.connectionClosed(ConnectionID(1)))
        bench.pass(.seconds(30))
        bench.step(.operationRequest(RequestID(1), .removeNode("a")))
        #expect(bench.store.durable.nodes.isEmpty)
        for connection in 2...4 {
            let effects = bench.register(
                UInt64(connection),
                Bench.registration("a", node: NodeID(1), cluster: 0xC1, incarnation: 6))
            #expect(
                effects.rejections.first?.message.contains("was removed from this cluster") == true)
        }
        let refused = bench.store.durable.decisions.filter { $0.text.hasPrefix("refused node a") }
        #expect(refused.count == 1)
    }

    @Test func whoComesIsNotedAndWhoOnlyReconnectsIsNot() throws {
        let bench = try Bench()
        func admitted() -> Int {
            bench.store.durable.decisions.count { $0.text.hasPrefix("admitted") }
        }
        bench.register(1, Bench.registration("a", incarnation: 5))
        #expect(admitted() == 1)
        let again = Bench.registration("a", node: NodeID(1), cluster: 0xC1, incarnation: 5)
        bench.step(.connectionClosed(ConnectionID(1)))
        bench.register(2, again)
        #expect(admitted() == 1)
        bench.step(.connectionClosed(ConnectionID(2)))
        bench.register(
            3, Bench.registration("a", node: NodeID(1), cluster: 0xC1, incarnation: 6))
        #expect(admitted() == 2)
    }

    @Test func aNameBelongsToTheLiveNode() throws {
        let bench = try Bench()
        bench.register(1, Bench.registration("a"))
        #expect(
            bench.register(2, Bench.registration("a", incarnation: 2)).rejections.first?.code
                == .refused)
        // A second process under the identity of a live one.
        #expect(
            bench.register(
                3, Bench.registration("a", node: NodeID(1), cluster: 0xC1, incarnation: 3)
            ).rejections.first?.code == .unavailable)
        bench.step(.connectionClosed(ConnectionID(1)))
        let effects = bench.register(4, Bench.registration("a", incarnation: 4))
        #expect(effects.admissions.map(\.node) == [NodeID(2)])
        #expect(bench.store.durable.nodes.map(\.name) == ["a~1", "a"])
        // The wiped node's old self does not come back.
        #expect(
            bench.register(
                5, Bench.registration("a", node: NodeID(1), cluster: 0xC1, incarnation: 1)
            ).rejections.first?.code == .fenced)
    }

    @Test func aLostAnswerDoesNotCostTheIdentity() throws {
        let bench = try Bench()
        bench.register(1, Bench.registration("a", incarnation: 5))
        bench.step(.connectionClosed(ConnectionID(1)))
        let effects = bench.register(2, Bench.registration("a", incarnation: 5))
        #expect(effects.admissions.map(\.node) == [NodeID(1)])
    }

    @Test func aDeposedControllerChangesNothing() throws {
        let bench = try Bench()
        var other = MetadataTransaction()
        other.put(StoreKey.term) {
            $0.write(Term(2))
            $0.write("controller-2")
        }
        _ = bench.store.commit(other)
        let effects = bench.register(1, Bench.registration("a"))
        #expect(effects.admissions.isEmpty)
        #expect(effects.contains { if case .resign = $0 { true } else { false } })
        #expect(bench.controller.hasResigned)
        #expect(bench.store.records.keys.allSatisfy { !$0.starts(with: StoreKey.nodePrefix) })
    }
}
