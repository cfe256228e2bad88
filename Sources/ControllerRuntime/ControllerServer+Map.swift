// The map on its way to those who follow it.
//
// A whole one is made off the loop and once for all who wait: with a million shards it takes most of a
// second, and every follower of the controller before asks the next one for it at the same time. A leader
// that is silent for so long is no leader any more.

import ControllerCore
import EventLoop
import KVBase
import RPC
import ShardCore
import WireProtocol

/// Whole maps as frames.
final class MapFeed {
    struct Made: Sendable {
        var revision: Revision
        /// Shared by all connections that they are sent to.
        var frames: [Bytes]
    }

    /// Later ones bring nobody up to date, or nobody asks.
    private static let keptFor = Nanoseconds.seconds(30)

    private let jobs: BackgroundJobs
    private var made: [MapScope: Made] = [:]
    private var making: Set<MapScope> = []
    private var usedAt = Instant.origin

    init(_ loop: EventLoop) { jobs = BackgroundJobs(loop) }

    func close() { jobs.close() }

    func newest(_ scope: MapScope, now: Instant) -> Made? {
        usedAt = now
        return made[scope]
    }

    /// Makes the map of `controller` as it is now; nothing when one is being made.
    func make(_ scope: MapScope, of controller: Controller, _ completion: @escaping () -> Void) {
        guard making.insert(scope).inserted else { return }
        jobs.run("map") { () throws(DatabaseError) -> Made in
            var frames: [Bytes] = []
            controller.wholeMap(scope) { piece in
                var writer = ByteWriter()
                Frame.append(.mapUpdate, to: &writer) { piece.encode(into: &$0) }
                frames.append(writer.take())
            }
            return Made(revision: controller.mapRevision, frames: frames)
        } _: { [unowned self] result in
            making.remove(scope)
            if case .success(let map) = result { made[scope] = map }
            completion()
        }
    }

    func forget() { made = [:] }

    func forgetUnused(now: Instant) {
        if !made.isEmpty, now - usedAt > Self.keptFor { forget() }
    }
}

extension ControllerServer {
    func watchMap(_ session: ControllerSession, from revision: Revision, _ scope: MapScope) {
        guard let controller, controller.isActing else {
            return session.stands(standing)
        }
        session.mapScope = scope
        if let steps = controller.mapSteps(since: revision) {
            send(steps, to: session)
        } else {
            session.followsMap = false
            session.waitsForMap = true
            sendWholeMap(scope)
        }
    }

    /// To all who wait for it, now or when it is made.
    private func sendWholeMap(_ scope: MapScope) {
        let waiting = sessions.values.filter { $0.waitsForMap && $0.mapScope == scope }
        guard let controller, controller.isActing, !waiting.isEmpty else { return }
        guard let map = maps.newest(scope, now: loop.now),
            let steps = controller.mapSteps(since: map.revision)
        else {
            return maps.make(scope, of: controller) { [unowned self] in sendWholeMap(scope) }
        }
        for session in waiting {
            session.waitsForMap = false
            for frame in map.frames { session.connection.sendFrames(frame) }
            send(steps, to: session)
        }
    }

    private func send(_ steps: [MapUpdate], to session: ControllerSession) {
        for step in steps {
            for piece in step.limited(to: session.mapScope).pieces() {
                session.connection.send(.mapUpdate) { piece.encode(into: &$0) }
            }
        }
        session.followsMap = true
        session.wholeMapBytes = session.connection.pendingBytes
        for (request, token) in session.takeHeld() {
            tableRequest(request, token: token, of: session)
        }
    }

    func publish(_ update: MapUpdate) {
        var frames: [MapScope: Bytes] = [:]
        for session in sessions.values where session.followsMap {
            if session.connection.pendingBytes > Self.followerBytesMax + session.wholeMapBytes {
                session.connection.close(
                    DatabaseError(.overloaded, "the map is not read fast enough"))
                continue
            }
            let scope = session.mapScope
            if frames[scope] == nil { frames[scope] = Self.frames(update.limited(to: scope)) }
            session.connection.sendFrames(frames[scope] ?? [])
        }
    }

    private static func frames(_ update: MapUpdate) -> Bytes {
        var writer = ByteWriter()
        for piece in update.pieces() {
            Frame.append(.mapUpdate, to: &writer) { piece.encode(into: &$0) }
        }
        return writer.take()
    }
}
