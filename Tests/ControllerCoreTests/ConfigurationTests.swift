// Settings at run time: their forms, their refusals, and that they outlive a controller.

import KVBase
import ShardCore
import Testing

@testable import ControllerCore

@Suite struct ConfigurationTests {
    private func options() -> ClusterSimulation.Options {
        var options = ClusterSimulation.Options()
        options.spares = 1
        return options
    }

    private func value(_ simulation: ClusterSimulation, _ name: String) -> SettingStatus? {
        simulation.controller?.configuration.first { $0.name == name }
    }

    @Test func everyValueIsWrittenAsItIsRead() throws {
        var settings = RuntimeSettings(ControllerSettings(name: "c"))
        for setting in RuntimeSetting.allCases {
            #expect(RuntimeSetting.named(setting.name) == setting)
            let text = setting.write(settings[setting])
            try settings.set(setting, to: text)
            #expect(setting.write(settings[setting]) == text)
            #expect(!setting.meaning.isEmpty)
        }
        for rule in RuleName.allCases { #expect(rule.setting.name == rule.rawValue) }
        #expect(try RuntimeSetting.splitBytes.parse("10MiB") == 10 << 20)
        #expect(try RuntimeSetting.splitBytes.parse("64 GiB") == 64 << 30)
        #expect(try RuntimeSetting.splitBytes.parse("2TB") == 2_000_000_000_000)
        #expect(try RuntimeSetting.splitSustain.parse("90s") == 90_000_000_000)
        #expect(RuntimeSetting.splitSustain.write(90_000_000_000) == "90s")
        #expect(RuntimeSetting.mergeQuiet.write(3_600_000_000_000) == "1h")
        #expect(RuntimeSetting.repairAfter.write(0) == "0s")
        #expect(RuntimeSetting.repairAfter.write(1_500) == "1500ns")
        #expect(RuntimeSetting.splitBytes.write(10_000_000_000_000) == "10TB")
        #expect(RuntimeSetting.splitBytes.write((1 << 20) + 1) == "1048577B")
    }

    @Test(arguments: [
        ("split.bytes", "lots"), ("split.bytes", "1B"), ("split.bytes", "99999999999999999999GiB"),
        ("split.rate", "0"), ("split.rate", "-3"), ("split.rate", "2k"), ("split.sustain", "0s"),
        ("split.sustain", "1 fortnight"), ("repair", "maybe"), ("repair", ""), ("moves.max", "65"),
        ("release.after", "5"), ("release.after", "0"), ("release.after", "5000000000ns"),
        ("release.after", "5us"),
    ])
    func refusesOtherForms(name: String, text: String) throws {
        let setting = try RuntimeSettings.setting(named: name)
        var settings = RuntimeSettings(ControllerSettings(name: "c"))
        let before = settings[setting]
        let error = #expect(throws: DatabaseError.self) { try settings.set(setting, to: text) }
        #expect(error?.code == .refused)
        #expect(error?.message.contains(setting.allowed) == true)
        #expect(settings[setting] == before)
    }

    /// As kvctl writes the same numbers.
    @Test func quantitiesHaveOneDigitBehindThePoint() {
        #expect(quantity(1_023) == "1023 B")
        #expect(quantity(1_024) == "1.0 KiB")
        #expect(quantity(13_212_058) == "12.6 MiB")
        #expect(quantity(64 << 30) == "64.0 GiB")
        #expect(quantity(.max) == "16384.0 PiB")
        #expect(plural(1, "replica") == "1 replica" && plural(2, "replica") == "2 replicas")
    }

    @Test func settingsOutliveTheController() {
        let simulation = ClusterSimulation(seed: 21, options())
        simulation.run(for: .seconds(4))
        #expect(value(simulation, "split.rate")?.isDefault == true)
        simulation.operate(1, .configure(name: "split.rate", value: "3000"))
        simulation.operate(2, .configure(name: "merge.cold", value: "off"))
        simulation.operate(3, .configure(name: "repair", value: "propose"))
        simulation.run(for: .seconds(1))
        simulation.operate(4, .configure(name: "repair", value: "default"))
        simulation.run(for: .seconds(1))
        simulation.crashController()
        simulation.run(for: .seconds(4))
        #expect(simulation.life >= 3)
        #expect(value(simulation, "split.rate")?.value == "3000")
        #expect(value(simulation, "split.rate")?.defaultValue == "2000")
        #expect(value(simulation, "split.rate")?.isDefault == false)
        #expect(simulation.controller?.mode(of: .coldShards) == .off)
        #expect(simulation.controller?.mode(of: .repair) == .auto)
        #expect(value(simulation, "repair")?.isDefault == true)
        for number in 1...4 as ClosedRange<UInt64> {
            #expect(
                (try? simulation.operationAnswers[RequestID(number)]?.get()) == OperationID.none)
        }
        let why = simulation.store.durable.decisions.map(\.text)
        #expect(why.contains("split.rate is 3000 now, was 2000: set by the operator"))
        #expect(why.contains("repair is auto, the default now, was propose: set by the operator"))
        #expect(simulation.violations == [])
        #expect(simulation.store.violations == [])
    }

