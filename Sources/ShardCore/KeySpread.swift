// Over which of a shard's keys its records or its load are spread, in a few words.

import KVBase

/// A few routed keys, and how much of a weight (bytes of records, requests) lies below each. It tells
/// about how much of it a cut would leave on either side.
public struct KeySpread: Hashable, Sendable {
    /// Shares are told in parts of so many.
    public static let whole: UInt64 = 1_000
    /// The weight is parted in so many about equal parts.
    public static let parts: UInt64 = 4

    public struct Mark: Hashable, Sendable {
        public var key: Bytes
        /// Below `key`, of `whole`.
        public var below: UInt16

        public init(key: Bytes, below: UInt16) {
            self.key = key
            self.below = below
        }
    }

    /// In order of keys; the last one is the greatest key with any weight. Empty: nothing is known.
    public private(set) var marks: [Mark]

    public init(_ marks: [Mark] = []) { self.marks = marks }

    /// Takes what of `candidates`, in order of keys, is nearest to equal parts, and `greatest`, the last
    /// key that has any weight.
    public init(
        _ candidates: some Sequence<(key: Bytes, below: UInt64)>, greatest: Bytes, own: UInt64,
        of total: UInt64
    ) {
        guard total > 0 else {
            marks = []
            return
        }
        func share(_ part: UInt64) -> UInt16 { UInt16(Self.whole.share(part, of: total)) }
        var chosen: [Mark] = []
        var part: UInt64 = 1
        for (key, below) in candidates where part < Self.parts {
            guard below >= total.share(part, of: Self.parts) else { continue }
            chosen.append(Mark(key: key, below: share(below)))
            while part < Self.parts, below >= total.share(part, of: Self.parts) { part += 1 }
        }
        if chosen.last.map({ compareBytes($0.key, greatest) < 0 }) ?? true {
            chosen.append(Mark(key: greatest, below: share(total - min(own, total))))
        }
        marks = chosen
    }

    /// About how much lies below `cut`, of `whole`; nil when nothing is known.
    public func below(_ cut: Bytes) -> UInt64? {
        guard let last = marks.last else { return nil }
        guard compareBytes(cut, last.key) <= 0 else { return Self.whole }
        var least: UInt64 = 0
        for mark in marks {
            let order = compareBytes(mark.key, cut)
            if order == 0 { return UInt64(mark.below) }
            // Between two marks it may be anywhere: the middle is off by least.
            if order > 0 { return (least + UInt64(mark.below)) / 2 }
            least = UInt64(mark.below)
        }
        return least
    }

    /// As it is sent, about.
    public var byteCount: Int { marks.reduce(4) { $0 + 6 + $1.key.count } }

    func encode(into writer: inout ByteWriter) {
        writer.write(list: marks) { writer, mark in
            writer.write(mark.key)
            writer.write(mark.below)
        }
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        marks = try reader.readList(elementBytesMin: 6) { (reader) throws(DatabaseError) in
            Mark(key: try reader.readBytes(), below: try reader.readUInt16())
        }
    }
}

extension UInt64 {
    /// So much of it as `part` is of `whole`, rounded down. `part` is at most `whole`.
    public func share(_ part: UInt64, of whole: UInt64 = KeySpread.whole) -> UInt64 {
        if part == whole { return self }
        return whole.dividingFullWidth(multipliedFullWidth(by: part)).quotient
    }
}
