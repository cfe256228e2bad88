// Swift source as the checks see it: code without comments and string literals, line by line.

struct SourceText {
    /// The code of each line; comments and the text of literals are blanked.
    let code: [String]
    let lines: [String]

    init(_ text: String) {
        lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
        var stripper = Stripper()
        code = lines.map { stripper.strip($0) }
    }

    /// The modules imported, with their lines (from 1).
    var imports: [(module: String, line: Int)] {
        code.enumerated().compactMap { index, line in
            var words = line.split(separator: " ").map(String.init)
            while let first = words.first, first.hasPrefix("@") || first == "public" {
                words.removeFirst()
            }
            guard words.count >= 2, words[0] == "import" else { return nil }
            let kinds = ["struct", "class", "enum", "protocol", "func", "var", "let", "typealias"]
            let path = kinds.contains(words[1]) && words.count > 2 ? words[2] : words[1]
            let module = path.split(whereSeparator: { $0 == "." || $0 == ";" }).first
            return module.map { (String($0), index + 1) }
        }
    }

    /// The lines (from 1) whose code holds `word` with no letter, digit or underscore around it.
    func lines(containing word: String) -> [Int] {
        code.indices.filter { Self.contains(code[$0], word) }.map { $0 + 1 }
    }

    static func contains(_ line: String, _ word: String) -> Bool {
        let words = line.split { !($0.isLetter || $0.isNumber || $0 == "_") }
        return words.contains { $0 == word }
    }

    /// Blanks comments and literals; remembers what goes on in the next line.
    private struct Stripper {
        private var commentDepth = 0
        private var isInMultilineString = false

        mutating func strip(_ line: String) -> String {
            let bytes = Array(line.utf8)
            var out: [UInt8] = []
            var index = 0
            func has(_ text: StaticString) -> Bool {
                let count = text.utf8CodeUnitCount
                guard index + count <= bytes.count else { return false }
                return (0..<count).allSatisfy { bytes[index + $0] == text.utf8Start[$0] }
            }
            while index < bytes.count {
                if commentDepth > 0 {
                    if has("*/") {
                        commentDepth -= 1
                        index += 2
                    } else if has("/*") {
                        commentDepth += 1
                        index += 2
                    } else {
                        index += 1
                    }
                } else if has("\"\"\"") {
                    isInMultilineString.toggle()
                    index += 3
                } else if isInMultilineString {
                    index += 1
                } else if has("//") {
                    break
                } else if has("/*") {
                    commentDepth += 1
                    index += 2
                } else if has("\"") {
                    index = endOfLiteral(bytes, from: index + 1)
                } else {
                    out.append(bytes[index])
                    index += 1
                }
            }
            return String(decoding: out, as: UTF8.self)
        }

        /// Behind the closing quote. Interpolations are blanked with the rest: their parentheses
        /// are counted, as they may hold quotes.
        private func endOfLiteral(_ bytes: [UInt8], from start: Int) -> Int {
            var index = start
            var depth = 0
            while index < bytes.count {
                let byte = bytes[index]
                if byte == UInt8(ascii: "\\"), depth == 0 {
                    if index + 1 < bytes.count, bytes[index + 1] == UInt8(ascii: "(") { depth = 1 }
                    index += 2
                    continue
                }
                if depth > 0 {
                    if byte == UInt8(ascii: "(") { depth += 1 }
                    if byte == UInt8(ascii: ")") { depth -= 1 }
                    if byte == UInt8(ascii: "\"") {
                        index = endOfLiteral(bytes, from: index + 1)
                        continue
                    }
                } else if byte == UInt8(ascii: "\"") {
                    return index + 1
                }
                index += 1
            }
            return index
        }
    }
}
