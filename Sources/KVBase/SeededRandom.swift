// Randomness for cores and simulation: a small generator that is passed in and repeats by seed.

/// SplitMix64 (Steele, Lea, Flood 2014): one 64-bit state, full period, good enough for jitter and
/// fault injection. Not for secrets.
public struct SeededRandom: RandomNumberGenerator, Sendable {
    private var state: UInt64
    public init(seed: UInt64) { state = seed }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        return Self.mix(state)
    }

    /// A generator for another purpose, independent of how often this one is used afterwards.
    public mutating func fork() -> SeededRandom { SeededRandom(seed: next()) }

    /// A value in `0..<bound`. Precondition: `bound > 0`.
    public mutating func below(_ bound: UInt64) -> UInt64 { next() % bound }

    /// True in about `numerator` of `denominator` cases.
    public mutating func chance(_ numerator: UInt64, in denominator: UInt64) -> Bool {
        below(denominator) < numerator
    }

    /// The finaliser: a bijection on 64 bits that spreads every input bit over the output.
    @inlinable
    public static func mix(_ value: UInt64) -> UInt64 {
        var mixed = value
        mixed = (mixed ^ (mixed >> 30)) &* 0xBF58_476D_1CE4_E5B9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94D0_49BB_1331_11EB
        return mixed ^ (mixed >> 31)
    }
}
