// Where new replicas and new shards go.

import KVBase
import ShardCore

/// Chooses the nodes of new groups.
enum ReplicaPlanner {
    /// A node that may hold a new replica, and what it holds already. Changed as replicas are planned.
    struct Candidate {
        var node: NodeID
        var zone: String
        /// Not 0.
        var weight: UInt8 = NodeStatus.defaultWeight
        /// Replicas on each disk; nil for a disk that is not healthy.
        var replicasPerDisk: [Int?]
        var replicas: Int { replicasPerDisk.reduce(0) { $0 + ($1 ?? 0) } }
        /// Rises with the replicas, more slowly on nodes of more weight.
        var fill: Int { replicas * 1_000 / Int(weight) }
        var isUsable: Bool { replicasPerDisk.contains { $0 != nil } }
    }

    /// Nodes and disks for one group of `count` replicas: distinct nodes, zones used least within the
    /// group first, then nodes with the fewest replicas for their weight, then the lowest id; on
    /// each the disk with the fewest replicas. Nil when there are too few candidates; then nothing is changed.
    static func place(count: Int, on candidates: inout [Candidate]) -> [(NodeID, disk: UInt8)]? {
        guard candidates.count(where: \.isUsable) >= count else { return nil }
        var chosen: [(NodeID, disk: UInt8)] = []
        var zones: [String] = []
        var used: [NodeID] = []
        for _ in 0..<count {
            let open = candidates.indices.filter {
                candidates[$0].isUsable && !used.contains(candidates[$0].node)
            }
            let best = open.min { left, right in
                rank(candidates[left], zones) < rank(candidates[right], zones)
            }
            guard let best else { return nil }
            let disk = candidates[best].replicasPerDisk.indices
                .filter { candidates[best].replicasPerDisk[$0] != nil }
                .min {
                    (candidates[best].replicasPerDisk[$0] ?? 0, $0)
                        < (candidates[best].replicasPerDisk[$1] ?? 0, $1)
                }
            guard let disk else { return nil }
            candidates[best].replicasPerDisk[disk]? += 1
            used.append(candidates[best].node)
            zones.append(candidates[best].zone)
            chosen.append((candidates[best].node, disk: UInt8(disk)))
        }
        return chosen
    }

    private static func rank(_ candidate: Candidate, _ zones: [String]) -> (Int, Int, NodeID) {
        // Nodes without a zone are each a zone of their own.
        let inZone = candidate.zone.isEmpty ? 0 : zones.count { $0 == candidate.zone }
        return (inZone, candidate.fill, candidate.node)
    }
}

/// Spreads the shards of a table over groups.
enum ShardPlanner {
    /// The group of each of `count` shards of a RANGE table: the one with the fewest shards so far.
    static func spread(count: Int, over groups: [(id: GroupID, shards: Int)]) -> [GroupID] {
        precondition(!groups.isEmpty)
        var loads = groups
        return (0..<count).map { _ in
            var best = 0
            for index in loads.indices.dropFirst()
            where (loads[index].shards, loads[index].id) < (loads[best].shards, loads[best].id) {
                best = index
            }
            loads[best].shards += 1
            return loads[best].id
        }
    }

    /// The group of each virtual range of a HASH table. Every group gets its even share, give or take
    /// one; a range stays with its group of `current` as long as that group's share has room, so a
    /// new group takes over only its share and nothing moves between the old ones. Ranges without a
    /// group go by highest random weight, which mixes neighbours.
    static func assign(virtualRanges: Int, groups: [GroupID], current: [GroupID?] = [])
        -> [GroupID]
    {
        precondition(!groups.isEmpty)
        let sorted = groups.sorted()
        let base = virtualRanges / sorted.count
        var extra = virtualRanges % sorted.count
        // The groups that hold most now get the shares that are one larger.
        let held = sorted.map { group in current.count { $0 == group } }
        var room = [Int](repeating: base, count: sorted.count)
        for index in sorted.indices.sorted(by: { (held[$1], $0) < (held[$0], $1) }) where extra > 0
        {
            room[index] += 1
            extra -= 1
        }
        var assignment = [GroupID?](repeating: nil, count: virtualRanges)
        for range in 0..<min(current.count, virtualRanges) {
            guard let group = current[range], let index = sorted.firstIndex(of: group),
                room[index] > 0
            else { continue }
            room[index] -= 1
            assignment[range] = group
        }
        return assignment.indices.map { range in
            if let group = assignment[range] { return group }
            var best: (weight: UInt64, index: Int)?
            for index in sorted.indices where room[index] > 0 {
                let weight = SeededRandom.mix(
                    UInt64(sorted[index].rawValue) << 32 | UInt64(range) &+ 0x9E37_79B9)
                if best == nil || weight > best!.weight { best = (weight, index) }
            }
            guard let best else { preconditionFailure("shares do not add up") }
            room[best.index] -= 1
            return sorted[best.index]
        }
    }
}
