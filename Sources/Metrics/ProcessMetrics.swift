// The `process_*` families, from /proc/self.

import Glibc
import KVBase

/// Readings of the running process. Each reads /proc anew; nil where it cannot be read.
public enum ProcessMetrics {
    /// Registers the usual `process_*` families.
    public static func register(in registry: MetricsRegistry) {
        registry.counter(
            "process_cpu_seconds_total", "User and system processor time spent, in seconds.",
            value: cpuSeconds)
        registry.gauge(
            "process_resident_memory_bytes", "Resident memory, in bytes.", value: residentBytes)
        registry.gauge(
            "process_virtual_memory_bytes", "Virtual memory, in bytes.", value: virtualBytes)
        registry.gauge("process_threads", "Threads of the process.", value: threads)
        registry.gauge(
            "process_open_fds", "Open file descriptors.", value: openFileDescriptors)
        registry.gauge(
            "process_max_fds", "Most file descriptors that may be open.",
            value: maxFileDescriptors)
        let start = startTimeSeconds()
        registry.gauge(
            "process_start_time_seconds", "Start of the process, in seconds since 1970."
        ) { start }
    }

    @Sendable public static func cpuSeconds() -> Double? {
        guard let fields = stat(), let user = Double(fields[11]), let system = Double(fields[12])
        else { return nil }
        return (user + system) / Double(sysconf(Int32(_SC_CLK_TCK)))
    }

    @Sendable public static func residentBytes() -> Double? {
        guard let fields = stat(), let pages = Double(fields[21]) else { return nil }
        return pages * Double(sysconf(Int32(_SC_PAGESIZE)))
    }

    @Sendable public static func virtualBytes() -> Double? { stat().flatMap { Double($0[20]) } }

    @Sendable public static func threads() -> Double? { stat().flatMap { Double($0[17]) } }

    @Sendable public static func openFileDescriptors() -> Double? {
        guard let directory = opendir("/proc/self/fd") else { return nil }
        defer { closedir(directory) }
        // Not counted: `.`, `..` and the directory that is being read.
        var count = -3
        while readdir(directory) != nil { count += 1 }
        return Double(count)
    }

    @Sendable public static func maxFileDescriptors() -> Double? {
        var limit = rlimit()
        guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else {
            return nil
        }
        return Double(limit.rlim_cur)
    }

    /// Without /proc/stat, which a hardened unit hides: now, less the time since the start.
    static func startTimeSeconds() -> Double? {
        guard let fields = stat(), let ticks = Double(fields[19]) else { return nil }
        let sinceBoot = clock(CLOCK_BOOTTIME)
        let age = sinceBoot - ticks / Double(sysconf(Int32(_SC_CLK_TCK)))
        return clock(CLOCK_REALTIME) - age
    }

    private static func clock(_ id: Int32) -> Double {
        var time = timespec()
        clock_gettime(id, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }

    /// The fields of /proc/self/stat from the third one on: the second one, the program's name, may
    /// hold anything.
    private static func stat() -> [Substring]? {
        let descriptor = open("/proc/self/stat", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return nil }
        defer { close(descriptor) }
        var buffer: Bytes = Array(repeating: 0, count: 4096)
        let count = read(descriptor, &buffer, buffer.count)
        guard count > 0 else { return nil }
        let text = String(decoding: buffer[..<count], as: UTF8.self)
        guard let end = text.lastIndex(of: ")") else { return nil }
        let fields = text[text.index(after: end)...].split(separator: " ")
        return fields.count > 21 ? fields : nil
    }
}
