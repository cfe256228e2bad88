// What must hold in the migration simulation after every event.

import KVBase
import NodeCore
import ShardCore

/// Sees all groups at once and remembers every version that a key ever had.
struct MigrationOracle {
    private struct Ownership: Hashable {
        var shard: ShardID
        var epoch: Epoch
    }

    struct Version {
        var sequencer: Sequencer
        var isDelete: Bool
    }

    /// Per key its versions in the order in which they took effect.
    private var history = [[Version]](repeating: [], count: MigrationSimulation.keys.count)
    private var owners: [Ownership: GroupID] = [:]

    static func position(_ key: Bytes) -> Int { Int(key[0]) - Int(UInt8(ascii: "a")) }

    /// How many versions the key had.
    func count(_ key: Bytes) -> Int { history[Self.position(key)].count }

    /// The record's sequencer after `count` versions; `.zero` for none.
    private func visible(_ key: Bytes, after count: Int) -> Sequencer {
        guard count > 0 else { return .zero }
        let version = history[Self.position(key)][count - 1]
        return version.isDelete ? .zero : version.sequencer
    }

    /// A client's write took effect.
    mutating func wrote(_ write: MigrationWrite, group: GroupID) throws(Violation) {
        let ownership = Ownership(shard: write.shard, epoch: write.epoch)
        if let owner = owners[ownership], owner != group {
            throw Violation(
                description: "shard \(write.shard) of epoch \(write.epoch) was written in group"
                    + " \(owner) and in \(group)")
        }
        owners[ownership] = group
        let position = Self.position(write.key)
        if let last = history[position].last, write.sequencer <= last.sequencer {
            throw Violation(
                description: "key \(write.key): \(write.sequencer) in group \(group) follows"
                    + " \(last.sequencer)")
        }
        let before = visible(write.key, after: history[position].count)
        if let expected = write.expected, expected != before {
            throw Violation(
                description: "key \(write.key): a write on condition \(expected) took effect on"
                    + " \(before)")
        }
        history[position].append(
            Version(sequencer: write.sequencer, isDelete: write.value == nil))
    }

    /// A read answered with this sequencer (`.zero`: no record). It must have been the key's version
    /// at some moment since the read began.
    func read(_ key: Bytes, _ sequencer: Sequencer, since count: Int) throws(Violation) {
        let now = self.count(key)
        for moment in count...now where visible(key, after: moment) == sequencer { return }
        throw Violation(
            description: "key \(key): a read saw \(sequencer), the key was at"
                + " \(visible(key, after: count))...\(visible(key, after: now))")
    }

    // MARK: After every event

    func check(_ groups: [MigrationGroup], map: [Shard]) throws(Violation) {
        guard ShardIndex(tiling: map) != nil else {
            throw Violation(description: "the shards do not tile the table: \(map)")
        }
        for key in MigrationSimulation.keys {
            let version = try effective(key, groups)
            let expected = visible(key, after: count(key))
            let found = version.map { $0.isTombstone ? .zero : $0.sequencer } ?? .zero
            guard found == expected else {
                throw Violation(
                    description: "key \(key): the groups hold \(found), acknowledged was"
                        + " \(expected)")
            }
        }
    }

    /// Between operations the groups hold what the map shows, whatever old commands still come.
    func checkIdle(_ groups: [MigrationGroup], map: [Shard]) throws(Violation) {
        for shard in map {
            let held = groups[Int(shard.group.rawValue) - 1].state.shards[shard.id]
            guard let held, held.phase == .owned, held.shard.epoch == shard.epoch,
                held.shard.range == shard.range
            else {
                throw Violation(
                    description: "the map shows \(shard), its group holds"
                        + " \(String(describing: held))")
            }
        }
    }

    /// The newest version of a key by the rules that readers follow.
    private func effective(
        _ key: Bytes, _ groups: [MigrationGroup]
    ) throws(Violation) -> RecordVersion? {
        var writer: (MigrationGroup, OwnedShard)?
        var frozen: (MigrationGroup, OwnedShard)?
        for group in groups {
            let holding = group.state.shards.elements.filter { $0.shard.range.contains(key) }
            guard holding.count <= 1 else {
                throw Violation(description: "group \(group.id) holds key \(key) twice")
            }
            guard let held = holding.first else { continue }
            if case .fenced = held.phase {
                if frozen.map({ $0.1.shard.epoch < held.shard.epoch }) ?? true {
                    frozen = (group, held)
                }
            } else if let (other, _) = writer {
                throw Violation(
                    description: "key \(key) may be written in groups \(other.id) and"
                        + " \(group.id)")
            } else {
                writer = (group, held)
            }
        }
        guard let (group, held) = writer ?? frozen else {
            throw Violation(description: "no group holds key \(key)")
        }
        let own = group.records[key]?.version
        let other: GroupID
        switch held.phase {
        case .owned, .fenced(_, _, isWhole: true): return own
        case .fenced(let target, _, isWhole: false): other = target
        case .importing(let source, _, _):
            if key.withUnsafeBytes({ held.isFinal($0) }) { return own }
            other = source
        }
        let base = groups[Int(other.rawValue) - 1]
        guard base.state.shards[held.shard.id] != nil else {
            throw Violation(
                description: "key \(key): group \(group.id) still needs group \(other), which"
                    + " gave the shard up")
        }
        return newer(own, base.records[key]?.version)
    }
}

/// The version that a dual read answers with.
func newer(_ first: RecordVersion?, _ second: RecordVersion?) -> RecordVersion? {
    guard let first else { return second }
    guard let second else { return first }
    return first.sequencer >= second.sequencer ? first : second
}
