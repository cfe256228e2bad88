// Random operations on every engine against a model that shares no code with them.

import KVBase
import StorageAPI
import Testing

@Suite struct RandomOperationTests {
    @Test(arguments: EngineKind.allCases, 1...25 as ClosedRange<UInt64>)
    func behavesAsTheModel(kind: EngineKind, seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let fixture = try EngineFixture(kind)
        var live = Model()
        var durable = Model()
        for step in 0..<300 {
            let context = "\(kind) seed \(seed) step \(step)"
            switch random.below(20) {
            case 0..<11:
                var batch = EngineBatch()
                for _ in 0...random.below(6) { Self.change(&batch, &live, &random) }
                try fixture.engine.apply(batch)
            case 11...14:
                let key = Self.key(&random)
                try #require(
                    try fixture.engine.value(of: key) == live.records[key], "\(context)")
            case 15...17:
                let from = random.chance(1, in: 5) ? [] : Self.key(&random)
                let to = random.chance(1, in: 4) ? nil : Self.key(&random)
                let limit = Int(random.below(30)) + 1
                try #require(
                    try fixture.engine.records(from: from, to: to, limit: limit)
                        == Array(live.sorted(from, to).prefix(limit)), "\(context)")
            case 18:
                try fixture.engine.checkpoint()
                durable = live
            default:
                guard random.chance(1, in: 5) else { continue }
                // Exactly the checkpoint: RocksDB's buffers are too large to flush by themselves here.
                try fixture.crash()
                live = durable
            }
        }
        try #require(try fixture.engine.records() == live.sorted([], nil), "\(kind) seed \(seed)")
        try fixture.engine.checkpoint()
        try #require(try fixture.engine.records() == live.sorted([], nil), "\(kind) seed \(seed)")
    }

    private static func change(
        _ batch: inout EngineBatch, _ model: inout Model, _ random: inout SeededRandom
    ) {
        let key = key(&random)
        switch random.below(10) {
        case 0..<7:
            let value = Bytes(
                repeating: UInt8(random.below(256)), count: Int(random.below(40)))
            batch.put(key, value)
            model.records[key] = value
        case 7, 8:
            batch.delete(key)
            model.records[key] = nil
        default:
            let to = Self.key(&random)
            batch.deleteRange(key, to)
            let range = KeyRange(start: key, end: to)
            for candidate in model.records.keys where range.contains(candidate) {
                model.records[candidate] = nil
            }
        }
    }

    /// Few letters and lengths around 511, so that keys meet and fork where it matters.
    private static func key(_ random: inout SeededRandom) -> Bytes {
        let letters: Bytes = [0, 97, 255]
        var key: Bytes = []
        if random.chance(1, in: 3) {
            key = Bytes(repeating: 97, count: 508 + Int(random.below(4)))
        }
        for _ in 0...random.below(4) { key.append(letters[Int(random.below(3))]) }
        return key
    }
}

private struct Model {
    var records: [Bytes: Bytes] = [:]

    func sorted(_ from: Bytes, _ to: Bytes?) -> [Record] {
        let range = KeyRange(start: from, end: to)
        return records.filter { range.contains($0.key) }
            .sorted { $0.key.lexicographicallyPrecedes($1.key) }
            .map { Record(key: $0.key, value: $0.value) }
    }
}
