// When the certificates end that this controller shows to etcd, and believes it by.

import Digest
import EtcdMetadata
import EventLoop
import KVBase
import Metrics
import ReplicatedLog
import Synchronization
import SystemdSupport

/// Reads the files again and again, for they are replaced under a running controller; off the loop and
/// off the admin server's thread, for files may lie on something that hangs.
final class CertificateWatch {
    struct File: Sendable {
        /// What the certificates in it are for, as the metric says it.
        var use: String
        var path: String
    }

    static let interval = Nanoseconds.seconds(60)

    private let files: [File]
    private let log: ComponentLog
    private let jobs: BackgroundJobs
    private let expiries: Expiries
    private var isReading = false

    /// By file: when it ends, in seconds since 1970; 0 when that cannot be told.
    private final class Expiries: Sendable {
        private let known: Mutex<[Int64]>
        init(_ count: Int) { known = Mutex(Array(repeating: 0, count: count)) }
        var values: [Int64] { known.withLock { $0 } }
        func set(_ values: [Int64]) { known.withLock { $0 = values } }
    }

    /// Reads once, blocking, and then from time to time.
    init(_ files: [File], loop: EventLoop, log: ComponentLog, registry: MetricsRegistry) {
        self.files = files
        self.log = log
        jobs = BackgroundJobs(loop)
        expiries = Expiries(files.count)
        take(Self.read(files))
        let expiries = expiries
        registry.collector(
            "kv_tls_certificate_expiry_timestamp_seconds", .gauge,
            "When the first of the certificates in a file ends, in seconds since 1970; 0 when the"
                + " file cannot be read."
        ) {
            zip(files, expiries.values).map { file, expiry in
                MetricSample(labels: [MetricLabel("use", file.use)], value: Double(expiry))
            }
        }
        loop.schedule(after: Self.interval, repeating: Self.interval) { [unowned self] in
            refresh()
        }
    }

    /// Waits for the reading under way.
    func close() { jobs.close() }

    private func refresh() {
        guard !isReading else { return }
        isReading = true
        let files = files
        jobs.run("certificates") { () throws(DatabaseError) -> [Int64] in
            Self.read(files)
        } _: { [unowned self] result in
            isReading = false
            if case .success(let values) = result { take(values) }
        }
    }

    private func take(_ values: [Int64]) {
        for (index, file) in files.enumerated() where values[index] == 0 {
            log.warning(
                "no certificate can be read",
                [LogField("use", file.use), LogField("path", file.path)])
        }
        expiries.set(values)
    }

    private static func read(_ files: [File]) -> [Int64] {
        files.map { file in
            guard let bytes = try? DurableFile.read(file.path) else { return 0 }
            return CertificateExpiry.earliest(pem: bytes) ?? 0
        }
    }
}

extension CertificateWatch {
    /// The files that hold certificates.
    static func files(of etcd: EtcdSettings) -> [File] {
        let files = [("etcd_ca", etcd.authorityFile), ("etcd_client", etcd.certificateFile)]
        return files.compactMap { use, path in path.map { File(use: use, path: $0) } }
    }
}
