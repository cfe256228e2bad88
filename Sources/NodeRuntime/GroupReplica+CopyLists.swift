// Lists over shards that are being copied: the former owner's records are merged into the page.

import KVBase
import Metrics
import NodeCore
import ReplicationCore
import ShardCore
import WireProtocol

extension GroupReplica {
    /// True when the page waits until the former owners told what they hold of it.
    func holds(
        _ operation: Operation, _ list: ListRequest, _ parts: [OwnedShard], waiter: Waiter
    ) throws(DatabaseError) -> Bool {
        var asked: [ShardCopies.Page.Part] = []
        for owned in parts {
            guard case .importing(let source, _, let cursor?) = owned.phase else { continue }
            for range in ListMerge.ranges(of: owned, list) {
                // Below the cursor everything is here.
                if let end = range.end, compareBytes(end, cursor) <= 0 { continue }
                asked.append(
                    ShardCopies.Page.Part(
                        request: ShardReadRequest(
                            source: source, target: group, shard: owned.shard.id,
                            epoch: owned.shard.epoch, token: node.random.next(),
                            from: range.start, to: range.end,
                            bytesMax: min(list.bytesMax, ShardCopies.pageBytesMax)),
                        asked: node.now))
            }
        }
        guard !asked.isEmpty else { return false }
        guard copies.pages.count < ShardCopies.waitingPagesMax else {
            node.metrics.copyQueueFull.increment()
            throw DatabaseError(.overloaded, "too many lists wait for shards that are being copied")
        }
        copies.pages.append(
            ShardCopies.Page(
                operation: Bytes(operation.bytes), waiter: waiter,
                deadline: node.now + ShardCopies.operationWait, parts: asked))
        for part in asked { ask(part.request) }
        return true
    }

    func receivePart(_ answer: ShardRecords) {
        for place in copies.pages.indices {
            guard
                let part = copies.pages[place].parts.firstIndex(where: {
                    $0.request.token == answer.token
                })
            else { continue }
            guard isSound(answer) else { return }
            copies.pages[place].parts[part].answer = answer
            if copies.pages[place].parts.allSatisfy({ $0.answer != nil }) {
                finish(copies.pages.remove(at: place))
            }
            return
        }
    }

    private func finish(_ page: ShardCopies.Page) {
        guard core.canServeReads(at: node.now) else {
            answerNotLeader(page.waiter)
            return
        }
        var overlays: [Bytes: ShardRecords] = [:]
        // A shard whose copy is finished keeps no tombstones: only its own records count then.
        for part in page.parts where state.shards[part.request.shard]?.isImporting == true {
            overlays[part.request.from] = part.answer
        }
        do throws(DatabaseError) {
            try page.operation.withRawBytes { (bytes) throws(DatabaseError) in
                var reader = ByteReader(bytes)
                try serveList(
                    try Operation(from: &reader), overlays: overlays, waiter: page.waiter)
            }
        } catch {
            node.answer(page.waiter, error: error)
            if error.code == .storageFailed { disk.fail(error) }
        }
    }

    func expirePages(_ now: Instant) {
        guard !copies.pages.isEmpty else { return }
        let expired = copies.pages.filter { $0.deadline <= now }
        copies.pages.removeAll { $0.deadline <= now }
        for page in expired {
            node.answer(
                page.waiter,
                error: DatabaseError(.unavailable, "the former group of a shard does not answer"))
        }
        for place in copies.pages.indices {
            for part in copies.pages[place].parts.indices
            where copies.pages[place].parts[part].answer == nil
                && now - copies.pages[place].parts[part].asked >= ShardCopies.answerWait
            {
                copies.turn += 1
                copies.pages[place].parts[part].asked = now
                ask(copies.pages[place].parts[part].request)
            }
        }
    }
}
