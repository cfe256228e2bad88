// The client's side: commands as arrays of bulk strings.

import KVBase

public enum CommandEncoder {
    /// Appends the command with these arguments, the name first.
    public static func append(_ arguments: [Bytes], to bytes: inout Bytes) {
        appendHeader(arguments.count, to: &bytes)
        for argument in arguments { append(argument: argument, to: &bytes) }
    }

    /// The command with these arguments, the name first.
    public static func encode(_ arguments: String...) -> Bytes {
        var bytes: Bytes = []
        append(arguments.map { Bytes($0.utf8) }, to: &bytes)
        return bytes
    }

    /// The start of a command; exactly `count` arguments must follow.
    public static func appendHeader(_ count: Int, to bytes: inout Bytes) {
        bytes.append(UInt8(ascii: "*"))
        DecimalNumber.append(Int64(count), to: &bytes)
        bytes.append(0x0D)
        bytes.append(0x0A)
    }

    /// One argument after `appendHeader`.
    public static func append(argument: Bytes, to bytes: inout Bytes) {
        bytes.append(UInt8(ascii: "$"))
        DecimalNumber.append(Int64(argument.count), to: &bytes)
        bytes.append(0x0D)
        bytes.append(0x0A)
        bytes.append(contentsOf: argument)
        bytes.append(0x0D)
        bytes.append(0x0A)
    }
}
