// A small group of replicas that a script drives by hand: no fault happens unless the script says so.

import KVBase
import ReplicationCore

/// Executes one command at a time and answers with what could be seen.
final class ScriptedCluster {
    private struct Node {
        var replica: Replica?
        var hardState = HardState()
        var compacted = LogPosition()
        var entries: [LogEntry] = []
        var applied = LogPosition()
        var membership: Membership
        var persists: [Persist] = []
        var isDiskHeld = false
    }

    private var nodes: [UInt32: Node] = [:]
    private var order: [UInt32] = []
    private var messages: [(from: UInt32, to: UInt32, message: Message)] = []
    private var blocked: Set<String> = []
    private var now = Instant(nanoseconds: 1_000_000_000)
    private var token: UInt64 = 0
    private var output: [String] = []
    private var isQuiet = false
    private var tuning = Tuning()

    /// Runs `line` and returns what it made visible, one event per line.
    func execute(_ line: String) -> [String] {
        output = []
        var words = line.split(separator: " ").map(String.init)
        isQuiet = words.last == "quietly"
        if isQuiet { words.removeLast() }
        let command = words.removeFirst()
        func number(_ place: Int) -> UInt32 { UInt32(words[place])! }
        switch command {
        case "cluster": build(voters: ids(words[0]))
        case "new": add(number(0), membership: .empty)
        case "nominate": step(number(0), .nominate(Term(UInt64(words[1])!)))
        case "propose": step(number(0), .propose(words.dropFirst().map { Bytes($0.utf8) }))
        case "read":
            token += 1
            step(number(0), .read(token: token, words[1] == "lease" ? .lease : .quorum))
        case "transfer": step(number(0), .transferLeadership(to: ReplicaID(number(1))))
        case "step-down": step(number(0), .stepDown)
        case "unreachable": step(number(0), .unreachable(ReplicaID(number(1))))
        case "change": change(words)
        case "compact": step(number(0), .compact(upTo: LogIndex(UInt64(words[1])!)))
        case "snapshot": snapshot(from: number(0), to: number(1))
        case "fail-snapshot":
            step(
                number(0),
                .snapshotSent(
                    to: ReplicaID(number(1)), position: nodes[number(0)]!.applied,
                    succeeded: false))
        case "retain": tuning.retainedBytesMax = Int(words[0])!
        case "block": blocked.formUnion(words)
        case "heal": blocked = []
        case "hold-disk": nodes[number(0)]!.isDiskHeld = true
        case "release-disk": nodes[number(0)]!.isDiskHeld = false
        case "crash": crash(number(0))
        case "restart": start(number(0))
        case "run": run()
        case "advance": advance(milliseconds: UInt64(words[0])!)
        case "jump": now = now + .milliseconds(UInt64(words[0])!)
        case "status": status()
        default: output.append("unknown command \(command)")
        }
        return output
    }

    // MARK: Nodes

    private func ids(_ word: String) -> [UInt32] { word.split(separator: ",").map { UInt32($0)! } }

    private func member(_ id: UInt32) -> Member {
        Member(replica: ReplicaID(id), node: NodeID(id))
    }

    private func build(voters: [UInt32]) {
        for id in voters { add(id, membership: Membership(voters: voters.map(member))) }
    }

    private func add(_ id: UInt32, membership: Membership) {
        nodes[id] = Node(membership: membership)
        order.append(id)
        start(id)
    }

    private func start(_ id: UInt32) {
        let node = nodes[id]!
        let restored = RestoredState(
            hardState: node.hardState, applied: node.applied, membership: node.membership,
            entries: node.entries, compacted: node.compacted)
        nodes[id]!.replica = Replica(
            group: GroupID(1), id: ReplicaID(id), tuning: tuning, restored: restored,
            seed: UInt64(id), now: now)
    }

    private func crash(_ id: UInt32) {
        nodes[id]!.replica = nil
        nodes[id]!.persists = []
        nodes[id]!.isDiskHeld = false
    }

    private func say(_ text: String) { if !isQuiet { output.append(text) } }

    private func step(_ id: UInt32, _ event: Event) {
        guard nodes[id]?.replica != nil else { return }
        var effects = Effects()
        nodes[id]!.replica!.step(event, now: now, into: &effects)
        let replica = nodes[id]!.replica!
        if effects.roleChanged {
            let leader = replica.leader == .none ? "no leader" : "leader \(replica.leader)"
            let reasons = effects.leadershipChanges.map { " (\($0))" }.joined()
            say("\(id) is \(replica.role) in term \(replica.term), \(leader)\(reasons)")
        }
        nodes[id]!.persists += effects.persists
        for item in effects.messages { messages.append((id, item.to.rawValue, item.message)) }
        if let proposed = effects.proposed {
            say("\(id) took \(proposed.count) at \(proposed.first) in term \(proposed.term)")
        }
        if effects.proposalsRefused { say("\(id) refused the proposal") }
        for ready in effects.readsReady { say("\(id) read \(ready.token) at \(ready.index)") }
        for refused in effects.readsRefused { say("\(id) read \(refused.token) \(refused.1)") }
        for outcome in effects.membershipOutcomes {
            say("\(id) change \(outcome.token): \(outcome.error?.description ?? "done")")
        }
        for replica in effects.snapshotsNeeded { say("\(id) has to send a snapshot to \(replica)") }
        if let last = effects.committed.last {
            let texts = effects.committed.map { entry in
                switch entry.kind {
                case .noop: "noop"
                case .membership: "membership"
                case .command: String(decoding: entry.payload, as: UTF8.self)
                }
            }
            say("\(id) applied \(texts.joined(separator: " ")), now at \(last.index)")
            nodes[id]!.applied = LogPosition(index: last.index, term: last.term)
            for entry in effects.committed where entry.kind == .membership {
                nodes[id]!.membership = try! Membership.decode(entry.payload)
            }
            step(id, .applied(last.index))
        }
    }

