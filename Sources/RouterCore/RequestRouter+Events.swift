// What reaches the router from outside: answers, connections, map updates.

import KVBase
import ShardCore

extension RequestRouter {
    // MARK: Answers

    /// Takes one answer of `node`. `error` nil: success. `hint`: what a `.notLeader` answer tells.
    ///
    /// With `.deliver` the operation has ended and the caller passes the answer on; an error that
    /// comes with it is for the client.
    public mutating func receive(
        from node: NodeID, token: UInt32, error: ErrorCode?,
        hint: (term: Term, node: NodeID)? = nil, now: Instant, into effects: inout RouterEffects
    ) -> ResponseVerdict {
        guard token < operations.count, let place = linkPlace(of: node) else { return .dropped }
        let state = operations[Int(token)].state
        guard state == .sent || state == .abandoned, operations[Int(token)].link == place else {
            return .dropped
        }
        if state == .abandoned {
            counters.lateResponses += 1
            release(token)
            return .dropped
        }
        let operation = operations[Int(token)]
        let destination = operation.destination
        if let error, let reason = retryReason(error, of: token) {
            refuse(token, reason, hint: hint, now: now, into: &effects)
            return .held
        }
        let hasHeld = clients[Int(destination.client)].heldCount > 0
        if hasHeld, error == nil { failOvertaken(by: token, into: &effects) }
        release(token)
        if hasHeld {
            retryClient(
                destination.client, now: now, isWorldChanged: false, into: &effects)
        }
        return .deliver(destination, operation.code, submitted: operation.submitted)
    }

    /// Why an operation may be tried again after `error`; nil when the client gets the error.
    private func retryReason(_ error: ErrorCode, of index: UInt32) -> RetryReason? {
        switch error {
        case .notLeader: .notLeader
        case .unavailable: .unavailable
        case .staleEpoch, .tableNotFound: .staleEpoch
        case .unknownOutcome: operations[Int(index)].isWrite ? nil : .unavailable
        default: nil
        }
    }

    private mutating func refuse(
        _ index: UInt32, _ reason: RetryReason, hint: (term: Term, node: NodeID)?, now: Instant,
        into effects: inout RouterEffects
    ) {
        let group = operations[Int(index)].group
        if reason == .staleEpoch {
            effects.wantsMapRefresh = true
            if operations[Int(index)].code == .list { operations[Int(index)].wantsNewPlan = true }
        }
        let isReplanned = operations[Int(index)].wantsNewPlan
        hold(index, reason, retryAt: isReplanned ? now + tuning.backoffMax : nil, now: now)
        // A hint of "nobody" says less than the map: the controller's word is awaited.
        if reason == .notLeader, let hint, hint.node != .none {
            observe(
                GroupLeader(group: group, term: hint.term, node: hint.node), now: now,
                into: &effects)
        }
    }

    // MARK: Map

    /// Takes over an update of the map. False: it does not follow, or leaves a table that its
    /// shards do not tile; ask for a full one.
    public mutating func apply(
        _ update: MapUpdate, now: Instant, into effects: inout RouterEffects
    ) -> Bool {
        let isTaken = map.apply(update)
        routeVersion += 1
        for node in map.nodes.elements { addLink(node.id) }
        resendReads(now: now)
        retryHeld(now: now, isWorldChanged: true, into: &effects)
        return isTaken
    }

    /// Takes over who leads a group, if that is news.
    public mutating func observe(
        _ leader: GroupLeader, now: Instant, into effects: inout RouterEffects
    ) {
        guard map.observeLeader(leader) else { return }
        routeVersion += 1
        resendReads(now: now)
        retryHeld(now: now, isWorldChanged: true, into: &effects)
    }

    /// Reads that wait for a node that no longer leads their group are asked of the new leader: the
    /// old one may be stopped without its connection having ended.
    private mutating func resendReads(now: Instant) {
        var index = oldest
        while index != PendingOperation.none {
            let next = operations[Int(index)].newer
            let operation = operations[Int(index)]
            if operation.state == .sent, !operation.isWrite, !hasSentWriteTwin(index) {
                let link = openLink(to: operation.group)
                if link != PendingOperation.none, link != operation.link {
                    replace(index, now: now)
                }
            }
            index = next
        }
    }

