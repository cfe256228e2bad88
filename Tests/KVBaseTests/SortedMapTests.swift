// The sorted map against a dictionary.

import Testing

@testable import KVBase

@Suite struct SortedMapTests {
    @Test(arguments: 1...40 as ClosedRange<UInt64>)
    func behavesAsADictionary(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        var map = SortedMap()
        var model: [Bytes: Bytes] = [:]
        var copies: [(SortedMap, [Bytes: Bytes])] = []
        let keySpace = UInt64(1) << (4 + seed % 12)
        for step in 0..<2_000 {
            let key = Self.key(random.below(keySpace))
            let context = "seed \(seed), step \(step)"
            switch random.below(100) {
            case 0..<60:
                let value = Bytes(
                    repeating: UInt8(random.below(256)), count: Int(random.below(20)))
                key.withUnsafeBytes { key in value.withUnsafeBytes { map.put(key, $0) } }
                model[key] = value
            case 60..<90:
                let removed = key.withUnsafeBytes { map.remove($0) }
                #expect(removed == (model.removeValue(forKey: key) != nil), "\(context)")
            case 90..<93:
                let other = Self.key(random.below(keySpace))
                let isOpen = random.chance(1, in: 4)
                key.withUnsafeBytes { from in
                    other.withUnsafeBytes { map.removeRange(from: from, to: isOpen ? nil : $0) }
                }
                let range = KeyRange(start: key, end: isOpen ? nil : other)
                for candidate in model.keys where range.contains(candidate) {
                    model[candidate] = nil
                }
            case 93: copies.append((map, model))
            default:
                let found = key.withUnsafeBytes { map.get($0) { $0.map { Bytes($0) } } }
                #expect(found == model[key], "\(context)")
            }
        }
        Self.compare(map, model, "seed \(seed)")
        for (copy, old) in copies { Self.compare(copy, old, "seed \(seed), a copy") }
    }

    @Test func scanKeepsItsBounds() {
        var map = SortedMap()
        for number in 0..<1_000 as Range<UInt64> {
            Self.key(number).withUnsafeBytes { map.put($0, $0) }
        }
        let from = Self.key(100)
        let to = Self.key(900)
        var seen = 0
        from.withUnsafeBytes { from in
            to.withUnsafeBytes { to in
                map.scan(from: from, to: to) { key, value in
                    #expect(Bytes(key) == Self.key(100 + UInt64(seen)))
                    #expect(Bytes(key) == Bytes(value))
                    seen += 1
                    return seen < 700
                }
            }
        }
        #expect(seen == 700)
    }

    @Test func risingKeysFillChunks() {
        var map = SortedMap()
        for number in 0..<10_000 as Range<UInt64> {
            Self.key(number).withUnsafeBytes { map.put($0, $0) }
        }
        #expect(map.chunks.count <= 10_000 / SortedMap.chunkEntriesMax + 1)
    }

    private static func key(_ number: UInt64) -> Bytes {
        withUnsafeBytes(of: number.bigEndian) { Bytes($0.suffix(3)) }
    }

    private static func compare(
        _ map: SortedMap, _ model: [Bytes: Bytes], _ context: String
    ) {
        var records: [(Bytes, Bytes)] = []
        map.scan(from: UnsafeRawBufferPointer(start: nil, count: 0), to: nil) { key, value in
            records.append((Bytes(key), Bytes(value)))
            return true
        }
        let expected = model.sorted { compareBytes($0.key, $1.key) < 0 }
        #expect(records.map(\.0) == expected.map(\.key), "\(context)")
        #expect(records.map(\.1) == expected.map(\.value), "\(context)")
        #expect(map.count == model.count, "\(context)")
        #expect(
            map.byteCount == model.reduce(0) { $0 + $1.key.count + $1.value.count }, "\(context)")
        #expect(map.chunks.allSatisfy { !$0.isEmpty }, "\(context)")
    }
}