    private func write(_ persist: Persist, _ id: UInt32) {
        if let state = persist.hardState { nodes[id]!.hardState = state }
        if let position = persist.snapshot {
            nodes[id]!.compacted = position
            nodes[id]!.entries = []
        }
        if let first = persist.entries.first {
            nodes[id]!.entries.removeAll { $0.index >= first.index }
            nodes[id]!.entries += persist.entries
        }
    }

    // MARK: Time and delivery

    /// Delivers messages and completes persists until nothing is left to do.
    private func run() {
        for _ in 0..<10_000 {
            var isIdle = true
            for id in order where !nodes[id]!.isDiskHeld && !nodes[id]!.persists.isEmpty {
                isIdle = false
                let persist = nodes[id]!.persists.removeFirst()
                write(persist, id)
                step(id, .persisted(persist.ticket))
            }
            if !messages.isEmpty {
                isIdle = false
                let item = messages.removeFirst()
                deliver(item.message, from: item.from, to: item.to)
            }
            if isIdle { return }
        }
        output.append("does not come to rest")
    }

    private func deliver(_ message: Message, from: UInt32, to: UInt32) {
        let isLost = blocked.contains("\(from)>\(to)") || nodes[to]?.replica == nil
        if let text = describe(message) { say("\(from)>\(to) \(text)\(isLost ? ", lost" : "")") }
        if !isLost { step(to, .message(from: ReplicaID(from), message)) }
    }

    private func advance(milliseconds: UInt64) {
        for _ in 0..<milliseconds / 10 {
            now = now + .milliseconds(10)
            for id in order { step(id, .tick) }
            run()
        }
    }

    /// Nil for heartbeats and their accepted answers: there are too many to read.
    private func describe(_ message: Message) -> String? {
        func place(_ position: LogPosition) -> String { "\(position.index)/\(position.term)" }
        switch message {
        case .voteRequest(let term, let last, let isPreVote, let released):
            return "\(isPreVote ? "pre-vote" : "vote")? term \(term), last \(place(last))"
                + (released ? ", lease released" : "")
        case .voteResponse(let term, let isPreVote, let granted, let retryAfter):
            let rest = retryAfter.count == 0 ? "" : ", again in \(retryAfter.count / 1_000_000) ms"
            return
                "\(isPreVote ? "pre-vote" : "vote") \(granted ? "yes" : "no"), term \(term)\(rest)"
        case .append(let term, let previous, let entries, let commit):
            return "append term \(term), after \(place(previous)), \(entries.count) entries,"
                + " commit \(commit)"
        case .appendResponse(let term, let accepted, let match, let hint):
            return accepted
                ? "appended term \(term), match \(match)"
                : "append refused, term \(term), hint \(place(hint))"
        case .heartbeat: return nil
        case .heartbeatResponse(let term, let accepted, _, _, _):
            return accepted ? nil : "heartbeat refused, term \(term)"
        case .timeoutNow(let term): return "campaign now, term \(term)"
        case .snapshotInstalled(let term, let position):
            return "snapshot installed, term \(term), \(place(position))"
        }
    }

    // MARK: Commands

    private func change(_ words: [String]) {
        token += 1
        let change: MembershipChange
        switch words[1] {
        case "add": change = .addLearner(member(UInt32(words[2])!))
        case "remove": change = .removeLearner(ReplicaID(UInt32(words[2])!))
        default: change = .replaceVoters(ids(words[2]).map(member))
        }
        step(UInt32(words[0])!, .changeMembership(change, token: token))
    }

    private func snapshot(from: UInt32, to: UInt32) {
        let position = nodes[from]!.applied
        let membership = nodes[from]!.membership
        nodes[to]!.applied = position
        nodes[to]!.membership = membership
        step(
            to,
            .snapshotInstalled(
                position: position, membership: membership, from: ReplicaID(from)))
        step(from, .snapshotSent(to: ReplicaID(to), position: position, succeeded: true))
    }

    private func status() {
        func list(_ members: [Member]) -> String {
            members.map { $0.replica.description }.joined(separator: ",")
        }
        for id in order {
            guard let replica = nodes[id]?.replica else {
                output.append("\(id) down")
                continue
            }
            let membership = replica.membership
            var text = "\(id) \(replica.role) term \(replica.term)"
            text += " log \(replica.compacted.index)...\(replica.lastPosition.index)"
            text += " commit \(replica.commit) applied \(replica.applied)"
            text += " voters \(list(membership.voters))"
            if membership.isJoint { text += " outgoing \(list(membership.outgoing))" }
            if !membership.learners.isEmpty { text += " learners \(list(membership.learners))" }
            if replica.role == .leader {
                text += replica.canServeReads(at: now) ? " lease" : " no lease"
            }
            output.append(text)
            for follower in replica.progress {
                output.append(
                    "  \(follower.member.replica) \(follower.state) match \(follower.match)"
                        + " lag \(follower.lag)")
            }
        }
    }
}
