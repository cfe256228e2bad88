// The router's decisions: where an operation goes, whether it may be tried again, when to give up.
//
// One operation's way: `submit` writes it into the frame that this loop turn builds for the leader
// of its group; `flush` hands the frames out at the end of the turn; `receive` takes the answer.
// Whatever cannot be sent, or was refused without effect, is held and tried again until its
// deadline.

import KVBase
import ShardCore

/// What a step of the router leaves for its shell to do. The shell empties it after each step.
public struct RouterEffects: Sendable {
    /// Operations that end with an error of the router's own.
    public var failures: [Failure] = []
    /// The map is too old: ask the controller for what changed.
    public var wantsMapRefresh = false
    /// Nodes whose connection broke: tell the controller.
    public var unreachable: [NodeID] = []

    public struct Failure: Sendable {
        public var destination: Destination
        public var error: DatabaseError
    }

    public init() {}

    public var isEmpty: Bool { failures.isEmpty && !wantsMapRefresh && unreachable.isEmpty }
}

/// What became of a response.
public enum ResponseVerdict: Equatable, Sendable {
    /// It answers the operation of that destination, which was submitted then.
    case deliver(Destination, OperationCode, submitted: Instant)
    /// The operation is tried again.
    case held
    /// Nobody waits for it.
    case dropped
}

/// All unanswered operations of one event loop.
///
/// Invariants: a place of the slab is reused only after the node answered or its connection ended,
/// so a token names one operation at a time; the operations of one client for one key are sent such
/// that none takes effect before an earlier one that succeeds; a write is sent again only when it
/// was certainly not applied.
public struct RequestRouter {
    public private(set) var tuning: RouterTuning
    public internal(set) var map = ClusterMap()
    public internal(set) var counters = RouterCounters()
    /// Bytes of all operations sent or held.
    public internal(set) var pendingBytes = 0
    /// Operations sent, held or abandoned.
    public internal(set) var pendingOperations = 0

    var operations: [PendingOperation] = []
    var firstFree = PendingOperation.none
    var oldest = PendingOperation.none
    var newest = PendingOperation.none
    var clients: [ClientState] = []
    var freeClients: [UInt32] = []
    /// Clients with held operations, in order of the first hold.
    var heldClients: [UInt32] = []
    var links: [NodeLink] = []
    /// Node ids in order, each with its place in `links`.
    var linkPlaces: [(node: NodeID, place: UInt32)] = []
    var batches: [RequestBatch] = []
    var freeBatches: [UInt32] = []
    /// Batches to hand out at the next flush, in order of filling.
    var readyBatches: [(link: UInt32, batch: UInt32, count: UInt32)] = []
    /// Rises whenever an operation may be routed to another node than one before it.
    var routeVersion: UInt64 = 1

    public init(tuning: RouterTuning = RouterTuning()) { self.tuning = tuning }

    /// Operations that are submitted from now on are tried for this long.
    public mutating func setRequestDeadline(_ deadline: Nanoseconds) {
        tuning.requestDeadline = deadline
    }

    // MARK: Clients

    /// A new client; its number is free for reuse after `closeClient`.
    public mutating func openClient() -> UInt32 {
        var state = ClientState()
        state.isOpen = true
        if let reused = freeClients.popLast() {
            // A client that is still in the list of those with held operations stays there once.
            state.isListedAsHeld = clients[Int(reused)].isListedAsHeld
            clients[Int(reused)] = state
            return reused
        }
        clients.append(state)
        return UInt32(clients.count - 1)
    }

    /// Forgets a client: what it had held is dropped, what was sent is left to its fate.
    public mutating func closeClient(_ client: UInt32) {
        precondition(clients[Int(client)].isOpen)
        var index = clients[Int(client)].first
        while index != PendingOperation.none {
            let next = operations[Int(index)].nextOfClient
            if operations[Int(index)].state == .sent { abandon(index) } else { release(index) }
            index = next
        }
        clients[Int(client)].isOpen = false
        freeClients.append(client)
    }

    /// Whether nothing of the client is sent or held.
    public func isIdle(_ client: UInt32) -> Bool {
        clients[Int(client)].first == PendingOperation.none
    }

    // MARK: Submitting

