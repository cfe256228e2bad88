// `metadata migrate`: a cluster's metadata from its one controller into etcd, or back. The nodes and
// routers run on.

import EtcdMetadata
import FoundationEssentials
import Glibc
import KVBase
import MetadataCore
import MetadataStore
import OperatorClient
import ReplicationCore

extension Command {
    static let metadataCommands: [Command] = [
        Command(
            path: ["metadata", "migrate"],
            summary: "move a cluster's metadata into etcd, or out of it",
            details: """
                All controllers must be stopped; nodes and routers run on and serve. To etcd: the metadata of \
                the one controller
                that is left (kvctl controller remove the others first), whose directory DIR is; afterwards \
                start controllers with
                metadata = etcd. To embedded: DIR is that of the first controller, which is started with \
                metadata = embedded; add
                others by kvctl controller add. What was moved away stays, marked, and is not used any more. \
                An interrupted
                migration is repeated by the same command.
                """,
            flags: [
                .option("to", "FORM", "etcd or embedded"),
                .option("data", "DIR", "the controller's data directory: its `data` setting"),
                .option("name", "NAME", "to embedded: the controller's name"),
                .option("address", "HOST:PORT", "to embedded: its address, its listen.rpc"),
                .option("etcd-endpoints", "URL,...", "as the controllers' etcd.endpoints"),
                .option("etcd-prefix", "PREFIX", "as etcd.prefix: rangekeeper/ unless told"),
                .option("etcd-ca", "FILE", "as etcd.ca"),
                .option("etcd-cert", "FILE", "as etcd.cert"),
                .option("etcd-key", "FILE", "as etcd.key"),
                .option("etcd-user", "NAME", "as etcd.user"),
                .option("etcd-password-file", "FILE", "as etcd.password.file"),
            ],
            examples: [
                "metadata migrate --to etcd --data /var/lib/rangekeeper/controller "
                    + "--etcd-endpoints http://10.0.0.21:2379",
                "metadata migrate --to embedded --data /var/lib/rangekeeper/controller "
                    + "--name c1 --address 10.0.0.1:7300 --etcd-endpoints http://10.0.0.21:2379",
            ], run: { (invocation) throws(Failure) in try Migration(invocation).run() })
    ]
}

/// One migration, as asked for.
private struct Migration {
    private let isToEtcd: Bool
    private let data: String
    private let name: String
    private let address: String
    private let transfer: EtcdTransfer

    init(_ invocation: Invocation) throws(Failure) {
        guard let form = invocation.string("to"), ["etcd", "embedded"].contains(form) else {
            throw invocation.usage("--to is etcd or embedded")
        }
        guard let data = invocation.string("data"),
            let list = invocation.string("etcd-endpoints")
        else { throw invocation.usage("--data and --etcd-endpoints are needed") }
        isToEtcd = form == "etcd"
        self.data = data
        name = invocation.string("name") ?? ""
        address = invocation.string("address") ?? ""
        guard isToEtcd || (!name.isEmpty && address.contains(":")) else {
            throw invocation.usage("--to embedded needs --name NAME and --address HOST:PORT")
        }
        let endpoints = list.split(separator: ",").map(String.init)
        guard !endpoints.isEmpty,
            endpoints.allSatisfy({ $0.hasPrefix("http://") || $0.hasPrefix("https://") })
        else { throw invocation.usage("--etcd-endpoints is a list of http://HOST:PORT") }
        var settings = EtcdSettings(
            endpoints: endpoints, prefix: invocation.string("etcd-prefix") ?? "rangekeeper/")
        settings.authorityFile = invocation.string("etcd-ca")
        settings.certificateFile = invocation.string("etcd-cert")
        settings.keyFile = invocation.string("etcd-key")
        settings.user = invocation.string("etcd-user")
        settings.attemptTimeout = .seconds(10)
        settings.patience = .seconds(30)
        if let file = invocation.string("etcd-password-file") {
            guard let text = try? String(contentsOfFile: file, encoding: .utf8) else {
                throw Failure(.refused, "--etcd-password-file: \(file) cannot be read")
            }
            settings.password = text.hasSuffix("\n") ? String(text.dropLast()) : text
        }
        let wanted = settings
        transfer = try failing { () throws(DatabaseError) in try EtcdTransfer(wanted) }
    }

