// What a running node takes over when its settings are read again.

import Configuration
import KVBase
import NodeCore
import ShardCore

extension NodeServer {
    func reload(_ wanted: Settings) {
        let copyBytesBefore = settings.copyBytesPerSecond
        settings.follow(wanted)
        slow.threshold = settings.slowRequest
        guard settings.copyBytesPerSecond != copyBytesBefore else { return }
        for replica in replicas.elements {
            replica.copies.pace = CopyPace(limit: settings.copyBytesPerSecond)
            // A slow copy may rest for minutes.
            replica.copies.notBefore = .origin
            for sender in replica.snapshotSenders.values {
                sender.follow(bytesPerSecond: settings.copyBytesPerSecond)
            }
        }
    }
}
