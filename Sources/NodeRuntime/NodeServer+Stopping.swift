// How a node ends: its leaderships go to others first, and all that it logged is answered, so that a
// planned restart costs clients no more than a moment.

import EventLoop
import KVBase
import RPC
import ReplicationCore
import ShardCore
import WireProtocol

extension NodeServer {
    /// Leaderships are handed over for so long before their requests are refused.
    private static let handOverTime = Nanoseconds.seconds(2)
    /// What is logged is waited for until then: longer than routers wait for an answer is of no use.
    private static let answerTime = Nanoseconds.seconds(6)
    /// In which routers read what was said last.
    private static let farewellTime = Nanoseconds.milliseconds(500)

    /// Hands leaderships over, answers what is logged, says goodbye, and ends the loop.
    func stop() {
        guard !isStopping else { return }
        isStopping = true
        server?.close()
        let began = now
        // Leaderships that come back from nodes that stop too are not handed on again.
        var leading = replicas.elements.filter(\.isLeader)
        handOver(leading)
        var timer: LoopTimer?
        timer = loop.schedule(after: .milliseconds(20), repeating: .milliseconds(20)) {
            [unowned self] in
            leading.removeAll { !$0.isLeader }
            // One that has just started may take a moment to follow closely.
            let handable = leading.filter { $0.hasSuccessor(at: now) }
            handOver(handable)
            publishStatus()
            refusesRequests = handable.isEmpty || now - began >= Self.handOverTime
            let isAnswered = !replicas.elements.contains(where: \.hasLoggedRequests)
            guard refusesRequests && isAnswered || now - began >= Self.answerTime else { return }
            timer?.cancel()
            sayGoodbye()
        }
    }

    /// Where nobody follows closely yet, or a hand-over is under way, nothing happens.
    private func handOver(_ leading: [GroupReplica]) {
        for replica in leading {
            guard let target = replica.bestSuccessor(at: now) else { continue }
            replica.step(.transferLeadership(to: target))
        }
    }

    /// Answers whoever still waits, tells routers that nothing more happens here, and ends the loop.
    private func sayGoodbye() {
        // First: they need not hear of replicas that end.
        for controller in controllers { controller.close() }
        let reason = DatabaseError(.unavailable, "the node stops")
        for replica in replicas.elements { replica.end(reason) }
        for session in sessions.all {
            session.flush()
            if session.connection.peer?.role == .router {
                session.connection.send(.finished) { _ in }
            }
            session.connection.close(reason, linger: Self.farewellTime)
        }
        let deadline = now + Self.farewellTime
        loop.schedule(after: .zero, repeating: .milliseconds(5)) { [unowned self] in
            guard sessions.count == 0 || now >= deadline else { return }
            peers.close()
            loop.stop()
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