    /// Whether the read stands behind a write of its client to the same table: then it waits too.
    private func hasSentWriteTwin(_ index: UInt32) -> Bool {
        guard operations[Int(index)].code != .list else { return false }
        var other = operations[Int(index)].previousOfClient
        while other != PendingOperation.none {
            let earlier = operations[Int(other)]
            if earlier.isWrite, earlier.table == operations[Int(index)].table { return true }
            other = earlier.previousOfClient
        }
        return false
    }

    /// Gives a sent read a new token and holds it; the answer to the old one will be ignored.
    private mutating func replace(_ index: UInt32, now: Instant) {
        counters[.leaderChanged] += 1
        let copy = bytes(of: index)
        let old = operations[Int(index)]
        let fresh = take()
        operations[Int(fresh)] = old
        pendingBytes += Int(old.count)
        keep(ByteWriter(continuing: copy), for: fresh)
        substitute(index, by: fresh)
        operations[Int(index)].state = .abandoned
        operations[Int(fresh)].state = .held
        operations[Int(fresh)].retryAt = now
        let client = old.destination.client
        clients[Int(client)].heldCount += 1
        if !clients[Int(client)].isListedAsHeld {
            clients[Int(client)].isListedAsHeld = true
            heldClients.append(client)
        }
    }

    /// Puts `fresh`, a copy, into the places that `index` has in both lists.
    private mutating func substitute(_ index: UInt32, by fresh: UInt32) {
        let old = operations[Int(index)]
        if old.older == PendingOperation.none {
            oldest = fresh
        } else {
            operations[Int(old.older)].newer = fresh
        }
        if old.newer == PendingOperation.none {
            newest = fresh
        } else {
            operations[Int(old.newer)].older = fresh
        }
        let client = Int(old.destination.client)
        if old.previousOfClient == PendingOperation.none {
            clients[client].first = fresh
        } else {
            operations[Int(old.previousOfClient)].nextOfClient = fresh
        }
        if old.nextOfClient == PendingOperation.none {
            clients[client].last = fresh
        } else {
            operations[Int(old.nextOfClient)].previousOfClient = fresh
        }
    }

    // MARK: Connections

    /// The connection to a node stands: what waited for it goes.
    public mutating func nodeDidOpen(
        _ node: NodeID, now: Instant, into effects: inout RouterEffects
    ) {
        addLink(node)
        links[Int(linkPlace(of: node)!)].isOpen = true
        retryHeld(now: now, isWorldChanged: true, into: &effects)
    }

    /// The connection to a node ended. Reads, and writes that had not left, are tried elsewhere; a
    /// write that had left ends with `.unknownOutcome`, unless the node said that it carries out
    /// nothing more (`hasFinished`): then it is tried elsewhere too.
    public mutating func nodeDidClose(
        _ node: NodeID, hasFinished: Bool = false, now: Instant, into effects: inout RouterEffects
    ) {
        guard let place = linkPlace(of: node), links[Int(place)].isOpen else { return }
        links[Int(place)].isOpen = false
        routeVersion += 1
        effects.unreachable.append(node)
        let name = nodeName(node)
        // Client by client in order of deadline, so that held operations keep their order.
        var index = oldest
        while index != PendingOperation.none {
            let next = operations[Int(index)].newer
            let operation = operations[Int(index)]
            if operation.state == .sent, operation.link == place {
                if hasFinished || !operation.isWrite || batches[Int(operation.batch)].isOpen {
                    hold(index, .connectionLost, retryAt: now, now: now)
                } else {
                    fail(
                        index,
                        DatabaseError(
                            .unknownOutcome,
                            "the connection to \(name) broke; "
                                + "the write may have been applied"), into: &effects)
                }
            }
            index = next
        }
        for index in operations.indices
        where operations[index].state == .abandoned && operations[index].link == place {
            release(UInt32(index))
        }
        dropUnsent(of: place)
        retryHeld(now: now, isWorldChanged: true, into: &effects)
    }

    /// Whether the connection to a node is open.
    public func isOpen(_ node: NodeID) -> Bool {
        linkPlace(of: node).map { links[Int($0)].isOpen } ?? false
    }

    private mutating func dropUnsent(of place: UInt32) {
        var dropped: [UInt32] = []
        if links[Int(place)].current != PendingOperation.none {
            dropped.append(links[Int(place)].current)
            links[Int(place)].current = PendingOperation.none
            links[Int(place)].currentCount = 0
        }
        readyBatches.removeAll { ready in
            guard ready.link == place else { return false }
            dropped.append(ready.batch)
            return true
        }
        for batch in dropped {
            precondition(batches[Int(batch)].users == 0)
            recycle(batch)
        }
    }
}
