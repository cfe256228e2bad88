// The rule that joins what a split made and nobody needs any more: two neighbours that together have
// next to no requests and few bytes, for a long time without a break.
//
// Only seams that a split has cut are looked at, so shards that their table was created with stay
// apart. What counts as cold lies far below what counts as hot or large, and both shards must have
// rested, so that splits and joins do not follow each other.

import KVBase
import ShardCore

extension Controller {
    /// Seams looked at in one second.
    private static let seamsMax = 256
    /// Both shards together must have less than this part of `split.rate`.
    private static let coldPart: UInt64 = 10

    /// How long two shards stay cold while nothing is known of them (a leader or a controller changes),
    /// and how often it is stored that they are, in milliseconds.
    private static let coldGapMax: UInt64 = 1_200_000
    private static let coldNoteInterval: UInt64 = 600_000

    mutating func joinColdShards(now: Instant, into effects: inout ControllerEffects) {
        // Without a wall clock no time passes.
        guard clock != nil else { return }
        var transaction = MetadataTransaction()
        watchSeams(now: now, in: &transaction, into: &effects)
        if !transaction.changes.isEmpty { store(transaction, then: .nothing, into: &effects) }
    }

    /// Looks at some of the seams; joins one at most.
    private mutating func watchSeams(
        now: Instant, in transaction: inout MetadataTransaction,
        into effects: inout ControllerEffects
    ) {
        guard mode(of: .coldShards) != .off else {
            for seam in rules.cold.elements { forget(seam, in: &transaction) }
            return
        }
        if rules.isOrderOld { findSeams(in: &transaction) }
        guard !rules.seams.isEmpty else { return }
        let at = wallClock(now)
        for _ in 0..<min(Self.seamsMax, rules.seams.count) {
            rules.seamCursor = (rules.seamCursor + 1) % rules.seams.count
            let seam = rules.seams[rules.seamCursor]
            var known = rules.cold[seam.upper]
            if let cold = known, max(passed(cold.seen, at), passed(at, cold.seen)) > Self.coldGapMax
            {
                forget(cold, in: &transaction)
                known = nil
            }
            guard let numbers = numbers(of: seam, now: now) else { continue }
            guard isCold(numbers) else {
                if let known { forget(known, in: &transaction) }
                continue
            }
            var cold = known ?? RuleState.ColdSeam(seam.upper, since: at)
            cold.seen = at
            if passed(max(cold.stored, cold.since), at) >= Self.coldNoteInterval {
                cold.stored = at
                transaction.put(StoreKey.cold(seam.upper)) { cold.encode(into: &$0) }
            }
            rules.cold.set(cold, for: seam.upper)
            guard passed(cold.since, at) >= runtime.time(.mergeSustain).count / 1_000_000,
                hasRoomToAct(.coldShards), !isRefused(.coldShards, .shard(seam.lower)),
                isRested(seam, now: now)
            else { continue }
            // One plan in a look: each walks over all shards.
            return join(seam, numbers, now: now, into: &effects)
        }
    }

    /// The wall clock may go back a little.
    private func passed(_ from: UInt64, _ to: UInt64) -> UInt64 { to > from ? to - from : 0 }

    private mutating func forget(
        _ cold: RuleState.ColdSeam, in transaction: inout MetadataTransaction
    ) {
        rules.cold.remove(cold.upper)
        guard cold.stored != 0 else { return }
        transaction.changes.removeAll { $0.key == StoreKey.cold(cold.upper) }
        transaction.changes.append(.delete(key: StoreKey.cold(cold.upper)))
    }

