// The JSON of the verbs `metadata.*`.

import KVBase
import MetadataCore

struct MoveView: Encodable {
    /// 16 hexadecimal digits, as below.
    var id: String
    var to: String
    /// The last one of the old store.
    var revision: UInt64
    var atMillis: UInt64
    var caller: String
    var endpoints: [String]
    var prefix: String
    var members: [String]

    init(_ move: MetadataMove) {
        id = hex(move.id)
        to = "\(move.to)"
        revision = move.revision.rawValue
        atMillis = move.at
        caller = move.caller
        endpoints = move.endpoints
        prefix = move.prefix
        members = move.members.map { "\($0.name)=\($0.address)" }
    }
}

/// A move under way, or the last one that did not come to pass, as the controller that is to do it sees it.
struct MigrationView: Codable {
    var id: String
    var to: String
    var phase: String
    /// Records copied, and all of them; 0 before that is known.
    var copied: Int
    var records: Int
    /// Why it ended; nil while it has not.
    var failure: String?
}

/// The answer of `metadata.home`: what one controller knows of where the metadata is.
struct HomeView: Encodable {
    var name: String
    var form: String
    /// As its settings say.
    var configured: String
    var acting: Bool
    /// Why it cannot act; nil when there is no more to say than that another one may.
    var obstacle: String?
    var cluster: String
    var revision: UInt64
    var move: MoveView?
    /// The same as bytes in hexadecimal, for other controllers.
    var moveBytes: String?
    var migration: MigrationView?
    /// What to change in its settings; nil when they name the right place.
    var staleness: String?
}

/// Of a `HomeView`, what another controller looks at.
struct PeerHome: Decodable {
    var moveBytes: String?
}

/// The answer of `metadata.check`.
struct PeerCheck: Codable {
    var name: String
}

/// The answer of `metadata.prepare`.
struct PreparedView: Codable {
    var records: Int
    /// Of the whole state, in hexadecimal.
    var digest: String
}

/// The answer of `metadata.migrate`: begun, or with `dryRun` what would be done.
struct MigrationPlanView: Encodable {
    var id: String
    var from: String
    var to: String
    var endpoints: [String]
    var prefix: String
    var records: Int
    var revision: UInt64
    /// Controllers that follow at once.
    var controllers: [String]
    /// Members that do not answer, and follow when they are started.
    var absent: [String]
    var dryRun: Bool
}

enum HexText {
    static func encode(_ bytes: Bytes) -> String {
        bytes.map { hex(UInt64($0), count: 2) }.joined()
    }

    static func decode(_ text: String) throws(DatabaseError) -> Bytes {
        let digits = Bytes(text.utf8)
        var bytes: Bytes = []
        bytes.reserveCapacity(digits.count / 2)
        var place = 0
        while place < digits.count {
            guard place + 2 <= digits.count,
                let byte = UInt64(
                    hex: String(decoding: digits[place..<place + 2], as: UTF8.self), count: 2)
            else { throw DatabaseError(.invalidRequest, "not hexadecimal") }
            bytes.append(UInt8(byte))
            place += 2
        }
        return bytes
    }
}
