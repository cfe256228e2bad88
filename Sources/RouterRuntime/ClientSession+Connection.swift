// Commands about the connection and the server: what client libraries and redis-cli ask.

import EventLoop
import KVBase
import RESP
import RouterCore
import ShardCore

extension ClientSession {
    /// The Redis version whose command forms these are, for clients that look at it.
    static let compatibleVersion = "7.4.0"

    func executeConnectionCommand(_ command: ParsedCommand, _ id: CommandID) {
        switch id {
        case .ping:
            guard command.count <= 2 else { return refuseArity("ping") }
            if command.count == 2 {
                reply { $0.bulk(command[1]) }
            } else {
                reply { $0.simple("PONG") }
            }
        case .echo: reply { $0.bulk(command[1]) }
        case .hello: hello(command)
        case .auth: authenticate(command)
        case .select:
            if command.integer(1) == 0 {
                reply { $0.ok() }
            } else {
                reply { $0.error("ERR", "DB index is out of range; there is database 0 only") }
            }
        case .quit:
            reply { $0.ok() }
            mode = .closing
        case .reset:
            version = .two
            clientName = []
            isAuthenticated = router.options.password == nil
            reply { $0.simple("RESET") }
        case .command: describeCommands(command)
        case .client: manageClient(command)
        case .info: info(command)
        case .config: configuration(command)
        case .time:
            let time = EventLoop.wallClockNanoseconds() / 1_000
            reply { writer in
                writer.array(count: 2)
                writer.bulk(String(time / 1_000_000))
                writer.bulk(String(time % 1_000_000))
            }
        default:
            let lines = CommandTable.specs.filter { !$0.help.isEmpty }.map(\.help)
            reply { writer in
                writer.array(count: lines.count)
                for line in lines { writer.simple(line) }
            }
        }
    }

    // MARK: Greeting

    private func hello(_ command: ParsedCommand) {
        var wanted = version
        var place = 1
        if command.count > 1 {
            switch command.integer(1) {
            case 2: wanted = .two
            case 3: wanted = .three
            default: return reply { $0.error("NOPROTO", "unsupported protocol version") }
            }
            place = 2
        }
        var name: Bytes?
        while place < command.count {
            if command.argument(place, is: "AUTH"), place + 2 < command.count {
                guard checkPassword(user: command.bytes(place + 1), command.bytes(place + 2)) else {
                    return
                }
                place += 3
            } else if command.argument(place, is: "SETNAME"), place + 1 < command.count {
                name = command.bytes(place + 1)
                place += 2
            } else {
                return reply(DatabaseError(.invalidRequest, "syntax error in HELLO"))
            }
        }
        guard isAuthenticated else {
            return reply {
                $0.error(
                    "NOAUTH",
                    "HELLO must be called with the client already authenticated, otherwise the "
                        + "HELLO <proto> AUTH <user> <pass> option can be used")
            }
        }
        version = wanted
        if let name { clientName = name }
        reply { writer in
            writer.map(pairs: 7)
            writer.bulk("server")
            writer.bulk("rangekeeper")
            writer.bulk("version")
            writer.bulk(Self.compatibleVersion)
            writer.bulk("proto")
            writer.integer(Int64(wanted.rawValue))
            writer.bulk("id")
            writer.integer(Int64(serial))
            writer.bulk("mode")
            writer.bulk("standalone")
            writer.bulk("role")
            writer.bulk("master")
            writer.bulk("modules")
            writer.array(count: 0)
        }
    }

    private func authenticate(_ command: ParsedCommand) {
        guard command.count <= 3 else {
            return reply(DatabaseError(.invalidRequest, "syntax error"))
        }
        guard router.options.password != nil else {
            return reply {
                $0.error(
                    "ERR",
                    "AUTH <password> called without any password configured for the default user. "
                        + "Are you sure your configuration is correct?")
            }
        }
        let user = command.count == 3 ? command.bytes(1) : Bytes("default".utf8)
        if checkPassword(user: user, command.bytes(command.count - 1)) { reply { $0.ok() } }
    }

