// The router's bookkeeping: places of the slab, the two lists each operation is in, batches.

import KVBase
import ShardCore

extension RequestRouter {
    // MARK: Places

    mutating func take() -> UInt32 {
        pendingOperations += 1
        if firstFree != PendingOperation.none {
            let index = firstFree
            firstFree = operations[Int(index)].newer
            operations[Int(index)] = PendingOperation()
            return index
        }
        operations.append(PendingOperation())
        return UInt32(operations.count - 1)
    }

    /// Ends an operation: its bytes, its lists, its place.
    mutating func release(_ index: UInt32) {
        let state = operations[Int(index)].state
        if state == .sent || state == .abandoned { leaveLink(index) }
        if state != .abandoned { unlink(index) }
        dropBytes(index)
        operations[Int(index)].state = .free
        operations[Int(index)].newer = firstFree
        firstFree = index
        pendingOperations -= 1
    }

    /// Takes a sent operation from its client; the place stays taken for the late answer.
    mutating func abandon(_ index: UInt32) {
        unlink(index)
        operations[Int(index)].state = .abandoned
    }

    private mutating func leaveLink(_ index: UInt32) {
        let link = Int(operations[Int(index)].link)
        links[link].pendingBytes -= Int(operations[Int(index)].count)
        links[link].pendingOperations -= 1
    }

    private mutating func unlink(_ index: UInt32) {
        let client = Int(operations[Int(index)].destination.client)
        if operations[Int(index)].state == .held { clients[client].heldCount -= 1 }
        unlinkOldest(index)
        unlinkClient(index)
    }

    // MARK: Lists

    mutating func linkOldest(_ index: UInt32) {
        operations[Int(index)].older = newest
        if newest == PendingOperation.none {
            oldest = index
        } else {
            operations[Int(newest)].newer = index
        }
        newest = index
    }

    private mutating func unlinkOldest(_ index: UInt32) {
        let older = operations[Int(index)].older
        let newer = operations[Int(index)].newer
        if older == PendingOperation.none {
            oldest = newer
        } else {
            operations[Int(older)].newer = newer
        }
        if newer == PendingOperation.none {
            newest = older
        } else {
            operations[Int(newer)].older = older
        }
    }

    mutating func linkClient(_ index: UInt32) {
        let client = Int(operations[Int(index)].destination.client)
        let last = clients[client].last
        operations[Int(index)].previousOfClient = last
        if last == PendingOperation.none {
            clients[client].first = index
        } else {
            operations[Int(last)].nextOfClient = index
        }
        clients[client].last = index
    }

    private mutating func unlinkClient(_ index: UInt32) {
        let client = Int(operations[Int(index)].destination.client)
        let previous = operations[Int(index)].previousOfClient
        let next = operations[Int(index)].nextOfClient
        if previous == PendingOperation.none {
            clients[client].first = next
        } else {
            operations[Int(previous)].nextOfClient = next
        }
        if next == PendingOperation.none {
            clients[client].last = previous
        } else {
            operations[Int(next)].previousOfClient = previous
        }
    }

    // MARK: Batches

    /// The batch that this turn fills for `link`.
    mutating func openBatch(of link: UInt32) -> UInt32 {
        if links[Int(link)].current == PendingOperation.none {
            links[Int(link)].current = newBatch()
        }
        return links[Int(link)].current
    }

    /// Notes that the operation's bytes come next in `batch`, behind its token.
    mutating func place(_ index: UInt32, on link: UInt32, batch: UInt32) {
        operations[Int(index)].state = .sent
        operations[Int(index)].link = link
        operations[Int(index)].batch = batch
        operations[Int(index)].offset = UInt32(batches[Int(batch)].writer.count + 4)
        batches[Int(batch)].users += 1
        links[Int(link)].currentCount += 1
        links[Int(link)].pendingBytes += Int(operations[Int(index)].count)
        links[Int(link)].pendingOperations += 1
        counters.sent += 1
    }

