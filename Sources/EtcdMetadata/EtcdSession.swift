// A controller's presence in etcd: a lease, the key that names it, and the election of who acts.
//
// As in etcd's own recipe for elections (client/v3/concurrency), the holder of the election key is elected
// for as long as its lease lives. Deviation: all candidates put one key, so who is next is left to chance.

import KVBase
import Synchronization

/// Owned by one thread; a worker's thread asks etcd.
public final class EtcdSession {
    private struct Beat: Sendable {
        var lease: UInt64 = 0
        /// What etcd says the lease has, counted from before it was asked.
        var seconds: UInt64 = 0
        var isNamed = false
        /// Another process has the name.
        var isNameTaken = false
        var election: EtcdElectionRecord?
        /// The newest mutation that was there.
        var sequence: UInt64 = 0
        /// Why this is not all.
        var failure: String?
    }

    private let gateway: EtcdGateway
    private let layout: EtcdLayout
    private let place: EtcdPlace
    private let seconds: UInt64
    private let worker: EtcdWorker
    private let inbox: EtcdInbox<Beat>
    private var isBeating = false
    private var beganAt = Instant.origin
    private var isNamed = false
    private var isClosed = false
    /// Of a process before this one on the same data: it is surely gone.
    private var earlier: UInt64

    /// 0 while there is none.
    public private(set) var lease: UInt64 = 0
    /// Until then nobody else can be elected in place of this session.
    public private(set) var validUntil = Instant.origin
    /// The create revision of the election key, when this session holds it.
    public private(set) var holding: UInt64?
    public private(set) var outage: String?
    public private(set) var isNameTaken = false
    /// The newest mutation of the store that was seen.
    public private(set) var sequence: UInt64 = 0
    /// The last beat found less in etcd than was known when it began.
    public private(set) var isBehind = false
    private var known: UInt64 = 0

    /// `wake` is called on any thread when there is something for `flush` to take.
    public init(
        settings: EtcdSettings, place: EtcdPlace, seconds: UInt64, earlierLease: UInt64,
        wake: @escaping @Sendable () -> Void
    ) throws(DatabaseError) {
        var own = settings
        own.attemptTimeout = min(settings.attemptTimeout, .milliseconds(1_000))
        own.patience = .seconds(Int64(seconds))
        gateway = try EtcdGateway(own)
        layout = EtcdLayout(prefix: settings.prefix)
        self.place = place
        self.seconds = seconds
        earlier = earlierLease
        worker = try EtcdWorker(name: "etcd-session")
        inbox = EtcdInbox(wake: wake)
    }

    /// Keeps the session alive and looks at the election; `campaigns`: stands for it when nobody holds it.
    /// Call a few times per length of a session. `known`: the newest mutation that is known.
    public func beat(now: Instant, known: UInt64, campaigns: Bool) {
        guard !isBeating, !isClosed else { return }
        isBeating = true
        self.known = known
        beganAt = now
        let (earlier, lease, isNamed) = (earlier, lease, isNamed)
        worker.run { [gateway, layout, place, seconds, inbox] in
            var beat = Beat(lease: lease, isNamed: isNamed)
            do throws(EtcdFailure) {
                if earlier != 0 { try gateway.revoke(earlier) }
                try Self.carryOut(
                    &beat, gateway, layout, place, seconds, campaigns: campaigns)
            } catch {
                beat.failure = error.message
            }
            inbox.post(beat)
        }
    }

    /// Takes what the last beat brought.
    public func flush() {
        for beat in inbox.take() {
            isBeating = false
            if beat.failure == nil { earlier = 0 }
            outage = beat.failure
            lease = beat.lease
            isNamed = beat.isNamed
            isNameTaken = beat.isNameTaken
            if beat.seconds > 0 { validUntil = beganAt + .seconds(beat.seconds) }
            if lease == 0 { validUntil = .origin }
            sequence = max(sequence, beat.sequence)
            isBehind = beat.failure == nil && lease != 0 && beat.sequence < known
            guard beat.failure == nil else { continue }
            holding =
                beat.election.flatMap { $0.lease == lease && lease != 0 ? $0.createRevision : nil }
        }
    }

    /// Ends the lease, so that others need not wait for its time to pass.
    public func release() {
        guard !isClosed, lease != 0 else { return }
        let ended = lease
        lease = 0
        holding = nil
        validUntil = .origin
        isClosed = true
        worker.run { [gateway] in try? gateway.revoke(ended, patience: .seconds(1)) }
        // Behind it: nothing that was asked before may go on after the end.
        worker.run { [gateway] in gateway.close() }
    }

    /// Ends the thread, at once when the session was not released.
    public func close() {
        if !isClosed { gateway.close() }
        isClosed = true
        worker.finish()
    }

    // MARK: The thread

    private static func carryOut(
        _ beat: inout Beat, _ gateway: EtcdGateway, _ layout: EtcdLayout, _ place: EtcdPlace,
        _ seconds: UInt64, campaigns: Bool
    ) throws(EtcdFailure) {
        if beat.lease == 0 {
            (beat.lease, beat.seconds) = try gateway.grant(seconds: seconds)
            beat.isNamed = false
        } else {
            beat.seconds = try gateway.keepAlive(beat.lease)
            guard beat.seconds > 0 else {
                beat.lease = 0
                beat.isNamed = false
                return
            }
        }
        if !beat.isNamed {
            let key = layout.controller(place.name)
            let answer = try gateway.transact(
                EtcdTransaction(
                    comparisons: [.createRevision(key: key, 0)],
                    success: [.put(key: key, value: place.encode(), lease: beat.lease)],
                    failure: [.get(key: key)]))
            beat.isNamed =
                answer.succeeded || answer.records.first?.first?.lease == beat.lease
            beat.isNameTaken = !beat.isNamed
        }
        let stands = campaigns && beat.isNamed
        let look: [EtcdOperation] = [.get(key: layout.head), .get(key: layout.election)]
        let answer = try gateway.transact(
            EtcdTransaction(
                comparisons: [.createRevision(key: layout.election, 0)],
                success: stands
                    ? [
                        .get(key: layout.head),
                        .put(key: layout.election, value: place.encode(), lease: beat.lease),
                    ] : look,
                failure: look))
        if let head = answer.records.first?.first.flatMap({ try? EtcdHead($0.value) }) {
            beat.sequence = head.sequence
        }
        if answer.succeeded {
            if stands {
                beat.election = EtcdElectionRecord(
                    place: place, createRevision: answer.header.revision, lease: beat.lease)
            }
        } else {
            beat.election = answer.records.dropFirst().first?.first.flatMap(EtcdElectionRecord.init)
        }
    }
}
