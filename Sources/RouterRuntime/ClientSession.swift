// One client connection: commands in, replies out in the order of the commands.

import EventLoop
import KVBase
import RESP
import RouterCore
import ShardCore
import SystemdSupport
import WireProtocol

/// The state of one client connection.
///
/// A command of the data path opens a slot of the reply ring and hands its operations to the core;
/// answers fill slots in any order. Commands over whole tables are barriers: they run alone.
final class ClientSession {
    enum Mode {
        case open
        /// Takes no more commands until enough slots are free, or the client has read its replies.
        case congested
        /// `deferred` waits for all earlier commands to be answered.
        case waitingForEarlier
        /// `deferred` waits for its table to be created, or for the map to be confirmed.
        case waitingForTable
        /// A barrier runs.
        case working
        case closing
    }

    /// Commands of one client under way; above, its socket is not read.
    private static let slotsMax = 1_024
    private static let slotsLow = 512
    /// Unwritten replies above which the socket is not read, and at which it is closed. The bound
    /// leaves room for the largest HGETALL.
    private static let outputBytesHigh = 1 << 20
    /// Replies that wait for earlier ones above which no more commands are taken.
    private static let stashBytesMax = 4 << 20
    private static let outputBytesMax = 160 << 20
    /// How long a client may take to see that the connection ended, before what it still sends resets
    /// it.
    private static let linger = Nanoseconds.milliseconds(200)

    unowned let router: RouterLoop
    let connection: TCPConnection
    /// Its number in the core.
    let client: UInt32
    /// Its number for CLIENT ID; never reused.
    let serial: UInt64
    let openedAt: Instant

    var mode = Mode.open
    var output = RESPWriter()
    var ring = ReplyRing()
    /// The walk of the barrier that runs, if it is one over records.
    var walk: RunningWalk?
    /// What the parts of commands with several operations have brought so far, by slot.
    var collections: [UInt32: PartCollection] = [:]
    var isAuthenticated: Bool
    var clientName: Bytes = []
    var libraryName: Bytes = []
    var libraryVersion: Bytes = []

    private var reader = CommandReader()
    /// Replies that wait for earlier ones.
    private var stash = RESPWriter()
    /// A whole command, encoded, that is executed first when the session goes on.
    private var deferred: Bytes = []
    private var deferredAttempts = 0
    /// The deferred command that is executed again may trust what the map does not contain.
    private(set) var isMapConfirmed = false
    private var isDirty = false
    private var isResumable = false
    private var isClosed = false
    /// Reads nothing more, and ends when all that was read is answered.
    private var isDraining = false

    init(router: RouterLoop, connection: TCPConnection, client: UInt32, serial: UInt64) {
        self.router = router
        self.connection = connection
        self.client = client
        self.serial = serial
        openedAt = router.now
        isAuthenticated = router.options.password == nil
        connection.writeHighWaterBytes = Self.outputBytesHigh
        connection.writeLowWaterBytes = Self.outputBytesHigh / 4
        connection.writeBytesMax = Self.outputBytesMax
        connection.delegate = self
    }

    /// The version replies are written in.
    var version: RESPVersion {
        get { output.version }
        set {
            output.version = newValue
            stash.version = newValue
        }
    }

    // MARK: Commands in

    private func take(_ command: ClientCommand) -> Bool {
        switch command {
        case .command(let command): execute(command)
        case .oversized(let command):
            reply(
                DatabaseError(
                    .tooLarge,
                    "argument \(command.argumentIndex) has \(command.argumentBytes) bytes; keys "
                        + "and values have at most \(Limits.valueBytesMax)"))
        }
        if mode == .open, ring.count >= Self.slotsMax || stash.count > Self.stashBytesMax {
            mode = .congested
        }
        return mode == .open
    }

    /// Keeps the command for later. Nothing more is read until then.
    func postpone(_ command: ParsedCommand, _ mode: Mode) {
        var bytes: Bytes = []
        CommandEncoder.appendHeader(command.count, to: &bytes)
        for place in 0..<command.count {
            CommandEncoder.append(argument: command.bytes(place), to: &bytes)
        }
        deferred = bytes
        self.mode = mode
    }

    /// Waits for a table to be created, then executes the command again.
    func awaitTable(_ command: ParsedCommand) {
        let name = command.bytes(1)
        deferredAttempts += 1
        guard deferredAttempts <= 3 else {
            deferredAttempts = 0
            return reply(
                DatabaseError(
                    .unavailable, "the table was created but has not appeared; nothing applied"))
        }
        postpone(command, .waitingForTable)
        router.controllers.ensureTable(name) { [weak self] error in
            guard let self, mode == .waitingForTable else { return }
            mode = .open
            if let error {
                deferred = []
                deferredAttempts = 0
                reply(error)
            }
            markResumable()
        }
    }

    /// Replies as for a table that does not exist, once that is certain: this router's map may be
    /// behind a table that another router's client already uses, or not have come yet.
    func missing(_ command: ParsedCommand, _ body: (inout RESPWriter) -> Void) {
        if isMapConfirmed { reply(body) } else { confirmMap(command) }
    }

    /// Executes the command again when the map is at least as new as now.
    func confirmMap(_ command: ParsedCommand) {
        router.statistics.unknownTables += 1
        postpone(command, .waitingForTable)
        router.controllers.request(.confirmMap) { [weak self] error in
            guard let self, mode == .waitingForTable else { return }
            mode = .open
            if let error {
                deferred = []
                reply(
                    DatabaseError(
                        .unavailable, "no controller to ask about the table: \(error.message)"))
            } else {
                isMapConfirmed = true
            }
            markResumable()
        }
    }

