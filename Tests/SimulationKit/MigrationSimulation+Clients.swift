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
    var isSource = false

    var bytes: Bytes {
        MigrationSimulation.operation(
            code, shard: shard, epoch: epoch, flags: flags, expected: expected, key: key,
            value: value)
    }
}

struct MigrationResponse {
    var operation: Int
    var isSource: Bool
    var error: DatabaseError?
    /// Of the record found or written.
    var version: RecordVersion?
    var isFinal: Bool
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
        var isDual = false
        var target: MigrationResponse?
        var source: MigrationResponse?
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
        operation.target = nil
        operation.source = nil
        let router = Int(random.below(UInt64(Self.routerCount)))
        if random.chance(1, in: isFaulty ? 4 : 1) { routerMaps[router] = map }
        let place = routerMaps[router].first { $0.shard.range.contains(operation.key) }!
        operation.isDual =
            operation.code == .get && place.source != .none && canary != .noDualRead
        var request = MigrationRequest(
            operation: operation.id, group: place.shard.group, shard: place.shard.id,
            epoch: place.shard.epoch, code: operation.code, flags: operation.flags,
            expected: operation.expected, key: operation.key, value: operation.value)
        if operation.isDual {
            request.flags = .dualRead
            var other = request
            other.group = place.source
            other.isSource = true
            send(.request(other))
        }
        send(.request(request))
        clients[client].operation = operation
        heap.push(
            .timeout(client: client, operation: operation.id), at: now + 10 + 30 * delayMax)
    }

    mutating func receive(_ response: MigrationResponse) throws(Violation) {
        guard
            let client = clients.firstIndex(where: { $0.operation?.id == response.operation }),
            var operation = clients[client].operation
        else { return }
        if response.isSource {
            operation.source = response
        } else {
            operation.target = response
        }
        clients[client].operation = operation
        guard let target = operation.target else { return }
        if let error = target.error {
            if error.code == .conditionFailed { return finishOperation(client) }
            return retry(client)
        }
        let position = MigrationOracle.position(operation.key)
        guard operation.code == .get else {
            clients[client].seen[position] = target.version?.sequencer ?? .zero
            return finishOperation(client)
        }
        var version = target.version
        if !target.isFinal, canary != .noDualRead {
            guard let source = operation.source else { return }
            guard source.error == nil else { return retry(client) }
            version = newer(version, source.version)
        }
        let found = version.map { $0.isTombstone ? .zero : $0.sequencer } ?? .zero
        try oracle.read(operation.key, found, since: operation.started)
        count {
            $0.reads += 1
            if !target.isFinal { $0.dualReads += 1 }
        }
        clients[client].seen[position] = found
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
                        operation: request.operation, isSource: request.isSource, error: error,
                        isFinal: true)))
        }
    }

    private mutating func read(
        _ request: MigrationRequest, _ group: MigrationGroup
    ) throws(DatabaseError) {
        let held =
            request.flags.contains(.dualRead)
            ? try group.state.readable(request.shard, request.epoch)
            : try group.state.owned(request.shard, request.epoch)
        guard held.shard.range.contains(request.key) else {
            throw DatabaseError(.staleEpoch, "the key is not in the shard")
        }
        let isFinal = request.key.withUnsafeBytes { held.isFinal($0) }
        guard isFinal || request.flags.contains(.dualRead) || canary == .noDualRead else {
            throw DatabaseError(.staleEpoch, "the shard is being copied")
        }
        send(
            .response(
                MigrationResponse(
                    operation: request.operation, isSource: request.isSource, error: nil,
                    version: group.records[request.key]?.version, isFinal: isFinal)))
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

    /// Logs the former owner's record in front of the operation that depends on it.
    mutating func importFirst(_ request: MigrationRequest, _ record: MigrationRecord?) {
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
