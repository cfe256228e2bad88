// Writing JSON strings by hand, for the programs that do without Foundation.

/// RFC 8259 strings.
public enum JSONText {
    /// Appends `text` in quotes, with everything escaped that JSON wants escaped.
    public static func append(_ text: String, to bytes: inout Bytes) {
        let digits = Array("0123456789abcdef".utf8)
        bytes.append(UInt8(ascii: "\""))
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\""), UInt8(ascii: "\\"):
                bytes.append(UInt8(ascii: "\\"))
                bytes.append(byte)
            case 0x0A: bytes.append(contentsOf: "\\n".utf8)
            case 0x0D: bytes.append(contentsOf: "\\r".utf8)
            case 0x09: bytes.append(contentsOf: "\\t".utf8)
            case 0..<0x20, 0x7F:
                bytes.append(contentsOf: "\\u00".utf8)
                bytes.append(digits[Int(byte >> 4)])
                bytes.append(digits[Int(byte & 15)])
            default: bytes.append(byte)
            }
        }
        bytes.append(UInt8(ascii: "\""))
    }

    /// `text` in quotes, escaped.
    public static func quoted(_ text: String) -> String {
        var bytes: Bytes = []
        append(text, to: &bytes)
        return String(decoding: bytes, as: UTF8.self)
    }
}
