// What a cluster tells of itself at one time, as files: for whoever is to find out later what was wrong.

import FoundationEssentials
import Glibc
import OperatorClient

/// Asks the acting controller and every daemon, and keeps what they say. What does not answer is part
/// of the picture: it is named, with the reason, and the rest is collected all the same.
struct DebugBundle {
    struct File: Sendable {
        /// Its path in the bundle.
        var name: String
        var text: String
    }

    struct Gap: Sendable {
        var name: String
        var reason: String
    }

    private struct Daemon: Sendable {
        var name: String
        var admin: String
        /// On this machine; nil when it is not known.
        var log: String?
    }

    /// What the acting controller is asked for. Nothing in it is a secret or a value.
    private static let verbs: [(file: String, verb: String, arguments: JSONValue)] = [
        ("status", "status", [:]), ("doctor", "doctor", [:]), ("nodes", "nodes", [:]),
        ("groups", "groups", [:]), ("tables", "tables", [:]), ("shards", "shards", [:]),
        ("top", "top", ["limit": 100]), ("operations", "ops.list", [:]),
        ("why", "why", ["limit": 1_000]), ("audit", "audit", ["limit": 1_000]),
        ("config", "config.list", [:]), ("backup", "backup.status", [:]),
        ("metadata", "metadata.home", [:]),
    ]
    private static let daemonsAtOnce = 8
    private static let logBytesMax = 1 << 20

    private(set) var files: [File] = []
    private(set) var gaps: [Gap] = []

    init(_ invocation: Invocation, progress: @escaping @Sendable (String) -> Void) throws(Failure) {
        let cluster = try Cluster(invocation)
        var status = JSONValue.null
        for (file, verb, arguments) in Self.verbs {
            progress("asks the controller: \(file)")
            do throws(Failure) {
                let answer = try cluster.call(verb, arguments)
                if verb == "status" { status = answer }
                add("cluster/\(file).json", answer.encoded(pretty: true) + "\n")
            } catch {
                gaps.append(Gap(name: "cluster/\(file).json", reason: error.message))
            }
        }
        let daemons = Self.daemons(status, directory: invocation.string("dir"))
        if daemons.isEmpty {
            gaps.append(
                Gap(name: "daemons", reason: "without a controller their addresses are not known"))
        }
        let timeout = cluster.timeout
        let parts = inParallel(
            daemons, atOnce: Self.daemonsAtOnce,
            progress: { progress("asked \($0) of \(daemons.count) daemons") },
            { Self.ask($0, timeout: timeout) })
        for part in parts {
            files += part.files
            gaps += part.gaps
        }
    }

    mutating func add(_ name: String, _ text: String) {
        files.append(File(name: name, text: text))
    }

    /// What is in it, and what is not.
    func summary(madeAt: String, by program: String) -> JSONValue {
        [
            "madeAt": .string(madeAt), "by": .string(program),
            "files": .array(files.map { .string($0.name) }),
            "missing": .array(
                gaps.map { ["name": .string($0.name), "reason": .string($0.reason)] }),
        ]
    }

    /// Of one daemon: whether it is well, its metrics, and every page of `/debug`.
    private static func ask(
        _ daemon: Daemon, timeout: Double
    ) -> (files: [File], gaps: [Gap]) {
        var files: [File] = []
        var gaps: [Gap] = []
        func fetch(_ path: String, _ name: String) -> String? {
            do throws(ClientError) {
                let page = try AdminPage.get(
                    path, from: daemon.admin, deadline: Deadline(seconds: timeout))
                files.append(File(name: "\(daemon.name)/\(name)", text: page.body))
                return page.body
            } catch {
                gaps.append(Gap(name: "\(daemon.name)/\(name)", reason: error.message))
                return nil
            }
        }
        if fetch("/readyz", "readyz.json") != nil {
            _ = fetch("/livez", "livez.json")
            _ = fetch("/metrics", "metrics.txt")
            let index = fetch("/debug/", "debug.json").flatMap {
                JSONValue(parsing: Array($0.utf8))
            }
            for page in index?["pages"].elements.compactMap(\.string) ?? [] {
                let words = page.split(separator: "/").joined(separator: "-")
                _ = fetch(page, words + ".json")
            }
        }
        if let log = daemon.log.flatMap(tail) {
            files.append(File(name: "\(daemon.name)/log.txt", text: log))
        }
        return (files, gaps)
    }

    /// Those that the controller knows; of a playground those that it was made of.
    private static func daemons(_ status: JSONValue, directory: String?) -> [Daemon] {
        if let directory, let file = try? PlaygroundFile(directory: directory) {
            let places =
                file.controllers.map { ($0.name, $0.admin) }
                + file.routers.map { ($0.name, $0.admin) }
                + file.nodes.map { ($0.name, $0.admin) }
            return places.map {
                Daemon(name: $0.0, admin: $0.1, log: "\(directory)/logs/\($0.0).log")
            }
        }
        return Cluster.daemons(in: status).map {
            Daemon(name: $0.name, admin: $0.admin, log: nil)
        }
    }

    /// The newest part of a log; nil when there is none.
    private static func tail(ofFile path: String) -> String? {
        let file = open(path, O_RDONLY | O_CLOEXEC)
        guard file >= 0 else { return nil }
        defer { close(file) }
        let start = max(0, lseek(file, 0, SEEK_END) - off_t(logBytesMax))
        var bytes = [UInt8](repeating: 0, count: logBytesMax)
        let count = pread(file, &bytes, bytes.count, start)
        return count < 0 ? nil : String(decoding: bytes[..<count], as: UTF8.self)
    }

    // MARK: Packing

    /// Packs everything into the compressed archive `path`, below a folder called `name`.
    func pack(into path: String, name: String) throws(Failure) {
        let folder = FileManager.default.temporaryDirectory.path + "/\(name)-\(getpid())"
        defer { try? FileManager.default.removeItem(atPath: folder) }
        do {
            for file in files {
                let path = "\(folder)/\(name)/\(file.name)"
                let parent = String(path[..<(path.lastIndex(of: "/") ?? path.startIndex)])
                try FileManager.default.createDirectory(
                    atPath: parent, withIntermediateDirectories: true,
                    attributes: [.posixPermissions: 0o700])
                try Data(file.text.utf8).write(to: URL(fileURLWithPath: path))
            }
        } catch {
            throw Failure(.failure, "cannot write to \(folder): \(error)")
        }
        try Self.tar(["tar", "-C", folder, "-czf", path, name])
    }

    private static func tar(_ words: [String]) throws(Failure) {
        var arguments = words.map { strdup($0) as UnsafeMutablePointer<CChar>? }
        defer { for word in arguments { free(word) } }
        arguments.append(nil)
        var pid: pid_t = 0
        let error = posix_spawnp(&pid, "tar", nil, nil, arguments, environ)
        guard error == 0 else {
            throw Failure(.failure, "cannot start tar: \(String(cString: strerror(error)))")
        }
        var status: Int32 = 0
        while waitpid(pid, &status, 0) < 0, errno == EINTR {}
        // What went wrong tar has said itself.
        guard status == 0 else { throw Failure(.failure, "tar could not pack the files") }
    }
}
