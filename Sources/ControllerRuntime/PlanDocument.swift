// Plans as operators keep them in files: what would be done, and the state of the cluster that it
// rests on, so that it is done only while the cluster is still like that.

import FoundationEssentials

/// What a dry run answers and `apply` takes.
struct PlanDocument: Encodable {
    /// Documents of another version are refused.
    static let version = 1

    /// The part that `apply` needs.
    var request: PlanRequest
    /// Wall clock in milliseconds since 1970.
    var madeAt: UInt64
    var summary: String
    var grounds: String?
    /// What happens, in order.
    var steps: [String]
    /// What clients notice.
    var pause: String
    /// To copy, about; written as null when it is not known.
    var bytes: UInt64?
    var records: UInt64?
    /// That the copies take, about, by the pace of the newest ones; written as null when there were none.
    var seconds: UInt64?
    var replacements: [ReplacementView]?
    var groups: [ForecastView]
    var nodes: [ForecastView]
    var skipped: [SkippedView]

    enum CodingKeys: String, CodingKey {
        case madeAt, summary, grounds, steps, pause, bytes, records, seconds, replacements, groups
        case nodes, skipped
    }

    /// The fields of the request stand among the document's own.
    func encode(to encoder: any Encoder) throws {
        try request.encode(to: encoder)
        var container = encoder.container(keyedBy: CodingKeys.self)
        try container.encode(madeAt, forKey: .madeAt)
        try container.encode(summary, forKey: .summary)
        try container.encodeIfPresent(grounds, forKey: .grounds)
        try container.encode(steps, forKey: .steps)
        try container.encode(pause, forKey: .pause)
        try container.encode(bytes, forKey: .bytes)
        try container.encodeIfPresent(records, forKey: .records)
        try container.encode(seconds, forKey: .seconds)
        try container.encodeIfPresent(replacements, forKey: .replacements)
        try container.encode(groups, forKey: .groups)
        try container.encode(nodes, forKey: .nodes)
        try container.encode(skipped, forKey: .skipped)
    }
}

/// The request behind a plan with everything chosen, and what the choice rests on.
struct PlanRequest: Codable {
    /// The document's version.
    var plan: Int
    var verb: String
    var arguments: AdminRequest.Arguments
    var basis: PlanBasis
}

struct ApplyRequest: Decodable {
    struct Arguments: Decodable {
        var plan: PlanRequest
    }

    var arguments: Arguments
}

/// Records of the cluster that a plan rests on.
struct PlanBasis: Codable, Hashable {
    struct ShardState: Codable, Hashable {
        var id: UInt32
        var table: String
        var start: String
        var end: String?
        var group: UInt32
        var epoch: UInt32
        var state: String
    }

    struct GroupState: Codable, Hashable {
        var id: UInt32
        /// Names of nodes, in order.
        var nodes: [String]
        /// Only where the plan is about leadership.
        var leader: String?
    }

    /// A place for a replica.
    struct Place: Codable, Hashable {
        /// The group that gets a replica there; nil for the group to be formed.
        var group: UInt32?
        var node: String
        var disk: UInt8
    }

    var cluster: String
    var shards: [ShardState] = []
    var groups: [GroupState] = []
    /// Chosen for new replicas.
    var places: [Place] = []
}

/// What a group or node has before and after.
struct ForecastView: Encodable {
    struct Figures: Encodable {
        /// Requests per second; of nodes: those of the groups they lead. Written as null when it is
        /// not known, as are the bytes.
        var operations: UInt64?
        var bytes: UInt64?
        /// Of groups.
        var shards: Int?
        /// Of nodes, where the plan is about their number.
        var replicas: Int?
        var leaders: Int?

        func encode(to encoder: any Encoder) throws {
            var container = encoder.container(keyedBy: CodingKeys.self)
            try container.encode(operations, forKey: .operations)
            try container.encode(bytes, forKey: .bytes)
            try container.encodeIfPresent(shards, forKey: .shards)
            try container.encodeIfPresent(replicas, forKey: .replicas)
            try container.encodeIfPresent(leaders, forKey: .leaders)
        }

        enum CodingKeys: String, CodingKey { case operations, bytes, shards, replicas, leaders }
    }

    /// Nil for the group to be formed, and of nodes.
    var group: UInt32?
    var node: String?
    var before: Figures
    var after: Figures
}

extension PlanBasis {
    /// What is not as it was when the plan was made, as sentences; empty when all is.
    func changes(until now: PlanBasis) -> [String] {
        guard cluster == now.cluster else {
            return ["it was made for cluster \(cluster), and this is \(now.cluster)"]
        }
        var changes: [String] = []
        for shard in shards {
            guard let current = now.shards.first(where: { $0.id == shard.id }) else {
                changes.append("shard \(shard.id) is no more")
                continue
            }
            if current.group != shard.group {
                changes.append(
                    "shard \(shard.id) went from group \(shard.group) to group \(current.group)")
            }
            if (current.start, current.end) != (shard.start, shard.end) {
                changes.append(
                    "shard \(shard.id) had the keys \(Self.range(shard)) and has "
                        + Self.range(current))
            } else if current.epoch != shard.epoch {
                changes.append(
                    "shard \(shard.id) had epoch \(shard.epoch) and has \(current.epoch)")
            } else if current.state != shard.state {
                changes.append("shard \(shard.id) was \(shard.state) and is \(current.state)")
            }
        }
        for group in groups {
            guard let current = now.groups.first(where: { $0.id == group.id }) else {
                changes.append("group \(group.id) is no more")
                continue
            }
            if current.nodes != group.nodes {
                changes.append(
                    "group \(group.id) was on \(group.nodes.joined(separator: ", ")) and is on "
                        + current.nodes.joined(separator: ", "))
            }
            if current.leader != group.leader {
                changes.append(
                    "group \(group.id) was led by \(group.leader ?? "nobody") and is led by "
                        + (current.leader ?? "nobody"))
            }
        }
        return changes
    }

    /// What another choice of places is now made; empty when it is the same.
    func choices(otherThanIn now: PlanBasis) -> [String] {
        guard places != now.places else { return [] }
        func words(_ places: [Place]) -> String {
            guard !places.isEmpty else { return "nowhere" }
            return places.map { place in
                (place.group.map { "group \($0) on " } ?? "") + place.node
                    + (place.disk == 0 ? "" : " disk \(place.disk)")
            }.joined(separator: ", ")
        }
        return [
            "new replicas were to be placed on \(words(places)), and now would be on "
                + words(now.places)
        ]
    }

    private static func range(_ shard: ShardState) -> String {
        "\(shard.start.isEmpty ? "(first)" : shard.start) to \(shard.end ?? "(last)")"
    }
}
