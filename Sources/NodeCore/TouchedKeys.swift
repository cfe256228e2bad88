// What the batch being built does to keys, so that an operation sees those before it in the batch.

import KVBase

/// The last effect on each key of one engine batch. Exact: a key is compared, not only its hash.
public struct TouchedKeys: Sendable {
    /// What the batch leaves of a key.
    public enum Effect: Sendable {
        case written(Sequencer)
        case tombstone(Sequencer)
        case deleted

        fileprivate var isPresent: Bool {
            if case .deleted = self { false } else { true }
        }
    }

    private struct Slot {
        var keyOffset: Int
        var keyCount: Int
        var effect: Effect
        /// Slot of another key with the same hash, or -1.
        var next: Int
    }

    private var keys: Bytes = []
    private var slots: [Slot] = []
    /// From key hash to the first slot of that hash. Never walked.
    private var heads: [UInt64: Int] = [:]

    public init() {}

    public mutating func removeAll() {
        keys.removeAll(keepingCapacity: true)
        slots.removeAll(keepingCapacity: true)
        heads.removeAll(keepingCapacity: true)
    }

    public mutating func note(_ key: UnsafeRawBufferPointer, hash: UInt64, _ effect: Effect) {
        let head = heads[hash] ?? -1
        if let slot = find(key, from: head) {
            slots[slot].effect = effect
            return
        }
        slots.append(
            Slot(keyOffset: keys.count, keyCount: key.count, effect: effect, next: head))
        keys.append(contentsOf: key)
        heads[hash] = slots.count - 1
    }

    /// The batch deletes the range: what it did before to keys in it counts no more.
    public mutating func noteDeletion(of range: KeyRange) {
        keys.withUnsafeBytes { keys in
            for index in slots.indices where slots[index].effect.isPresent {
                let slot = slots[index]
                let key = UnsafeRawBufferPointer(
                    rebasing: keys[slot.keyOffset..<slot.keyOffset + slot.keyCount])
                if range.contains(key) { slots[index].effect = .deleted }
            }
        }
    }

    /// Nil when the batch does not touch the key.
    public func effect(on key: UnsafeRawBufferPointer, hash: UInt64) -> Effect? {
        guard !slots.isEmpty, let head = heads[hash] else { return nil }
        return find(key, from: head).map { slots[$0].effect }
    }

    private func find(_ key: UnsafeRawBufferPointer, from head: Int) -> Int? {
        var position = head
        while position >= 0 {
            let slot = slots[position]
            let isSame = keys.withUnsafeBytes { keys in
                slot.keyCount == key.count
                    && compareBytes(
                        UnsafeRawBufferPointer(
                            rebasing: keys[slot.keyOffset..<slot.keyOffset + slot.keyCount]), key)
                        == 0
            }
            if isSame { return position }
            position = slot.next
        }
        return nil
    }
}
