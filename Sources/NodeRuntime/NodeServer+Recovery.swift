// What a node finds on its disks when it starts, and the address book it keeps there.

import KVBase
import NodeCore
import ReplicatedLog
import ReplicationCore
import ShardCore
import StorageAPI
import SystemdSupport
import Threads

extension NodeServer {
    /// Brings back every replica that both the log and an engine's catalog know. A replica known to
    /// one alone was being created or removed when the node died; the controller repeats that.
    func recoverReplicas() throws(DatabaseError) {
        for disk in disks {
            var catalog: [(group: GroupID, replica: ReplicaID, store: StoreID, EngineKind)] = []
            for kind in EngineKind.allCases {
                var damaged = false
                try disk.engine(kind).scan(StorageLayout.catalogRange) { key, value in
                    guard let (group, replica) = StorageLayout.parseCatalogKey(key),
                        value.count == 4
                    else {
                        damaged = true
                        return false
                    }
                    let store = StoreID(UInt32(bigEndian: value.loadUnaligned(as: UInt32.self)))
                    catalog.append((group, replica, store, kind))
                    return true
                }
                if damaged {
                    throw DatabaseError(.storageFailed, "the catalog in \(disk.path) is damaged")
                }
                let known = catalog.filter { $0.3 == kind }.map(\.store)
                try clearStores(of: disk.engine(kind), on: disk, but: known)
            }
            for entry in catalog { disk.reserveStores(through: entry.store) }
            try recoverRemoved(on: disk)
            for recovered in disk.takeRecovered() {
                guard
                    let entry = catalog.first(where: {
                        $0.group == recovered.group && $0.replica == recovered.replica
                    })
                else {
                    disk.log.stageRemoval(group: recovered.group)
                    continue
                }
                try add(recover(recovered, on: disk, store: entry.store, kind: entry.3))
            }
        }
    }

    /// Empties the stores that no replica has: of snapshots that did not arrive whole before the node
    /// died. Their numbers may be handed out again after the next start, so nothing may be left in
    /// them.
    private func clearStores(
        of engine: any StorageEngine, on disk: Disk, but known: [StoreID]
    ) throws(DatabaseError) {
        var batch = EngineBatch()
        var next = StoreID(1)
        while true {
            var found: StoreID?
            let rest = KeyRange(start: StorageLayout.range(next).start, end: nil)
            try engine.scan(rest) { key, _ in
                found = StorageLayout.store(of: key)
                return false
            }
            guard let store = found, store.rawValue < .max else { break }
            disk.reserveStores(through: store)
            next = StoreID(store.rawValue + 1)
            guard !known.contains(store) else { continue }
            let range = StorageLayout.range(store)
            let end = StorageLayout.range(next).start
            range.start.withUnsafeBytes { from in
                end.withUnsafeBytes { to in batch.deleteRange(from: from, to: to) }
            }
            log.notice(
                "clearing what no replica has",
                [LogField("path", disk.path), LogField("store", store)])
        }
        if !batch.isEmpty { try engine.apply(batch) }
    }

    private func recover(
        _ recovered: RecoveredGroup, on disk: Disk, store: StoreID, kind: EngineKind
    ) throws(DatabaseError) -> GroupReplica {
        let engine = disk.engine(kind)
        func value(_ key: Bytes) throws(DatabaseError) -> Bytes {
            guard let bytes = try engine.value(of: key) else {
                throw DatabaseError(
                    .storageFailed, "\(disk.path): group \(recovered.group) has no state")
            }
            return bytes
        }
        let (applied, floor) = try StorageLayout.decodeApplied(
            value(StorageLayout.appliedKey(store)))
        var state = try ByteReader.decode(value(StorageLayout.stateKey(store))) {
            (reader) throws(DatabaseError) in
            try GroupState(from: &reader, applied: applied, floor: floor)
        }
        if let cursors = try engine.value(of: StorageLayout.cursorsKey(store)) {
            try ByteReader.decode(cursors) { (reader) throws(DatabaseError) in
                try state.takeCursors(from: &reader)
            }
        }
        let garbage = try ByteReader.decode(value(StorageLayout.garbageKey(store))) {
            (reader) throws(DatabaseError) in
            try reader.readList(elementBytesMin: 5) { (reader) throws(DatabaseError) in
                try reader.readKeyRange()
            }
        }
        let restored = RestoredState(
            hardState: recovered.hardState, applied: applied, membership: state.membership,
            entries: recovered.entries, compacted: recovered.compacted)
        let replica = GroupReplica(
            node: self, disk: disk, group: recovered.group, id: recovered.replica,
            engineKind: kind, store: store, state: state, restored: restored,
            seed: random.next(), now: now)
        replica.garbage = garbage
        if let sweeps = try engine.value(of: StorageLayout.sweepKey(store)) {
            replica.sweeps = try ByteReader.decode(sweeps) { (reader) throws(DatabaseError) in
                try reader.readList(elementBytesMin: 5) { (reader) throws(DatabaseError) in
                    try reader.readKeyRange()
                }
            }
        }
        for range in garbage {
            if let named = range.start.withUnsafeBytes({ StorageLayout.store(of: $0) }) {
                disk.reserveStores(through: named)
            }
        }
        if !garbage.isEmpty { garbageAppeared(replica) }
        return replica
    }

    // MARK: Address book

    private var addressBookPath: String { "\(settings.dataDirectories[0])/peers" }

    /// Peers must be reachable when no controller is.
    func readAddressBook() throws(DatabaseError) {
        guard let bytes = try DurableFile.read(addressBookPath) else { return }
        let known = try? ByteReader.decode(bytes) { (reader) throws(DatabaseError) in
            try AddressBook(from: &reader)
        }
        guard let known else {
            // Only a convenience: the controllers send it again.
            log.warning("address book is damaged", [LogField("path", addressBookPath)])
            return
        }
        book = known
        updatePeers(known.nodes)
    }

    func writeAddressBook() {
        book = AddressBook(
            revision: map.revision, nodes: Array(map.nodes.elements),
            tables: Array(map.tables.elements))
        var writer = ByteWriter()
        book.encode(into: &writer)
        let bytes = writer.bytes
        let path = addressBookPath
        disks[0].worker.submit { try? DurableFile.replace(path, with: bytes) }
    }
}

/// What a node keeps of the cluster map for times without a controller: where its peers are, and what
/// the tables are called, so that the map can be rebuilt from the nodes alone.
struct AddressBook {
    var revision = Revision.none
    var nodes: [Node] = []
    var tables: [Table] = []

    init(revision: Revision = .none, nodes: [Node] = [], tables: [Table] = []) {
        self.revision = revision
        self.nodes = nodes
        self.tables = tables
    }

    func encode(into writer: inout ByteWriter) {
        writer.write(list: nodes) { writer, node in node.encode(into: &writer) }
        writer.write(revision)
        writer.write(list: tables) { writer, table in table.encode(into: &writer) }
    }

    init(from reader: inout ByteReader) throws(DatabaseError) {
        nodes = try reader.readList(elementBytesMin: 18) { (reader) throws(DatabaseError) in
            try Node(from: &reader)
        }
        // Earlier versions wrote the nodes only.
        guard !reader.isAtEnd else { return }
        revision = try reader.read()
        tables = try reader.readList(elementBytesMin: 12) { (reader) throws(DatabaseError) in
            try Table(from: &reader)
        }
    }
}
