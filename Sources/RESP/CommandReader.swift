// Commands out of the byte stream of one client connection.

import KVBase

/// The receiving half of one client connection: parses commands where they lie in the read buffer
/// and keeps only what is left over. Holds at most one command (`CommandLimits.commandBytesMax`)
/// and one read.
public struct CommandReader {
    private var parser: CommandParser
    private var input = InputBuffer()
    private var hasFailed = false

    public init(limits: CommandLimits = CommandLimits()) { parser = CommandParser(limits: limits) }

    /// Bytes that wait for the rest of their command, or for `resume`.
    public var bufferedBytes: Int { input.count }

    /// Takes bytes that came and calls `handle` for each command that is complete. When `handle`
    /// answers false the rest is kept for `resume`. `handle` must not touch this reader, and what
    /// it is given is valid during the call only.
    ///
    /// Throws `malformed` with the text for the client: answer it and close. The reader takes no
    /// more bytes after that.
    public mutating func receive(
        _ bytes: UnsafeRawBufferPointer, _ handle: (ClientCommand) -> Bool
    ) throws(DatabaseError) {
        guard !hasFailed else { return }
        if input.isEmpty {
            let consumed = try process(bytes, handle)
            if consumed < bytes.count {
                input.append(UnsafeRawBufferPointer(rebasing: bytes[consumed...]))
            }
        } else {
            input.append(bytes)
            try resume(handle)
        }
    }

    /// Goes on with the commands that are here already, after a `handle` that answered false.
    public mutating func resume(_ handle: (ClientCommand) -> Bool) throws(DatabaseError) {
        guard !hasFailed, !input.isEmpty else { return }
        // Moved out so that the bytes are not accessed through `self` while it changes.
        var current = InputBuffer()
        swap(&current, &input)
        let consumed = try current.withUnsafeBytes { bytes throws(DatabaseError) in
            try process(bytes, handle)
        }
        current.consume(consumed)
        swap(&current, &input)
    }

    /// Returns how many bytes at the front are used up.
    private mutating func process(
        _ bytes: UnsafeRawBufferPointer, _ handle: (ClientCommand) -> Bool
    ) throws(DatabaseError) -> Int {
        var offset = 0
        while offset < bytes.count {
            let rest = UnsafeRawBufferPointer(rebasing: bytes[offset...])
            let step: CommandParser.Step
            do throws(DatabaseError) {
                step = try parser.advance(rest)
            } catch {
                hasFailed = true
                throw error
            }
            switch step {
            case .incomplete(let consumed):
                return offset + consumed
            case .nothing(let consumed):
                offset += consumed
            case .oversized(let command, let consumed):
                offset += consumed
                if !handle(.oversized(command)) { return offset }
            case .command(let consumed):
                offset += consumed
                let goesOn = report(rest, handle)
                parser.startNext()
                if !goesOn { return offset }
            }
        }
        return offset
    }

    private func report(_ bytes: UnsafeRawBufferPointer, _ handle: (ClientCommand) -> Bool)
        -> Bool
    {
        parser.arguments.withUnsafeBufferPointer { arguments in
            guard parser.isInline else {
                return handle(
                    .command(ParsedCommand(base: bytes.baseAddress!, arguments: arguments)))
            }
            return parser.inlineBytes.withUnsafeBytes { inline in
                // An inline command may be nothing but empty quotes, without any byte.
                let base = inline.baseAddress ?? bytes.baseAddress!
                return handle(.command(ParsedCommand(base: base, arguments: arguments)))
            }
        }
    }
}
