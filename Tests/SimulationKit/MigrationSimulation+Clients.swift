// Clients and routers of the migration simulation, and what a group's leader does for them.

import KVBase
import NodeCore
import ShardCore

struct MigrationRequest {
    var operation: Int
    var group: GroupID
    var shard: ShardID
    var epoch: Epoch
    var code: OperationCode
    var flags: OperationFlags
    var expected: Sequencer?
    var key: Bytes
    var value: Bytes

    var bytes: Bytes {
        MigrationSimulation.operation(
            code, shard: shard, epoch: epoch, flags: flags, expected: expected, key: key,
            value: value)
    }
}

struct MigrationResponse {
    var operation: Int
    var error: DatabaseError?
    /// Of the record found or written.
    var version: RecordVersion?
}

struct MigrationClient {
    struct Operation {
        /// Of the present attempt.
        var id: Int
        var code: OperationCode
        var flags: OperationFlags
        var expected: Sequencer?
        var key: Bytes
        var value: Bytes
        /// Versions of the key when the operation began.
        var started: Int
        var triesLeft = 40
    }

    var operation: Operation?
    /// What it last saw of each key.
    var seen = [Sequencer](repeating: .zero, count: MigrationSimulation.keys.count)
}

extension MigrationSimulation {
    mutating func startOperation(_ client: Int) {
        let key = Self.keys[Int(random.below(UInt64(Self.keys.count)))]
        var operation = MigrationClient.Operation(
            id: 0, code: .get, flags: [], expected: nil, key: key, value: [],
            started: oracle.count(key))
        switch random.below(10) {
        case 0, 1, 2, 3: break
        case 4, 5: operation.code = .put
        case 6:
            operation.code = .put
            operation.flags = .wantsPrevious
        case 7: operation.code = .delete
        default:
            operation.code = .put
            let seen = clients[client].seen[MigrationOracle.position(key)]
            operation.expected = random.chance(1, in: 4) ? .zero : seen
        }
        if operation.code == .put {
            var writer = ByteWriter()
            writer.write(nextValue)
            nextValue += 1
            operation.value = writer.take()
        }
        clients[client].operation = operation
        attempt(client)
    }

    mutating func finishOperation(_ client: Int) {
        clients[client].operation = nil
        heap.push(.client(client), at: now + 1 + random.below(delayMax))
    }

    /// Sends the client's operation by the map of some router.
    private mutating func attempt(_ client: Int) {
        guard var operation = clients[client].operation else { return }
        operation.id = nextOperation
        nextOperation += 1
        let router = Int(random.below(UInt64(Self.routerCount)))
        if random.chance(1, in: isFaulty ? 4 : 1) { routerMaps[router] = map }
        let place = routerMaps[router].first { $0.range.contains(operation.key) }!
        let request = MigrationRequest(
            operation: operation.id, group: place.group, shard: place.id,
            epoch: place.epoch, code: operation.code, flags: operation.flags,
            expected: operation.expected, key: operation.key, value: operation.value)
        send(.request(request))
        clients[client].operation = operation
        heap.push(
            .timeout(client: client, operation: operation.id), at: now + 10 + 30 * delayMax)
    }

    mutating func receive(_ response: MigrationResponse) throws(Violation) {
        guard
            let client = clients.firstIndex(where: { $0.operation?.id == response.operation }),
            let operation = clients[client].operation
        else { return }
        if let error = response.error {
            if error.code == .conditionFailed { return finishOperation(client) }
            return retry(client)
        }
        let version = response.version
        let found = version.map { $0.isTombstone ? .zero : $0.sequencer } ?? .zero
        if operation.code == .get {
            try oracle.read(operation.key, found, since: operation.started)
            count { $0.reads += 1 }
        }
        clients[client].seen[MigrationOracle.position(operation.key)] = found
        finishOperation(client)
    }

    private mutating func retry(_ client: Int) {
        clients[client].operation!.triesLeft -= 1
        if clients[client].operation!.triesLeft == 0 { return finishOperation(client) }
        attempt(client)
    }

