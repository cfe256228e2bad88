// Keeps the shards decoded while this controller stands by, so that one that comes to act at a million
// shards decides at once. Everything here runs on the loop's thread but the first reading.

import ControllerCore
import EventLoop
import KVBase
import MetadataCore
import MetadataStore

final class WarmShards {
    /// Events that wait for the first reading; beyond it that begins anew.
    private static let waitingMax = 10_000

    private let jobs: BackgroundJobs
    private var shards: StandbyShards?
    private var store: (any MetadataStore)?
    private var watch: WatchID?
    /// Of events, and of the reading.
    private var generation: UInt64 = 0
    private var waiting: [MetadataEvent] = []

    init(_ loop: EventLoop) { jobs = BackgroundJobs(loop) }

    func close() { jobs.close() }

    /// Follows `store`, whose state is `state` now, unless it does.
    func follow(_ store: any MetadataStore, _ state: RevisionedState) {
        guard watch == nil else { return }
        generation += 1
        let own = generation
        watch = try? store.watch(prefix: [], from: state.revision.next()) { [unowned self] result in
            guard own == generation else { return }
            switch result {
            case .success(let event): take(event)
            case .failure: end()
            }
        }
        guard watch != nil else { return }
        self.store = store
        jobs.run("warm-shards") { () throws(DatabaseError) in
            var shards = StandbyShards(revision: state.revision)
            var failure: DatabaseError?
            state.scan(prefix: StandbyShards.prefix) { record in
                do throws(DatabaseError) { try shards.take(record) } catch { failure = error }
                return failure == nil
            }
            if let failure { throw failure }
            return shards
        } _: { [unowned self] result in
            guard own == generation else { return }
            guard case .success(let read) = result else { return end() }
            shards = read
            let missed = waiting
            waiting = []
            for event in missed { take(event) }
        }
    }

    /// Those of `revision`; nil when they are not here.
    func shards(at revision: Revision) -> StandbyShards? {
        shards?.revision == revision ? shards : nil
    }

    /// Lets go of everything; `follow` begins anew.
    func end() {
        generation += 1
        if let watch { store?.cancel(watch) }
        (store, watch, shards, waiting) = (nil, nil, nil, [])
    }

    private func take(_ event: MetadataEvent) {
        guard shards != nil else {
            waiting.append(event)
            if waiting.count > Self.waitingMax { end() }
            return
        }
        do throws(DatabaseError) {
            try shards?.apply(event)
        } catch {
            // Whoever reads everything to act will say what is wrong.
            end()
        }
    }
}