    mutating func sealIfFull(_ link: UInt32) {
        let batch = links[Int(link)].current
        guard batches[Int(batch)].writer.count >= tuning.frameBytesTarget else { return }
        readyBatches.append((link, batch, links[Int(link)].currentCount))
        links[Int(link)].current = PendingOperation.none
        links[Int(link)].currentCount = 0
    }

    /// Gives a held operation a batch of its own.
    mutating func keep(_ bytes: consuming ByteWriter, for index: UInt32) {
        let batch = newBatch()
        batches[Int(batch)].writer = bytes
        batches[Int(batch)].users = 1
        batches[Int(batch)].isOpen = false
        operations[Int(index)].batch = batch
        operations[Int(index)].offset = 0
    }

    private mutating func newBatch() -> UInt32 {
        if let free = freeBatches.popLast() {
            batches[Int(free)].isOpen = true
            return free
        }
        batches.append(RequestBatch())
        return UInt32(batches.count - 1)
    }

    private mutating func dropBytes(_ index: UInt32) {
        pendingBytes -= Int(operations[Int(index)].count)
        leaveBatch(operations[Int(index)].batch)
    }

    mutating func leaveBatch(_ batch: UInt32) {
        batches[Int(batch)].users -= 1
        if batches[Int(batch)].users == 0, !batches[Int(batch)].isOpen { recycle(batch) }
    }

    mutating func recycle(_ batch: UInt32) {
        // What a burst made large is given back.
        if batches[Int(batch)].writer.count > 64 << 10 || freeBatches.count > 1_024 {
            batches[Int(batch)].writer = ByteWriter()
        } else {
            batches[Int(batch)].writer.removeAll()
        }
        freeBatches.append(batch)
    }

    /// The bytes of an operation, copied.
    func bytes(of index: UInt32) -> Bytes {
        withBytes(of: index) { Bytes($0) }
    }

    func withBytes<R>(of index: UInt32, _ body: (UnsafeRawBufferPointer) -> R) -> R {
        let operation = operations[Int(index)]
        let start = Int(operation.offset)
        return batches[Int(operation.batch)].writer.bytes.withUnsafeBytes {
            body(UnsafeRawBufferPointer(rebasing: $0[start..<start + Int(operation.count)]))
        }
    }

    /// Calls `body` with the key of an operation.
    func withKey<R>(of index: UInt32, _ body: (UnsafeRawBufferPointer) -> R) -> R {
        withBytes(of: index) { bytes in
            let keyCount = Int(
                UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt32.self)))
            let flags = OperationFlags(rawValue: bytes[13])
            let start =
                Operation.headerByteCount
                + (flags.contains(.conditional) ? Sequencer.byteCount : 0)
            return body(UnsafeRawBufferPointer(rebasing: bytes[start..<start + keyCount]))
        }
    }

    // MARK: Links

    /// How people call a node.
    func nodeName(_ node: NodeID) -> String { map.nodes[node]?.name ?? "node \(node)" }

    func linkPlace(of node: NodeID) -> UInt32? {
        let position = linkPosition(of: node)
        guard position < linkPlaces.count, linkPlaces[position].node == node else { return nil }
        return linkPlaces[position].place
    }

    mutating func addLink(_ node: NodeID) {
        let position = linkPosition(of: node)
        guard position == linkPlaces.count || linkPlaces[position].node != node else { return }
        linkPlaces.insert((node, UInt32(links.count)), at: position)
        links.append(NodeLink(node: node))
    }

    private func linkPosition(of node: NodeID) -> Int {
        var low = 0
        var high = linkPlaces.count
        while low < high {
            let middle = (low + high) / 2
            if linkPlaces[middle].node < node { low = middle + 1 } else { high = middle }
        }
        return low
    }

    /// The open link to the leader of `group`, `PendingOperation.none` when there is none.
    func openLink(to group: GroupID) -> UInt32 {
        guard let leader = map.leader(of: group), let place = linkPlace(of: leader.node),
            links[Int(place)].isOpen
        else { return PendingOperation.none }
        return place
    }
}
