// What kvbench is asked to do.

import KVBase

struct UsageError: Error {
    var message: String
    init(_ message: String) { self.message = message }
}

struct BenchOptions {
    enum Workload: String, CaseIterable {
        /// Writes to keys chosen by `keys`.
        case put
        case get
        /// Writes and reads, `reads` of all being reads.
        case mixed
        /// Each of `records` keys once, in order.
        case load
        /// Sorted pages of 100 records from a chosen key on.
        case list
    }

    enum Keys: String, CaseIterable { case uniform, zipf, sequential }

    /// A few keys that get most of the requests, in place of `keys`.
    struct HotPart {
        /// Key numbers, side by side.
        var keys: Range<UInt64>
        /// The part of the requests that goes to them; the others get the rest.
        var share: Double
    }

    /// Which commands carry a put and a get.
    enum Dialect: String, CaseIterable {
        /// HSET and HGET on a table, as Rangekeeper wants it.
        case hset
        /// SET and GET, for a plain Redis.
        case set
    }

    var host = "127.0.0.1"
    var port: UInt16 = 7000
    var connections = 64
    var pipeline = 1
    var workload = Workload.put
    var records = 100_000
    var valueBytes = 100
    var keyBytes = 16
    var keys = Keys.uniform
    /// What --hot and --single-hot-key ask for.
    private var hotFraction: Double?
    private var hotShare = 0.0
    private var hasSingleHotKey = false
    /// The part of the mixed workload's requests that reads.
    var reads = 0.5
    /// Nanoseconds; nil when a number of requests ends the run.
    var duration: UInt64? = 10_000_000_000
    var requests: Int?
    var table = "bench"
    var dialect = Dialect.hset
    var seed: UInt64 = 1
    var isJSON = false

    init(_ arguments: [String]) throws(UsageError) {
        var rest = arguments[...]
        while let word = rest.popFirst() {
            let parts = word.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            let flag = String(parts[0])
            if flag == "--json" {
                isJSON = true
                continue
            }
            if flag == "--single-hot-key" {
                hasSingleHotKey = true
                continue
            }
            guard Self.flags.contains(flag) else { throw UsageError("unknown flag '\(flag)'") }
            guard let value = parts.count == 2 ? String(parts[1]) : rest.popFirst() else {
                throw UsageError("\(flag) needs a value")
            }
            try take(flag, value)
        }
        let digits = String(records - 1).utf8.count
        guard keyBytes >= digits else {
            throw UsageError("\(records) records need keys of \(digits) bytes, see --key-bytes")
        }
        guard workload != .list || dialect == .hset else {
            throw UsageError("the list workload needs --command hset")
        }
        guard hotPart == nil || keys == .uniform && workload != .load else {
            throw UsageError("--hot and --single-hot-key choose the keys: no --keys, no load")
        }
        if workload == .load {
            duration = nil
            requests = records
        }
    }

    /// A single hot key gets nine requests of ten, and lies in the middle of the keys; a hot part is
    /// the first of them.
    var hotPart: HotPart? {
        let count = UInt64(records)
        if hasSingleHotKey { return HotPart(keys: count / 2..<count / 2 + 1, share: 0.9) }
        return hotFraction.map {
            HotPart(keys: 0..<max(1, UInt64(Double(records) * $0)), share: hotShare)
        }
    }

    private static let flags = [
        "--host", "--port", "--connections", "--pipeline", "--workload", "--records",
        "--value-bytes", "--key-bytes", "--keys", "--duration", "--requests", "--table",
        "--command", "--seed", "--hot", "--reads",
    ]

