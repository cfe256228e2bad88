// Requests to the acting controller: who asked is kept until its core has answered.

import ControllerCore
import KVBase
import Metrics
import RPC
import ShardCore
import WireProtocol

extension ControllerServer {
    func tableRequest(_ request: TableRequest, token: UInt32, of session: ControllerSession) {
        guard
            session.requestsWaiting + session.held.count < ControllerSession.requestsWaitingMax
        else {
            return session.answer(
                token, DatabaseError(.overloaded, "too many table requests wait"))
        }
        // Another controller may have created tables since this one was last alone.
        guard isActing else { return session.answer(token, notActing) }
        // A router takes what its map does not name for missing, once it is confirmed, and looks in its map
        // for what it had created: no answer overtakes the map.
        guard session.followsMap else { return session.held.append((request, token)) }
        audit(request, token, of: session)
        submit(
            request,
            for: .router(session.id, token: token, isRepeatable: request.isRepeatable), of: session)
    }

    func submit(
        _ request: TableRequest, for requester: Requesters.Requester, of session: ControllerSession
    ) {
        metrics.tableRequests.increment()
        session.requestsWaiting += 1
        let id = requesters.add(requester)
        if let controller, controller.isActing, !isStopping {
            step(.tableRequest(id, request))
        } else {
            answer(id, notActing)
        }
    }

    /// A number for a request of an operator's tool, by which its answer finds back.
    func operationRequest(from session: ControllerSession, _ token: UInt32) -> RequestID {
        session.requestsWaiting += 1
        return requesters.add(.operation(session.id, token: token))
    }

    func answer(_ request: RequestID, _ error: DatabaseError?) {
        switch requesters.remove(request) {
        case .router(let id, let token, let isRepeatable):
            let error = isRepeatable ? error : uncertain(error)
            auditAnswer(error, token, of: id)
            guard let session = sessions[id] else { return }
            session.requestsWaiting -= 1
            session.answer(token, error)
        case .tool(let id, let token, let table):
            auditAnswer(error, token, of: id)
            guard let session = sessions[id] else { return }
            session.requestsWaiting -= 1
            adminAnswer(uncertain(error), table: table, token, of: session)
        case .operation, nil: break
        }
    }

    func answer(_ request: RequestID, _ result: Result<OperationID, DatabaseError>) {
        guard case .operation(let id, let token) = requesters.remove(request) else { return }
        auditAnswer(result, token, of: id)
        guard let session = sessions[id] else { return }
        session.requestsWaiting -= 1
        operationAnswer(result.mapError { uncertain($0) ?? $0 }, token, of: session)
    }

    /// What a core that resigns says of a request that it had taken: it may have been stored.
    private func uncertain(_ error: DatabaseError?) -> DatabaseError? {
        guard isResigning, let error, error.code == .unavailable else { return error }
        return DatabaseError(
            .unknownOutcome,
            "the acting controller changed before the answer: the request may have been taken; look "
                + "before you repeat it")
    }
}

extension ControllerSession {
    func answer(_ token: UInt32, _ error: DatabaseError?) {
        connection.send(.tableResponse) { writer in
            writer.write(token)
            writer.write(error)
        }
    }
}
