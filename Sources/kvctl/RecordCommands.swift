// `get`, `put`, `del`, `list`: records, through a router.

import FoundationEssentials
import Glibc
import KVBase
import OperatorClient
import RESP

extension Command {
    private static let tableAndKey = [
        Positional(name: "TABLE", kind: .table), Positional(name: "KEY"),
    ]
    private static let condition = Flag.option(
        "if", "SEQUENCER", "only when the record still has this sequencer (0: no record)")

    static let recordCommands: [Command] = [
        Command(
            path: ["get"], summary: "the value of a key",
            details: "Exits 1 when there is no record. -o json adds the sequencer.",
            positionals: tableAndKey, flags: [.toggle("raw", "no line feed behind the value")],
            examples: ["get stocks A --dir /tmp/rk", "get stocks A --dir /tmp/rk -o json"], run: get
        ),
        Command(
            path: ["put"], summary: "set the value of a key; prints the record's sequencer",
            details: "The value - is read from standard input. A condition that fails exits 7.",
            positionals: tableAndKey + [Positional(name: "VALUE|-")], flags: [condition],
            examples: [
                "put stocks A 120 --dir /tmp/rk", "put pages index - --dir /tmp/rk < index.html",
                "put stocks A 121 --if 18ab...-00000000-00000001 --dir /tmp/rk",
            ],
            run: put),
        Command(
            path: ["del"], summary: "delete a key", positionals: tableAndKey, flags: [condition],
            examples: ["del stocks A --dir /tmp/rk"], run: delete),
        Command(
            path: ["list"], summary: "records in the order of their keys",
            positionals: [Positional(name: "TABLE", kind: .table)],
            flags: [
                .option("from", "KEY", "first key; the table's first unless told"),
                .option("to", "KEY", "key before which the list ends"),
                .option("limit", "N", "records at most, 100 unless told"),
                .toggle("all", "every record, page by page"),
            ],
            examples: [
                "list stocks --dir /tmp/rk", "list stocks --from A --to C --limit 10 --dir /tmp/rk",
                "list stocks --all -o json --dir /tmp/rk",
            ],
            run: list),
    ]

    private static func get(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let (table, key) = (invocation.positionals[0], invocation.positionals[1])
        let reply = try ask(invocation, ["KV.GET", table, key].map(bytes))
        guard let fields = reply.elements, fields.count >= 2, case .bulk(let value) = fields[0]
        else {
            guard reply == .null else { throw unexpected(reply) }
            throw Failure(.failure, "there is no record '\(key)' in table '\(table)'")
        }
        if invocation.wantsJSON {
            let record = record(key: bytes(key), value: value, sequencer: fields[1].text ?? "")
            Terminal.data(record.encoded(pretty: true))
        } else {
            Terminal.data(raw: invocation.has("raw") ? value : value + [0x0A])
        }
        return .ok
    }

    private static func put(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let words = invocation.positionals
        let value = words[2] == "-" ? try readInput() : bytes(words[2])
        let command = ["KV.PUT", words[0], words[1]].map(bytes) + [value]
        let reply = try change(invocation, command)
        guard case .bulk(let sequencer) = reply else { throw unexpected(reply) }
        let text = String(decoding: sequencer, as: UTF8.self)
        let json: JSONValue = ["sequencer": .string(text)]
        Terminal.data(invocation.wantsJSON ? json.encoded(pretty: true) : text)
        return .ok
    }

    private static func delete(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let words = invocation.positionals
        let reply = try change(invocation, ["KV.DEL", words[0], words[1]].map(bytes))
        guard case .integer(let count) = reply else { throw unexpected(reply) }
        let json: JSONValue = ["deleted": .bool(count > 0)]
        let text = count > 0 ? "deleted" : "there was no record"
        Terminal.data(invocation.wantsJSON ? json.encoded(pretty: true) : text)
        return .ok
    }

    /// Sends a write, with the condition that the flags ask for.
    private static func change(
        _ invocation: Invocation, _ command: [Bytes]
    ) throws(Failure) -> RESPReply {
        var command = command
        if let condition = invocation.string("if") {
            guard condition == "0" || Sequencer(condition) != nil else {
                throw invocation.usage("--if takes a sequencer as get -o json prints it, or 0")
            }
            let sequencer = condition == "0" ? Sequencer.zero.description : condition
            command += [bytes("IF"), bytes(sequencer)]
        }
        return try ask(invocation, command)
    }

