// Who may join: identities, names and addresses of nodes.

import KVBase
import ShardCore

extension Controller {
    /// A registration whose record is on its way to the store.
    struct Admission: Sendable {
        var connection: ConnectionID
        var incarnation: UInt64
        var record: Node
        /// The earlier holder of the name, under its new name.
        var renamed: Node?
        var isNew: Bool
    }

    private static let refusalsMax = 1_000

    mutating func register(
        _ connection: ConnectionID, _ registration: NodeRegistration, now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard isActing else { return effects.append(.reject(connection, notActing)) }
        if let objection = objection(to: registration, now: now) {
            effects.append(.reject(connection, objection))
            return note(objection, to: registration, now: now, into: &effects)
        }
        refusals[registration.name] = nil
        var admission = Admission(
            connection: connection, incarnation: registration.incarnation,
            record: Node(
                id: registration.node, name: registration.name,
                rpcAddress: registration.rpcAddress, adminAddress: registration.adminAddress,
                zone: registration.zone, isSpare: registration.isSpare,
                diskCount: UInt8(registration.diskPaths.count)),
            renamed: nil, isNew: false)
        var transaction = MetadataTransaction()
        if let known = knownNode(registration) {
            admission.record.id = known.record.id
            // Only operators move a node in or out of the spare pool once it is known.
            admission.record.isSpare = known.record.isSpare
            if admission.record == known.record {
                return admit(admission, now: now, into: &effects)
            }
        } else {
            admission.isNew = true
            if registration.node == .none {
                admission.record.id = IDAllocators.take(&ids.node)
            }
            if var old = node(named: registration.name)?.record {
                old.name = "\(old.name)~\(old.id)"
                admission.renamed = old
                transaction.put(old)
            }
            transaction.put(ids)
        }
        transaction.put(admission.record)
        admissions.append(admission)
        store(transaction, then: .admission(admission), into: &effects)
    }

    mutating func admitted(
        _ admission: Admission, now: Instant, into effects: inout ControllerEffects
    ) {
        admissions.removeAll { $0.record.id == admission.record.id }
        if let old = admission.renamed {
            nodes.update(old.id) { $0.record = old }
            changes.append(.node(old))
            decide(
                "node \(old.id) is now called \(old.name): a wiped node took its name over "
                    + "as node \(admission.record.id)",
                nodes: [old.id, admission.record.id], now: now, into: &effects)
        }
        if admission.isNew {
            nodes.set(
                NodeStatus(record: admission.record, lastHeard: now), for: admission.record.id)
        } else {
            nodes.update(admission.record.id) { $0.record = admission.record }
        }
        changes.append(.node(admission.record))
        admit(admission, now: now, into: &effects)
    }

    // MARK: Helpers

    private mutating func admit(
        _ admission: Admission, now: Instant, into effects: inout ControllerEffects
    ) {
        let id = admission.record.id
        guard let before = nodes[id] else { return }
        if let old = before.connection, old != admission.connection {
            connections[old] = nil
            effects.append(
                .reject(old, DatabaseError(.fenced, "a newer connection of node \(id) took over")))
        }
        let isRestart = before.incarnation != admission.incarnation
        if isRestart { forget(reportsOf: id, now: now, into: &effects) }
        connections[admission.connection] = id
        nodes.update(id) { node in
            node.connection = admission.connection
            node.incarnation = admission.incarnation
            node.health = .up
            node.downSince = nil
            node.lastHeard = now
            node.hasReported = false
            node.reporters = []
        }
        lastUnrest = now
        if firstNodeAt == nil { firstNodeAt = now }
        lastNodeAt = now
        effects.append(
            .admit(
                admission.connection,
                NodeAdmission(node: id, cluster: cluster, controllerTerm: term)))
        let text =
            "admitted \(admission.isNew ? "new node" : "node") \(id) \(admission.record.name) "
            + "at \(admission.record.rpcAddress)" + (admission.record.isSpare ? " as a spare" : "")
        // After a change of controllers all of them come: no news of any of them.
        if admission.isNew || before.health == .down || (isRestart && before.incarnation != 0) {
            decide(text, nodes: [id], now: now, into: &effects)
        } else {
            effects.append(.decided(text))
        }
    }

