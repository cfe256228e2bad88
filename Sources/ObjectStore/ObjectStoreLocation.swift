// From the words of a setting or a flag to a store: a directory, or
// `s3://BUCKET/PREFIX?endpoint=URL&region=NAME&ca=FILE`.

import Glibc
import KVBase

public enum ObjectStoreLocation {
    /// Opens the store that `text` names. Keys of S3 come from `credentials`, a file with
    /// `aws_access_key_id = ...` and `aws_secret_access_key = ...`; when that is nil from
    /// `$CREDENTIALS_DIRECTORY/backup` (the same form), else from AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY in the environment.
    ///
    /// A directory is made when it is first used, with `creates`, if its parent exists.
    public static func open(
        _ text: String, credentials: String? = nil, creates: Bool = false
    ) throws(DatabaseError) -> any ObjectStore {
        guard text.hasPrefix("s3://") else {
            guard !text.contains("://") else {
                throw DatabaseError(
                    .invalidRequest, "a backup goes to a directory or s3://..., not to '\(text)'")
            }
            var found = stat()
            guard !text.isEmpty, stat(text, &found) != 0 || found.st_mode & S_IFMT == S_IFDIR else {
                throw DatabaseError(
                    .invalidRequest,
                    "a backup goes to a directory or s3://...: "
                        + (text.isEmpty ? "no place is named" : "'\(text)' is a file"))
            }
            return DirectoryStore(path: text, creates: creates)
        }
        return try S3Store(try settings(text, keys(credentials)))
    }

    static func settings(
        _ text: String, _ keys: (access: String, secret: String)
    ) throws(DatabaseError) -> S3Store.Settings {
        let parts = text.dropFirst(5).split(separator: "?", maxSplits: 1)
        let path = (parts.first ?? "").split(
            separator: "/", maxSplits: 1, omittingEmptySubsequences: false)
        guard let bucket = path.first, !bucket.isEmpty else {
            throw DatabaseError(.invalidRequest, "'\(text)' names no bucket")
        }
        var prefix = path.count > 1 ? String(path[1]) : ""
        if !prefix.isEmpty, !prefix.hasSuffix("/") { prefix += "/" }
        var endpoint: String?
        var region = "us-east-1"
        var authority: String?
        for option in parts.count > 1 ? parts[1].split(separator: "&") : [] {
            let pair = option.split(separator: "=", maxSplits: 1).map(String.init)
            guard pair.count == 2 else {
                throw DatabaseError(.invalidRequest, "'\(option)' in '\(text)' has no value")
            }
            switch pair[0] {
            case "endpoint": endpoint = pair[1]
            case "region": region = pair[1]
            case "ca": authority = pair[1]
            default:
                throw DatabaseError(
                    .invalidRequest,
                    "'\(pair[0])' in '\(text)' is none of endpoint, region, ca")
            }
        }
        var url = endpoint ?? "https://s3.\(region).amazonaws.com"
        guard url.hasPrefix("http://") || url.hasPrefix("https://") else {
            throw DatabaseError(
                .invalidRequest,
                "the endpoint in '\(text)' begins with neither http:// nor https://"
            )
        }
        while url.hasSuffix("/") { url.removeLast() }
        var settings = S3Store.Settings(
            endpoint: url, bucket: String(bucket), prefix: prefix, region: region,
            accessKey: keys.access, secretKey: keys.secret)
        settings.authorityFile = authority
        return settings
    }

    private static func keys(_ file: String?) throws(DatabaseError) -> (String, String) {
        func variable(_ name: String) -> String? { getenv(name).map { String(cString: $0) } }
        if let file { return try keys(in: file) }
        if let directory = variable("CREDENTIALS_DIRECTORY"),
            access("\(directory)/backup", F_OK) == 0
        {
            return try keys(in: "\(directory)/backup")
        }
        guard let key = variable("AWS_ACCESS_KEY_ID"),
            let secret = variable("AWS_SECRET_ACCESS_KEY")
        else {
            throw DatabaseError(
                .invalidRequest,
                "no keys for S3: name a file of them by kvctl's --credentials or the controllers' "
                    + "backup.credentials, or give $CREDENTIALS_DIRECTORY/backup, or AWS_ACCESS_KEY_ID "
                    + "and AWS_SECRET_ACCESS_KEY in the environment")
        }
        return (key, secret)
    }

    private static func keys(in file: String) throws(DatabaseError) -> (String, String) {
        let text = String(decoding: try DirectoryStore.read(file: file), as: UTF8.self)
        var values: [String: String] = [:]
        for line in text.split(whereSeparator: \.isNewline) {
            let pair = line.split(separator: "=", maxSplits: 1).map(trimmed)
            if pair.count == 2 { values[pair[0]] = pair[1] }
        }
        guard let key = values["aws_access_key_id"], let secret = values["aws_secret_access_key"]
        else {
            throw DatabaseError(
                .invalidRequest,
                "\(file) does not hold aws_access_key_id and aws_secret_access_key")
        }
        return (key, secret)
    }

    private static func trimmed(_ text: Substring) -> String {
        var rest = text
        while rest.first?.isWhitespace == true { rest.removeFirst() }
        while rest.last?.isWhitespace == true { rest.removeLast() }
        return String(rest)
    }
}