    @Test func refusalsSayWhatIsAllowed() {
        let simulation = ClusterSimulation(seed: 22, options())
        simulation.run(for: .seconds(4))
        simulation.operate(1, .configure(name: "split.rat", value: "1"))
        #expect(simulation.refusal(1).contains("there are repair, split.hot, split.large"))
        simulation.operate(2, .configure(name: "split.hot", value: "on"))
        #expect(simulation.refusal(2) == "split.hot is off, propose or auto, not 'on'")
        simulation.operate(3, .configure(name: "split.bytes", value: "1GiB"))
        #expect(simulation.refusal(3).contains("merge.bytes (1GiB) must be at most half"))
        simulation.operate(4, .configure(name: "merge.bytes", value: "512MiB"))
        simulation.operate(5, .configure(name: "split.bytes", value: "1GiB"))
        simulation.run(for: .seconds(1))
        #expect(value(simulation, "split.bytes")?.value == "1GiB")
        let refused = simulation.store.durable.decisions.filter { $0.text.hasPrefix("refused") }
        #expect(refused.count == 3)
        simulation.operate(6, .configure(name: "release.after", value: "5"))
        #expect(simulation.refusal(6).hasSuffix("'5' has no unit: say 5s for seconds"))
        // What changes nothing is no decision.
        let count = simulation.store.durable.decisions.count
        simulation.operate(7, .configure(name: "split.bytes", value: "1024MiB"))
        simulation.run(for: .seconds(1))
        #expect((try? simulation.operationAnswers[RequestID(7)]?.get()) == OperationID.none)
        #expect(simulation.store.durable.decisions.count == count + 1, "the refusal alone")
    }

    @Test func aStoredSettingThatIsNotAllowedHasItsDefault() throws {
        let bench = try ControllerBench()
        var store = bench.store
        bench.step(.operationRequest(RequestID(1), .configure(name: "split.rate", value: "7")))
        store = bench.store
        store.endLease()
        var transaction = MetadataTransaction()
        transaction.changes = [
            .put(key: StoreKey.setting("split.rate"), value: Bytes("many".utf8), lease: .none),
            .put(key: StoreKey.setting("of.old"), value: Bytes("1".utf8), lease: .none),
        ]
        _ = store.commit(transaction)
        var controller = try Controller(
            settings: ControllerSettings(name: "controller-1"), snapshot: store.snapshot,
            lease: LeaseID(2), clusterCandidate: 1, now: bench.now)
        #expect(controller.configuration.allSatisfy { $0.isDefault })
        var effects = ControllerEffects()
        controller.step(.start, now: bench.now, into: &effects)
        controller.step(.stored(StoreTicket(1), Revision(99)), now: bench.now, into: &effects)
        let told = effects.list.filter {
            if case .decided(let text) = $0 { text.contains("is ignored") } else { false }
        }
        #expect(told.count == 2)
    }

    @Test func repairCanBeSwitchedWhileItRuns() {
        let simulation = ClusterSimulation(seed: 23, options())
        simulation.run(for: .seconds(4))
        simulation.operate(1, .configure(name: "repair", value: "off"))
        simulation.operate(2, .configure(name: "repair.after", value: "1s"))
        simulation.run(for: .milliseconds(100))
        simulation.crash(node: 1)
        simulation.run(for: .seconds(20))
        #expect(simulation.store.durable.operations.isEmpty)
        simulation.operate(3, .configure(name: "repair", value: "auto"))
        simulation.run(for: .seconds(8))
        #expect(simulation.store.durable.operations.count { $0.step == .done } == 2)
    }

    @Test func aStoppedRepairRests() throws {
        let simulation = ClusterSimulation(seed: 24, options())
        simulation.run(for: .seconds(4))
        // The spare takes nothing in, so that the repair is under way when it is stopped.
        simulation.nodes[3].isDeaf = true
        simulation.crash(node: 1)
        simulation.run(for: .seconds(12))
        let repair = try #require(simulation.controller?.openOperations.first?.record)
        #expect(repair.origin == "repair")
        simulation.operate(1, .cancel(repair.id))
        simulation.nodes[3].isDeaf = false
        simulation.run(for: .seconds(300))
        // Over a change of controller too.
        simulation.crashController()
        simulation.run(for: .seconds(290))
        let again = simulation.store.durable.operations.filter { $0.group == repair.group }
        #expect(again.map(\.step) == [.cancelled])
        let other = simulation.store.durable.operations.filter { $0.group != repair.group }
        #expect(other.map(\.step) == [.done])
        let why = simulation.store.durable.decisions.map(\.text)
        #expect(why.contains { $0.contains("repair leaves this alone for 10m") })
        simulation.run(for: .seconds(60))
        #expect(
            simulation.store.durable.operations.contains {
                $0.group == repair.group && $0.step == .done
            })
    }
}