    private static func list(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let limit =
            invocation.has("all")
            ? Int.max : try invocation.int("limit", in: 1...Int.max) ?? 100
        let cluster = try Cluster(invocation)
        let router = try cluster.router()
        var printer = RecordPrinter(isJSON: invocation.wantsJSON)
        var cursor: Bytes?
        repeat {
            var command = ["KV.LIST", invocation.positionals[0]].map(bytes)
            if let from = invocation.string("from") { command += [bytes("FROM"), bytes(from)] }
            if let to = invocation.string("to") { command += [bytes("TO"), bytes(to)] }
            let page = min(limit - printer.count, Limits.listPageDefault)
            command += [bytes("LIMIT"), bytes(String(page))]
            if let cursor { command += [bytes("CURSOR"), cursor] }
            let reply = try failing { () throws(ClientError) in
                try router.call(command, deadline: cluster.deadline)
            }
            // The cursor, then key, value and sequencer of each record.
            guard let parts = reply.elements, parts.count == 2, let fields = parts[1].elements,
                fields.count % 3 == 0
            else { throw unexpected(reply) }
            for start in stride(from: 0, to: fields.count, by: 3) {
                guard case .bulk(let key) = fields[start], case .bulk(let value) = fields[start + 1]
                else { throw unexpected(reply) }
                printer.add(
                    record(key: key, value: value, sequencer: fields[start + 2].text ?? ""))
            }
            cursor = nil
            if case .bulk(let next) = parts[0] { cursor = next }
        } while cursor != nil && printer.count < limit
        printer.finish(hasMore: cursor != nil)
        return .ok
    }

    // MARK: Helpers

    private static func ask(
        _ invocation: Invocation, _ command: [Bytes]
    ) throws(Failure) -> RESPReply {
        let cluster = try Cluster(invocation)
        let router = try cluster.router()
        return try failing { () throws(ClientError) in
            try router.call(command, deadline: cluster.deadline)
        }
    }

    private static func bytes(_ text: String) -> Bytes { Bytes(text.utf8) }

    private static func unexpected(_ reply: RESPReply) -> Failure {
        Failure(.failure, "the router's answer is not understood: \(reply)")
    }

    private static func readInput() throws(Failure) -> Bytes {
        var input: Bytes = []
        var piece = Bytes(repeating: 0, count: 64 << 10)
        while true {
            let count = read(0, &piece, piece.count)
            guard count > 0 else { return input }
            input += piece[..<count]
            guard input.count <= Limits.valueBytesMax else {
                throw Failure(.refused, "a value has \(Limits.valueBytesMax) bytes at most")
            }
        }
    }

    /// A record as JSON: text with \xNN for what is not printable ASCII; the exact bytes in base64
    /// where the value is not UTF-8.
    private static func record(key: Bytes, value: Bytes, sequencer: String) -> JSONValue {
        var fields: [String: JSONValue] = [
            "key": .string(KeyText.escaped(key)), "sequencer": .string(sequencer),
        ]
        if let text = String(validating: value, as: UTF8.self) {
            fields["value"] = .string(text)
        } else {
            fields["value"] = .null
            fields["valueBase64"] = .string(Data(value).base64EncodedString())
        }
        return .object(fields)
    }
}

/// Keys as controllers write them in JSON.
enum KeyText {
    /// Bytes outside printable ASCII, and the backslash, as `\xNN`.
    static func escaped(_ bytes: Bytes) -> String {
        var text = ""
        for byte in bytes {
            if byte >= 0x20, byte < 0x7F, byte != UInt8(ascii: "\\") {
                text.unicodeScalars.append(Unicode.Scalar(byte))
            } else {
                text += "\\x" + hex(UInt64(byte), count: 2)
            }
        }
        return text
    }
}

/// Prints records as they come: a page may be followed by many more.
private struct RecordPrinter {
    let isJSON: Bool
    private(set) var count = 0

    init(isJSON: Bool) { self.isJSON = isJSON }

    mutating func add(_ record: JSONValue) {
        if isJSON {
            Terminal.data(
                (count == 0 ? "{\"records\":[\n" : ",\n") + record.encoded(pretty: false), end: "")
        } else {
            let value = record["value"].string ?? "(base64) " + record["valueBase64"].text
            Terminal.data("\(record["key"].text)\t\(value)")
        }
        count += 1
    }

    func finish(hasMore: Bool) {
        if isJSON {
            Terminal.data((count == 0 ? "{\"records\":[" : "\n") + "],\"more\":\(hasMore)}")
        } else if hasMore {
            Terminal.say("there are more records: see --limit, --from and --all")
        }
    }
}
