// Round trips on a connection, and the clock at its other end.

import KVBase

/// Answered at once with a `Pong`, by the connection itself.
public struct Ping: Hashable, Sendable {
    /// The sender's monotonic clock.
    public var sentAt: Instant
    /// What the sender knows of its wall clock, in nanoseconds ahead of the acting controller's; nil
    /// when it knows nothing.
    public var clockOffset: Int64?

    public init(sentAt: Instant, clockOffset: Int64?) {
        self.sentAt = sentAt
        self.clockOffset = clockOffset
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(sentAt.nanoseconds)
        writer.write(clockOffset != nil)
        writer.write(UInt64(bitPattern: clockOffset ?? 0))
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        sentAt = Instant(nanoseconds: try reader.readUInt64())
        let isKnown = try reader.readBool()
        let offset = Int64(bitPattern: try reader.readUInt64())
        clockOffset = isKnown ? offset : nil
    }
}

public struct Pong: Hashable, Sendable {
    /// As in the ping.
    public var sentAt: Instant
    /// Of the answering side, in nanoseconds since 1970.
    public var wallClock: UInt64

    public init(sentAt: Instant, wallClock: UInt64) {
        self.sentAt = sentAt
        self.wallClock = wallClock
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(sentAt.nanoseconds)
        writer.write(wallClock)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        sentAt = Instant(nanoseconds: try reader.readUInt64())
        wallClock = try reader.readUInt64()
    }
}