    /// False after an error reply. Takes the same time wherever a wrong password differs.
    private func checkPassword(user: Bytes, _ given: Bytes) -> Bool {
        guard let password = router.options.password else {
            isAuthenticated = true
            return true
        }
        var difference = UInt8(given.count == password.count ? 0 : 1)
        for place in given.indices {
            difference |= given[place] ^ (place < password.count ? password[place] : 0)
        }
        guard difference == 0, user == Bytes("default".utf8) else {
            reply {
                $0.error("WRONGPASS", "invalid username-password pair or user is disabled.")
            }
            return false
        }
        isAuthenticated = true
        return true
    }

    // MARK: CLIENT

    private func manageClient(_ command: ParsedCommand) {
        if command.argument(1, is: "SETNAME"), command.count == 3 {
            let name = command.bytes(2)
            guard name.allSatisfy({ $0 > 0x20 && $0 < 0x7F }) else {
                return reply {
                    $0.error(
                        "ERR", "Client names cannot contain spaces, newlines or special characters."
                    )
                }
            }
            clientName = name
            reply { $0.ok() }
        } else if command.argument(1, is: "GETNAME") {
            let name = clientName
            reply { name.isEmpty ? $0.null() : $0.bulk(name) }
        } else if command.argument(1, is: "ID") {
            reply { $0.integer(Int64(serial)) }
        } else if command.argument(1, is: "SETINFO"), command.count == 4 {
            let value = command.bytes(3)
            if command.argument(2, is: "LIB-NAME") { libraryName = value }
            if command.argument(2, is: "LIB-VER") { libraryVersion = value }
            reply { $0.ok() }
        } else if command.argument(1, is: "INFO") {
            reply { $0.bulk(describe() + "\n") }
        } else if command.argument(1, is: "LIST") {
            let lines = router.sessions.compactMap { $0?.describe() }
            reply { $0.bulk(lines.map { $0 + "\n" }.joined()) }
        } else if command.argument(1, is: "NO-EVICT") || command.argument(1, is: "NO-TOUCH") {
            reply { $0.ok() }
        } else {
            reply(
                DatabaseError(
                    .invalidRequest,
                    "unknown subcommand or wrong number of arguments for 'client "
                        + "\(command.text(1).lowercased().prefix(32))'"))
        }
    }

    /// The client as CLIENT LIST shows it.
    func describe() -> String {
        let name = String(decoding: clientName, as: UTF8.self)
        let age = (router.now - openedAt).count / 1_000_000_000
        let library = String(decoding: libraryName, as: UTF8.self)
        let version = String(decoding: libraryVersion, as: UTF8.self)
        return "id=\(serial) addr=\(connection.remoteAddress) laddr=\(router.localAddress) "
            + "name=\(name) age=\(age) db=0 pending=\(ring.count) resp=\(self.version.rawValue) "
            + "lib-name=\(library) lib-ver=\(version)"
    }

    // MARK: COMMAND and CONFIG

    private func describeCommands(_ command: ParsedCommand) {
        if command.count == 1 {
            return reply { writer in
                writer.array(count: CommandTable.specs.count)
                for spec in CommandTable.specs { Self.write(spec, &writer) }
            }
        }
        if command.argument(1, is: "COUNT") {
            reply { $0.integer(Int64(CommandTable.specs.count)) }
        } else if command.argument(1, is: "LIST") {
            reply { writer in
                writer.array(count: CommandTable.specs.count)
                for spec in CommandTable.specs { writer.bulk(spec.name) }
            }
        } else if command.argument(1, is: "INFO") {
            let wanted =
                command.count == 2
                ? CommandTable.specs.map { $0 }
                : (2..<command.count).map { CommandTable.find(command[$0]) }
            reply { writer in
                writer.array(count: wanted.count)
                for spec in wanted {
                    if let spec { Self.write(spec, &writer) } else { writer.null() }
                }
            }
        } else if command.argument(1, is: "DOCS") {
            let specs =
                command.count == 2
                ? CommandTable.specs
                : (2..<command.count).compactMap { CommandTable.find(command[$0]) }
            reply { writer in
                writer.map(pairs: specs.count)
                for spec in specs {
                    writer.bulk(spec.name)
                    writer.map(pairs: 2)
                    writer.bulk("summary")
                    writer.bulk(spec.help)
                    writer.bulk("group")
                    writer.bulk(spec.keyPosition > 0 ? "hash" : "connection")
                }
            }
        } else {
            reply(DatabaseError(.invalidRequest, "unknown subcommand for 'command'"))
        }
    }

