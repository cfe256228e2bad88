// Checks of data at rest as operators' tools ask a node for them.

import KVBase

/// Operators' tool to node.
public struct ScrubRequest: Hashable, Sendable {
    /// Start a check of every disk that has none under way; else only tell.
    public var starts: Bool

    public init(starts: Bool) { self.starts = starts }

    public func encode(into writer: inout ByteWriter) { writer.write(starts) }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        starts = try reader.readBool()
    }
}

/// The check of one data directory, as its node sees it.
public struct ScrubStatus: Hashable, Sendable {
    public enum State: UInt8, Sendable {
        /// None was begun since the node was started.
        case idle = 1
        case running = 2
        /// The newest one ended: everything is as it was written.
        case passed = 3
        /// It found damage: the disk has failed.
        case damaged = 4
        /// It was ended before its time, or could not read; it is tried again.
        case incomplete = 5
    }

    public var path: String
    public var state: State
    /// Read by the newest check, and about how much there was to read.
    public var doneBytes: UInt64
    public var totalBytes: UInt64
    /// When a check last passed, in seconds since 1970; 0: never.
    public var lastSuccess: UInt64
    /// What is wrong; empty when nothing is.
    public var finding: String

    public init(
        path: String, state: State, doneBytes: UInt64, totalBytes: UInt64, lastSuccess: UInt64,
        finding: String
    ) {
        self.path = path
        self.state = state
        self.doneBytes = doneBytes
        self.totalBytes = totalBytes
        self.lastSuccess = lastSuccess
        self.finding = finding
    }

    public func encode(into writer: inout ByteWriter) {
        writer.write(path)
        writer.write(state.rawValue)
        writer.write(doneBytes)
        writer.write(totalBytes)
        writer.write(lastSuccess)
        writer.write(finding)
    }

    public init(from reader: inout ByteReader) throws(DatabaseError) {
        path = try reader.readString()
        state = try reader.readEnum()
        doneBytes = try reader.readUInt64()
        totalBytes = try reader.readUInt64()
        lastSuccess = try reader.readUInt64()
        finding = try reader.readString()
    }
}
