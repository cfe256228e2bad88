// The incremental parser of commands: arrays of bulk strings, and inline commands
// (redis.io, "Redis serialization protocol specification").
//
// Deviations from Redis: the two bytes after a bulk string must be CR LF; an argument over the
// limit is skipped and reported instead of ending the connection.

import KVBase

/// Parses one command at a time out of a buffer that starts at the command's first byte and may
/// grow between calls. Bytes seen once are not looked at again.
struct CommandParser {
    enum Step {
        /// More bytes are needed. `consumed` bytes at the front may be dropped.
        case incomplete(consumed: Int)
        /// Nothing to do: an empty line, an empty array.
        case nothing(consumed: Int)
        /// A command; its arguments are in `arguments`, see `base`.
        case command(consumed: Int)
        case oversized(OversizedCommand, consumed: Int)
    }

    private enum Phase {
        case start
        /// At the header of the next argument.
        case header
        case body(count: Int)
        case inline
        /// Inside an argument that is dropped; `count` bytes to go, CR LF included.
        case skip(count: Int)
    }

    let limits: CommandLimits
    /// Offsets from the command's start, or from `inlineBytes` for an inline command.
    private(set) var arguments: [ParsedCommand.Argument] = []
    private(set) var inlineBytes: [UInt8] = []
    private(set) var isInline = false

    private var phase = Phase.start
    /// How far the buffer is parsed, and from there how far the search for a line's end has come.
    private var offset = 0
    private var searched = 0
    private var announced = 0
    private var argumentIndex = 0
    /// Set from the moment on that the command is only skipped.
    private var oversized: OversizedCommand?
    /// Bytes of the command dropped so far.
    private var dropped = 0

    init(limits: CommandLimits) { self.limits = limits }

    /// Goes on with the command at the start of `buffer`. Throws `malformed` for bytes that are no
    /// command: the connection cannot be used further.
    mutating func advance(_ buffer: UnsafeRawBufferPointer) throws(DatabaseError) -> Step {
        while true {
            switch phase {
            case .start:
                guard let first = buffer.first else { return .incomplete(consumed: 0) }
                if first != UInt8(ascii: "*") {
                    phase = .inline
                    continue
                }
                guard let line = try takeLine(buffer) else { return .incomplete(consumed: 0) }
                guard let count = DecimalNumber.parse(line), count <= limits.argumentsMax else {
                    throw Self.error("invalid multibulk length")
                }
                if count <= 0 { return .nothing(consumed: reset()) }
                announced = Int(count)
                phase = .header
            case .header:
                if argumentIndex == announced { return finish() }
                guard let line = try takeLine(buffer, marker: UInt8(ascii: "$")) else {
                    return .incomplete(consumed: dropIfOversized())
                }
                guard let announcedBytes = DecimalNumber.parse(line), announcedBytes >= 0,
                    announcedBytes <= limits.skippedArgumentBytesMax
                else { throw Self.error("invalid bulk length") }
                try beginArgument(Int(announcedBytes))
            case .body(let count):
                guard buffer.count - offset >= count + 2 else { return .incomplete(consumed: 0) }
                guard buffer[offset + count] == 0x0D, buffer[offset + count + 1] == 0x0A else {
                    throw Self.error("no line end after a bulk string")
                }
                arguments.append(.init(offset: offset, count: count))
                offset += count + 2
                argumentIndex += 1
                phase = .header
            case .skip(let count):
                let taken = min(count, buffer.count - offset)
                offset += taken
                guard taken == count else {
                    phase = .skip(count: count - taken)
                    return .incomplete(consumed: dropIfOversized())
                }
                argumentIndex += 1
                phase = .header
            case .inline:
                return try advanceInline(buffer)
            }
        }
    }

    /// Forgets the command that was just reported.
    mutating func startNext() {
        arguments.removeAll(keepingCapacity: true)
        if isInline {
            inlineBytes.removeAll(keepingCapacity: true)
            isInline = false
        }
    }

