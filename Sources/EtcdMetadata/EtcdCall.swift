// What the requests' thread does, and what it answers.

import KVBase

/// One request to etcd, or a few that belong together.
enum EtcdCall: Sendable {
    case load(known: UInt64?)
    /// Reads the head: whatever was there before is seen by then.
    case confirm
    case write(EtcdTransaction)
    /// Puts a part of a large transaction where it waits.
    case stage(EtcdTransaction)
    /// Puts a part of a large transaction into its places; `head` is what the head becomes.
    case place(EtcdTransaction, head: EtcdHead)
    case sweep(EtcdTransaction)
    case grant(seconds: UInt64)
    case keepAlive(UInt64)

    func carryOut(
        _ gateway: EtcdGateway, _ layout: EtcdLayout
    ) throws(EtcdFailure) -> EtcdAnswer {
        switch self {
        case .load(let known):
            return .image(
                try EtcdImageReader(gateway: gateway, layout: layout, known: known).read())
        case .confirm:
            return .transaction(
                try gateway.transact(EtcdTransaction(success: [.get(key: layout.head)])))
        case .write(let transaction), .stage(let transaction), .place(let transaction, _),
            .sweep(let transaction):
            return .transaction(try gateway.transact(transaction))
        case .grant(let seconds): return .lease(try gateway.grant(seconds: seconds).id)
        case .keepAlive(let lease): return .lives(try gateway.keepAlive(lease) > 0)
        }
    }
}

enum EtcdAnswer: Sendable {
    case image(EtcdImage)
    case transaction(EtcdTransactionAnswer)
    case lease(UInt64)
    case lives(Bool)
}

extension EtcdGateway {
    func transact(
        _ transaction: EtcdTransaction, patience: Duration? = nil
    ) throws(EtcdFailure) -> EtcdTransactionAnswer {
        let json = try call(
            EtcdPath.transaction, EtcdRequest.transaction(transaction), patience: patience)
        do throws(DatabaseError) {
            return try EtcdTransactionAnswer(json)
        } catch {
            throw .unavailable(error.message)
        }
    }

    /// A new lease and the seconds that etcd grants it, at least those asked for. An answer that is lost
    /// leaves a lease that ends by itself.
    func grant(
        seconds: UInt64, patience: Duration? = nil
    ) throws(EtcdFailure) -> (id: UInt64, seconds: UInt64) {
        let json = try call(
            EtcdPath.leaseGrant, EtcdRequest.grant(seconds: seconds), patience: patience)
        guard let id = json["ID"]?.unsigned, let granted = json["TTL"]?.unsigned else {
            throw .unavailable("a lease without id")
        }
        return (id, granted)
    }

    /// The seconds that the lease has from now on; zero when it has ended.
    func keepAlive(
        _ lease: UInt64, patience: Duration? = nil
    ) throws(EtcdFailure) -> UInt64 {
        let json = try call(
            EtcdPath.leaseKeepAlive, EtcdRequest.lease(lease), patience: patience)
        guard let result = json["result"] else {
            throw .unavailable("an answer of a lease without result")
        }
        return result["TTL"]?.unsigned ?? 0
    }

    /// Ends a lease; one that has ended already is as good.
    func revoke(_ lease: UInt64, patience: Duration? = nil) throws(EtcdFailure) {
        do throws(EtcdFailure) {
            _ = try call(EtcdPath.leaseRevoke, EtcdRequest.lease(lease), patience: patience)
        } catch {
            if case .refused(EtcdFailure.notFound, _) = error { return }
            throw error
        }
    }
}
