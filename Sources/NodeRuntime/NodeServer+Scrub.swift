// When disks are checked, and what becomes of what is found.
//
// Damage is treated as when a read finds it: the disk has failed, its replicas stop, and the
// controllers have them made anew elsewhere from their peers.

import EventLoop
import KVBase
import Metrics
import NodeCore
import ReplicatedLog
import StorageAPI
import SystemdSupport
import WireProtocol

extension NodeServer {
    /// A disk that was never checked is, within this time after the start; not at once, and not all
    /// nodes at once.
    private static let firstWithin: UInt64 = 3_600
    /// After a check that could not read.
    private static let retryAfter = Nanoseconds.seconds(3_600)

    /// Called every second.
    func scrub() {
        let isStrained = foreground.strain > 100
        for disk in disks {
            guard disk.failure == nil, !isStopping else {
                disk.scrub.cancel()
                continue
            }
            disk.scrub.setStrained(isStrained)
            if isDue(disk) { startScrub(disk, why: "due") }
        }
    }

    private func isDue(_ disk: Disk) -> Bool {
        let period = settings.scrubPeriod.count / 1_000_000_000
        guard period > 0, !disk.scrub.isRunning, now >= disk.scrubNotBefore else { return false }
        let record = disk.scrub.record
        let wall = EventLoop.wallClockNanoseconds() / 1_000_000_000
        guard record.succeeded == 0 else {
            return wall >= record.succeeded && wall - record.succeeded >= period
        }
        if disk.scrubNotBefore == .origin {
            let wait = random.next() % min(period, Self.firstWithin)
            disk.scrubNotBefore = now + .seconds(wait)
        }
        return now >= disk.scrubNotBefore
    }

    private func startScrub(_ disk: Disk, why: String) {
        guard disk.failure == nil else { return }
        let bytes = disk.allEngines.reduce(disk.log.totalBytes) { $0 + $1.statistics.scrubBytes }
        let number = surveys.add { [unowned self] in finishScrub(disk) }
        let mailbox = surveys.mailbox
        let starts = disk.scrub.start(
            disk.allEngines, disk.log.scrub, totalBytes: bytes
        ) { _ = mailbox.post((number, nil)) }
        guard starts else { return surveys.forget(number) }
        log.info("scrub begins", [LogField("path", disk.path), LogField("why", why)])
    }

    private func finishScrub(_ disk: Disk) {
        let status = disk.scrub.status
        let path = LogField("path", disk.path)
        switch disk.scrub.outcome {
        case nil, .stopped: break
        case .whole:
            log.info("scrub found everything whole", [path, LogField("bytes", status.doneBytes)])
        case .unreadable(let error):
            disk.scrubNotBefore = now + Self.retryAfter
            log.warning(
                "scrub could not read everything", [path, LogField("reason", error.message)])
        case .damaged(let error, let inLog):
            log.error("scrub found damage", [path, LogField("reason", error.message)])
            // Of an engine's, the disk's failure counts it.
            if inLog { metrics.logChecksumFailures.increment() }
            disk.fail(error)
        }
    }

    /// The answer to an operators' tool.
    func scrub(_ request: ScrubRequest) -> [ScrubStatus] {
        if request.starts {
            for disk in disks where disk.failure == nil && !isStopping {
                startScrub(disk, why: "asked for")
            }
        }
        return disks.map { disk in
            var status = disk.scrub.status
            if let failure = disk.failure, status.state != .damaged {
                (status.state, status.finding) = (.incomplete, failure.message)
            }
            return status
        }
    }
}
