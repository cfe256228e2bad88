// The audit log: every request that may change something, before it is carried out, and its answer.

import ControllerCore
import Digest
import EventLoop
import KVBase
import MetadataStore
import RPC
import ShardCore
import WireProtocol

/// Requests in the audit log whose answers are still to come.
struct AuditBook {
    /// A connection may use one token for one request at a time.
    struct Key: Hashable {
        let connection: ConnectionID
        let token: UInt32
    }

    struct Request {
        let number: UInt64
        let caller: String
        let address: String
        let verb: String
    }

    /// For look-up only.
    var open: [Key: Request] = [:]
    /// Answered in this turn of the loop, not stored yet.
    var answered: [(request: Request, isDone: Bool, text: String)] = []
}

extension ControllerServer {
    static let auditVerbs = ["audit", "audit.verify"]
    /// All others are in the audit log, unless they only ask what would happen.
    private static let readingVerbs: Set<String> = [
        "status", "nodes", "groups", "shards", "tables", "table.describe", "ops.list", "ops.show",
        "why", "doctor", "top", "config.list", "controller.list", "audit", "audit.verify",
        "backup.status", "backup.list", "backup.show", "backup.verified", "backup.job",
    ]
    private static let textBytesMax = 4_096

    /// Notes a request of an operator's tool.
    func audit(_ request: AdminRequest, _ token: UInt32, of session: ControllerSession) {
        guard !Self.readingVerbs.contains(request.verb), request.arguments?.dryRun != true else {
            return
        }
        audit(request.verb, request.arguments, token, of: session)
    }

    /// Notes a client's request that came through a router.
    func audit(_ request: TableRequest, _ token: UInt32, of session: ControllerSession) {
        var arguments = AdminRequest.Arguments()
        let verb: String
        switch request {
        case .create(let name, let partitioning, let engine, let replicas, let splits, let isLax):
            verb = "table.create"
            arguments.name = name
            if case .hash(let ranges) = partitioning {
                arguments.partitioning = "HASH"
                arguments.virtualRanges = Int(ranges)
            }
            arguments.engine = engine == .btree ? "BTREE" : nil
            arguments.replicas = replicas.map(Int.init)
            arguments.splits = splits.isEmpty ? nil : splits.map(KeyText.text)
            arguments.ifMissing = isLax ? true : nil
        case .drop(let name):
            verb = "table.drop"
            arguments.name = name
        case .confirmMap: return
        }
        audit(verb, arguments, token, of: session)
    }

    private func audit(
        _ verb: String, _ arguments: AdminRequest.Arguments?, _ token: UInt32,
        of session: ControllerSession
    ) {
        guard isActing, let head = controller?.auditHead else { return }
        let text = arguments.map { String(decoding: AdminJSON.encode($0), as: UTF8.self) } ?? "{}"
        let request = AuditBook.Request(
            number: head.next, caller: Self.cut(session.connection.peer?.name ?? "", 128),
            address: session.connection.remoteAddress.description, verb: Self.cut(verb, 128))
        append(request, .requested(arguments: Self.cut(text, Self.textBytesMax)))
        auditBook.open[.init(connection: session.id, token: token)] = request
    }

    /// Notes the answer to a request, if it is in the log. Stored at the end of the turn, for the
    /// core may be in the middle of a step.
    func auditAnswer(
        _ error: DatabaseError?, _ token: UInt32, of connection: ConnectionID,
        done text: String = ""
    ) {
        guard
            let request = auditBook.open.removeValue(
                forKey: .init(connection: connection, token: token))
        else { return }
        let text =
            error.map { $0.code == .refused ? $0.message : "\($0.code): \($0.message)" } ?? text
        auditBook.answered.append((request, error == nil, Self.cut(text, Self.textBytesMax)))
    }

    /// What the audit log calls a request that is in it and not answered yet.
    func auditRequest(_ token: UInt32, of connection: ConnectionID) -> MoveMark.Request? {
        auditBook.open[.init(connection: connection, token: token)].map {
            MoveMark.Request(
                number: $0.number, caller: $0.caller, address: $0.address, verb: $0.verb)
        }
    }

