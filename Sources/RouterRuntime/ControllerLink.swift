// The router's connections to the controllers: the map comes from them, tables are made by them.

import EventLoop
import KVBase
import RPC
import RouterCore
import ShardCore
import WireProtocol

/// Follows the map at every controller that is reachable; the newest revision wins, so it does not
/// matter which of them acts. Table requests go to the one that last sent a map, and on to the next
/// when that one refuses without having done anything.
final class ControllerLink {
    private unowned let router: RouterLoop
    private var ends: [ControllerEnd] = []
    /// The one that table requests go to.
    private var preferred = 0
    /// The one that acts, by its own word or because it sent a map; nil when none said so.
    private var acting: Int?
    private var requests: [UInt32: PendingTableRequest] = [:]
    private var lastRequestID: UInt32 = 0
    /// Sessions that wait for a table of that name to be created.
    private var creations: [Bytes: [(DatabaseError?) -> Void]] = [:]
    private var lastRefresh = Instant.origin

    private static let requestsMax = 10_000
    private static let refreshInterval = Nanoseconds.milliseconds(20)

    private struct PendingTableRequest {
        var request: TableRequest
        var deadline: Instant
        var completion: (DatabaseError?) -> Void
        /// The end it was sent to; nil while it waits.
        var end: Int?
    }

    init(router: RouterLoop, addresses: [SocketAddress]) {
        self.router = router
        for address in addresses {
            ends.append(ControllerEnd(place: ends.count, address: address, link: self))
        }
        for end in ends { end.start(router) }
    }

    /// Whether any controller can be asked.
    var isConnected: Bool { ends.contains { $0.connection != nil } }

    func close() { for end in ends { end.close() } }

    // MARK: Map

    /// Asks for what changed since the router's map, unless that was done just now.
    func refresh(now: Instant) {
        guard now - lastRefresh >= Self.refreshInterval else { return }
        lastRefresh = now
        let revision = router.core.map.revision
        for end in ends { end.watch(from: revision) }
    }

    func reportUnreachable(_ node: NodeID) {
        for end in ends { end.connection?.send(.unreachable) { $0.write(node) } }
    }

    /// Compares clocks with the acting controller.
    func ping() {
        guard let acting else { return }
        ends[acting].connection?.ping(clockOffset: router.status.clockOffset.value(at: router.now))
    }

    fileprivate func didMeasure(_ trip: RoundTrip, from place: Int, _ name: String) {
        guard place == acting else { return }
        router.status.clockOffset.take(
            trip, from: name, now: router.loop.now, wallClock: EventLoop.wallClockNanoseconds())
    }

    /// A controller acts: its clock is asked for at once when that is news.
    private func acts(_ place: Int) {
        preferred = place
        guard acting != place else { return }
        acting = place
        ping()
    }

    fileprivate func endDidOpen(_ place: Int, cluster: UInt64) {
        router.learn(cluster: cluster)
        if ends[preferred].connection == nil { preferred = place }
        ends[place].watch(from: router.core.map.revision)
        // A controller that begins waits for every node, unless it is told that one is gone.
        for node in router.lostNodes {
            ends[place].connection?.send(.unreachable) { $0.write(node) }
        }
        sendWaiting()
    }

    fileprivate func receive(
        _ place: Int, _ kind: FrameKind, _ body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        var reader = ByteReader(body)
        switch kind {
        case .mapUpdate:
            let update = try MapUpdate(from: &reader)
            ends[place].isBehind = !router.take(update)
            if ends[place].isBehind {
                ends[place].watch(from: .none)
            } else {
                acts(place)
            }
        case .standing:
            guard try ControllerStanding(from: &reader).isActing else {
                if acting == place { acting = nil }
                if preferred == place { preferNext() }
                return
            }
            acts(place)
            ends[place].watch(from: router.core.map.revision)
            sendWaiting()
        case .tableResponse:
            let id = try reader.readUInt32()
            finish(id, try reader.readError(), from: place)
        default:
            throw DatabaseError(.malformed, "a controller sent \(kind) to a router")
        }
    }

    fileprivate func endDidClose(_ place: Int) {
        if acting == place { acting = nil }
        for (id, request) in requests where request.end == place {
            requests[id]!.end = nil
            if request.request.isRepeatable { continue }
            requests[id] = nil
            request.completion(
                DatabaseError(
                    .unknownOutcome,
                    "the connection to the controller broke; the request may have been done"))
        }
        preferNext()
        sendWaiting()
    }

    // MARK: Tables

