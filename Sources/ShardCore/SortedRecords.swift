// Records by id, walked in order of id.

import KVBase

/// Records in an array sorted by id: walks in a fixed order, finds by binary search.
public struct SortedRecords<ID: IntegerIdentity, Record> {
    private var ids: [ID] = []
    public private(set) var elements: [Record] = []

    public init() {}

    public var count: Int { elements.count }
    public var isEmpty: Bool { elements.isEmpty }
    public var last: Record? { elements.last }

    public subscript(id: ID) -> Record? {
        let position = position(of: id)
        return position < ids.count && ids[position] == id ? elements[position] : nil
    }

    public mutating func set(_ record: Record, for id: ID) {
        let position = position(of: id)
        if position < ids.count, ids[position] == id {
            elements[position] = record
        } else {
            ids.insert(id, at: position)
            elements.insert(record, at: position)
        }
    }

    @discardableResult
    public mutating func remove(_ id: ID) -> Record? {
        let position = position(of: id)
        guard position < ids.count, ids[position] == id else { return nil }
        ids.remove(at: position)
        return elements.remove(at: position)
    }

    /// Changes a record in place; false when there is none.
    @discardableResult
    public mutating func update(_ id: ID, _ body: (inout Record) -> Void) -> Bool {
        let position = position(of: id)
        guard position < ids.count, ids[position] == id else { return false }
        body(&elements[position])
        return true
    }

    private func position(of id: ID) -> Int {
        // Ids are issued in rising order, so most insertions go to the end.
        if let last = ids.last, last < id { return ids.count }
        var low = 0
        var high = ids.count
        while low < high {
            let middle = (low + high) / 2
            if ids[middle] < id { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

extension SortedRecords: Sendable where Record: Sendable {}
