// What measurements share: clocks, memory, and the lines they print.

import Glibc

/// CPU time of this process: what others do on the machine does not count.
func nanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// Bytes of memory that this process has in use: resident pages, after the allocator gave back what
/// it held in reserve.
func residentBytes() -> Int {
    // <malloc.h> is not in the Glibc module.
    typealias Trim = @convention(c) (Int) -> Int32
    if let trim = dlsym(nil, "malloc_trim") { _ = unsafeBitCast(trim, to: Trim.self)(0) }
    guard let file = fopen("/proc/self/statm", "r") else { return 0 }
    defer { fclose(file) }
    var total = 0
    var resident = 0
    withUnsafeMutablePointer(to: &total) { total in
        withUnsafeMutablePointer(to: &resident) { resident in
            _ = withVaList([total, resident]) { vfscanf(file, "%ld %ld", $0) }
        }
    }
    return resident * Int(sysconf(Int32(_SC_PAGESIZE)))
}

/// `12.3 MiB`.
func mebibytes(_ bytes: Int) -> String { "\(tenths(Double(bytes) / 1_048_576)) MiB" }

func tenths(_ value: Double) -> String { "\((value * 10).rounded() / 10)" }

/// `1.2 ms` or `3.4 us`.
func duration(_ nanoseconds: UInt64) -> String {
    nanoseconds < 1_000_000
        ? "\(tenths(Double(nanoseconds) / 1e3)) us" : "\(tenths(Double(nanoseconds) / 1e6)) ms"
}

/// Durations of something done again and again.
struct Durations {
    private var values: [UInt64] = []

    /// Measures `body` once.
    mutating func measure<Result>(_ body: () -> Result) -> Result {
        let start = nanoseconds()
        let result = body()
        values.append(nanoseconds() - start)
        return result
    }

    /// `p50 1.0 us, p99 2.0 us, max 9.9 us of 1000`.
    var description: String {
        guard !values.isEmpty else { return "none" }
        let sorted = values.sorted()
        func rank(_ share: Double) -> UInt64 { sorted[Int(Double(sorted.count - 1) * share)] }
        return "p50 \(duration(rank(0.5))), p99 \(duration(rank(0.99))), "
            + "max \(duration(rank(1))) of \(sorted.count)"
    }
}

func row(_ name: String, _ value: String) {
    print(name + String(repeating: " ", count: max(1, 34 - name.utf8.count)) + value)
    fflush(nil)
}

/// The words behind a subcommand, as `--name NUMBER`.
func numbers(_ words: ArraySlice<String>, defaults: [(name: String, value: Int)]) -> [String: Int] {
    var values: [String: Int] = [:]
    for (name, value) in defaults { values[name] = value }
    var rest = words
    while let flag = rest.popFirst() {
        if flag == "--help" {
            print(usage)
            exit(0)
        }
        guard flag.hasPrefix("--"), values[String(flag.dropFirst(2))] != nil else {
            refuse("unknown option \(flag)")
        }
        guard let word = rest.popFirst(), let value = Int(word), value > 0 else {
            refuse("\(flag) takes a number above 0")
        }
        values[String(flag.dropFirst(2))] = value
    }
    return values
}

/// Ends a measurement that cannot go on.
func fail(_ reason: String) -> Never {
    print("kvsim: \(reason)")
    exit(1)
}