    private mutating func join(
        _ seam: RuleState.Seam, _ numbers: (rate: UInt64, bytes: UInt64), now: Instant,
        into effects: inout ControllerEffects
    ) {
        guard let lower = shards[seam.lower] else { return }
        let sustain = RuntimeSetting.mergeSustain
        let text =
            "\(title(of: lower)) and its right neighbour \(seam.upper), which a split made, have "
            + "\(Self.counted(numbers.rate)) requests/s and \(quantity(numbers.bytes)) together, and "
            + "were cold for \(sustain.write(runtime[sustain]))"
        do throws(DatabaseError) {
            let plan = try plan(mergeOf: seam.lower, now: now)
            act(.coldShards, plan, because: text, now: now, into: &effects)
        } catch {
            refuse(
                .coldShards, .shard(seam.lower), text + "; \(error.message)", now: now,
                into: &effects)
        }
    }

    /// Whether both sides are known to have clearly more requests or bytes than cold ones.
    func isWarm(_ seam: RuleState.Seam, now: Instant) -> Bool {
        guard let numbers = numbers(of: seam, now: now) else { return false }
        return numbers.rate * Self.coldPart / 2 >= runtime[.splitRate]
            || numbers.bytes / 2 > runtime[.mergeBytes]
    }

    private func isCold(_ numbers: (rate: UInt64, bytes: UInt64)) -> Bool {
        numbers.rate * Self.coldPart < runtime[.splitRate]
            && numbers.bytes <= runtime[.mergeBytes]
    }

    /// Requests per second and bytes of both sides; nil when not known.
    private func numbers(
        of seam: RuleState.Seam, now: Instant
    ) -> (rate: UInt64, bytes: UInt64)? {
        guard let lower = shards[seam.lower], let upper = shards[seam.upper],
            let one = rate(of: lower, now: now), let other = rate(of: upper, now: now),
            let low = count(of: lower), let high = count(of: upper)
        else { return nil }
        return (one + other, low.bytes + high.bytes)
    }

    /// Whether both have been left alone long enough, by operations and by their operator.
    private func isRested(_ seam: RuleState.Seam, now: Instant) -> Bool {
        let quiet = runtime.time(.mergeQuiet)
        for id in [seam.lower, seam.upper] {
            guard let shard = shards[id],
                isPast(rules.histories[id]?.lastChange ?? 0, by: quiet, now: now),
                operation(onShard: id) == nil, !isBusy(shard.group),
                !isProposed(.coldShards, where: { $0.work?.names(id) == true }),
                stopped(.coldShards, now: now, where: { $0.work?.names(id) == true }) == nil
            else { return false }
        }
        return true
    }

    /// At most that many requests per second; nil when the leader has not told lately.
    private func rate(of shard: Shard, now: Instant) -> UInt64? {
        guard rate(of: shard.group, now: now) != nil, let leader = serving(shard.group),
            let named = loadedShards[leader]
        else { return nil }
        if named.contains(shard.id) { return shardLoads[shard.id]?.operations }
        // A full report names the busiest only: the others have no more than the last of them.
        guard named.count >= LoadReport.shardsMax, let last = named.last else { return 0 }
        return shardLoads[last]?.operations
    }

    /// The places where a split has cut, in order of tables and keys.
    private mutating func findSeams(in transaction: inout MetadataTransaction) {
        rules.isOrderOld = false
        var own = rules.histories.elements.compactMap { shards[$0.shard] }
        own.sort { left, right in
            left.table == right.table
                ? compareBytes(left.range.start, right.range.start) < 0 : left.table < right.table
        }
        var seams: [RuleState.Seam] = []
        for (lower, upper) in zip(own, own.dropFirst())
        where lower.table == upper.table && lower.range.end == upper.range.start {
            guard rules.histories[upper.id]?.isCut == true else { continue }
            seams.append(RuleState.Seam(lower: lower.id, upper: upper.id))
        }
        let uppers = seams.map(\.upper).sorted()
        var next = uppers[...]
        for cold in rules.cold.elements {
            next = next.drop { $0 < cold.upper }
            if next.first != cold.upper { forget(cold, in: &transaction) }
        }
        rules.seams = seams
    }
}
