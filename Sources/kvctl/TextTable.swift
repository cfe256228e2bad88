// Columns of text, aligned, and quantities that people can read.

/// A table whose columns are as wide as their widest cell. Cells may carry color.
struct TextTable {
    struct Column {
        var title: String
        var isNumber = false

        static func text(_ title: String) -> Column { Column(title: title) }
        static func number(_ title: String) -> Column { Column(title: title, isNumber: true) }
    }

    let columns: [Column]
    private(set) var rows: [[String]] = []

    init(_ columns: [Column]) { self.columns = columns }

    /// Precondition: one cell for each column.
    mutating func add(_ cells: [String]) {
        precondition(cells.count == columns.count)
        rows.append(cells)
    }

    func lines(_ palette: Palette) -> [String] {
        let header = columns.map(\.title)
        let widths = columns.indices.map { column in
            (rows + [header]).map { Self.width($0[column]) }.max() ?? 0
        }
        func line(_ cells: [String]) -> String {
            var text = ""
            for (column, cell) in cells.enumerated() {
                let padding = String(repeating: " ", count: widths[column] - Self.width(cell))
                let isLast = column == cells.count - 1
                if columns[column].isNumber {
                    text += padding + cell
                } else {
                    text += isLast ? cell : cell + padding
                }
                if !isLast { text += "  " }
            }
            return text
        }
        return [palette.strong(line(header))] + rows.map(line)
    }

    /// Columns that `text` takes on the screen, escape sequences not counted.
    static func width(_ text: String) -> Int {
        var width = 0
        var inEscape = false
        for scalar in text.unicodeScalars {
            if inEscape {
                inEscape = scalar != "m"
            } else if scalar == "\u{1B}" {
                inEscape = true
            } else {
                width += 1
            }
        }
        return width
    }

    /// Cuts `line` to `columns`, escape sequences not counted and color ended.
    static func cut(_ line: String, _ columns: Int) -> String {
        guard TextTable.width(line) > columns else { return line }
        var out = ""
        var width = 0
        var inEscape = false
        for scalar in line.unicodeScalars {
            if inEscape {
                inEscape = scalar != "m"
            } else if scalar == "\u{1B}" {
                inEscape = true
            } else if width == columns {
                break
            } else {
                width += 1
            }
            out.unicodeScalars.append(scalar)
        }
        return out + "\u{1B}[0m"
    }
}

enum Quantity {
    /// `512 B`, `3.2 MiB`.
    static func bytes(_ count: Int?) -> String {
        guard let count else { return "-" }
        guard count >= 1024 else { return "\(count) B" }
        var value = Double(count)
        var unit = 0
        let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
        while value >= 1024, unit < units.count - 1 {
            value /= 1024
            unit += 1
        }
        return "\(decimal(value)) \(units[unit])"
    }

    /// `999`, `12.3k`, `5.0M`.
    static func count(_ count: Int?) -> String {
        guard let count else { return "-" }
        if count < 10_000 { return String(count) }
        if count < 1_000_000 { return decimal(Double(count) / 1e3) + "k" }
        if count < 1_000_000_000 { return decimal(Double(count) / 1e6) + "M" }
        return decimal(Double(count) / 1e9) + "G"
    }

    /// All digits, in groups of three: `1,234,567`.
    static func grouped(_ count: Int) -> String {
        var text = ""
        for (index, digit) in String(count).reversed().enumerated() {
            if index > 0, index % 3 == 0 { text = "," + text }
            text = String(digit) + text
        }
        return text
    }

    /// `14 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`.
    static func duration(seconds: Double) -> String {
        let count = Int(min(max(seconds, 0), 1e12))
        let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")]
        guard let first = units.firstIndex(where: { count >= $0.0 }) else { return "0 s" }
        var text = "\(count / units[first].0) \(units[first].1)"
        if first + 1 < units.count, count % units[first].0 >= units[first + 1].0 {
            let rest = count % units[first].0 / units[first + 1].0
            text += " \(rest) \(units[first + 1].1)"
        }
        return text
    }

    /// `85 ms`, `1.3 s`.
    static func milliseconds(_ count: Int?) -> String {
        guard let count else { return "-" }
        return count < 1000 ? "\(count) ms" : decimal(Double(count) / 1000) + " s"
    }

    /// Reads a time such as `500ms`, `10s`, `1h30m` or `7d`; a bare number is one of seconds.
    static func seconds(_ text: String) -> Double? {
        let units: [Substring: Double] = [
            "ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400,
        ]
        var total = 0.0
        var rest = Substring(Double(text) == nil ? text : text + "s")
        while !rest.isEmpty {
            let number = rest.prefix { !$0.isLetter }
            let unit = rest.dropFirst(number.count).prefix { $0.isLetter }
            guard let value = Double(number), value >= 0, value < 1e7, let factor = units[unit]
            else { return nil }
            total += value * factor
            rest = rest.dropFirst(number.count + unit.count)
        }
        return total > 0 ? total : nil
    }

    /// `3 nodes`, `1 node`.
    static func of(_ count: Int, _ noun: String) -> String {
        "\(count) \(noun)\(count == 1 ? "" : "s")"
    }

    /// One digit behind the point.
    static func decimal(_ value: Double) -> String {
        let tenths = Int((value * 10).rounded())
        return "\(tenths / 10).\(tenths % 10)"
    }
}
