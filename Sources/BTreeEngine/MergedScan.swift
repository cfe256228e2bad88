// A scan over several layers.

import KVBase

/// Merges overlays and tree in key order.
struct MergedScan {
    /// The newest first.
    let overlays: [Overlay]
    let tree: Tree
    let transaction: OpaquePointer

    /// Merges the layers in key order; a newer layer hides what it has or deleted.
    func run(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        var positions = overlays.map { $0.records.lowerBound(from) }
        let cursor = try TreeCursor(tree, transaction)
        try cursor.seek(from)
        while true {
            let layer = smallestLayer(positions)
            if cursor.isValid, layer.map({ compare(cursor.key, positions, $0) < 0 }) ?? true {
                if let to, compareBytes(cursor.key, to) >= 0 { return }
                if let range = deletedRange(around: cursor.key, above: overlays.count) {
                    try seek(cursor, range.end)
                    continue
                }
                guard body(cursor.key, cursor.value) else { return }
                try cursor.next()
                continue
            }
            guard let layer else { return }
            let position = positions[layer]
            // Older versions of the same key are passed over.
            for older in layer + 1..<overlays.count
            where !overlays[older].records.isEnd(positions[older])
                && overlays[layer].records.withEntry(
                    at: position, { key, _ in compare(key, positions, older) }) == 0
            {
                positions[older] = overlays[older].records.next(positions[older])
            }
            let isInTree =
                cursor.isValid && compare(cursor.key, positions, layer) == 0
            let goOn = overlays[layer].records.withEntry(at: position) { key, tagged in
                if let to, compareBytes(key, to) >= 0 { return false }
                guard case .value(let value) = Overlay.answer(tagged),
                    deletedRange(around: key, above: layer) == nil
                else { return true }
                return body(key, value)
            }
            guard goOn else { return }
            if isInTree { try cursor.next() }
            positions[layer] = overlays[layer].records.next(position)
        }
    }

    /// The overlay whose next record is the lowest; of equal ones the newest.
    private func smallestLayer(_ positions: [SortedMap.Position]) -> Int? {
        var smallest: Int?
        for layer in overlays.indices
        where !overlays[layer].records.isEnd(positions[layer]) {
            guard let other = smallest else {
                smallest = layer
                continue
            }
            let order = overlays[layer].records.withEntry(at: positions[layer]) { key, _ in
                compare(key, positions, other)
            }
            if order < 0 { smallest = layer }
        }
        return smallest
    }

    private func compare(
        _ key: UnsafeRawBufferPointer, _ positions: [SortedMap.Position], _ layer: Int
    ) -> Int {
        overlays[layer].records.withEntry(at: positions[layer]) { other, _ in
            compareBytes(key, other)
        }
    }

    /// A range that holds `key` and was deleted in a layer newer than `layer`.
    private func deletedRange(
        around key: UnsafeRawBufferPointer, above layer: Int
    ) -> KeyRange? {
        for newer in overlays[..<layer] {
            if let range = newer.deletedRange(around: key) { return range }
        }
        return nil
    }

    private func seek(_ cursor: TreeCursor, _ target: Bytes?) throws(DatabaseError) {
        guard let target else { return }
        var failure: DatabaseError?
        target.withUnsafeBytes { target in
            do throws(DatabaseError) { try cursor.seek(target) } catch { failure = error }
        }
        if let failure { throw failure }
    }
}
