// Counts what a node's groups and shards are asked, and samples the keys.

import KVBase
import ShardCore

/// The load of everything that one node leads. Counting costs some ten nanoseconds (a few hundred when
/// many thousand shards are asked in turn) and, but for one operation in `sampleInterval`
/// on average, no allocation.
///
/// A rate is that of the last ten seconds: what the window that runs has counted, and of the window
/// before the part that still lies within ten seconds, as if it had come evenly. So a rate
/// that jumps is shown in full after 10 s at the earliest, 20 s at the latest. A shard or
/// group that was not counted before starts from zero.
///
/// Memory: 64 bytes for each shard asked within 20 s, `countedShardsMax` of them at most; samples of
/// `sampledShardsMax` shards, 2 x `KeyReservoir.samplesMax` keys of up to
/// `ShardLoad.sampledKeyBytesMax` bytes each.
public struct LoadMeter: Sendable {
    public static let window = Nanoseconds.seconds(10)
    /// One operation in so many is sampled, at irregular distances, so that no rhythm of the clients
    /// can hide from it.
    static let sampleInterval: UInt64 = 16
    static let sampledShardsMax = LoadReport.shardsMax
    static let countedShardsMax = 65_536
    /// The keys of so many shards are evaluated for one report: those whose turn was longest ago.
    static let figuresPerReport = 8

    /// What was admitted by one group, ever since its replica began.
    public struct GroupTotals: Hashable, Sendable {
        public var group: GroupID
        public var reads: UInt64
        public var writes: UInt64

        public init(group: GroupID, reads: UInt64, writes: UInt64) {
            self.group = group
            self.reads = reads
            self.writes = writes
        }
    }

    /// A counter that only rises, and what it was when the window began.
    private struct Tally: Sendable {
        var total: UInt64 = 0
        var atTurn: UInt64 = 0
        /// Counted in the window before.
        var previous: UInt64 = 0

        var current: UInt64 { total - atTurn }
        var isIdle: Bool { total == atTurn && previous == 0 }

        mutating func turn() {
            previous = current
            atTurn = total
        }

        /// Gives `part` of `whole` away.
        mutating func split(_ part: UInt64, of whole: UInt64) -> Tally {
            let given = Tally(
                total: current * part / whole, atTurn: 0, previous: previous * part / whole)
            total -= given.total
            previous -= given.previous
            return given
        }
    }

    private struct Slot: Sendable {
        var shard: ShardID
        var group: GroupID
        var reads = Tally()
        var writes = Tally()
        /// The place in `samples`; -1 for none.
        var samples = -1

        var isIdle: Bool { reads.isIdle && writes.isIdle }
    }

    private struct GroupSlot: Sendable {
        var group: GroupID
        var reads: Tally
        var writes: Tally
    }

    private var slots: [Slot] = []
    /// From shard to place in `slots`. Never walked.
    private var places: [ShardID: Int] = [:]
    /// Places of shards asked lately, by the lowest bits of their ids: cheaper than `places`.
    private var recent = [(shard: ShardID, place: Int)](repeating: (.none, 0), count: recentMax)
    private static let recentMax = 512
    /// In order of their ids.
    private var groups: [GroupSlot] = []
    private var samples = [KeySamples?](repeating: nil, count: sampledShardsMax)
    private var freeSamples = Array(0..<sampledShardsMax)
    private var generator: SeededRandom
    private var untilSample: UInt64 = 1
    private var sampleNumber: UInt64 = 0
    private var windowStart: Instant
    private var previousLength = window
    /// Samples that were left out because the key is too long.
    public private(set) var keysSkipped: UInt64 = 0

    public init(seed: UInt64, now: Instant) {
        generator = SeededRandom(seed: seed)
        windowStart = now
    }

    // MARK: Counting

    /// Counts one operation on a shard of `group`. `routedKey` is where it falls.
    public mutating func count(
        _ owned: OwnedShard, group: GroupID, isWrite: Bool, routedKey: UnsafeRawBufferPointer
    ) {
        guard let place = place(of: owned.shard.id, group) else { return }
        if isWrite {
            slots[place].writes.total += 1
        } else {
            slots[place].reads.total += 1
        }
        untilSample -= 1
        if untilSample == 0 { sample(place, routedKey) }
    }

    /// Counts one page of a list as a read of each of its shards. In a RANGE table it falls on the key
    /// it starts from; in a HASH table it falls on all virtual ranges and says nothing of the keys.
    public mutating func countList(_ parts: [OwnedShard], group: GroupID, from: Bytes) {
        for owned in parts {
            if case .range = owned.partitioning, owned.shard.range.contains(from) {
                from.withUnsafeBytes {
                    count(owned, group: group, isWrite: false, routedKey: $0)
                }
            } else if let place = place(of: owned.shard.id, group) {
                slots[place].reads.total += 1
            }
        }
    }

