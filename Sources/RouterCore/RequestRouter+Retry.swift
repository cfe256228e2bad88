// Holding, retrying and giving up.

import KVBase
import ShardCore

extension RequestRouter {
    // MARK: Time

    /// When `advance` wants to be called next; nil: only after something happened.
    public var nextWake: Instant? {
        var wake: Instant? =
            oldest == PendingOperation.none ? nil : operations[Int(oldest)].deadline
        for client in heldClients {
            // The answer that a twin waits for wakes it up, or that answer's own deadline.
            guard let index = firstHeld(of: client), !operations[Int(index)].waitsForTwin
            else { continue }
            let retryAt = operations[Int(index)].retryAt
            if wake.map({ retryAt < $0 }) ?? true { wake = retryAt }
        }
        return wake
    }

    /// Ends what is over its deadline, tries again what is due.
    public mutating func advance(now: Instant, into effects: inout RouterEffects) {
        while oldest != PendingOperation.none, operations[Int(oldest)].deadline <= now {
            expire(oldest, into: &effects)
        }
        retryHeld(now: now, isWorldChanged: false, into: &effects)
    }

    private mutating func expire(_ index: UInt32, into effects: inout RouterEffects) {
        let operation = operations[Int(index)]
        let waited = "after \((operation.deadline - operation.submitted).count / 1_000_000) ms"
        let error: DatabaseError
        if operation.state == .held {
            error = DatabaseError(
                .deadlineExceeded,
                "group \(operation.group) could not be reached \(waited); nothing was applied")
        } else if operation.isWrite {
            error = DatabaseError(
                .unknownOutcome, "no answer \(waited); the write may have been applied")
        } else {
            error = DatabaseError(.deadlineExceeded, "no answer \(waited)")
        }
        fail(index, error, into: &effects)
    }

    // MARK: Holding

    /// Moves an operation to the held ones. Its bytes leave the frame they were sent in.
    mutating func hold(
        _ index: UInt32, _ reason: RetryReason, retryAt: Instant? = nil, now: Instant
    ) {
        counters[reason] += 1
        if operations[Int(index)].state == .sent {
            let link = Int(operations[Int(index)].link)
            links[link].pendingBytes -= Int(operations[Int(index)].count)
            links[link].pendingOperations -= 1
            let copy = bytes(of: index)
            leaveBatch(operations[Int(index)].batch)
            keep(ByteWriter(continuing: copy), for: index)
        }
        operations[Int(index)].state = .held
        operations[Int(index)].waitsForTwin = false
        operations[Int(index)].retryAt = retryAt ?? now + backoff(index)
        let client = operations[Int(index)].destination.client
        clients[Int(client)].heldCount += 1
        if !clients[Int(client)].isListedAsHeld {
            clients[Int(client)].isListedAsHeld = true
            heldClients.append(client)
        }
    }

    /// The wait before the next attempt; doubles with each one.
    private mutating func backoff(_ index: UInt32) -> Nanoseconds {
        let attempts = operations[Int(index)].attempts
        operations[Int(index)].attempts = min(attempts + 1, 16)
        return min(tuning.backoffMin * (1 << UInt64(attempts)), tuning.backoffMax)
    }

    /// Tries held operations: all when the world changed, else those that are due.
    mutating func retryHeld(
        now: Instant, isWorldChanged: Bool, into effects: inout RouterEffects
    ) {
        var kept = 0
        for position in heldClients.indices {
            let client = heldClients[position]
            if clients[Int(client)].heldCount > 0 {
                retryClient(client, now: now, isWorldChanged: isWorldChanged, into: &effects)
            }
            if clients[Int(client)].heldCount > 0 {
                heldClients[kept] = client
                kept += 1
            } else {
                clients[Int(client)].isListedAsHeld = false
            }
        }
        heldClients.removeSubrange(kept...)
    }

    /// Sends the held operations of one client in order, up to the first that cannot go.
    mutating func retryClient(
        _ client: UInt32, now: Instant, isWorldChanged: Bool, into effects: inout RouterEffects
    ) {
        var index = clients[Int(client)].first
        while index != PendingOperation.none {
            let next = operations[Int(index)].nextOfClient
            if operations[Int(index)].state == .held {
                if !isWorldChanged, operations[Int(index)].retryAt > now { return }
                if operations[Int(index)].wantsNewPlan {
                    fail(
                        index, DatabaseError(.staleEpoch, "the shards changed"), into: &effects)
                } else if hasSentTwin(index) {
                    operations[Int(index)].waitsForTwin = true
                    operations[Int(index)].retryAt = .origin
                    return
                } else if !redirect(index, into: &effects),
                    operations[Int(index)].state == .held
                {
                    operations[Int(index)].waitsForTwin = false
                    operations[Int(index)].retryAt = now + backoff(index)
                    return
                }
            }
            index = next
        }
    }

