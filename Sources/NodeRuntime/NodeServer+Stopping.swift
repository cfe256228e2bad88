// How a node ends: its leaderships go to others first, so that a planned restart costs clients no
// more than a moment.

import EventLoop
import KVBase
import RPC
import ReplicationCore
import ShardCore

extension NodeServer {
    /// Hands leaderships over, makes the engines durable, and ends the loop.
    func stop() {
        guard !isStopping else { return }
        isStopping = true
        server?.close()
        let deadline = now + .seconds(2)
        // Leaderships that come back from nodes that stop too are not handed on again.
        var leading = replicas.elements.filter(\.isLeader)
        handOver(leading)
        loop.schedule(after: .milliseconds(20), repeating: .milliseconds(20)) { [unowned self] in
            leading.removeAll { !$0.isLeader || !$0.hasSuccessor(at: now) }
            // One that has just started may take a moment to follow closely.
            handOver(leading)
            publishStatus()
            guard leading.isEmpty || now >= deadline else { return }
            for controller in controllers { controller.close() }
            peers.close()
            loop.stop()
        }
    }

    /// Where nobody follows closely yet, or a hand-over is under way, nothing happens.
    private func handOver(_ leading: [GroupReplica]) {
        for replica in leading {
            if let target = replica.bestSuccessor { replica.step(.transferLeadership(to: target)) }
        }
    }

    /// After the loop ended: flushes and closes the disks.
    func close() {
        // Views of an engine must be gone before it closes.
        for replica in replicas.elements { replica.snapshotSenders.removeAll() }
        digestions.removeAll()
        for disk in disks { disk.close() }
    }
}
