import KVBase
import ShardCore
import Testing

@Suite struct SortedRecordsTests {
    @Test(arguments: 0..<8 as Range<UInt64>)
    func agreesWithADictionary(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var records = SortedRecords<ShardID, UInt64>()
        var model: [UInt32: UInt64] = [:]
        var highest: UInt32 = 0
        let idsMax: UInt64 = [40, 600, 3_000][Int(seed % 3)]
        for step in 0..<6_000 as Range<UInt64> {
            let comment: Comment = "seed \(seed), step \(step)"
            // Waves of growth and of removal.
            let grows = step / 1_000 % 2 == 0
            let raw = UInt32(random.below(idsMax))
            let id = ShardID(raw)
            switch random.below(8) {
            case 0:
                highest += 1
                records.set(step, for: ShardID(UInt32(idsMax) + highest))
                model[UInt32(idsMax) + highest] = step
            case 1:
                let isThere = records.update(id) { $0 += 1 }
                #expect(isThere == (model[raw] != nil), comment)
                if let value = model[raw] { model[raw] = value + 1 }
            case 2...6 where grows:
                records.set(step, for: id)
                model[raw] = step
            default:
                let removed = records.remove(id)
                #expect(removed == model.removeValue(forKey: raw), comment)
            }
            #expect(records[id] == model[raw], comment)
            #expect(records.count == model.count, comment)
            guard step % 97 == 0 else { continue }
            let expected = model.keys.sorted().map { model[$0]! }
            #expect(Array(records.elements) == expected, comment)
            #expect(Array(records.elements.reversed()) == expected.reversed(), comment)
            #expect(records.last == expected.last, comment)
        }
    }

    @Test func aWalkSeesWhatWasThereWhenItBegan() {
        var records = SortedRecords<GroupID, Int>()
        for id in 1...500 as ClosedRange<UInt32> { records.set(0, for: GroupID(id)) }
        var seen = 0
        for value in records.elements {
            #expect(value == 0)
            seen += 1
            records.update(GroupID(UInt32(501 - seen))) { $0 = 1 }
            records.remove(GroupID(UInt32(seen)))
        }
        #expect(seen == 500)
        #expect(records.isEmpty)
    }
}