    private var quorum: String { data + "/quorum" }
    private var unfinished: String { data + "/quorum.migrating" }

    func run() throws(Failure) -> ExitCode {
        let records = try failing { () throws(DatabaseError) in
            try isToEtcd ? toEtcd() : toEmbedded()
        }
        Terminal.say(
            isToEtcd
                ? "moved \(records) records into etcd: start the controllers with metadata = etcd; "
                    + "\(quorum).migrated is what was"
                : "moved \(records) records to \(quorum): start controller \(name) with metadata = "
                    + "embedded")
        return .ok
    }

    // MARK: To etcd

    private func toEtcd() throws(DatabaseError) -> Int {
        guard access(quorum + "/identity", F_OK) == 0 else {
            throw DatabaseError(.refused, "\(quorum) holds no metadata")
        }
        let files = try QuorumFiles(directory: quorum)
        guard let identity = try files.identity() else {
            throw DatabaseError(.refused, "\(quorum) holds no metadata")
        }
        let state = try files.stateOfOne(identity)
        guard state.revision != .none else {
            throw DatabaseError(.refused, "the cluster was never founded: there is nothing to move")
        }
        // The same in etcd: this was interrupted before the end.
        if case .metadata(let there, _) = try transfer.read() {
            guard there.revision == state.revision,
                there.range(prefix: []) == state.range(prefix: [])
            else { throw DatabaseError(.refused, "there is other metadata in etcd already") }
        } else {
            try transfer.write(state)
        }
        try move(quorum, quorum + ".migrated")
        return state.records.count
    }

    // MARK: To embedded

    private func toEmbedded() throws(DatabaseError) -> Int {
        for old in [quorum + "/identity", data + "/metadata"] where access(old, F_OK) == 0 {
            throw DatabaseError(.refused, "\(old) exists: \(data) holds metadata already")
        }
        switch try transfer.read() {
        case .nothing: throw DatabaseError(.refused, "there is no metadata in etcd")
        case .moved:
            let files = try QuorumFiles(directory: unfinished)
            guard let identity = try files.identity() else {
                throw DatabaseError(.refused, "the metadata in etcd was moved away already")
            }
            let count = try files.stateOfOne(identity).records.count
            try finish()
            return count
        case .metadata(let state, let head):
            let files = try QuorumFiles(directory: unfinished)
            let record = state.get(Bytes("controller/cluster".utf8))
            let cluster = try ByteReader.decode(record?.value ?? []) {
                (reader) throws(DatabaseError) in try reader.readUInt64()
            }
            // An id of its own: no member of an earlier group on any disk is taken for this one.
            let replica = ReplicaID(UInt32(truncatingIfNeeded: time(nil)))
            try files.create(
                QuorumIdentity(cluster: cluster, replica: replica, name: name),
                image: MetadataImage(
                    founder: name, address: address, state: state, replica: replica))
            try transfer.seal(head: head)
            try finish()
            return state.records.count
        }
    }

    /// What is there counts from now on.
    private func finish() throws(DatabaseError) {
        // Left by a controller that never founded anything.
        if access(quorum, F_OK) == 0 { try move(quorum, quorum + ".unused") }
        try move(unfinished, quorum)
        if access(data + "/etcd", F_OK) == 0 { try move(data + "/etcd", data + "/etcd.migrated") }
    }

    private func move(_ from: String, _ to: String) throws(DatabaseError) {
        var target = to
        var number = 1
        while access(target, F_OK) == 0, target != quorum {
            number += 1
            target = "\(to).\(number)"
        }
        guard rename(from, target) == 0 else {
            throw DatabaseError(
                .storageFailed, "rename \(from) to \(target): \(String(cString: strerror(errno)))")
        }
        let directory = open(data, O_RDONLY | O_DIRECTORY)
        guard directory >= 0 else { return }
        fsync(directory)
        close(directory)
    }
}