    /// A refused node comes again and again: what it was told is noted once.
    private mutating func note(
        _ objection: DatabaseError, to registration: NodeRegistration, now: Instant,
        into effects: inout ControllerEffects
    ) {
        let text = "refused node \(registration.name): \(objection.message)"
        guard objection.code != .unavailable, refusals[registration.name] != text else {
            return effects.append(.decided(text))
        }
        if refusals.count >= Self.refusalsMax { refusals.removeAll() }
        refusals[registration.name] = text
        decide(
            text, nodes: [registration.node].filter { $0 != .none }, now: now, into: &effects)
    }

    private func node(named name: String) -> NodeStatus? {
        nodes.elements.first { $0.record.name == name }
    }

    /// The node this registration returns as. A new process that lost the answer to its first
    /// registration comes back without an identity, but with its incarnation.
    private func knownNode(_ registration: NodeRegistration) -> NodeStatus? {
        if registration.node != .none { return nodes[registration.node] }
        guard let named = node(named: registration.name),
            named.incarnation == registration.incarnation, named.incarnation != 0
        else { return nil }
        return named
    }

    private func objection(to registration: NodeRegistration, now: Instant) -> DatabaseError? {
        let name = registration.name
        guard (1...128).contains(name.utf8.count), !name.contains("~") else {
            return DatabaseError(
                .invalidRequest, "a node name has 1 to 128 bytes and no '~', not '\(name)'")
        }
        guard !registration.rpcAddress.isEmpty, (1...255).contains(registration.diskPaths.count)
        else {
            return DatabaseError(
                .invalidRequest, "a node needs an RPC address and 1 to 255 data directories")
        }
        if registration.cluster != 0, registration.cluster != cluster {
            return DatabaseError(
                .refused,
                "node \(name) belongs to cluster \(hex(registration.cluster)), this is cluster "
                    + "\(hex(cluster)); point it at its own controllers or give it empty data "
                    + "directories")
        }
        if admissions.contains(where: {
            $0.record.name == name || $0.record.id == registration.node
        }) {
            return DatabaseError(.unavailable, "node \(name) is being registered; repeat")
        }
        guard registration.node != .none else {
            guard let named = node(named: name), named.incarnation != registration.incarnation,
                isHeard(named, now: now)
            else { return nil }
            return DatabaseError(
                .refused,
                "a node named \(name) is live as node \(named.record.id); stop it or choose "
                    + "another name")
        }
        guard registration.cluster != 0, let known = nodes[registration.node] else {
            // Admitted by metadata that was lost: it keeps its identity and what it holds.
            if registration.cluster != 0, registration.node < issuedBelow { return nil }
            let reason =
                registration.cluster != 0 && registration.node.rawValue < ids.node
                ? "was removed from this cluster" : "was not issued by this cluster's metadata"
            return DatabaseError(
                .fenced,
                "node id \(registration.node) \(reason); empty the data directories of \(name) to "
                    + "join anew")
        }
        guard known.record.name == name || known.record.name == Self.unknownNode(known.record.id)
        else {
            return DatabaseError(
                .fenced,
                "node \(registration.node) is known as \(known.record.name), not \(name)"
                    + (known.record.name.contains("~")
                        ? "; its name was taken over by a newer node, so empty its data "
                            + "directories to join anew" : "; start it under that name"))
        }
        if known.incarnation != registration.incarnation, known.connection != nil,
            isHeard(known, now: now)
        {
            return DatabaseError(
                .unavailable,
                "another process runs as node \(registration.node) and was heard "
                    + "\((now - known.lastHeard).count / 1_000_000) ms ago; repeat")
        }
        return nil
    }

    /// What a node is called of which a restore knew the id only.
    static func unknownNode(_ id: NodeID) -> String { "unknown~\(id)" }

    private func isHeard(_ node: NodeStatus, now: Instant) -> Bool {
        node.connection != nil && now - node.lastHeard < settings.nodeSuspectAfter
    }
}
