// A backup that kvctl reads by itself, without a controller; and times as operators write them.

import ControllerCore
import FoundationEssentials
import KVBase
import MetadataBackup
import ObjectStore
import OperatorClient

/// Turns what the database's own libraries throw into a `Failure`.
func failing<Result>(
    library body: () throws(DatabaseError) -> Result
) throws(Failure) -> Result {
    do throws(DatabaseError) {
        return try body()
    } catch {
        throw Failure(ClientError(.answered(error.code), error.message))
    }
}

struct BackupSource {
    static let flags: [Flag] = [
        .option("from", "PLACE", "a directory or s3://..., read without any controller"),
        .option(
            "credentials", "FILE",
            "keys for s3://: aws_access_key_id and aws_secret_access_key; else from the environment"
        ),
    ]
    static let momentFlag = Flag.option(
        "at", "REVISION|TIME",
        "the state of a revision, or of a time: 2026-03-01T12:00:00Z, 2026-03-01, or how long ago: 10m, 7d"
    )

    let archive: BackupArchive
    var place: String { archive.destination.description }

    /// Nil when the command line names no place.
    init?(_ invocation: Invocation) throws(Failure) {
        guard let place = invocation.string("from") else { return nil }
        archive = try failing { () throws(DatabaseError) in
            BackupArchive(
                try ObjectStoreLocation.open(
                    place, credentials: invocation.string("credentials")))
        }
    }

    func list() throws(Failure) -> JSONValue {
        try failing { () throws(DatabaseError) in
            JSONValue(encoding: BackupListView(try archive.catalog(), destination: place))
        }
    }

    func show(
        _ moment: BackupMoment, _ progress: (Int, Int) -> Void
    ) throws(Failure) -> JSONValue {
        try failing { () throws(DatabaseError) in
            let state = try archive.state(at: moment, progress: progress)
            return JSONValue(
                encoding: MetadataSummary.InBackup(
                    destination: place, revision: state.revision.rawValue, at: state.at,
                    damaged: state.findings.map(\.text),
                    summary: try MetadataSummary(state.records)))
        }
    }

    func verify(_ progress: (Int, Int) -> Void) throws(Failure) -> JSONValue {
        try failing { () throws(DatabaseError) in
            JSONValue(
                encoding: BackupVerificationView(
                    try archive.verify(progress: progress), destination: place))
        }
    }
}

extension Invocation {
    /// What `--at` names.
    func moment() throws(Failure) -> BackupMoment {
        guard let text = string("at") else { return .newest }
        if let revision = UInt64(text) { return .revision(Revision(revision)) }
        let date =
            (try? Date(text, strategy: .iso8601))
            ?? (try? Date(text, strategy: .iso8601.year().month().day()))
        if let date, date.timeIntervalSince1970 >= 0 {
            return .time(UInt64(date.timeIntervalSince1970 * 1_000) + 999)
        }
        guard let ago = Quantity.seconds(text), text.last?.isLetter == true else {
            throw usage(
                "--at takes a revision, a time in UTC (2026-03-01T12:00:00Z or 2026-03-01), or how long "
                    + "ago in ms, s, m, h and d (10m, 1h30m, 7d), not '\(text)'")
        }
        return .time(UInt64(max(0, Date.now.timeIntervalSince1970 - ago) * 1_000))
    }
}

enum Clock {
    /// `2026-03-01T12:00:00Z`; `never` for 0.
    static func text(_ milliseconds: Int?) -> String {
        guard let milliseconds, milliseconds > 0 else { return "never" }
        return Date(timeIntervalSince1970: Double(milliseconds / 1_000)).formatted(.iso8601)
    }
}
