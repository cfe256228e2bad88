import Configuration
import Glibc
import KVBase
import Testing

private let settings: [Setting] = [
    Setting("name", .string, required: true, help: "Name."),
    Setting("listen.rpc", .address, default: "127.0.0.1:7000", help: "RPC."),
    Setting("limits.memory", .bytes(1...(1 << 40)), default: "64MiB", help: "Memory."),
    Setting("limits.threads", .integer(1...64), default: "2", help: "Threads."),
    Setting(
        "limits.wait", .duration(.zero ... .seconds(60)), default: "250ms", help: "Wait."),
    Setting(
        "log.level", .choice(["info", "debug"]), default: "info", reloads: true, help: "Level."),
    Setting("feature.fast-path", .boolean, default: "false", help: "Fast."),
    Setting("data.directories", .list, help: "Directories."),
    Setting("peers.addresses", .addressList, help: "Peers."),
    Setting("data.socket", .path, help: "Path."),
    Setting("auth.password", .string, secret: true, help: "Secret."),
    Setting("auth.level", .integer(1...9), secret: true, help: "Another."),
    Setting("auth.key", .path, credential: true, help: "A key."),
]

private let loader = SettingsLoader(
    program: "kvtest", version: "1.2.3", summary: "A test.", settings: settings)

/// A new file with this content; the caller removes it.
private func makeFile(_ content: String) -> String {
    var template = Array("/tmp/rangekeeper-test-XXXXXX".utf8CString)
    let descriptor = mkstemp(&template)
    precondition(descriptor >= 0)
    let bytes = Array(content.utf8)
    precondition(write(descriptor, bytes, bytes.count) == bytes.count)
    close(descriptor)
    return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

private func load(
    _ flags: [String], file: String? = nil, environment: [String: String] = [:]
) throws(ConfigurationError) -> Settings {
    let path = file.map(makeFile)
    defer { if let path { unlink(path) } }
    var arguments = ["kvtest"] + flags
    if let path { arguments += ["--config", path] }
    guard
        case .settings(let settings) = try loader.load(
            arguments: arguments, environment: environment)
    else { throw ConfigurationError(["printed"], exitCode: .usage) }
    return settings
}

/// The messages of a load that fails, the file's path replaced by FILE.
private func problems(
    _ flags: [String], file: String? = nil, environment: [String: String] = [:]
) -> (messages: [String], exitCode: Int32)? {
    do throws(ConfigurationError) {
        _ = try load(flags, file: file, environment: environment)
        return nil
    } catch {
        let messages = error.messages.map { message in
            guard message.hasPrefix("/tmp/rangekeeper"), let colon = message.firstIndex(of: ":")
            else { return message }
            return "FILE" + message[colon...]
        }
        return (messages, error.exitCode.rawValue)
    }
}

@Suite struct ConfigurationTests {
    @Test func defaultsHold() throws {
        let settings = try load(["--name=n"])
        #expect(settings.string("name") == "n")
        #expect(settings.string("listen.rpc") == "127.0.0.1:7000")
        #expect(settings.integer("limits.memory") == 64 << 20)
        #expect(settings.integer("limits.threads") == 2)
        #expect(settings.duration("limits.wait") == .milliseconds(250))
        #expect(!settings.boolean("feature.fast-path"))
        #expect(settings.list("data.directories").isEmpty)
        #expect(settings.optionalString("data.socket") == nil)
        #expect(settings.origin("limits.wait") == .builtIn)
    }

    @Test func laterLayersOverride() throws {
        let file = "name = f\n[limits]\nthreads = 3 ; three\nwait=1s\n\n[log]\nlevel: debug\n"
        let environment = ["KVTEST_LIMITS_THREADS": "4", "KVTEST_LIMITS_WAIT": "2s", "PATH": "x"]
        let settings = try load(
            ["--limits-wait", "3s", "--feature-fast-path"], file: file, environment: environment)
        #expect(settings.string("name") == "f")
        #expect(settings.integer("limits.threads") == 4)
        #expect(settings.duration("limits.wait") == .seconds(3))
        #expect(settings.boolean("feature.fast-path"))
        #expect(settings.string("log.level") == "debug")
        #expect("\(settings.origin("limits.threads"))" == "KVTEST_LIMITS_THREADS")
        #expect("\(settings.origin("limits.wait"))" == "--limits-wait")
        guard case .file(_, line: 7) = settings.origin("log.level") else {
            Issue.record("origin \(settings.origin("log.level"))")
            return
        }
    }

    @Test func listsMayRepeatTheirKey() throws {
        let file = "name=f\n[data]\ndirectories = /a, /b\ndirectories = /c\n"
        #expect(try load([], file: file).list("data.directories") == ["/a", "/b", "/c"])
        let flags = ["--name=x", "--peers-addresses", "a:1,[::1]:2"]
        #expect(try load(flags).list("peers.addresses") == ["a:1", "[::1]:2"])
    }

    @Test func flagsTurnBooleansOff() throws {
        let environment = ["KVTEST_FEATURE_FAST_PATH": "yes", "KVTEST_NAME": "e"]
        #expect(try load([], environment: environment).boolean("feature.fast-path"))
        #expect(
            try !load(["--no-feature-fast-path"], environment: environment)
                .boolean("feature.fast-path"))
    }

    @Test(arguments: [
        (
            "name=f\n[limits]\nthreds = 3\n",
            "FILE:3: unknown setting \"limits.threds\"; did you mean \"limits.threads\"?"
        ),
        (
            "name=f\n[limits]\n\n# c\nthreads = 0\n",
            "FILE:5: limits.threads = \"0\": not from 1 to 64"
        ),
        (
            "name=f\n[limits]\nthreads = 3\nthreads = 4\n",
            "FILE:4: limits.threads is given twice; a value takes one line"
        ),
        ("name=f\nnonsense\n", "FILE:2: neither [section] nor key = value"),
        (
            "name=f\n[log]\nlevel = debg\n",
            "FILE:3: log.level = \"debg\": not one of info, debug; did you mean \"debug\"?"
        ),
        (
            "name=f\n[limits]\nwait = 100\n",
            "FILE:3: limits.wait = \"100\": a duration needs a unit, such as 250ms or 10s"
        ),
        ("name=f\n[limits]\nwait = 61s\n", "FILE:3: limits.wait = \"61s\": not from 0s to 1m"),
        (
            "name=f\n[limits]\nmemory = 1XB\n",
            "FILE:3: limits.memory = \"1XB\": not a number of bytes such as 4096 or 64MiB"
        ),
        (
            "name=f\n[listen]\nrpc = localhost\n",
            "FILE:3: listen.rpc = \"localhost\": an address is host:port"
        ),
        (
            "name=f\nx = " + String(repeating: "y", count: 300) + "\n",
            "FILE:2: longer than 197 bytes; a list may repeat its key"
        ),
        ("name=f\n\u{0}\n", "FILE:2: not UTF-8 text"),
    ])
    func fileErrorsNameTheirLine(content: String, message: String) throws {
        let found = try #require(problems([], file: content))
        #expect(found.messages == [message])
        #expect(found.exitCode == 78)
    }

    @Test func aRequiredSettingWithAMistakeIsNotMissing() {
        let loader = SettingsLoader(
            program: "kvtest", version: "1", summary: "A test.",
            settings: [Setting("threads", .integer(1...9), required: true, help: "Threads.")])
        let error = #expect(throws: ConfigurationError.self) {
            _ = try loader.load(arguments: ["kvtest", "--threads=x"], environment: [:])
        }
        #expect(error?.messages == ["--threads: threads = \"x\": not a whole number"])
    }

    @Test func everyProblemIsReportedAtOnce() throws {
        let found = try #require(
            problems(
                ["--limits-threads=x"], file: "[log]\nlevl=info\n",
                environment: ["KVTEST_LIMITS_MEMORY": "-1"]))
        #expect(
            found.messages == [
                "FILE:2: unknown setting \"log.levl\"; did you mean \"log.level\"?",
                "KVTEST_LIMITS_MEMORY: limits.memory = \"-1\": not a number of bytes such as 4096"
                    + " or 64MiB",
                "--limits-threads: limits.threads = \"x\": not a whole number",
                "name is required: set it in the file, by KVTEST_NAME or by --name",
            ])
    }

    @Test(arguments: [
        (
            ["--limits-thread=1"],
            "unknown flag --limits-thread; did you mean \"--limits-threads\"? (see kvtest --help)"
        ),
        (["--name"], "--name needs a value (see kvtest --help)"),
        (["stray"], "unexpected argument \"stray\" (see kvtest --help)"),
    ])
    func usageErrors(flags: [String], message: String) throws {
        let found = try #require(problems(flags))
        #expect(found.messages == [message])
        #expect(found.exitCode == 2)
    }

    @Test func missingFileIsAnError() throws {
        let found = try #require(problems(["--config", "/nonexistent/x.ini"]))
        #expect(found.messages == ["/nonexistent/x.ini: No such file or directory"])
        #expect(found.exitCode == 78)
    }

    @Test func secretsComeAsCredentialsAndAreNotShown() throws {
        let directory = "/tmp/rangekeeper-credentials-\(getpid())"
        mkdir(directory, 0o700)
        defer {
            unlink(directory + "/auth.password")
            rmdir(directory)
        }
        let path = makeFile("s3cret word\n")
        rename(path, directory + "/auth.password")
        let environment = ["CREDENTIALS_DIRECTORY": directory]
        let settings = try load(
            ["--name=n"], file: "[auth]\npassword = from-the-file\n", environment: environment)
        #expect(settings.string("auth.password") == "s3cret word")
        #expect(settings.origin("auth.password") == .credential(path: directory + "/auth.password"))
        #expect(!settings.isSet("auth.level"))
        let report = settings.report()
        #expect(report.contains("(secret)"))
        #expect(!report.contains("s3cret"))
        let overridden = try load(
            ["--name=n"],
            environment: environment.merging(["KVTEST_AUTH_PASSWORD": "other"]) { $1 })
        #expect(overridden.string("auth.password") == "other")
        let wrong = try #require(problems(["--name=n", "--auth-level=s3cret"]))
        #expect(wrong.messages == ["--auth-level: auth.level = \"(secret)\": not a whole number"])
    }

    @Test func aPathMayBeThatOfACredential() throws {
        let directory = "/tmp/rangekeeper-credentials-path-\(getpid())"
        mkdir(directory, 0o700)
        let key = directory + "/auth.key"
        defer {
            unlink(key)
            rmdir(directory)
        }
        let environment = ["CREDENTIALS_DIRECTORY": directory]
        let file = "[auth]\nkey = /from/the/file\n"
        let without = try load(["--name=n"], file: file, environment: environment)
        #expect(without.string("auth.key") == "/from/the/file")
        rename(makeFile("-----BEGIN"), key)
        let settings = try load(["--name=n"], file: file, environment: environment)
        #expect(settings.string("auth.key") == key)
        #expect(settings.origin("auth.key") == .credential(path: key))
        let overridden = try load(["--name=n", "--auth-key=/k"], environment: environment)
        #expect(overridden.string("auth.key") == "/k")
    }

    @Test func changesAreNamed() throws {
        let before = try load(["--name=n", "--log-level=info"])
        let after = try load(["--name=m", "--log-level=debug"])
        #expect(after.changes(from: before) == ["name", "log.level"])
        #expect(after.changes(from: after).isEmpty)
        #expect(after.waiting(since: before) == ["name"])
        #expect(after.waiting(since: after).isEmpty)
    }

    @Test func printsHelpVersionAndEffectiveValues() throws {
        func printed(_ flags: [String]) throws -> String {
            let outcome = try loader.load(
                arguments: ["kvtest"] + flags, environment: ["KVTEST_LIMITS_MEMORY": "2048"])
            switch outcome {
            case .print(let text): return text
            case .check(let settings): return settings.report()
            case .settings: return ""
            }
        }
        #expect(try printed(["--version"]) == "kvtest 1.2.3\n")
        let help = try printed(["--help"])
        for setting in settings { #expect(help.contains(setting.flag + " ")) }
        let report = try printed(["--check-config", "--name=n"])
        let lines = report.split(separator: "\n").map { line in
            line.split(separator: " ", omittingEmptySubsequences: true).joined(separator: " ")
        }
        #expect(lines.contains("name = n # --name"))
        #expect(lines.contains("limits.memory = 2KiB # KVTEST_LIMITS_MEMORY"))
        #expect(lines.contains("limits.wait = 250ms # default"))
        #expect(lines.contains("data.socket = (unset) # default"))
    }
}