    /// Goes on with commands that are here already, then with reading.
    func resume() {
        isResumable = false
        guard !isClosed else { return }
        switch mode {
        case .waitingForEarlier where ring.isEmpty: mode = .open
        case .congested
        where ring.count <= Self.slotsLow && stash.count <= Self.stashBytesMax
            && connection.pendingWriteBytes < Self.outputBytesHigh:
            mode = .open
        case .open: break
        default: return
        }
        do throws(DatabaseError) {
            if !deferred.isEmpty {
                var again: Bytes = []
                swap(&again, &deferred)
                try again.withRawBytes { bytes throws(DatabaseError) in
                    var single = CommandReader()
                    try single.receive(bytes) { take($0) }
                }
                isMapConfirmed = false
            }
            if mode == .open {
                deferredAttempts = 0
                try reader.resume { take($0) }
            }
        } catch {
            fail(error)
        }
        updateReading()
    }

    private func updateReading() {
        guard !isClosed else { return }
        if mode == .open, !isDraining {
            connection.resumeReading()
        } else {
            connection.pauseReading()
        }
    }

    /// Bytes that are no commands: say so and close.
    private func fail(_ error: DatabaseError) {
        reply { $0.error("ERR", error.message) }
        mode = .closing
        finishIfDone()
    }

    /// Reads nothing more. When every command that came whole is answered the connection ends; until
    /// then to be called at the end of every turn.
    func drain() {
        guard !isClosed else { return }
        if !isDraining {
            isDraining = true
            connection.pauseReading()
        }
        guard mode == .open, ring.isEmpty, deferred.isEmpty, output.isEmpty, !isDirty else {
            return
        }
        mode = .closing
        finishIfDone()
    }

    // MARK: Replies out

    /// A slot of the reply ring for a command of so many operations.
    func openSlot(_ id: CommandID, parts: Int = 1) -> UInt32 {
        ring.open(kind: id.rawValue, remaining: parts, now: router.now)
    }

    /// Counts a command that has ended.
    func count(_ operation: OperationClass, _ error: ErrorCode?, slot: UInt32) {
        let result = error.map { CommandResult($0) } ?? .ok
        router.statistics.count(operation, result)
        router.observe(operation, since: ring[slot].opened, result)
    }

    /// Writes the reply of slot `serial`, or keeps it until those before it are written.
    func finish(_ serial: UInt32, _ body: (inout RESPWriter) -> Void) {
        guard ring.isHead(serial) else {
            let start = stash.count
            body(&stash)
            ring.stash(serial, start..<stash.count)
            return
        }
        body(&output)
        ring.popHead()
        if ring.stashedCount > 0 { releaseStash() }
        if !isDirty { markDirty() }
        if mode != .open { maybeResume() }
    }

    /// A reply that needs nobody's answer.
    func reply(_ body: (inout RESPWriter) -> Void) {
        if ring.isEmpty {
            body(&output)
            if !isDirty { markDirty() }
        } else {
            finish(ring.open(kind: 0, now: router.now), body)
        }
    }

    func reply(_ error: DatabaseError) {
        router.statistics.count(.other, CommandResult(error.code))
        reply { $0.error(error) }
    }

    private func releaseStash() {
        stash.bytes.withUnsafeBytes { bytes in
            while let range = ring.popStashedHead() {
                output.append(encoded: UnsafeRawBufferPointer(rebasing: bytes[range]))
            }
        }
        if ring.stashedCount == 0 { _ = stash.take() }
    }

    private func maybeResume() {
        switch mode {
        case .waitingForEarlier where ring.isEmpty: markResumable()
        case .congested where ring.count <= Self.slotsLow: markResumable()
        case .closing: finishIfDone()
        default: break
        }
    }

    /// A barrier has been answered.
    func endBarrier() {
        walk = nil
        if mode == .working { mode = .open }
        markResumable()
    }

    private func markDirty() {
        isDirty = true
        router.markDirty(self)
    }

    func markResumable() {
        guard !isResumable, !isClosed else { return }
        isResumable = true
        router.markResumable(self)
    }

    /// Hands the turn's replies to the connection.
    func flush() {
        isDirty = false
        guard !isClosed else { return }
        connection.write(output.take())
        if connection.pendingWriteBytes > Self.outputBytesHigh, mode == .open {
            mode = .congested
            connection.pauseReading()
        }
        finishIfDone()
    }

    private func finishIfDone() {
        guard mode == .closing, ring.isEmpty, output.isEmpty, !isDirty else { return }
        connection.closeAfterWrites(linger: Self.linger)
    }

    /// Whether the slot of that destination is still in the ring.
    func isWaiting(for destination: Destination) -> Bool {
        destination.slot &- ring.head < UInt32(ring.count)
    }
}

extension ClientSession: TCPConnectionDelegate {
    func connectionDidConnect(_ connection: TCPConnection) {}

    func connection(_ connection: TCPConnection, didReceive bytes: UnsafeRawBufferPointer) {
        guard mode == .open else {
            // Reading is paused in every other mode.
            return
        }
        router.tick()
        do throws(DatabaseError) {
            try reader.receive(bytes) { take($0) }
        } catch {
            fail(error)
        }
        if mode != .open { updateReading() }
    }

    func connectionDidDrain(_ connection: TCPConnection) {
        if mode == .congested { markResumable() }
    }

    func connectionDidClose(_ connection: TCPConnection, reason: DatabaseError?) {
        isClosed = true
        mode = .closing
        if let reason, reason.code == .overloaded {
            router.log.warning("client \(connection.remoteAddress) closed: \(reason.message)")
        }
        router.sessionDidClose(self)
    }
}