    /// Takes over one operation. The bytes of `key` and `value` are copied before this returns. The
    /// error, if any, is the answer: the operation was not taken.
    public mutating func submit(
        _ code: OperationCode, flags: OperationFlags = [], expected: Sequencer? = nil,
        route: ClusterMap.Route, key: UnsafeRawBufferPointer, value: UnsafeRawBufferPointer,
        for destination: Destination, now: Instant
    ) -> DatabaseError? {
        let byteCount =
            Operation.headerByteCount + (expected == nil ? 0 : Sequencer.byteCount) + key.count
            + value.count
        guard pendingBytes + byteCount <= tuning.pendingBytesMax else {
            counters.failed += 1
            counters.refusedFull += 1
            return DatabaseError(.overloaded, "the router holds too many unanswered requests")
        }
        let client = Int(destination.client)
        var link = PendingOperation.none
        if clients[client].heldCount == 0 {
            link = openLink(to: route.location.group)
        }
        if link != PendingOperation.none {
            guard links[Int(link)].pendingBytes + byteCount <= tuning.nodePendingBytesMax else {
                counters.failed += 1
                counters.refusedNodeFull += 1
                return DatabaseError(
                    .overloaded,
                    "\(nodeName(links[Int(link)].node)) has too many unanswered requests")
            }
            // Operations sent under an older map may be with another node than this one will be.
            let first = clients[client].first
            if first == PendingOperation.none
                || operations[Int(first)].routeVersion == routeVersion
            {
                clients[client].routeVersion = routeVersion
            }
        }
        counters.submitted += 1
        let index = take()
        operations[Int(index)].code = code
        operations[Int(index)].destination = destination
        operations[Int(index)].table = route.table
        operations[Int(index)].group = route.location.group
        operations[Int(index)].count = UInt32(byteCount)
        operations[Int(index)].submitted = now
        operations[Int(index)].deadline = now + tuning.requestDeadline
        // They stay in order of their deadlines although later ones may be given less time.
        if newest != PendingOperation.none {
            operations[Int(index)].deadline = max(
                operations[Int(index)].deadline, operations[Int(newest)].deadline)
        }
        operations[Int(index)].routeVersion = routeVersion
        pendingBytes += byteCount
        linkOldest(index)
        linkClient(index)
        if link != PendingOperation.none, clients[client].routeVersion == routeVersion {
            let batch = openBatch(of: link)
            place(index, on: link, batch: batch)
            batches[Int(batch)].writer.write(index)
            batches[Int(batch)].writer.writeOperation(
                group: route.location.group, shard: route.location.shard,
                epoch: route.location.epoch, code: code, flags: flags, expected: expected,
                key: key, value: value)
            sealIfFull(link)
            return nil
        }
        var own = ByteWriter(reserving: byteCount)
        own.writeOperation(
            group: route.location.group, shard: route.location.shard, epoch: route.location.epoch,
            code: code, flags: flags, expected: expected, key: key, value: value)
        keep(own, for: index)
        if link != PendingOperation.none, !hasSentTwin(index) {
            // The map changed since the client's earlier operations left, but none is for this key.
            send(index, on: link, location: route.location)
            return nil
        }
        let isBehind = clients[client].heldCount > 0
        let reason: RetryReason =
            isBehind || link != PendingOperation.none ? .behindHeld : .noLeader
        hold(index, reason, retryAt: reason == .behindHeld ? .origin : nil, now: now)
        return nil
    }

    // MARK: Frames

    /// Whether `flush` has something to hand out.
    public var hasUnsent: Bool {
        !readyBatches.isEmpty || links.contains { $0.current != PendingOperation.none }
    }

    /// Hands out the requests frames of this turn: the node, the frame's body, its operations.
    public mutating func flush(
        _ send: (_ node: NodeID, _ body: UnsafeRawBufferPointer, _ operations: Int) -> Void
    ) {
        for ready in readyBatches { handOut(ready, send) }
        readyBatches.removeAll(keepingCapacity: true)
        for place in links.indices where links[place].current != PendingOperation.none {
            let ready = (
                link: UInt32(place), batch: links[place].current, count: links[place].currentCount
            )
            links[place].current = PendingOperation.none
            links[place].currentCount = 0
            handOut(ready, send)
        }
    }

    private mutating func handOut(
        _ ready: (link: UInt32, batch: UInt32, count: UInt32),
        _ send: (NodeID, UnsafeRawBufferPointer, Int) -> Void
    ) {
        let batch = Int(ready.batch)
        batches[batch].isOpen = false
        // Every operation may have been dropped in the meantime; then there is nothing to ask.
        guard batches[batch].users > 0 else {
            recycle(ready.batch)
            return
        }
        counters.frames += 1
        counters.operationsPerFrameMax = max(counters.operationsPerFrameMax, UInt64(ready.count))
        let node = links[Int(ready.link)].node
        batches[batch].writer.bytes.withUnsafeBytes { send(node, $0, Int(ready.count)) }
    }
}
