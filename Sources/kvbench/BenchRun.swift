// One run: connections that each keep so many requests in flight until enough were answered.

import EventLoop
import Glibc
import KVBase

/// What a run counted.
struct BenchCounters {
    var answered = 0
    /// Answers that were errors.
    var refused = 0
    /// Reads that found no record.
    var absent = 0
    var latency = LatencyHistogram()
    var stalls: StallMeter
    /// By first word of the error, `closed` for requests whose connection broke, or `unanswered`
    /// for those that still waited at the end.
    var errors: [String: Int] = [:]
}

/// The load of all connections, on one loop. Not retained by the loop: keep it while it runs.
final class BenchRun {
    let options: BenchOptions
    let loop: EventLoop
    private let encoder: RequestEncoder
    private var keys: KeyChooser
    /// Keys that were asked for in vain, no more than requests are in flight: they come first.
    private var failed: [UInt64] = []
    private var lanes: [BenchLane] = []
    private var sent = 0
    /// Of the mixed workload: reads that are due.
    private var readsDue = 0.0
    private var startedAt: Instant
    private var endsAt = Instant.distantFuture
    private var isEnding = false
    private var wasConnected = false
    private var shownAnswered = 0

    fileprivate(set) var counters: BenchCounters
    /// Why the run ended before its time; nil when it did not.
    private(set) var cutOff: String?
    /// How long it took; 0 while it goes on.
    private(set) var seconds = 0.0
    fileprivate var isOver: Bool { seconds > 0 }

    init(_ options: BenchOptions, loop: EventLoop) {
        self.options = options
        self.loop = loop
        encoder = RequestEncoder(options)
        keys = KeyChooser(
            options.workload == .load ? .sequential : options.keys, hot: options.hotPart,
            records: options.records, seed: options.seed)
        counters = BenchCounters(stalls: StallMeter(keys: options.records))
        startedAt = loop.now
    }

    /// Opens the connections; the run goes on as the loop does, and stops the loop at its end.
    func start() {
        if let duration = options.duration { endsAt = startedAt + Nanoseconds(duration) }
        loop.onSignal(SIGINT) { [unowned self] in end(cutOff: "interrupted") }
        loop.onSignal(SIGTERM) { [unowned self] in end(cutOff: "interrupted") }
        for _ in 0..<options.connections { lanes.append(BenchLane(self)) }
        for lane in lanes { lane.connect() }
        if let duration = options.duration {
            loop.schedule(after: Nanoseconds(duration)) { [unowned self] in drain() }
        }
        if isatty(2) == 1 {
            let second = Nanoseconds.seconds(1)
            loop.schedule(after: second, repeating: second) { [unowned self] in showProgress() }
        }
    }

    // MARK: What lanes ask and tell

    /// Appends the next request and tells its key; nil when there is none left to send.
    fileprivate func appendRequest(to bytes: inout Bytes) -> UInt64? {
        if isEnding { return nil }
        if let requests = options.requests, sent >= requests { return nil }
        sent += 1
        let key = failed.popLast() ?? keys.choose()
        switch options.workload {
        case .put, .load: encoder.appendPut(key, to: &bytes)
        case .get, .list: encoder.appendGet(key, to: &bytes)
        case .mixed:
            readsDue += options.reads
            if readsDue >= 1 {
                readsDue -= 1
                encoder.appendGet(key, to: &bytes)
            } else {
                encoder.appendPut(key, to: &bytes)
            }
        }
        return key
    }

    fileprivate func laneDidConnect() {
        wasConnected = true
        counters.stalls.asked(at: loop.now)
    }

    fileprivate func didAnswer(
        _ reply: ReplyScanner.Reply, _ request: BenchLane.Request, now: Instant
    ) {
        counters.answered += 1
        counters.latency.record((now - request.sentAt).count)
        switch reply {
        case .value: break
        case .absent: counters.absent += 1
        case .error(let kind):
            counters.refused += 1
            counters.errors[kind, default: 0] += 1
            didFail(request)
            return
        }
        counters.stalls.served(request.key, askedAt: request.sentAt, now: now)
    }

    fileprivate func laneDidClose(inFlight: [BenchLane.Request], reason: DatabaseError?) {
        if !inFlight.isEmpty { counters.errors["closed", default: 0] += inFlight.count }
        for request in inFlight { didFail(request) }
        if !wasConnected {
            end(cutOff: reason?.message ?? "cannot connect")
        }
    }

