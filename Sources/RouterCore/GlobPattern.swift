// Patterns of MATCH and KEYS, as Redis has them: `*`, `?`, `[abc]`, `[^a-c]`, `\` before a literal.

import KVBase

public struct GlobPattern: Hashable, Sendable {
    public let bytes: Bytes

    public init(_ bytes: Bytes) { self.bytes = bytes }

    /// Whether the whole of `text` matches. Takes at most pattern times text steps.
    public func matches(_ text: Bytes) -> Bool {
        var place = 0
        var offset = 0
        // Where to go on when a guess about the last star was wrong.
        var starPlace: Int?
        var starOffset = 0
        while true {
            if place < bytes.count, bytes[place] == UInt8(ascii: "*") {
                starPlace = place
                starOffset = offset
                place += 1
                continue
            }
            if offset == text.count, place == bytes.count { return true }
            if offset < text.count, place < bytes.count,
                let next = step(place, matches: text[offset])
            {
                place = next
                offset += 1
                continue
            }
            guard let star = starPlace, starOffset < text.count else { return false }
            starOffset += 1
            offset = starOffset
            place = star + 1
        }
    }

    /// The place behind the element at `place` if that matches `byte`.
    private func step(_ place: Int, matches byte: UInt8) -> Int? {
        switch bytes[place] {
        case UInt8(ascii: "?"): return place + 1
        case UInt8(ascii: "["): return stepClass(place + 1, matches: byte)
        case UInt8(ascii: "\\") where place + 1 < bytes.count:
            return bytes[place + 1] == byte ? place + 2 : nil
        default: return bytes[place] == byte ? place + 1 : nil
        }
    }

    private func stepClass(_ start: Int, matches byte: UInt8) -> Int? {
        var place = start
        let isNegated = place < bytes.count && bytes[place] == UInt8(ascii: "^")
        if isNegated { place += 1 }
        var isMatch = false
        // A class without end reaches to the end of the pattern.
        while place < bytes.count, bytes[place] != UInt8(ascii: "]") {
            if bytes[place] == UInt8(ascii: "\\"), place + 1 < bytes.count {
                if bytes[place + 1] == byte { isMatch = true }
                place += 2
            } else if place + 2 < bytes.count, bytes[place + 1] == UInt8(ascii: "-"),
                bytes[place + 2] != UInt8(ascii: "]")
            {
                let low = min(bytes[place], bytes[place + 2])
                let high = max(bytes[place], bytes[place + 2])
                if (low...high).contains(byte) { isMatch = true }
                place += 3
            } else {
                if bytes[place] == byte { isMatch = true }
                place += 1
            }
        }
        guard isMatch != isNegated else { return nil }
        return min(place + 1, bytes.count)
    }
}
