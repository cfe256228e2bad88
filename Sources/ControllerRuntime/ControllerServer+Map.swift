// Whoever follows the cluster map is sent every step of it.

import ControllerCore
import KVBase
import RPC
import ShardCore
import WireProtocol

extension ControllerServer {
    func watchMap(_ session: ControllerSession, from revision: Revision) {
        guard let controller, controller.isActing else {
            return session.stands(standing)
        }
        for update in controller.mapUpdates(since: revision) {
            for piece in update.pieces() {
                session.connection.send(.mapUpdate) { piece.encode(into: &$0) }
            }
        }
        session.followsMap = true
        session.wholeMapBytes = session.connection.pendingBytes
    }

    func publish(_ update: MapUpdate) {
        var frame = ByteWriter()
        for piece in update.pieces() {
            Frame.append(.mapUpdate, to: &frame) { piece.encode(into: &$0) }
        }
        for session in sessions.values where session.followsMap {
            if session.connection.pendingBytes > Self.followerBytesMax + session.wholeMapBytes {
                session.connection.close(
                    DatabaseError(.overloaded, "the map is not read fast enough"))
            } else {
                session.connection.sendFrames(frame.bytes)
            }
        }
    }
}