    private mutating func place(of shard: ShardID, _ group: GroupID) -> Int? {
        let entry = recent[Self.recentPlace(shard)]
        if entry.shard == shard {
            slots[entry.place].group = group
            return entry.place
        }
        if let place = places[shard] {
            slots[place].group = group
            recent[Self.recentPlace(shard)] = (shard, place)
            return place
        }
        guard slots.count < Self.countedShardsMax else { return nil }
        return add(Slot(shard: shard, group: group))
    }

    private static func recentPlace(_ shard: ShardID) -> Int {
        Int(shard.rawValue % UInt32(recentMax))
    }

    /// The shard's slot moves or goes.
    private mutating func forgetPlace(of shard: ShardID) {
        let place = Self.recentPlace(shard)
        if recent[place].shard == shard { recent[place] = (.none, 0) }
    }

    private mutating func add(_ slot: Slot) -> Int {
        places[slot.shard] = slots.count
        slots.append(slot)
        return slots.count - 1
    }

    private mutating func sample(_ place: Int, _ routedKey: UnsafeRawBufferPointer) {
        // Evenly from 1 to twice the interval less one: the interval on average.
        untilSample = 1 + generator.below(2 * Self.sampleInterval - 1)
        guard routedKey.count <= ShardLoad.sampledKeyBytesMax else {
            keysSkipped += 1
            return
        }
        guard slots[place].samples >= 0 || takeSamples(for: place) else { return }
        sampleNumber += 1
        samples[slots[place].samples]?.recent.offer(
            routedKey, number: sampleNumber, &generator)
    }

    // MARK: Changes of shards

    /// The shard was cut in two at `key`. Each half takes over the load and the samples that fell on
    /// it; where there are too few samples to tell, half of the load.
    public mutating func split(_ shard: ShardID, at key: Bytes, into right: ShardID) {
        guard let place = places[shard], places[right] == nil,
            slots.count < Self.countedShardsMax
        else { return }
        var upper = Slot(shard: right, group: slots[place].group)
        var part: (above: UInt64, all: UInt64) = (1, 2)
        let sampled = slots[place].samples
        if sampled >= 0, let known = samples[sampled] {
            let share = known.share(below: key, part: 1, whole: 1)
            if known.count >= KeySamples.samplesMin { part = (share.all - share.below, share.all) }
            let above = samples[sampled]?.split(at: key)
            if let free = freeSamples.popLast() {
                upper.samples = free
                samples[free] = above
            }
        }
        upper.reads = slots[place].reads.split(part.above, of: part.all)
        upper.writes = slots[place].writes.split(part.above, of: part.all)
        _ = add(upper)
    }

    /// The shard took in its right neighbour, and its load with it. Samples begin anew.
    public mutating func merge(_ shard: ShardID, with right: ShardID) {
        guard let other = places[right] else { return }
        let taken = slots[other]
        remove(other)
        guard let place = place(of: shard, taken.group) else { return }
        slots[place].reads.total += taken.reads.current
        slots[place].reads.previous += taken.reads.previous
        slots[place].writes.total += taken.writes.current
        slots[place].writes.previous += taken.writes.previous
        releaseSamples(of: place)
    }

    private mutating func remove(_ place: Int) {
        releaseSamples(of: place)
        places[slots[place].shard] = nil
        forgetPlace(of: slots[place].shard)
        let last = slots.removeLast()
        forgetPlace(of: last.shard)
        guard place < slots.count else { return }
        slots[place] = last
        places[last.shard] = place
    }

    /// False when as many shards are sampled as may be.
    private mutating func takeSamples(for place: Int) -> Bool {
        guard let free = freeSamples.popLast() else { return false }
        slots[place].samples = free
        samples[free] = KeySamples()
        return true
    }

    private mutating func releaseSamples(of place: Int) {
        let sampled = slots[place].samples
        guard sampled >= 0 else { return }
        slots[place].samples = -1
        samples[sampled] = nil
        freeSamples.append(sampled)
    }

    // MARK: Reporting

    /// The load as of now; about once a second. `totals`: of the groups that are led here, in order
    /// of their ids. `held` finds a shard in a group that is led here, nil when it is not there to be
    /// asked any more.
    public mutating func report(
        _ totals: [GroupTotals], now: Instant, held: (GroupID, ShardID) -> OwnedShard?
    ) -> LoadReport {
        note(totals)
        if now - windowStart >= Self.window { turn(now) }
        var busy: [(place: Int, owned: OwnedShard)] = []
        for place in busiest(now) {
            if let owned = held(slots[place].group, slots[place].shard) {
                busy.append((place, owned))
            }
        }
        figure(busy, now: now)
        return LoadReport(
            groups: groups.map {
                GroupLoad(
                    group: $0.group, reads: UInt32(clamping: rate($0.reads, now)),
                    writes: UInt32(clamping: rate($0.writes, now)))
            }, shards: busy.map { load($0.place, $0.owned, now) })
    }