    // MARK: Arguments

    private mutating func beginArgument(_ count: Int) throws(DatabaseError) {
        let total = dropped + offset + count + 2
        if oversized == nil, count > limits.argumentBytesMax || total > limits.commandBytesMax {
            oversized = OversizedCommand(
                argumentIndex: argumentIndex, argumentBytes: count, argumentCount: announced)
        }
        guard oversized != nil else {
            phase = .body(count: count)
            return
        }
        guard total <= limits.skippedCommandBytesMax else {
            throw Self.error("too big mbulk count string")
        }
        phase = .skip(count: count + 2)
    }

    private mutating func finish() -> Step {
        let oversized = oversized
        let consumed = reset()
        guard let oversized else { return .command(consumed: consumed) }
        arguments.removeAll(keepingCapacity: true)
        return .oversized(oversized, consumed: consumed)
    }

    /// Back to the start of a command; returns the length of the one that ended.
    private mutating func reset() -> Int {
        let consumed = offset
        phase = .start
        offset = 0
        searched = 0
        announced = 0
        argumentIndex = 0
        oversized = nil
        dropped = 0
        return consumed
    }

    /// Of an oversized command nothing is kept, so that it takes no memory.
    private mutating func dropIfOversized() -> Int {
        guard oversized != nil else { return 0 }
        let consumed = offset
        dropped += consumed
        searched -= min(searched, consumed)
        offset = 0
        return consumed
    }

    // MARK: Lines

    /// The rest of the line after its first byte (which must be `marker`), and steps behind it; nil
    /// when its end has not come. A header line is at most 64 bytes long.
    private mutating func takeLine(
        _ buffer: UnsafeRawBufferPointer, marker: UInt8? = nil
    ) throws(DatabaseError) -> UnsafeRawBufferPointer? {
        guard offset < buffer.count else { return nil }
        if let marker, buffer[offset] != marker {
            throw Self.error("expected '$', got '\(Self.printable(buffer[offset]))'")
        }
        var end = max(searched, offset + 1)
        let stop = min(buffer.count, offset + 64)
        while end < stop, buffer[end] != 0x0A { end += 1 }
        guard end < stop else {
            guard buffer.count < offset + 64 else { throw Self.error("too long a length line") }
            searched = end
            return nil
        }
        guard buffer[end - 1] == 0x0D else { throw Self.error("no CR before LF") }
        defer { offset = end + 1 }
        return UnsafeRawBufferPointer(rebasing: buffer[offset + 1..<max(offset + 1, end - 1)])
    }

    private mutating func advanceInline(_ buffer: UnsafeRawBufferPointer) throws(DatabaseError)
        -> Step
    {
        let stop = min(buffer.count, limits.inlineBytesMax)
        while searched < stop, buffer[searched] != 0x0A { searched += 1 }
        guard searched < stop else {
            guard buffer.count < limits.inlineBytesMax else {
                throw Self.error("too big inline request")
            }
            return .incomplete(consumed: 0)
        }
        var line = UnsafeRawBufferPointer(rebasing: buffer[0..<searched])
        if line.last == 0x0D { line = UnsafeRawBufferPointer(rebasing: line.dropLast()) }
        isInline = true
        var splitter = InlineSplitter(line: line)
        while let argument = try splitter.next(into: &inlineBytes) { arguments.append(argument) }
        offset = searched + 1
        let isEmpty = arguments.isEmpty
        if isEmpty { startNext() }
        let consumed = reset()
        return isEmpty ? .nothing(consumed: consumed) : .command(consumed: consumed)
    }

    static func error(_ what: String) -> DatabaseError {
        DatabaseError(.malformed, "Protocol error: \(what)")
    }

    private static func printable(_ byte: UInt8) -> Character {
        byte > 0x20 && byte < 0x7F ? Character(UnicodeScalar(byte)) : "?"
    }
}
