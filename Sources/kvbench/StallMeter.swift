// How long keys were not served although somebody asked for them.

import KVBase

/// The stall of a key is the longest time from the issue of a request for it to an answer without
/// error: its own or, when it failed, that of the next request for the same key that succeeds.
struct StallMeter {
    /// With more keys no stalls of single keys are kept.
    private static let keysMax = 1 << 24

    /// Microseconds by key, rounded up, and one more; 0 for a key that nobody asked for.
    private var longest: [UInt32]
    /// Keys that were asked for in vain since.
    private var failedSince: [UInt64: Instant] = [:]
    private var lastServed: Instant?
    /// The longest time in which no request at all succeeded.
    private(set) var silence = Nanoseconds.zero

    init(keys: Int) {
        longest = Array(repeating: 0, count: keys <= Self.keysMax ? keys : 0)
    }

    /// A request was issued.
    mutating func asked(at time: Instant) {
        if lastServed == nil { lastServed = time }
    }

    mutating func served(_ key: UInt64, askedAt: Instant, now: Instant) {
        if let lastServed { silence = max(silence, now - lastServed) }
        lastServed = now
        let since = failedSince.isEmpty ? nil : failedSince.removeValue(forKey: key)
        note(key, now - min(askedAt, since ?? askedAt))
    }

    mutating func failed(_ key: UInt64, askedAt: Instant) {
        failedSince[key] = min(askedAt, failedSince[key] ?? askedAt)
    }

    /// The run ends: what still waits has waited until now.
    mutating func finish(now: Instant) {
        if let lastServed { silence = max(silence, now - lastServed) }
        for (key, since) in failedSince { note(key, now - since) }
        failedSince.removeAll()
    }

    /// The stalls of all keys that were asked for; empty when there are too many keys.
    var byKey: LatencyHistogram {
        var stalls = LatencyHistogram()
        for stall in longest where stall > 0 { stalls.record(UInt64(stall - 1) * 1_000) }
        return stalls
    }

    private mutating func note(_ key: UInt64, _ stall: Nanoseconds) {
        guard key < UInt64(longest.count) else { return }
        let micros = UInt32(clamping: (stall.count + 999) / 1_000 + 1)
        if micros > longest[Int(key)] { longest[Int(key)] = micros }
    }
}
