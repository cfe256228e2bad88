// What one simulated run does to the group: drawn from the seed before anything else, so that whole
// classes of faults are off in some runs and dominate others (swarm testing, Groce et al. 2012).

import KVBase
import ReplicationCore

/// A fault in the driver, not in the core, that the checkers must notice: proof that they can.
public enum Canary: String, Sendable, CaseIterable {
    /// The disk answers before it has written, and loses the rest in a crash.
    case lyingDisk
    /// A restart does not wait out the promises given before it.
    case forgottenPromise
    /// Clocks drift apart far beyond the bound that leases rest on.
    case wildClocks
}

public struct SimulationOptions: Sendable {
    public enum Controller: Sendable { case healthy, dead, erratic }

    public var seed: UInt64
    public var replicas = 3
    /// Simulated length of the phase with faults.
    public var seconds: UInt64 = 20
    public var canary: Canary?
    /// The `kvsim` command that draws the same options.
    public var repeatCommand: String
    public var tuning = Tuning()

    var lossPermille: UInt64 = 0
    var duplicatePermille: UInt64 = 0
    var delayMicrosMax: UInt64 = 2_000
    /// Messages that take up to a second, and so arrive out of order.
    var straysPermille: UInt64 = 0
    var partitions = false
    var oneWayPartitions = false
    var crashes = false
    var pauses = false
    var driftPartsPerMillionMax: UInt64 = 0
    var membershipChanges = false
    var transfers = false
    var controller: Controller = .healthy
    var diskMicrosMax: UInt64 = 2_000
    var diskStalls = false
    var flushMillisMax: UInt64 = 2_000
    var clientMicrosMax: UInt64 = 20_000
    var faultMillisMax: UInt64 = 1_500

    /// Draws everything but what the caller fixes from `seed`.
    public init(seed: UInt64, replicas: Int? = nil, seconds: UInt64 = 20, canary: Canary? = nil) {
        self.seed = seed
        self.seconds = seconds
        self.canary = canary
        repeatCommand = "kvsim --seed \(seed) --seconds \(seconds)"
        if let replicas { repeatCommand += " --replicas \(replicas)" }
        if let canary { repeatCommand += " --canary \(canary.rawValue)" }
        var random = SeededRandom(seed: SeededRandom.mix(seed))
        func pick<T>(_ choices: [T]) -> T { choices[Int(random.below(UInt64(choices.count)))] }
        func coin() -> Bool { random.chance(1, in: 2) }
        let drawn = pick([3, 3, 5])
        self.replicas = replicas ?? drawn
        lossPermille = pick([0, 0, 10, 50, 200])
        duplicatePermille = pick([0, 0, 10, 100])
        delayMicrosMax = pick([500, 2_000, 20_000, 60_000])
        straysPermille = pick([0, 0, 5, 50])
        partitions = coin()
        oneWayPartitions = coin()
        crashes = coin()
        pauses = coin()
        driftPartsPerMillionMax = coin() ? 9_900 : 0
        membershipChanges = coin()
        transfers = coin()
        controller = pick([.healthy, .healthy, .dead, .erratic])
        diskMicrosMax = pick([500, 2_000, 15_000])
        diskStalls = random.chance(1, in: 4)
        flushMillisMax = pick([100, 1_000, 5_000])
        clientMicrosMax = pick([4_000, 20_000, 60_000, 1_000_000])
        faultMillisMax = pick([300, 1_500, 4_000])
        if coin() {
            // Small bounds, so that the edges come soon.
            tuning.appendBytesMax = 256
            tuning.appendEntriesMax = 8
            tuning.appendsInFlightMax = 4
            tuning.retainedBytesMax = 512
            tuning.restoreBytesMax = 2_048
            tuning.uncommittedBytesMax = 8_192
            tuning.caughtUpEntriesMax = 16
            tuning.quorumReadsMax = 8
        }
        switch canary {
        case .wildClocks:
            driftPartsPerMillionMax = 600_000
            partitions = true
            faultMillisMax = 1_500
        case .forgottenPromise:
            crashes = true
            partitions = true
            pauses = false
            lossPermille = 0
            delayMicrosMax = 500
            diskMicrosMax = 500
            diskStalls = false
            faultMillisMax = 1_500
            // Few writes: a replica that was cut off for a moment can still win.
            clientMicrosMax = 1_000_000
        case .lyingDisk:
            crashes = true
            partitions = true
            diskMicrosMax = 15_000
            faultMillisMax = 300
        case nil: break
        }
    }
}
