// Everything below the prefix at one etcd revision, read page by page.

import KVBase
import MetadataCore

/// What a mirror begins with.
struct EtcdImage: Sendable {
    /// The etcd revision that it shows; a watch goes on behind it.
    var revision: UInt64 = 0
    /// Of the etcd cluster.
    var cluster: UInt64 = 0
    var head = EtcdHead()
    var headModRevision: UInt64 = 0
    /// Nil when it is known already: the head has the sequence that was asked about.
    var state: RevisionedState?
    var leases: [LeaseID: EtcdLease] = [:]
    var alive: Set<LeaseID> = []
    var parts: [EtcdMirror.PartSet] = []
    var controllers: [EtcdPlace] = []
    var election: EtcdElectionRecord?
}

/// Reads an image. Blocks; runs on a worker's thread.
struct EtcdImageReader {
    let gateway: EtcdGateway
    let layout: EtcdLayout
    /// The mutation whose state the caller holds; nil when it holds none.
    let known: UInt64?
    /// The move whose metadata is read though it does not count yet; nil for metadata that does.
    let incoming: UInt64?

    /// Whoever asks waits for all pages, so one that is late is not given up early.
    private static let patience = Duration.seconds(30)
    private static let pageRecordsMax = 2_000
    private static let pageBytesWanted = 8 << 20

    /// A failure of the code `outOfRange`: etcd was compacted while it was read; begin anew.
    func read() throws(EtcdFailure) -> EtcdImage {
        do throws(DatabaseError) {
            return try readImage()
        } catch {
            if let refused = refusal { throw refused }
            throw .unavailable(error.message)
        }
    }

    /// What etcd refused, to be told apart from what could not be read.
    private let refusals = Refusals()
    private final class Refusals { var last: EtcdFailure? }
    private var refusal: EtcdFailure? { refusals.last }

    init(gateway: EtcdGateway, layout: EtcdLayout, known: UInt64?, incoming: UInt64? = nil) {
        self.gateway = gateway
        self.layout = layout
        self.known = known
        self.incoming = incoming
    }

    private func call(_ path: String, _ body: Bytes) throws(DatabaseError) -> JSONTree {
        do throws(EtcdFailure) {
            return try gateway.call(path, body, patience: Self.patience)
        } catch {
            refusals.last = error
            throw DatabaseError(.unavailable, error.message)
        }
    }

    private func readImage() throws(DatabaseError) -> EtcdImage {
        var image = EtcdImage()
        let first = try EtcdTransactionAnswer(
            try call(
                EtcdPath.transaction,
                EtcdRequest.transaction(
                    EtcdTransaction(success: [.get(key: layout.head), .get(key: layout.election)]))
            ))
        image.revision = first.header.revision
        image.cluster = first.header.cluster
        if let record = first.records.first?.first {
            if let incoming, case .incoming(incoming, _, let head) = try EtcdHead.Mark(record.value)
            {
                image.head = head
            } else {
                image.head = try EtcdHead(record.value)
            }
            image.headModRevision = record.modRevision
        }
        if first.records.count > 1, let record = first.records[1].first {
            image.election = EtcdElectionRecord(record)
        }
        try readAside(into: &image)
        if image.head.sequence != known || known == nil {
            image.state = try readState(image)
        }
        return image
    }

    private func readAside(into image: inout EtcdImage) throws(DatabaseError) {
        for prefix in [layout.alive, layout.controller, layout.lease, layout.part] {
            try pages(prefix, image.revision) { (record) throws(DatabaseError) in
                switch layout.place(of: record.key) {
                case .alive(let id): image.alive.insert(id)
                case .lease(let id): image.leases[id] = try EtcdLease(record.value)
                case .controller:
                    if let place = try? EtcdPlace(record.value) { image.controllers.append(place) }
                case .part(let writer, let sequence, let index):
                    let at = image.parts.firstIndex {
                        $0.writer == writer && $0.sequence == sequence
                    }
                    if let at {
                        image.parts[at].parts[index] = record.value
                    } else {
                        image.parts.append(
                            EtcdMirror.PartSet(
                                writer: writer, sequence: sequence,
                                parts: [index: record.value]))
                    }
                default: break
                }
            }
        }
        image.controllers.sort { $0.name < $1.name }
    }

