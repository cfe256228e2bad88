// Requests that took too long, each with where its time went.

import EventLoop
import KVBase
import Metrics
import NodeCore
import ShardCore
import SystemdSupport

/// A request that was answered in this turn.
struct AnsweredRequest {
    var waiter: Waiter
    var result: RequestResult
}

/// When a write passed the stages of its way.
struct WriteStages {
    var group: GroupID
    /// Its entry was given to the replication core, and came back committed.
    var proposed: Instant
    var committed: Instant
    /// The batch with it went into the engine from here to there.
    var applying: Instant
    var applied: Instant
}

/// Keeps the stages of slow writes from applying to the end of the turn. Owned by the loop.
struct SlowRequests {
    /// Most writes of one turn whose stages are told; the others are told without.
    private static let keptMax = 64

    /// Zero when nothing counts as slow.
    var threshold: Nanoseconds
    private var kept: [(waiter: Waiter, stages: WriteStages)] = []

    init(threshold: Nanoseconds) { self.threshold = threshold }

    func isSlow(_ took: Nanoseconds) -> Bool { threshold > .zero && took > threshold }

    mutating func keep(_ stages: WriteStages, of waiter: Waiter) {
        guard kept.count < Self.keptMax else { return }
        kept.append((waiter, stages))
    }

    func stages(of waiter: Waiter) -> WriteStages? {
        kept.first {
            $0.waiter.token == waiter.token && $0.waiter.slot == waiter.slot
                && $0.waiter.generation == waiter.generation
        }?.stages
    }

    mutating func forget() { kept.removeAll(keepingCapacity: true) }
}

extension NodeServer {
    /// The turn's answers are about to leave.
    func measureAnswers() {
        lastTurnEnd = now
        busyBefore = loop.busyNanoseconds
        guard !answered.isEmpty else { return }
        let end = microseconds(lastTurnEnd)
        for request in answered {
            let took = end &- request.waiter.received
            foreground.add(microseconds: took)
            let duration = Nanoseconds.microseconds(UInt64(took))
            metrics.count(request.waiter.kind, request.result, took: duration)
            if slow.isSlow(duration) { tellSlow(request, took: duration) }
        }
        answered.removeAll(keepingCapacity: true)
        slow.forget()
    }

    private func tellSlow(_ request: AnsweredRequest, took: Nanoseconds) {
        metrics.countSlow(request.waiter.kind)
        func milliseconds(_ name: String, _ duration: Nanoseconds) -> LogField {
            LogField("\(name)_ms", duration.count / 1_000_000)
        }
        func fields() -> [LogField] {
            var fields = [
                LogField("op", request.waiter.kind.name),
                LogField("result", request.result.name), milliseconds("took", took),
            ]
            guard let stages = slow.stages(of: request.waiter) else { return fields }
            let received = Instant(nanoseconds: lastTurnEnd.nanoseconds - took.count)
            fields += [
                LogField("group", stages.group),
                milliseconds("propose", stages.proposed - received),
                milliseconds("commit", stages.committed - stages.proposed),
                milliseconds("wait", stages.applying - stages.committed),
                milliseconds("apply", stages.applied - stages.applying),
            ]
            return fields
        }
        log.warning("slow request", fields(), event: .slowRequest)
    }

    func microseconds(_ instant: Instant) -> UInt32 {
        UInt32(truncatingIfNeeded: instant.nanoseconds / 1_000)
    }
}