    /// Groups that are not led here any more are forgotten.
    private mutating func note(_ totals: [GroupTotals]) {
        var known = groups[...]
        groups = totals.map { group in
            while let first = known.first, first.group < group.group { known.removeFirst() }
            guard var slot = known.first, slot.group == group.group else {
                return GroupSlot(
                    group: group.group, reads: Tally(total: group.reads, atTurn: group.reads),
                    writes: Tally(total: group.writes, atTurn: group.writes))
            }
            slot.reads.total = max(slot.reads.total, group.reads)
            slot.writes.total = max(slot.writes.total, group.writes)
            return slot
        }
    }

    /// A new window begins: what nobody asks for any more is forgotten, and keys are sampled of the
    /// shards that were busiest.
    private mutating func turn(_ now: Instant) {
        previousLength = now - windowStart
        windowStart = now
        for place in groups.indices {
            groups[place].reads.turn()
            groups[place].writes.turn()
        }
        // From the end on: what takes a removed slot's place has been seen.
        for place in slots.indices.reversed() {
            slots[place].reads.turn()
            slots[place].writes.turn()
            if slots[place].isIdle { remove(place) }
        }
        let busiest = busiest(now)
        var isBusy = [Bool](repeating: false, count: slots.count)
        for place in busiest { isBusy[place] = true }
        for place in slots.indices where !isBusy[place] { releaseSamples(of: place) }
        for place in busiest {
            if slots[place].samples >= 0 {
                samples[slots[place].samples]?.turn()
            } else {
                _ = takeSamples(for: place)
            }
        }
    }

    /// Places of the shards that are asked most, those first. One of equals goes by its id.
    private func busiest(_ now: Instant) -> [Int] {
        var top: [(operations: UInt64, place: Int)] = []
        for place in slots.indices {
            let operations = rate(slots[place].reads, now) + rate(slots[place].writes, now)
            func precedes(_ other: (operations: UInt64, place: Int)) -> Bool {
                operations == other.operations
                    ? slots[place].shard < slots[other.place].shard
                    : operations > other.operations
            }
            guard operations > 0 else { continue }
            if top.count == Self.sampledShardsMax {
                guard let least = top.last, precedes(least) else { continue }
                top.removeLast()
            }
            let position = top.firstIndex(where: precedes) ?? top.count
            top.insert((operations, place), at: position)
        }
        return top.map(\.place)
    }

    /// Per second.
    private func rate(_ tally: Tally, _ now: Instant) -> UInt64 {
        let elapsed = now - windowStart
        let count = tally.current + tally.previous * share(now) / previousLength.count
        return count * 1_000_000_000 / max(elapsed, Self.window).count
    }

    /// How much of the window before lies in the last ten seconds, of `previousLength`.
    private func share(_ now: Instant) -> UInt64 {
        min(Self.window - (now - windowStart), previousLength).count
    }

    /// Evaluates the samples of those shards whose turn was longest ago.
    private mutating func figure(_ shards: [(place: Int, owned: OwnedShard)], now: Instant) {
        let sampled = shards.compactMap {
            shard -> (age: Nanoseconds, at: Int, owned: OwnedShard)? in
            let at = slots[shard.place].samples
            guard at >= 0, let known = samples[at], known.isWorthFiguring else { return nil }
            return (now - known.figuredAt, at, shard.owned)
        }
        // A stable order: the busiest of equals come first.
        let due = sampled.enumerated().sorted {
            $0.element.age == $1.element.age
                ? $0.offset < $1.offset : $0.element.age > $1.element.age
        }
        let millisecond: UInt64 = 1_000_000
        let part = share(now) / millisecond
        let whole = max(1, previousLength.count / millisecond)
        for (_, shard) in due.prefix(Self.figuresPerReport) {
            samples[shard.at]?.figure(shard.owned, part: part, whole: whole, now: now)
        }
    }

    private func load(_ place: Int, _ owned: OwnedShard, _ now: Instant) -> ShardLoad {
        let slot = slots[place]
        var figures = KeyFigures()
        if slot.samples >= 0, let known = samples[slot.samples], known.epoch == owned.shard.epoch {
            figures = known.figures
        }
        return ShardLoad(
            shard: slot.shard, epoch: owned.shard.epoch,
            reads: UInt32(clamping: rate(slot.reads, now)),
            writes: UInt32(clamping: rate(slot.writes, now)), median: figures.median,
            hottest: figures.hottest, hottestPercent: figures.hottestPercent,
            spread: figures.spread)
    }
}
