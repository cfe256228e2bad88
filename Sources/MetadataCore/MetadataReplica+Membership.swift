// Bringing the membership in step with the roster: welcome, learner, voter; or voter, learner, gone.
//
// The leader does one step at a time and looks again, so that a change which a leader began is
// finished by the next one.

import KVBase
import ReplicationCore

/// What the leader has under way to change who belongs to the group.
struct MembershipWork: Sendable {
    static let interval = Nanoseconds.milliseconds(100)
    /// After a refusal of the core.
    static let pause = Nanoseconds.milliseconds(500)
    /// A learner this close to the end becomes a voter.
    static let lagMax: UInt64 = 64
    /// A controller heard of within this time is live.
    static let silenceMax = Nanoseconds.milliseconds(1_000)

    var lookAt = Instant.origin
    var token: UInt64 = 0
    var isUnderWay = false

    mutating func ended(_ token: UInt64, _ error: DatabaseError?, now: Instant) {
        guard token == self.token else { return }
        isUnderWay = false
        if error != nil { lookAt = now + Self.pause }
    }
}

extension MetadataReplica {
    /// The leader's view of a member: how far behind, and whether it answered lately.
    public func progress(of replica: ReplicaID, now: Instant) -> (lag: UInt64, isLive: Bool)? {
        if replica == id { return (0, true) }
        guard let found = core.progress.first(where: { $0.member.replica == replica }) else {
            return nil
        }
        let isLive = found.acknowledgedAt.map { now - $0 < MembershipWork.silenceMax } ?? false
        return (found.lag, isLive)
    }

    mutating func workOnMembership(now: Instant, into effects: inout MetadataEffects) {
        guard now >= memberships.lookAt, !memberships.isUnderWay, core.canPropose else { return }
        memberships.lookAt = now + MembershipWork.interval
        let membership = core.membership
        if membership.isJoint { return }
        for member in image.roster.members where member.isLeaving {
            if membership.isVoter(member.replica) {
                let rest = membership.voters.filter { $0.replica != member.replica }
                if !rest.isEmpty { change(.replaceVoters(rest), now: now, into: &effects) }
            } else if membership.contains(member.replica) {
                change(.removeLearner(member.replica), now: now, into: &effects)
            } else {
                propose([.forget(member.replica)], now: now, into: &effects)
            }
            return
        }
        for member in image.roster.members where !membership.isVoter(member.replica) {
            let joining = Member(
                replica: member.replica, node: NodeID(member.replica.rawValue))
            if !member.isJoined {
                if isAlone(at: now) { effects.welcomes.append(member) }
            } else if !membership.contains(member.replica) {
                return change(.addLearner(joining), now: now, into: &effects)
            } else if let seen = progress(of: member.replica, now: now), seen.isLive,
                seen.lag <= MembershipWork.lagMax
            {
                return change(
                    .replaceVoters(membership.voters + [joining]), now: now, into: &effects)
            }
        }
    }

    private mutating func change(
        _ change: MembershipChange, now: Instant, into effects: inout MetadataEffects
    ) {
        memberships.token += 1
        memberships.isUnderWay = true
        run(
            .changeMembership(change, token: memberships.token), now: now, into: &effects)
    }

    /// Why a controller must not be dismissed now; nil when it may. The leader's word.
    public func objection(toDismissing name: String, now: Instant) -> DatabaseError? {
        guard let member = image.roster.member(named: name) else {
            let names = image.roster.members.map(\.name).joined(separator: ", ")
            return DatabaseError(
                .refused, "there is no controller \(name); there are \(names)")
        }
        let staying = image.roster.members.filter {
            $0.replica != member.replica && !$0.isLeaving && core.membership.isVoter($0.replica)
        }
        if staying.isEmpty {
            return DatabaseError(
                .refused,
                "\(name) is the only controller; add another one first: "
                    + "kvctl controller add NAME HOST:PORT")
        }
        let dead = staying.filter { progress(of: $0.replica, now: now)?.isLive != true }
        let live = staying.count - dead.count
        let needed = staying.count / 2 + 1
        guard live < needed else { return nil }
        let names = dead.map(\.name).joined(separator: ", ")
        return DatabaseError(
            .refused,
            "without \(name) the controllers are \(staying.map(\.name).joined(separator: ", ")), of "
                + "which \(needed) must answer, and \(names) \(dead.count == 1 ? "does" : "do") not; "
                + "start \(names) first, or remove \(dead[0].name) instead")
    }
}