    /// Routes a held operation anew and sends it. False when it stays held or has ended.
    private mutating func redirect(_ index: UInt32, into effects: inout RouterEffects) -> Bool {
        let operation = operations[Int(index)]
        var location = ShardLocation(shard: .none, epoch: .none, group: operation.group)
        if operation.code != .list {
            guard let table = map.tables[operation.table],
                let named = Bytes(table.name.utf8).withUnsafeBytes({ map.table(named: $0) }),
                named.table.id == operation.table
            else {
                fail(
                    index, DatabaseError(.tableNotFound, "the table was dropped; nothing applied"),
                    into: &effects)
                return false
            }
            location = withKey(of: index) { named.locate(key: $0) }
            operations[Int(index)].group = location.group
        }
        let link = openLink(to: location.group)
        guard link != PendingOperation.none,
            links[Int(link)].pendingBytes + Int(operation.count) <= tuning.nodePendingBytesMax
        else { return false }
        send(index, on: link, location: operation.code == .list ? nil : location)
        return true
    }

    /// Puts an operation with bytes of its own into the frame for `link`, under a new location.
    mutating func send(_ index: UInt32, on link: UInt32, location: ShardLocation?) {
        let own = bytes(of: index)
        if operations[Int(index)].state == .held {
            clients[Int(operations[Int(index)].destination.client)].heldCount -= 1
        }
        leaveBatch(operations[Int(index)].batch)
        let batch = openBatch(of: link)
        place(index, on: link, batch: batch)
        batches[Int(batch)].writer.write(index)
        own.withUnsafeBytes { bytes in
            guard let location else {
                batches[Int(batch)].writer.writeRaw(bytes)
                return
            }
            batches[Int(batch)].writer.write(location.group)
            batches[Int(batch)].writer.write(location.shard)
            batches[Int(batch)].writer.write(location.epoch)
            batches[Int(batch)].writer.writeRaw(UnsafeRawBufferPointer(rebasing: bytes[12...]))
        }
        sealIfFull(link)
    }

    // MARK: Ending

    /// Ends an operation with an error of the router's own.
    mutating func fail(
        _ index: UInt32, _ error: DatabaseError, into effects: inout RouterEffects
    ) {
        counters.failed += 1
        effects.failures.append(
            RouterEffects.Failure(destination: operations[Int(index)].destination, error: error))
        if operations[Int(index)].state == .sent { abandon(index) } else { release(index) }
    }

    // MARK: Order

    func firstHeld(of client: UInt32) -> UInt32? {
        guard clients[Int(client)].heldCount > 0 else { return nil }
        var index = clients[Int(client)].first
        while index != PendingOperation.none {
            if operations[Int(index)].state == .held { return index }
            index = operations[Int(index)].nextOfClient
        }
        return nil
    }

    /// Whether the same client has sent an operation for the same key that is not answered: until
    /// then this one stays, for the two may meet different leaders.
    func hasSentTwin(_ index: UInt32) -> Bool {
        guard operations[Int(index)].code != .list else { return false }
        var other = clients[Int(operations[Int(index)].destination.client)].first
        while other != PendingOperation.none {
            if other != index, operations[Int(other)].state == .sent, areTwins(index, other) {
                return true
            }
            other = operations[Int(other)].nextOfClient
        }
        return false
    }

    /// Ends the held operations that `index`, which succeeded, has overtaken: they were refused,
    /// and to apply them now would change the client's order.
    mutating func failOvertaken(by index: UInt32, into effects: inout RouterEffects) {
        guard operations[Int(index)].code != .list else { return }
        var other = operations[Int(index)].previousOfClient
        while other != PendingOperation.none {
            let previous = operations[Int(other)].previousOfClient
            if operations[Int(other)].state == .held, areTwins(index, other),
                operations[Int(index)].isWrite || operations[Int(other)].isWrite
            {
                fail(
                    other,
                    DatabaseError(
                        .unavailable,
                        "a later command of this connection for the key took effect first; "
                            + "this one was not applied"), into: &effects)
            }
            other = previous
        }
    }

    private func areTwins(_ left: UInt32, _ right: UInt32) -> Bool {
        guard operations[Int(left)].table == operations[Int(right)].table,
            operations[Int(right)].code != .list
        else { return false }
        return withKey(of: left) { a in withKey(of: right) { b in compareBytes(a, b) == 0 } }
    }
}