    private func readState(_ image: EtcdImage) throws(DatabaseError) -> RevisionedState {
        var records: [MetadataRecord] = []
        try pages(layout.data, image.revision) { (record) throws(DatabaseError) in
            let key = Bytes(record.key[layout.data.count...])
            records.append(try EtcdValue.decode(record.value, key: key))
        }
        let leases = image.leases.sorted { $0.key < $1.key }.map { ($0.key, $0.value.ttl) }
        func state(_ revision: Revision) -> RevisionedState {
            RevisionedState(
                revision: revision, records: records, leases: leases,
                leaseHighest: image.head.leaseHighest, now: .origin)
        }
        guard let staged = image.head.staged else { return state(image.head.revision) }
        // Some parts of the newest mutation are not in their places: as if they were.
        var changes: [MetadataChange] = []
        let set = image.parts.first {
            $0.writer == image.head.writer && $0.sequence == image.head.sequence
        }
        for index in Int(staged.next)..<max(Int(staged.next), Int(staged.count)) {
            guard let bytes = set?.parts[index] else {
                throw DatabaseError(
                    .storageFailed,
                    "metadata in etcd: part \(index) of mutation \(image.head.sequence) is gone")
            }
            changes += try EtcdPart.decode(bytes)
        }
        var whole = state(Revision(image.head.revision.rawValue - 1))
        whole.apply(.changes(changes), now: .origin)
        // The event would hold what is left of the mutation only.
        whole.compact(below: image.head.revision.next())
        return whole
    }

    /// The records whose keys begin with one of `prefixes`, at one etcd revision.
    func records(under prefixes: [Bytes]) throws(DatabaseError) -> [MetadataRecord] {
        let now = try EtcdTransactionAnswer(
            try call(
                EtcdPath.transaction,
                EtcdRequest.transaction(EtcdTransaction(success: [.get(key: layout.head)])))
        ).header.revision
        var records: [MetadataRecord] = []
        for prefix in prefixes {
            try pages(layout.data(prefix), now) { (record) throws(DatabaseError) in
                let key = Bytes(record.key[layout.data.count...])
                records.append(try EtcdValue.decode(record.value, key: key))
            }
        }
        return records
    }

    private func pages(
        _ prefix: Bytes, _ revision: UInt64,
        _ body: (EtcdRecord) throws(DatabaseError) -> Void
    ) throws(DatabaseError) {
        var window = EtcdWindow(prefix: prefix)
        var limit = 32
        while let (from, end) = window.range {
            let page = try EtcdRangeAnswer(
                try call(
                    EtcdPath.range,
                    EtcdRequest.range(from: from, end: end, limit: limit, revision: revision)))
            var bytes = 1
            for record in page.records {
                bytes += record.key.count + record.value.count
                try body(record)
            }
            window.advance(page.records.map(\.key), hasMore: page.hasMore, limit: limit)
            guard !page.records.isEmpty else { continue }
            let fitting = limit * Self.pageBytesWanted / bytes
            limit = max(8, min(Self.pageRecordsMax, min(fitting, limit * 16)))
        }
    }
}

/// Where the next page is looked for. Etcd (3.4 and 3.5) walks its index of a whole range for every page of
/// it, so pages of one long range take time with the square of its length: each page asks for about as much
/// of the keys as it will hold, as told by how dense they were before.
struct EtcdWindow {
    private let prefix: Bytes
    private let end: Bytes
    private var from: Bytes
    /// How far a window reaches, counted in the 16 bytes behind the prefix as a number; nil: to the end.
    private var width: UInt128?
    private var isDone = false

    init(prefix: Bytes) {
        self.prefix = prefix
        end = EtcdRequest.end(of: prefix)
        from = prefix
    }

    /// Nil when everything was asked for.
    var range: (from: Bytes, end: Bytes)? { isDone ? nil : (from, windowEnd ?? end) }

    /// Nil: the end of all.
    private var windowEnd: Bytes? {
        guard let width else { return nil }
        let (sum, overflows) = number(of: from).addingReportingOverflow(width)
        return overflows ? nil : prefix + withUnsafeBytes(of: sum.bigEndian) { Bytes($0) }
    }

    /// `keys`: what the page held, which was asked for with `limit`.
    mutating func advance(_ keys: [Bytes], hasMore: Bool, limit: Int) {
        if hasMore, let first = keys.first, let last = keys.last {
            // As many again.
            width = max(1, number(of: last) - number(of: first))
            from = last + [0]
        } else if let next = windowEnd {
            from = next
            // Sparse: further next time, until it is dense or the end.
            if keys.count * 2 < limit, let width {
                let (wider, overflows) = width.multipliedReportingOverflow(by: 16)
                self.width = overflows ? nil : wider
            }
        } else {
            isDone = true
        }
    }

    private func number(of key: Bytes) -> UInt128 {
        var number: UInt128 = 0
        for place in 0..<16 {
            let offset = prefix.count + place
            number = number << 8 | UInt128(offset < key.count ? key[offset] : 0)
        }
        return number
    }
}