    private mutating func take(_ flag: String, _ value: String) throws(UsageError) {
        switch flag {
        case "--host": host = value
        case "--port": port = UInt16(try Self.int(flag, value, 1...65_535))
        case "--connections": connections = try Self.int(flag, value, 1...10_000)
        case "--pipeline": pipeline = try Self.int(flag, value, 1...10_000)
        case "--workload": workload = try Self.choice(flag, value)
        case "--records": records = try Self.int(flag, value, 1...1_000_000_000)
        case "--value-bytes": valueBytes = try Self.int(flag, value, 0...16_000_000)
        case "--key-bytes": keyBytes = try Self.int(flag, value, 1...1_000_000)
        case "--keys": keys = try Self.choice(flag, value)
        case "--hot":
            let parts = value.split(separator: ":", omittingEmptySubsequences: false)
            guard parts.count == 2, let fraction = Self.part(parts[0]), fraction > 0,
                let share = Self.part(parts[1])
            else {
                throw UsageError(
                    "--hot takes PART:SHARE, such as 0.1:0.9 for 90 % of the requests to 10 %"
                        + " of the keys, not '\(value)'")
            }
            hotFraction = fraction
            hotShare = share
        case "--reads":
            guard let part = Self.part(value) else {
                throw UsageError("--reads takes a part from 0 to 1, not '\(value)'")
            }
            reads = part
        case "--duration":
            duration = try Self.nanoseconds(flag, value)
            requests = nil
        case "--requests":
            requests = try Self.int(flag, value, 1...Int.max)
            duration = nil
        case "--table": table = value
        case "--command": dialect = try Self.choice(flag, value)
        default: seed = UInt64(try Self.int(flag, value, 0...Int.max))
        }
    }

    private static func int(
        _ flag: String, _ value: String, _ range: ClosedRange<Int>
    ) throws(UsageError) -> Int {
        guard let number = Int(value), range.contains(number) else {
            throw UsageError(
                "\(flag) takes a number from \(range.lowerBound) to \(range.upperBound),"
                    + " not '\(value)'")
        }
        return number
    }

    private static func choice<Choice>(
        _ flag: String, _ value: String
    ) throws(UsageError) -> Choice
    where Choice: RawRepresentable<String> & CaseIterable {
        guard let choice = Choice(rawValue: value) else {
            let words = Choice.allCases.map(\.rawValue).joined(separator: ", ")
            throw UsageError("\(flag) is one of \(words), not '\(value)'")
        }
        return choice
    }

    private static func part(_ text: some StringProtocol) -> Double? {
        guard let part = Double(text), part >= 0, part <= 1 else { return nil }
        return part
    }

    private static func nanoseconds(_ flag: String, _ value: String) throws(UsageError) -> UInt64 {
        let units: [(suffix: String, factor: Double)] = [
            ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("", 1e9),
        ]
        for unit in units where value.hasSuffix(unit.suffix) {
            if let number = Double(value.dropLast(unit.suffix.count)), number > 0, number < 1e6 {
                return UInt64(number * unit.factor)
            }
        }
        throw UsageError("\(flag) takes a time such as 500ms, 10s or 1m, not '\(value)'")
    }

    static let help = """
        kvbench - a load generator for servers of the Redis protocol

        usage: kvbench [FLAGS]
               kvbench observe    what the daemons' counters and histograms cost here

          --host HOST          127.0.0.1 unless told; a numeric address or a name
          --port PORT          7000 unless told
          --connections N      64 unless told
          --pipeline N         requests in flight on each connection: 1 unless told
          --workload KIND      put (default), get, mixed (both, see --reads), load (each key
                               once, in order), list (pages of 100 records)
          --reads PART         how much of the mixed workload reads: 0.5 unless told
          --records N          how many keys: 100000 unless told
          --value-bytes N      100 unless told
          --key-bytes N        16 unless told; keys are decimal numbers with leading zeros
          --keys KIND          uniform (default), zipf or sequential; load is always sequential
          --hot PART:SHARE     the first PART of the keys gets SHARE of the requests, evenly;
                               the other keys get the rest: 0.1:0.9
          --single-hot-key     one key, in the middle, gets nine requests of ten
          --duration TIME      10s unless told; 500ms, 10s, 1m
          --requests N         end after so many requests instead
          --table NAME         bench unless told
          --command KIND       hset (default: HSET and HGET on the table) or set (SET and GET, for
                               a plain Redis)
          --seed N             of keys and values: 1 unless told
          --json               the report as JSON
          --version            which build this is
          -h, --help           this text

        Stalls: for each key the longest time from a request's issue to an answer without error. A
        request that failed goes on until one for its key succeeds, which is asked for again at
        once. The report has the quantiles over all keys asked for (up to 16 million). Silence is
        the longest time in which no request at all succeeded.

        Exit codes: 0 no error occurred, 1 errors occurred, 2 usage.

        Examples:
          kvbench --port 7000 --workload load --records 1000000 --pipeline 16
          kvbench --port 7000 --workload get --keys zipf --duration 30s
          kvbench --port 7000 --workload mixed --reads 0.9 --hot 0.1:0.9 --json
          kvbench --port 6379 --workload put --command set --json
        """
}
