// Overlays and tree read as one.

import KVBase

/// What an engine holds at one moment: changes in memory above one state of the tree.
///
/// The tree may be newer than the overlays were: then it holds what they say, and reading them above
/// it gives the same answers.
struct LayeredView {
    /// The newest changes.
    var active: Overlay
    /// Those being written into the tree; empty when there are none.
    var flushing: Overlay
    var tree: Tree
    var transaction: OpaquePointer

    func get<R>(
        _ key: UnsafeRawBufferPointer, _ body: (UnsafeRawBufferPointer?) -> R
    ) throws(DatabaseError) -> R {
        if let result = Self.get(key, in: active, body) { return result }
        if let result = Self.get(key, in: flushing, body) { return result }
        return try tree.get(key, transaction, body)
    }

    func scan(
        from: UnsafeRawBufferPointer, to: UnsafeRawBufferPointer?,
        _ body: (_ key: UnsafeRawBufferPointer, _ value: UnsafeRawBufferPointer) -> Bool
    ) throws(DatabaseError) {
        let overlays = [active, flushing].filter { !$0.isEmpty }
        try MergedScan(overlays: overlays, tree: tree, transaction: transaction)
            .run(from: from, to: to, body)
    }

    private static func get<R>(
        _ key: UnsafeRawBufferPointer, in overlay: Overlay,
        _ body: (UnsafeRawBufferPointer?) -> R
    ) -> R? {
        if overlay.isEmpty { return nil }
        return overlay.get(key) { answer in
            switch answer {
            case .value(let value): return body(value)
            case .deleted: return body(nil)
            case .unknown: return nil
            }
        }
    }
}
