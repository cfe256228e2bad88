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
        /// Writes and reads in turn.
        case mixed
        /// Each of `records` keys once, in order.
        case load
        /// Sorted pages of 100 records from a chosen key on.
        case list
    }

    enum Keys: String, CaseIterable { case uniform, zipf, sequential }

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
        if workload == .load {
            duration = nil
            requests = records
        }
    }

    private static let flags = [
        "--host", "--port", "--connections", "--pipeline", "--workload", "--records",
        "--value-bytes", "--key-bytes", "--keys", "--duration", "--requests", "--table",
        "--command", "--seed",
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

          --host HOST          127.0.0.1 unless told; a numeric address or a name
          --port PORT          7000 unless told
          --connections N      64 unless told
          --pipeline N         requests in flight on each connection: 1 unless told
          --workload KIND      put (default), get, mixed (put and get in turn), load (each key
                               once, in order), list (pages of 100 records)
          --records N          how many keys: 100000 unless told
          --value-bytes N      100 unless told
          --key-bytes N        16 unless told; keys are decimal numbers with leading zeros
          --keys KIND          uniform (default), zipf or sequential; load is always sequential
          --duration TIME      10s unless told; 500ms, 10s, 1m
          --requests N         end after so many requests instead
          --table NAME         bench unless told
          --command KIND       hset (default: HSET and HGET on the table) or set (SET and GET, for
                               a plain Redis)
          --seed N             of keys and values: 1 unless told
          --json               the report as JSON
          -h, --help           this text

        Exit codes: 0 no error occurred, 1 errors occurred, 2 usage.

        Examples:
          kvbench --port 7000 --workload load --records 1000000 --pipeline 16
          kvbench --port 7000 --workload get --keys zipf --duration 30s
          kvbench --port 6379 --workload put --command set --json
        """
}
