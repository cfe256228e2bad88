// A map with two groups on three nodes, and a router whose frames are taken apart again.

import KVBase
import RouterCore
import ShardCore
import Testing

/// One operation as a node would see it.
struct SeenOperation: Equatable {
    var node: NodeID
    var token: UInt32
    var group: GroupID
    var epoch: Epoch
    var code: OperationCode
    var key: String
    var value: String
}

/// A router, a clock, and what came out of it.
struct RouterFixture {
    var router: RequestRouter
    var effects = RouterEffects()
    var now = Instant(nanoseconds: 1_000_000_000)
    let client: UInt32
    private var slot: UInt32 = 0

    init(tuning: RouterTuning = RouterTuning(), connected: [UInt32] = [1, 2, 3]) {
        router = RequestRouter(tuning: tuning)
        client = router.openClient()
        let isTaken = router.apply(Self.fullMap(), now: now, into: &effects)
        precondition(isTaken)
        for node in connected { router.nodeDidOpen(NodeID(node), now: now, into: &effects) }
    }

    /// Table `t`: keys below "m" in group 1, led by node 1; the rest in group 2, led by node 2.
    static func fullMap(revision: UInt64 = 1, epoch: UInt32 = 1) -> MapUpdate {
        var changes: [MapChange] = []
        for node in 1...3 as ClosedRange<UInt32> {
            changes.append(
                .node(
                    Node(
                        id: NodeID(node), name: "node-\(node)", rpcAddress: "host:\(node)",
                        adminAddress: "", zone: "", isSpare: false, diskCount: 1)))
        }
        for group in 1...2 as ClosedRange<UInt32> {
            changes.append(
                .group(Group(id: GroupID(group), engine: .lsm, placements: [], state: .active)))
            changes.append(
                .leader(GroupLeader(group: GroupID(group), term: Term(1), node: NodeID(group))))
        }
        changes.append(
            .table(
                Table(
                    id: TableID(1), name: "t", partitioning: .range, engine: .lsm, replicas: 3,
                    state: .active)))
        let ranges = [KeyRange(start: [], end: [0x6D]), KeyRange(start: [0x6D], end: nil)]
        for (place, range) in ranges.enumerated() {
            changes.append(
                .shard(
                    Shard(
                        id: ShardID(UInt32(place + 1)), table: TableID(1), range: range,
                        group: GroupID(UInt32(place + 1)), epoch: Epoch(epoch), state: .active)))
        }
        return MapUpdate(isFull: true, from: .none, to: Revision(revision), changes: changes)
    }

    /// Submits and returns the slot the answer is for.
    @discardableResult
    mutating func submit(
        _ code: OperationCode, _ key: String, _ value: String = "", client other: UInt32? = nil
    ) -> UInt32 {
        slot += 1
        let error = trySubmit(code, key, value, client: other)
        #expect(error == nil, "\(code) \(key)")
        return slot
    }

    mutating func trySubmit(
        _ code: OperationCode, _ key: String, _ value: String, client other: UInt32? = nil
    ) -> DatabaseError? {
        let (keyBytes, valueBytes) = (Bytes(key.utf8), Bytes(value.utf8))
        return keyBytes.withUnsafeBytes { key in
            valueBytes.withUnsafeBytes { value in
                let route = Bytes("t".utf8).withUnsafeBytes {
                    router.map.route(tableNamed: $0, key: key)!
                }
                return router.submit(
                    code, route: route, key: key, value: value,
                    for: Destination(client: other ?? client, slot: slot, part: 0), now: now)
            }
        }
    }

    /// Ends the turn: all operations that leave, in order.
    mutating func flush() -> [SeenOperation] {
        var seen: [SeenOperation] = []
        router.flush { node, body, count in
            var reader = ByteReader(body)
            let before = seen.count
            while !reader.isAtEnd {
                guard let token = try? reader.readUInt32(),
                    let operation = try? Operation(from: &reader)
                else {
                    Issue.record("a frame that cannot be read")
                    return
                }
                seen.append(
                    SeenOperation(
                        node: node, token: token, group: operation.group, epoch: operation.epoch,
                        code: operation.code, key: String(decoding: operation.key, as: UTF8.self),
                        value: String(decoding: operation.value, as: UTF8.self)))
            }
            #expect(seen.count - before == count)
        }
        return seen
    }

    @discardableResult
    mutating func answer(
        _ operation: SeenOperation, _ error: ErrorCode? = nil,
        hint: (term: Term, node: NodeID)? = nil
    ) -> ResponseVerdict {
        router.receive(
            from: operation.node, token: operation.token, error: error, hint: hint, now: now,
            into: &effects)
    }

    mutating func wait(_ time: Nanoseconds) {
        now = now + time
        router.advance(now: now, into: &effects)
    }

    mutating func setLeader(of group: UInt32, node: UInt32, term: UInt64) {
        router.observe(
            GroupLeader(group: GroupID(group), term: Term(term), node: NodeID(node)), now: now,
            into: &effects)
    }

    /// The errors since the last call, by slot.
    mutating func takeFailures() -> [UInt32: ErrorCode] {
        defer { effects.failures = [] }
        return Dictionary(
            uniqueKeysWithValues: effects.failures.map { ($0.destination.slot, $0.error.code) })
    }
}

extension ResponseVerdict {
    /// The slot that was answered.
    var slot: UInt32? {
        if case .deliver(let destination, _, _) = self { destination.slot } else { nil }
    }
}