    /// Notes that a request which began a move came to nothing.
    func auditFailure(_ error: DatabaseError, of request: MoveMark.Request) {
        let known = AuditBook.Request(
            number: request.number, caller: request.caller, address: request.address,
            verb: request.verb)
        auditBook.answered.append((known, false, Self.cut(error.message, Self.textBytesMax)))
    }

    func auditAnswer(
        _ result: Result<OperationID, DatabaseError>, _ token: UInt32, of connection: ConnectionID
    ) {
        switch result {
        case .success(OperationID.none): auditAnswer(nil, token, of: connection)
        case .success(let id): auditAnswer(nil, token, of: connection, done: "operation \(id)")
        case .failure(let error): auditAnswer(error, token, of: connection)
        }
    }

    /// Stores the answers of this turn.
    func storeAudit() {
        guard !auditBook.answered.isEmpty else { return }
        let answered = auditBook.answered
        auditBook.answered.removeAll()
        for (request, isDone, text) in answered {
            append(request, .answered(request: request.number, isDone: isDone, text: text))
        }
    }

    private func append(_ request: AuditBook.Request, _ event: AuditEntry.Event) {
        guard let controller, controller.isActing else { return }
        step(
            .audit(
                AuditEntry(
                    after: controller.auditHead,
                    at: EventLoop.wallClockNanoseconds() / 1_000_000, caller: request.caller,
                    address: request.address, verb: request.verb, event: event,
                    hash: SHA256.digest)))
    }

    private static func cut(_ text: String, _ bytesMax: Int) -> String {
        text.utf8.count <= bytesMax
            ? text : String(decoding: text.utf8.prefix(bytesMax), as: UTF8.self) + "…"
    }

    // MARK: Verbs

    func serveAudit(
        _ request: AdminRequest, _ token: UInt32, _ session: ControllerSession
    ) throws(DatabaseError) {
        let limit = max(1, min(request.arguments?.limit ?? 50, 5_000))
        let anchor = try request.arguments?.value.map { (text) throws(DatabaseError) in
            try AuditAnchor(text)
        }
        let known = controller?.auditHead ?? AuditHead()
        // Behind everything that was submitted before.
        home.metadata?.range(prefix: AuditEntry.storePrefix) { [unowned self, weak session] in
            guard let session, let head = controller?.auditHead else { return }
            guard case .success(let snapshot) = $0 else {
                return session.adminFailure(
                    token, DatabaseError(.unavailable, "the metadata store does not answer"))
            }
            guard request.verb == "audit.verify" else {
                let trail = AuditTrail(snapshot.records, head: head)
                return session.adminSuccess(
                    token, AuditView(commands: trail.commands(limit: limit)))
            }
            home.readStored([AuditEntry.storePrefix, AuditHead.storeKey]) { [weak session] in
                do throws(DatabaseError) {
                    session?.adminSuccess(
                        token, try Self.verdict(on: try $0.get(), anchor, known: known))
                } catch {
                    session?.adminFailure(token, error)
                }
            }
        }
    }

    /// `known`: what this controller remembers of the log, which has to be in it.
    private static func verdict(
        on stored: [MetadataRecord], _ anchor: AuditAnchor?, known: AuditHead
    ) throws(DatabaseError) -> AuditVerdictView {
        let isHead = { (record: MetadataRecord) in record.key == AuditHead.storeKey }
        let head = try AuditHead(stored.first(where: isHead))
        let trail = AuditTrail(stored.filter { !isHead($0) }, head: head)
        let fault =
            trail.fault(since: anchor, hash: SHA256.digest)
            ?? trail.fault(since: AuditAnchor(known), hash: SHA256.digest)
        return AuditVerdictView(
            first: head.first, last: head.next - 1,
            head: Nullable(AuditAnchor.text(head)), isWhole: fault == nil,
            fault: Nullable(fault))
    }
}
