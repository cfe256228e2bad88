// A client's command as it lies in the input buffer.

import KVBase

/// What one command of a client turned out to be.
public enum ClientCommand {
    case command(ParsedCommand)
    /// The command was read to its end but not kept: answer with an error and go on.
    case oversized(OversizedCommand)
}

/// The arguments of one command, the name first; at least one. Everything here points into the
/// buffers of the parser and is valid during the call that hands it out, no longer.
public struct ParsedCommand {
    struct Argument {
        var offset: Int
        var count: Int
    }

    let base: UnsafeRawPointer
    let arguments: UnsafeBufferPointer<Argument>

    /// Arguments, the name included.
    public var count: Int { arguments.count }

    /// The bytes of argument `index`, where they lie.
    public subscript(index: Int) -> UnsafeRawBufferPointer {
        let argument = arguments[index]
        return UnsafeRawBufferPointer(start: base + argument.offset, count: argument.count)
    }

    /// Whether argument `index` is `word`, ignoring the case of ASCII letters. `word` is written
    /// in capitals.
    public func argument(_ index: Int, is word: StaticString) -> Bool {
        let argument = self[index]
        guard argument.count == word.utf8CodeUnitCount else { return false }
        let expected = word.utf8Start
        for offset in 0..<argument.count {
            var byte = argument[offset]
            if byte >= 0x61, byte <= 0x7A { byte &-= 0x20 }
            if byte != expected[offset] { return false }
        }
        return true
    }

    /// Argument `index` as a decimal number; nil for anything else.
    public func integer(_ index: Int) -> Int64? { DecimalNumber.parse(self[index]) }

    /// Argument `index` as text, bytes that are not UTF-8 replaced.
    public func text(_ index: Int) -> String { String(decoding: self[index], as: UTF8.self) }

    /// Argument `index`, copied.
    public func bytes(_ index: Int) -> Bytes { Bytes(self[index]) }
}

/// A command with an argument, or arguments together, beyond the limits.
public struct OversizedCommand: Hashable, Sendable {
    /// The argument that went over the limit; 0 is the command's name.
    public let argumentIndex: Int
    /// The size that was announced for it.
    public let argumentBytes: Int
    /// The arguments announced.
    public let argumentCount: Int
}

/// The sizes that a parser accepts.
public struct CommandLimits: Hashable, Sendable {
    /// Most arguments of one command; more is a protocol error.
    public var argumentsMax = 2 * Limits.commandFieldsMax + 16
    /// Longest argument that is kept; a longer one makes the command `oversized`. A little above
    /// the longest value, so that a value just over its limit gets the usual answer.
    public var argumentBytesMax = Limits.valueBytesMax + (64 << 10)
    /// Longest argument that is skipped; a longer one is a protocol error.
    public var skippedArgumentBytesMax = 64 << 20
    /// Most bytes of a kept command.
    public var commandBytesMax = Limits.commandBytesMax
    /// Most bytes of a command that is skipped as oversized.
    public var skippedCommandBytesMax = 4 * Limits.commandBytesMax
    /// Longest inline command, as Redis has it.
    public var inlineBytesMax = 64 << 10

    public init() {}
}
