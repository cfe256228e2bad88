// Active overlay, overlay being written, and tree: read as one at every moment of a checkpoint.

import KVBase
import StorageAPI
import TestKit
import Testing

@testable import BTreeEngine

@Suite struct LayeredViewTests {
    /// Which overlays a reader saw, and whether the tree it then saw was newer.
    enum Moment: CaseIterable {
        case beforeCommit, afterCommit, afterNextCommit
    }

    @Test(arguments: Moment.allCases, 1...40 as ClosedRange<UInt64>)
    func layersReadAsOne(moment: Moment, seed: UInt64) throws {
        var random = SeededRandom(seed: seed)
        let directory = TemporaryDirectory()
        var options = BTreeOptions()
        options.mapBytes = 64 << 20
        let tree = try Tree(path: directory.path, options: options)
        defer { tree.close() }
        let model = MemoryEngine()
        var layers: [Overlay] = []
        for _ in 0..<3 {
            var overlay = Overlay()
            for _ in 0..<random.below(12) {
                let batch = Self.batch(&random)
                overlay.apply(batch)
                try model.apply(batch)
            }
            layers.append(overlay)
        }
        try tree.write(layers[0])
        if moment != .beforeCommit { try tree.write(layers[1]) }
        if moment == .afterNextCommit { try tree.write(layers[2]) }
        let transaction = try tree.beginRead()
        let view = BTreeSnapshot(
            LayeredView(
                active: layers[2], flushing: layers[1], tree: tree, transaction: transaction))
        defer { view.release() }
        let context = "\(moment) seed \(seed)"
        try #require(try view.records() == model.records(), "\(context)")
        for _ in 0..<60 {
            let from = Self.key(&random)
            let to = random.chance(1, in: 3) ? nil : Self.key(&random)
            #expect(
                try view.records(from: from, to: to) == model.records(from: from, to: to),
                "\(context)")
            #expect(try view.value(of: from) == model.value(of: from), "\(context)")
        }
    }

    private static func batch(_ random: inout SeededRandom) -> EngineBatch {
        var batch = EngineBatch()
        for _ in 0...random.below(4) {
            switch random.below(5) {
            case 0: batch.delete(key(&random))
            case 1: batch.deleteRange(key(&random), key(&random))
            default: batch.put(key(&random), [UInt8(random.below(256))])
            }
        }
        return batch
    }

    private static func key(_ random: inout SeededRandom) -> Bytes {
        let number = UInt8(random.below(24))
        return random.chance(1, in: 3)
            ? Bytes(repeating: 5, count: 509) + [number / 8, number] : [number / 4, number]
    }
}