    /// The next request asks for the key again, as a client would.
    private func didFail(_ request: BenchLane.Request) {
        counters.stalls.failed(request.key, askedAt: request.sentAt)
        failed.append(request.key)
    }

    /// Ends the run once nothing is in flight any more.
    fileprivate func endIfDone() {
        let noMore = isEnding || options.requests.map { sent >= $0 } ?? false
        if noMore, lanes.allSatisfy({ $0.inFlight == 0 }) { end(cutOff: nil) }
    }

    // MARK: Ending

    private func drain() {
        isEnding = true
        endIfDone()
        // A server that does not answer must not keep the run from ending.
        loop.schedule(after: .seconds(10)) { [unowned self] in
            let missing = lanes.flatMap(\.waiting)
            counters.errors["unanswered", default: 0] += missing.count
            for request in missing {
                counters.stalls.failed(request.key, askedAt: request.sentAt)
            }
            end(cutOff: "\(missing.count) requests were never answered")
        }
    }

    private func end(cutOff reason: String?) {
        guard !isOver else { return }
        cutOff = reason
        seconds = max(1e-9, Double((loop.now - startedAt).count) / 1e9)
        counters.stalls.finish(now: loop.now)
        if isatty(2) == 1 { BenchProgram.say("\r\u{1B}[K", end: "") }
        isEnding = true
        loop.stop()
    }

    private func showProgress() {
        let rate = counters.answered - shownAnswered
        shownAnswered = counters.answered
        let elapsed = (loop.now - startedAt).count / 1_000_000_000
        let errors = counters.errors.values.reduce(0, +)
        BenchProgram.say(
            "\r\u{1B}[K\(elapsed) s: \(counters.answered) answered, \(rate)/s, \(errors) errors",
            end: "")
    }
}

/// One connection with its requests in flight.
private final class BenchLane: TCPConnectionDelegate {
    struct Request {
        var key: UInt64 = 0
        var sentAt = Instant.origin
    }

    private unowned let run: BenchRun
    private var connection: TCPConnection?
    private var scanner = ReplyScanner()
    /// The requests in flight; a ring of `pipeline` places.
    private var requests: [Request]
    private var oldest = 0
    private(set) var inFlight = 0

    init(_ run: BenchRun) {
        self.run = run
        requests = Array(repeating: Request(), count: run.options.pipeline)
    }

    /// The requests in flight, oldest first.
    var waiting: [Request] {
        (0..<inFlight).map { requests[(oldest + $0) % requests.count] }
    }

    func connect() {
        connection = TCPConnection.connect(
            loop: run.loop, to: SocketAddress(host: run.options.host, port: run.options.port),
            timeout: .seconds(5), delegate: self)
    }

    func connectionDidConnect(_ connection: TCPConnection) {
        run.laneDidConnect()
        fill()
    }

    func connection(_ connection: TCPConnection, didReceive bytes: UnsafeRawBufferPointer) {
        let now = run.loop.now
        var isUnasked = false
        let isSound = scanner.scan(bytes) { reply in
            guard inFlight > 0 else {
                isUnasked = true
                return
            }
            run.didAnswer(reply, requests[oldest], now: now)
            oldest = oldest + 1 == requests.count ? 0 : oldest + 1
            inFlight -= 1
        }
        guard isSound, !isUnasked else {
            run.counters.errors["malformed", default: 0] += 1
            connection.close()
            return
        }
        fill()
    }

    func connectionDidDrain(_ connection: TCPConnection) {}

    func connectionDidClose(_ connection: TCPConnection, reason: DatabaseError?) {
        let lost = waiting
        inFlight = 0
        oldest = 0
        scanner = ReplyScanner()
        self.connection = nil
        guard !run.isOver else { return }
        run.laneDidClose(inFlight: lost, reason: reason)
        run.endIfDone()
        run.loop.schedule(after: .milliseconds(100)) { [weak self] in self?.connect() }
    }

    /// Sends as many requests as there is room for, in one write.
    private func fill() {
        var bytes: Bytes = []
        let now = run.loop.now
        while inFlight < requests.count, let key = run.appendRequest(to: &bytes) {
            requests[(oldest + inFlight) % requests.count] = Request(key: key, sentAt: now)
            inFlight += 1
        }
        if bytes.isEmpty { run.endIfDone() } else { connection?.write(bytes) }
    }
}