    /// Asks the acting controller; `completion` gets its answer, or an error of the router's own.
    func request(_ request: TableRequest, _ completion: @escaping (DatabaseError?) -> Void) {
        guard requests.count < Self.requestsMax else {
            completion(DatabaseError(.overloaded, "too many table requests are under way"))
            return
        }
        lastRequestID &+= 1
        requests[lastRequestID] = PendingTableRequest(
            request: request, deadline: router.now + router.core.tuning.requestDeadline,
            completion: completion, end: nil)
        send(lastRequestID)
        router.wakeForControllers()
    }

    /// Has a table of that name created as the defaults say, once for all who ask meanwhile.
    func ensureTable(_ name: Bytes, _ completion: @escaping (DatabaseError?) -> Void) {
        if creations[name] != nil {
            creations[name]!.append(completion)
            return
        }
        creations[name] = [completion]
        let create = TableRequest.create(
            name: String(decoding: name, as: UTF8.self), partitioning: .range, engine: .lsm,
            replicas: nil, splitPoints: [], ifMissing: true)
        request(create) { [unowned self] error in
            for waiter in creations.removeValue(forKey: name) ?? [] { waiter(error) }
        }
    }

    /// Tries again what waits, and ends what is over its deadline. True while something waits.
    func advance(now: Instant) -> Bool {
        // In order of age, for fairness and so that a run is repeatable.
        for id in requests.keys.sorted() {
            guard let request = requests[id], request.deadline <= now else { continue }
            requests[id] = nil
            request.completion(
                request.end == nil
                    ? DatabaseError(
                        .deadlineExceeded, "no controller could be asked; nothing was changed")
                    : DatabaseError(
                        request.request == .confirmMap ? .unavailable : .unknownOutcome,
                        "the controller did not answer; it may yet be done"))
        }
        sendWaiting()
        return !requests.isEmpty
    }

    private func finish(_ id: UInt32, _ error: DatabaseError?, from place: Int) {
        guard let request = requests[id], request.end == place else { return }
        if request.request == .confirmMap, error == nil, ends[place].isBehind {
            // From before it knew: `advance` asks again, behind the request for the map.
            requests[id]!.end = nil
            return
        }
        if let error, error.code == .notLeader || error.code == .unavailable {
            // Not the acting one, or it has just begun: `advance` asks again.
            requests[id]!.end = nil
            preferNext()
            return
        }
        requests[id] = nil
        request.completion(error)
    }

    private func sendWaiting() {
        for id in requests.keys.sorted() where requests[id]!.end == nil { send(id) }
    }

    private func send(_ id: UInt32) {
        guard let connection = ends[preferred].connection else {
            preferNext()
            return
        }
        requests[id]!.end = preferred
        connection.send(.tableRequest) {
            $0.write(id)
            requests[id]!.request.encode(into: &$0)
        }
    }

    private func preferNext() {
        for step in 1...ends.count {
            let place = (preferred + step) % ends.count
            if ends[place].connection != nil {
                preferred = place
                return
            }
        }
    }
}

extension TableRequest {
    /// Changes nothing more when it is done twice.
    fileprivate var isRepeatable: Bool {
        switch self {
        case .create(_, _, _, _, _, let ifMissing): ifMissing
        case .drop: false
        case .confirmMap: true
        }
    }
}

/// One controller's address and the connection to it.
private final class ControllerEnd: RPCConnectionDelegate {
    private let place: Int
    private let address: SocketAddress
    private unowned let link: ControllerLink
    private var client: RPCClient?
    /// An update did not fit the router's map; the whole map was asked for, and has not begun to come.
    var isBehind = false

    init(place: Int, address: SocketAddress, link: ControllerLink) {
        self.place = place
        self.address = address
        self.link = link
    }

    var connection: RPCConnection? { client?.connection }

    func start(_ router: RouterLoop) {
        let hello: () -> Hello = { [unowned router] in router.hello(expecting: .none) }
        client = RPCClient(
            transport: router.transport, address: address, hello: hello, delegate: self)
    }

    func watch(from revision: Revision) {
        connection?.send(.watchMap) { $0.write(revision) }
    }

    func close() { client?.close() }

    func connectionDidOpen(_ connection: RPCConnection) {
        let name = connection.peer?.name ?? ""
        connection.didMeasure = { [unowned self] in link.didMeasure($0, from: place, name) }
        link.endDidOpen(place, cluster: connection.peer?.cluster ?? 0)
    }

    func connection(
        _ connection: RPCConnection, didReceive kind: FrameKind, body: UnsafeRawBufferPointer
    ) throws(DatabaseError) {
        try link.receive(place, kind, body)
    }

    func connectionDidClose(_ connection: RPCConnection, reason: DatabaseError?) {
        link.endDidClose(place)
    }
}
