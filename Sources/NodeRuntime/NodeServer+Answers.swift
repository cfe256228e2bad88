// What routers and controllers are told: answers to whoever waits, and who leads.

import KVBase
import RPC
import ReplicationCore
import ShardCore
import WireProtocol

extension NodeServer {
    // MARK: Leaders

    func openSession(_ connection: RPCConnection) -> RouterSession {
        let session = sessions.open(connection)
        for replica in replicas.elements
        where replica.isLeader && replica.core.canPropose && !replica.isFailed {
            tell(session, replica)
        }
        return session
    }

    /// A replica leads and serves: whoever routes requests or decides is told at once.
    func announce(_ replica: GroupReplica) {
        for session in sessions.all { tell(session, replica) }
        reportSoon()
    }

    func remindRouters() {
        let now = now
        for session in sessions.all where !session.connection.isCongested {
            for replica in replicas.elements
            where !replica.isFailed && replica.core.canServeReads(at: now) {
                tell(session, replica)
            }
        }
    }

    private func tell(_ session: RouterSession, _ replica: GroupReplica) {
        let leader = GroupLeader(
            group: replica.group, term: replica.core.term, node: identity.node)
        session.connection.send(.leaderNotice) { leader.encode(into: &$0) }
    }

    // MARK: Answers

    /// Answers a waiter, whoever it is; one that is gone is passed over.
    func answer(
        _ waiter: Waiter, flags: ResponseFlags, sequencer: Sequencer,
        payload: UnsafeRawBufferPointer? = nil
    ) {
        if waiter.slot == Waiter.commandSlot {
            finishCommand(waiter, error: nil, floor: sequencer)
        } else {
            respond(waiter, .ok) {
                $0.writeResponse(
                    token: UInt32(truncatingIfNeeded: waiter.token), flags: flags,
                    sequencer: sequencer,
                    payload: payload ?? UnsafeRawBufferPointer(start: nil, count: 0))
            }
        }
    }

    func answer(_ waiter: Waiter, error: DatabaseError, sequencer: Sequencer = .zero) {
        if waiter.slot == Waiter.commandSlot {
            finishCommand(waiter, error: error)
        } else if error.code == .notLeader {
            // Routers read a hint there, never a sentence.
            answerNotLeader(waiter, LeaderHint(term: .none, node: .none))
        } else {
            let message = Bytes(error.message.utf8)
            respond(waiter, RequestResult(error.code)) { writer in
                message.withUnsafeBytes {
                    writer.writeResponse(
                        token: UInt32(truncatingIfNeeded: waiter.token), error: error.code,
                        sequencer: sequencer, payload: $0)
                }
            }
        }
    }

    func answerNotLeader(_ waiter: Waiter, _ hint: LeaderHint) {
        if waiter.slot == Waiter.commandSlot {
            finishCommand(waiter, error: DatabaseError(.notLeader, "another replica leads"))
        } else {
            var writer = ByteWriter()
            hint.encode(into: &writer)
            let payload = writer.bytes
            respond(waiter, .notLeader) { writer in
                payload.withUnsafeBytes {
                    writer.writeResponse(
                        token: UInt32(truncatingIfNeeded: waiter.token), error: .notLeader,
                        payload: $0)
                }
            }
        }
    }

    private func respond(
        _ waiter: Waiter, _ result: RequestResult, _ body: (inout ByteWriter) -> Void
    ) {
        guard let session = sessions.session(of: waiter) else { return }
        answered.append(AnsweredRequest(waiter: waiter, result: result))
        session.respond(body)
    }
}
