// What the operator and the engineers may tune in the controller.

import KVBase

public struct ControllerSettings: Hashable, Sendable {
    /// This controller, in logs and as holder of the acting lease.
    public var name: String
    /// Groups formed at first, and per further kind of group that a table asks for.
    public var groupsInitial = 2
    /// Replicas of a group when a table does not say. 1, 3 or 5.
    public var replicasDefault = 3
    /// A node not heard for this long is suspect; its leaders are replaced.
    public var nodeSuspectAfter: Nanoseconds = .milliseconds(600)
    /// A node not heard for this long is down.
    public var nodeDownAfter: Nanoseconds = .seconds(5)

    /// A node whose event loop stood still for longer between two heartbeats is ill. A disk is ill
    /// when its node says that it is slow.
    public var loopDelayMax: Nanoseconds = .seconds(1)
    /// An ill node is well again after good reports for this long.
    public var wellAfter: Nanoseconds = .seconds(10)
    /// Replicas of a node or disk that is ill for this long are replaced, like those of a disk that
    /// failed.
    public var illAfter: Nanoseconds = .seconds(30)
    /// A leader on an ill disk that is asked to hand over is asked again after this: more than a
    /// replica takes to give a hand-over up.
    public var moveTimeout: Nanoseconds = .milliseconds(600)
    /// After so many vain hand-overs another replica is nominated in its place.
    public var moveAttemptsMax = 2

    /// Whether replicas of nodes that stay down are replaced without being asked for.
    public var repairs = true
    /// How long a node is down before its replicas are replaced.
    public var repairAfter: Nanoseconds = .seconds(5)
    /// Replacements that repair has under way at a time.
    public var replacementsMax = 4
    /// Groups for which one look of repair, once a second, seeks a node. Each costs a walk over the
    /// shards.
    public var repairLooksMax = 16
    /// A new replica that receives nothing for this long is given up.
    public var stallTimeout: Nanoseconds = .seconds(30)

    /// Moves of shards that a group takes part in at a time, as source or target.
    public var movesPerGroupMax = 1
    /// Moves of shards under way at a time.
    public var movesMax = 4
    /// How long a group keeps its copy of a shard that has moved away.
    public var releaseAfter: Nanoseconds = .seconds(60)
    /// Proposals that wait; the oldest gives way.
    public var proposalsMax = 100
    /// Live spares that no new group takes.
    public var sparesReserved = 1
    /// A shard with fewer requests per second is halved by its bytes, not by its load.
    public var splitLoadMin: UInt64 = 50
    /// A target that does not tell how far its copy is counts as ready to be asked after this.
    public var copySilence: Nanoseconds = .seconds(2)
    /// Digests that are still missing after this are asked for again; then after twice as long, and
    /// so on.
    public var digestPatience: Nanoseconds = .seconds(3)

    /// Nodes are awaited for this long after the first one came, so that groups can spread.
    public var formationDelay: Nanoseconds = .seconds(2)
    /// Formation starts earlier when enough nodes are there and none came for this long.
    public var formationQuiet: Nanoseconds = .milliseconds(500)
    /// A heartbeat is due this long after the one before; a peer's report that a node is unreachable
    /// counts when it is overdue.
    public var heartbeatDue: Nanoseconds = .milliseconds(200)
    /// Nominated anew when the nominee did not lead by then.
    public var nominationTimeout: Nanoseconds = .milliseconds(400)
    /// A replica with more entries left to apply is nominated only when no other can be.
    public var unappliedMax: UInt64 = 1_000
    /// A group whose leader is lost in silence (a hand-over, an election of its own) is left alone for
    /// this long.
    public var leaderlessGrace: Nanoseconds = .milliseconds(400)
    /// After taking over, nodes have this long to come back before their leaders count as gone.
    public var takeOverGrace: Nanoseconds = .seconds(2)
    /// A command without outcome is repeated after this.
    public var commandTimeout: Nanoseconds = .seconds(1)
    /// A refused command is repeated after this.
    public var commandRetryDelay: Nanoseconds = .milliseconds(50)
    /// Shard commands under way per group.
    public var shardCommandsMax = 64
    /// A table request is answered `.unavailable` after this; its procedure goes on.
    public var requestDeadline: Nanoseconds = .seconds(10)
    /// Leaders are moved for balance only after this long without a change of leaders or nodes.
    public var rebalanceAfter: Nanoseconds = .seconds(10)
    /// Time between two leader moves for balance.
    public var rebalanceInterval: Nanoseconds = .seconds(1)
    /// Total bytes of a new table's split points.
    public var splitBytesMax = Limits.splitBytesMax
    /// Table requests that wait.
    public var requestsWaitingMax = 10_000
    /// Entries of the audit log that are kept: 5,000 commands.
    public var auditEntriesMax: UInt64 = 10_000

    public init(name: String) { self.name = name }
}