    /// Name, arity, flags, first key, last key, step, categories, tips, key specs, subcommands.
    private static func write(_ spec: CommandSpec, _ writer: inout RESPWriter) {
        writer.array(count: 10)
        writer.bulk(spec.name)
        writer.integer(Int64(spec.arity))
        writer.set(count: 1)
        if spec.isWrite { writer.simple("write") } else { writer.simple("readonly") }
        let isEveryArgument = spec.id == .del || spec.id == .exists
        writer.integer(Int64(spec.keyPosition))
        writer.integer(isEveryArgument ? -1 : Int64(spec.keyPosition))
        writer.integer(spec.keyPosition > 0 ? 1 : 0)
        for _ in 0..<4 { writer.array(count: 0) }
    }

    private func configuration(_ command: ParsedCommand) {
        guard command.argument(1, is: "GET"), command.count >= 3 else {
            return reply {
                $0.error(
                    "ERR", "CONFIG GET only; settings come from the configuration file and flags")
            }
        }
        // Persistence is always on, whatever a program concludes from these words.
        let known: [(name: String, value: String)] = [
            ("save", ""), ("appendonly", "yes"), ("appendfsync", "always"), ("databases", "1"),
            ("maxmemory", "0"), ("maxclients", String(router.options.clientsMax)),
            ("proto-max-bulk-len", String(Limits.valueBytesMax)),
        ]
        let patterns = (2..<command.count).map {
            GlobPattern(Bytes(command.text($0).lowercased().utf8))
        }
        let found = known.filter { entry in
            patterns.contains { $0.matches(Bytes(entry.name.utf8)) }
        }
        reply { writer in
            writer.map(pairs: found.count)
            for entry in found {
                writer.bulk(entry.name)
                writer.bulk(entry.value)
            }
        }
    }

    // MARK: INFO

    private func info(_ command: ParsedCommand) {
        var wanted: [String] = []
        for place in 1..<command.count { wanted.append(command.text(place).lowercased()) }
        let isAll =
            wanted.isEmpty || wanted.contains { ["all", "default", "everything"].contains($0) }
        var text = ""
        for (name, lines) in infoSections where isAll || wanted.contains(name.lowercased()) {
            text += (text.isEmpty ? "" : "\r\n") + "# \(name)\r\n"
            for (key, value) in lines { text += "\(key):\(value)\r\n" }
        }
        reply { $0.bulk(text) }
    }

    private var infoSections: [(String, [(String, String)])] {
        let statistics = router.statistics
        let counters = router.core.counters
        let map = router.core.map
        let uptime = (router.now - router.startTime).count / 1_000_000_000
        var tables: [(String, String)] = []
        for named in map.activeTables.prefix(100) {
            tables.append(
                (
                    "table_\(named.table.name)",
                    "id=\(named.table.id),partition=\(named.table.partitioning),"
                        + "engine=\(named.table.engine),shards=\(named.index.count)"
                ))
        }
        return [
            (
                "Server",
                [
                    ("redis_version", Self.compatibleVersion), ("redis_mode", "standalone"),
                    ("server_name", "rangekeeper"), ("router_name", router.options.name),
                    ("tcp_port", String(router.localAddress.port)),
                    ("uptime_in_seconds", String(uptime)),
                ]
            ),
            (
                "Clients",
                [
                    ("connected_clients", String(router.sessionCount)),
                    ("maxclients", String(router.options.clientsMax)),
                ]
            ),
            (
                "Stats",
                [
                    ("total_connections_received", String(statistics.acceptedClients)),
                    ("rejected_connections", String(statistics.refusedClients)),
                    ("total_commands_processed", String(statistics.commandCount)),
                    ("operations_submitted", String(counters.submitted)),
                    ("operations_sent", String(counters.sent)),
                    ("frames_sent", String(counters.frames)),
                    ("operations_pending", String(router.core.pendingOperations)),
                    ("map_revision", map.revision.ofMap),
                ]
            ),
            ("Replication", [("role", "master"), ("connected_slaves", "0")]),
            ("Keyspace", [("tables", String(map.activeTables.count))] + tables),
        ]
    }
}
