// The node's status line, and what its watchdog looks at.

import KVBase
import ReplicatedLog

extension NodeStatus {
    /// What rises while the log writer of a disk gets on with what it was given; nil while it has
    /// nothing to do. A write that the disk does not end is the disk's doing, not the thread's: a
    /// restart would make it no faster, and slow disks are found and told otherwise.
    func logProgress(_ index: Int) -> UInt64? {
        let disks = read().disks
        guard index < disks.count, !disks[index].isFailed else { return nil }
        let log = disks[index].log
        guard log.queuedBytes > 0, log.writeStartedAt == nil else { return nil }
        return log.batches
    }

    /// One line for `systemctl status`.
    func sentence() -> String {
        let snapshot = read()
        if let refusal = snapshot.refusal { return "refused by the controllers: \(refusal)" }
        guard snapshot.isAdmitted else {
            return "waiting to be admitted to a cluster: no controller has answered yet"
        }
        var parts = ["serving: \(Self.counted(snapshot.leaders, "leader"))"]
        parts.append(Self.counted(snapshot.followers, "follower"))
        if snapshot.isSpare, snapshot.replicas.isEmpty { parts = ["spare: holds no replica"] }
        if snapshot.learners > 0 { parts.append(Self.counted(snapshot.learners, "learner")) }
        if snapshot.leaderless > 0 { parts.append("\(snapshot.leaderless) without leader") }
        if snapshot.failed > 0 { parts.append("\(snapshot.failed) failed") }
        if snapshot.snapshotsInFlight > 0 {
            parts.append(Self.counted(snapshot.snapshotsInFlight, "snapshot") + " under way")
        }
        for disk in snapshot.disks {
            if disk.isFailed {
                parts.append("\(disk.path) FAILED")
            } else if disk.isSlow {
                parts.append("\(disk.path) slow")
            }
        }
        let data = snapshot.disks.reduce(0) { $0 + $1.dataBytes }
        // Directories that share a file system share what is free of it.
        var free: UInt64 = 0
        for (number, disk) in snapshot.disks.enumerated()
        where !snapshot.disks[..<number].contains(where: { $0.fileSystem == disk.fileSystem }) {
            free += disk.freeBytes
        }
        parts.append("\(Self.amount(data)) of data, \(Self.amount(free)) free")
        return parts.joined(separator: ", ")
    }

    private static func counted(_ count: Int, _ noun: String) -> String {
        "\(count) \(noun)\(count == 1 ? "" : "s")"
    }

    /// In binary units, rounded down: a status line changes only when there is something to tell.
    private static func amount(_ bytes: UInt64) -> String {
        bytes >= 1 << 30 ? "\(bytes >> 30) GiB" : "\(bytes >> 20) MiB"
    }
}