    // MARK: The leader

    mutating func receive(_ request: MigrationRequest) {
        let group = groupIndex(request.group)
        do throws(DatabaseError) {
            if request.code == .get {
                try read(request, groups[group])
            } else {
                try write(request, group)
            }
        } catch {
            send(
                .response(
                    MigrationResponse(
                        operation: request.operation, error: error, version: nil)))
        }
    }

    private mutating func read(
        _ request: MigrationRequest, _ group: MigrationGroup
    ) throws(DatabaseError) {
        let held = try group.state.owned(request.shard, request.epoch)
        guard held.shard.range.contains(request.key) else {
            throw DatabaseError(.staleEpoch, "the key is not in the shard")
        }
        let version = group.records[request.key]?.version
        if case .importing(let source, _, _) = held.phase, canary != .noDualRead,
            !request.key.withUnsafeBytes({ held.isNewest(version, $0) })
        {
            return send(.keyRequest(request, from: source))
        }
        answer(request, version)
    }

    private mutating func answer(_ request: MigrationRequest, _ version: RecordVersion?) {
        send(
            .response(
                MigrationResponse(operation: request.operation, error: nil, version: version)))
    }

    /// The other half of a read came: what the former owner holds counts while the copy runs.
    private mutating func finishRead(_ request: MigrationRequest, _ record: MigrationRecord?) {
        let group = groups[groupIndex(request.group)]
        guard let held = try? group.state.owned(request.shard, request.epoch) else { return }
        count { $0.dualReads += 1 }
        let own = group.records[request.key]?.version
        answer(
            request, held.isImporting ? newer(own, record?.version) : own)
    }

    private mutating func write(
        _ request: MigrationRequest, _ group: Int
    ) throws(DatabaseError) {
        let held = try groups[group].state.owned(request.shard, request.epoch)
        guard held.shard.range.contains(request.key) else {
            throw DatabaseError(.staleEpoch, "the key is not in the shard")
        }
        let dependsOnPrevious = request.expected != nil || request.flags.contains(.wantsPrevious)
        var request = request
        let present = groups[group].records[request.key]?.version
        if case .importing(let source, _, _) = held.phase, dependsOnPrevious,
            !request.key.withUnsafeBytes({ held.isNewest(present, $0) })
        {
            guard canary == .noImportFirst else {
                send(.keyRequest(request, from: source))
                return
            }
            request.flags.insert(.previousImported)
        }
        propose(group, [(request.bytes, .client(operation: request.operation))])
    }

    /// The former owner tells what it has of one key, as the source half of a dual read.
    mutating func serveKey(_ request: MigrationRequest, from source: GroupID) {
        let group = groups[groupIndex(source)]
        guard let held = try? group.state.readable(request.shard, request.epoch),
            case .fenced = held.phase
        else { return }
        send(.keyAnswer(request, group.records[request.key]))
    }

    /// The former owner's record is here: it is logged in front of a write that depends on it.
    mutating func importFirst(_ request: MigrationRequest, _ record: MigrationRecord?) {
        if request.code == .get { return finishRead(request, record) }
        count { $0.importsFirst += 1 }
        var request = request
        request.flags.insert(.previousImported)
        var operations: [(Bytes, MigrationWaiter)] = []
        if let record {
            let bytes = Self.importOperation(request.shard, request.epoch, request.key, record)
            operations.append((bytes, .none))
        }
        operations.append((request.bytes, .client(operation: request.operation)))
        propose(groupIndex(request.group), operations)
    }

    static func importOperation(
        _ shard: ShardID, _ epoch: Epoch, _ key: Bytes, _ record: MigrationRecord
    ) -> Bytes {
        var value = ByteWriter()
        if !record.version.isTombstone { value.write(record.value) }
        return operation(
            .importRecord, shard: shard, epoch: epoch,
            flags: record.version.isTombstone ? .tombstone : [],
            expected: record.version.sequencer, key: key, value: value.bytes)
    }
}
