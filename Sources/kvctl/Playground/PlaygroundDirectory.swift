// The files of a playground: what it consists of, what runs, and what is its to remove.

import FoundationEssentials
import Glibc
import OperatorClient

/// What kvctl remembers of a playground: its plan and the processes it started.
struct PlaygroundState: Codable {
    var version = 1
    var plan: PlaygroundPlan
    /// By daemon name. A process may have died since.
    var processes: [String: DaemonProcess] = [:]
    /// Ids that the controller gave to nodes, by name.
    var nodeIDs: [String: Int] = [:]
}

/// A directory with a playground in it, or one that is to get one.
///
/// `playground.json` is for everyone to read, `playground-state.json` for kvctl itself. Both are
/// replaced atomically.
struct PlaygroundDirectory {
    /// Absolute, without a slash at the end.
    let path: String
    /// Where the daemons' programs are.
    let binaries: String

    private static let stateName = "playground-state.json"
    private static let lockName = "playground.lock"

    init(_ directory: String) throws(Failure) {
        var absolute = directory
        if !absolute.hasPrefix("/") {
            absolute = FileManager.default.currentDirectoryPath + "/" + absolute
        }
        if let resolved = realpath(absolute, nil) {
            absolute = String(cString: resolved)
            free(resolved)
        }
        while absolute.count > 1, absolute.hasSuffix("/") { absolute.removeLast() }
        guard !absolute.contains(","), absolute != "/" else {
            throw Failure(.usage, "\(absolute) cannot hold a playground: choose another directory")
        }
        path = absolute
        guard let program = realpath("/proc/self/exe", nil) else {
            throw Failure(
                .failure, "cannot find kvctl's own path: \(String(cString: strerror(errno)))")
        }
        defer { free(program) }
        let programPath = String(cString: program)
        binaries = String(
            programPath[..<(programPath.lastIndex(of: "/") ?? programPath.startIndex)])
    }

    var exists: Bool { access(path, F_OK) == 0 }
    var holdsPlayground: Bool { access(file(PlaygroundFile.fileName), F_OK) == 0 }

    /// The recorded state; nil when there is no playground.
    func state() throws(Failure) -> PlaygroundState? {
        guard let data = FileManager.default.contents(atPath: file(Self.stateName)) else {
            guard !holdsPlayground else {
                throw Failure(.refused, "\(path) has a playground.json but no \(Self.stateName)")
            }
            return nil
        }
        do {
            return try JSONDecoder().decode(PlaygroundState.self, from: data)
        } catch {
            throw Failure(.refused, "\(file(Self.stateName)) is damaged: \(error)")
        }
    }

    func daemons(_ state: PlaygroundState) -> [DaemonPlan] {
        state.plan.daemons(in: path, binaries: binaries)
    }

    /// Writes both files.
    func save(_ state: PlaygroundState) throws(Failure) {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .prettyPrinted, .withoutEscapingSlashes]
        // A state holds nothing that JSON cannot.
        guard let data = try? encoder.encode(state) else { preconditionFailure("\(state)") }
        try replace(Self.stateName, with: data)
        let text = publicFile(state).json.encoded(pretty: true) + "\n"
        try replace(PlaygroundFile.fileName, with: Data(text.utf8))
    }

    /// What `playground.json` says of `state`.
    func publicFile(_ state: PlaygroundState) -> PlaygroundFile {
        var file = PlaygroundFile(routers: [], nodes: [], controllers: [])
        for plan in daemons(state) {
            let pid = state.processes[plan.name]?.pid
            switch plan.kind {
            case .etcd: break
            case .controller:
                file.controllers.append(
                    .init(name: plan.name, pid: pid, rpc: plan.address, admin: plan.admin))
            case .node:
                file.nodes.append(
                    .init(
                        name: plan.name, id: state.nodeIDs[plan.name] ?? 0, pid: pid,
                        rpc: plan.address, admin: plan.admin, data: plan.data, log: plan.log,
                        spare: plan.isSpare))
            case .router:
                file.routers.append(
                    .init(name: plan.name, pid: pid, resp: plan.address, admin: plan.admin))
            case .prometheus:
                file.prometheus = .init(pid: pid, url: plan.url)
            }
        }
        return file
    }

    /// Creates the directory, or the one of a daemon in it.
    func create(_ directory: String) throws(Failure) {
        do {
            try FileManager.default.createDirectory(
                atPath: directory, withIntermediateDirectories: true)
        } catch {
            throw Failure(.failure, "cannot create \(directory): \(error)")
        }
    }

    /// Writes the file `name` in the directory of `daemon`.
    func write(_ text: String, to name: String, of daemon: DaemonPlan) throws(Failure) {
        try replace("\(daemon.name)/\(name)", with: Data(text.utf8))
    }

    /// Keeps other kvctl processes from changing the playground until the result goes away.
    /// Precondition: the directory exists.
    func lock() throws(Failure) -> PlaygroundLock {
        try PlaygroundLock(file(Self.lockName))
    }

    /// Removes what the playground made, and the directory itself when nothing else is in it.
    func wipe(_ state: PlaygroundState) throws(Failure) {
        let made =
            daemons(state).map(\.home) + [file("logs")]
            // The public file goes last: with it, an interrupted wipe can be repeated.
            + [Self.lockName, PlaygroundFile.fileName, Self.stateName].map(file)
        for item in made where access(item, F_OK) == 0 {
            do {
                try FileManager.default.removeItem(atPath: item)
            } catch {
                throw Failure(.failure, "cannot remove \(item): \(error)")
            }
        }
        rmdir(path)
    }

    private func file(_ name: String) -> String { path + "/" + name }

    private func replace(_ name: String, with data: Data) throws(Failure) {
        do {
            try data.write(to: URL(filePath: file(name)), options: .atomic)
        } catch {
            throw Failure(.failure, "cannot write \(file(name)): \(error)")
        }
    }
}

/// An advisory lock on a file, held as long as it lives.
final class PlaygroundLock {
    private let descriptor: Int32

    fileprivate init(_ path: String) throws(Failure) {
        descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else {
            throw Failure(.failure, "cannot open \(path): \(String(cString: strerror(errno)))")
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            close(descriptor)
            throw Failure(
                .refused, "another kvctl is starting or stopping this playground (\(path))")
        }
    }

    deinit { close(descriptor) }
}
