// Where output goes: data to standard output, everything said to a person to standard error.

import Glibc

enum Terminal {
    static let outputIsTTY = isatty(1) == 1
    static let inputIsTTY = isatty(0) == 1
    static let errorIsTTY = isatty(2) == 1

    /// Writes a line of data.
    static func data(_ line: String, end: String = "\n") { write(Array((line + end).utf8), to: 1) }

    /// Writes data as it is.
    static func data(raw bytes: [UInt8]) { write(bytes, to: 1) }

    /// Writes a line for the person who watches.
    static func say(_ line: String) { write(Array((line + "\n").utf8), to: 2) }

    /// Asks for `word` on the terminal; true when exactly that was typed.
    static func confirms(_ question: String, word: String) -> Bool {
        write(Array("\(question)\ntype '\(word)' to go on: ".utf8), to: 2)
        return readLine() == word
    }

    /// Columns of a message that is redrawn: one stays free, so that the cursor has a place on the
    /// same line.
    static var messageColumns: Int { size(of: 2).columns - 1 }

    /// Writes `line` over the last message of this kind. For when standard error is a terminal.
    static func redrawMessage(_ line: String) {
        let cut = TextTable.cut(line, messageColumns)
        write(Array("\r\(cut)\u{1B}[K".utf8), to: 2)
    }

    /// Shows `lines` from the top of the screen on, as far as they have room there. For when standard
    /// output is a terminal.
    static func redraw(_ lines: [String]) {
        let (columns, rows) = size()
        // Each line is cleared behind its end, so that nothing flickers as a whole.
        let body = lines.prefix(rows - 1).map { TextTable.cut($0, columns) + "\u{1B}[K" }
        data("\u{1B}[H" + body.joined(separator: "\r\n") + "\u{1B}[J", end: "")
    }

    /// Columns and rows of the terminal on `descriptor`.
    static func size(of descriptor: Int32 = 1) -> (columns: Int, rows: Int) {
        var size = winsize()
        guard ioctl(descriptor, UInt(TIOCGWINSZ), &size) == 0, size.ws_col > 0 else {
            return (80, 24)
        }
        return (Int(size.ws_col), Int(size.ws_row))
    }

    /// Writes all of `bytes`; a reader that went away ends the program, as it does other filters.
    static func write(_ bytes: [UInt8], to descriptor: Int32) {
        var offset = 0
        while offset < bytes.count {
            let count = bytes.withUnsafeBytes {
                Glibc.write(descriptor, $0.baseAddress! + offset, bytes.count - offset)
            }
            if count > 0 {
                offset += count
            } else if errno != EINTR {
                return
            }
        }
    }
}

/// Colors for words that carry good or bad news; plain text when color is off.
struct Palette {
    let isOn: Bool

    /// Color when standard output is a terminal and neither NO_COLOR nor `--no-color` forbid it.
    init(_ invocation: Invocation) {
        let forbidden = getenv("NO_COLOR").map { $0.pointee != 0 } ?? false
        isOn = Terminal.outputIsTTY && !forbidden && !invocation.has("no-color")
    }

    func good(_ text: String) -> String { paint(text, "32") }
    func warning(_ text: String) -> String { paint(text, "33") }
    func bad(_ text: String) -> String { paint(text, "31") }
    func strong(_ text: String) -> String { paint(text, "1") }

    /// Colors a state word by what it means.
    func state(_ word: String) -> String {
        switch word {
        case "up", "healthy", "active", "leader", "running", "spare", "follower": good(word)
        case "ill", "suspect", "degraded", "draining", "restoring", "lagging", "learner",
            "candidate", "starting":
            warning(word)
        case "down", "unavailable", "uncontrolled", "failed", "unreachable", "died": bad(word)
        default: word
        }
    }

    private func paint(_ text: String, _ code: String) -> String {
        isOn ? "\u{1B}[\(code)m\(text)\u{1B}[0m" : text
    }
}
