// The command lines of the built programs, as far as they need no cluster. What does need one is
// tested by Tests/integration.

import Testing

@Suite struct CommandLineTests {
    static let daemons = ["kvnode", "kvrouter", "kvcontrollerd"]

    @Test(arguments: daemons + ["kvctl", "kvbench"])
    func helpGoesToStandardOutput(program: String) throws {
        let run = try CommandRun(program, ["--help"])
        #expect(run.exitCode == 0)
        #expect(run.output.contains(program))
        #expect(run.errors.isEmpty)
    }

    @Test(arguments: daemons + ["kvctl", "kvbench"])
    func unknownFlagIsAUsageError(program: String) throws {
        let run = try CommandRun(program, ["--no-such-flag"])
        #expect(run.exitCode == 2)
        #expect(run.output.isEmpty)
        #expect(run.errors.contains("--no-such-flag"))
    }

    /// `command | exit code | part of standard error`
    static let refused: [(words: [String], code: Int32, message: String)] = [
        ([], 2, "usage: kvctl"),
        (["tabel"], 2, "did you mean table?"),
        (["table", "crate"], 2, "did you mean create?"),
        (["table"], 2, "kvctl table VERB"),
        (["status"], 2, "KVCTL_CONTROLLERS"),
        (["status", "--controllers", "127.0.0.1:1"], 3, "cannot connect to 127.0.0.1:1"),
        (["status", "--controllers", "nowhere"], 2, "'nowhere' is not HOST:PORT"),
        (["status", "--dir", "/nonexistent"], 7, "there is no playground in /nonexistent"),
        (["status", "--otput", "json"], 2, "did you mean --output?"),
        (["status", "-o", "yaml"], 2, "--output is one of table, json"),
        (["status", "--request-timeout", "soon"], 2, "--request-timeout takes a time"),
        (
            ["status", "extra", "--controllers", "127.0.0.1:1"], 2,
            "'extra' is one argument too many"
        ),
        (["get", "stocks"], 2, "KEY is missing"),
        (["put", "t", "k", "v", "--if", "x", "--controllers", "127.0.0.1:1"], 2, "--if takes"),
        (["table", "create", "t", "--vranges", "8"], 2, "--vranges is for --partition hash"),
        (
            ["table", "create", "t", "--partition", "hash", "--split", "k"], 2,
            "--split is for range tables"
        ),
        (["playground", "up"], 2, "--dir DIR is missing"),
        (["playground", "up", "--dir", "/nonexistent/x", "--replicas", "2"], 2, "1, 3 or 5"),
        (
            ["playground", "up", "--dir", "/nonexistent/x", "--nodes", "3"], 2,
            "3 replicas need 3 nodes that are no spares"
        ),
        (["playground", "start", "node-1", "--dir", "/nonexistent"], 7, "there is no playground"),
        (["completion", "tcsh"], 2, "bash, zsh or fish"),
    ]

    @Test(arguments: refused)
    func refusalsSayWhy(words: [String], code: Int32, message: String) throws {
        let run = try CommandRun("kvctl", words)
        #expect(run.exitCode == code)
        #expect(run.errors.contains(message), "\(run.errors)")
        #expect(run.output.isEmpty)
    }

    static let commands = [
        "status", "nodes", "groups", "shards", "table create", "table list", "table describe",
        "table drop", "get", "put", "del", "list", "playground up", "playground down",
        "playground start", "playground stop", "playground status", "version", "completion",
    ]

    @Test(arguments: commands)
    func everyCommandHasHelpWithExamples(command: String) throws {
        let run = try CommandRun(
            "kvctl", command.split(separator: " ").map(String.init) + ["--help"])
        #expect(run.exitCode == 0)
        #expect(run.output.hasPrefix("kvctl \(command) - "))
        #expect(run.output.contains("Examples:\n  kvctl \(command)"))
    }

    @Test func downOfNothingIsFine() throws {
        let run = try CommandRun("kvctl", ["playground", "down", "--dir", "/nonexistent"])
        #expect(run.exitCode == 0)
        #expect(run.errors.contains("nothing to stop"))
    }

    @Test(arguments: ["bash", "zsh", "fish"])
    func completionScripts(shell: String) throws {
        let run = try CommandRun("kvctl", ["completion", shell])
        #expect(run.exitCode == 0)
        #expect(run.output.contains("kvctl __complete"))
    }

    /// `words | what may stand in place of the last`
    static let completions: [(words: [String], candidates: [String])] = [
        (["ta"], ["table"]),
        (["table", ""], ["create", "list", "describe", "drop"]),
        (["table", "create", "--par"], ["--partition"]),
        (["table", "create", "t", "--engine", "l"], ["lsm"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["playground", "start", "--dir", "/nonexistent", ""], []),
    ]

    @Test(arguments: completions)
    func completion(words: [String], candidates: [String]) throws {
        let run = try CommandRun("kvctl", ["__complete"] + words)
        #expect(run.output.split(separator: "\n").map(String.init) == candidates)
    }

    @Test(arguments: [
        (["--workload", "eat"], "--workload is one of put, get, mixed, load, list"),
        (["--records", "1000", "--key-bytes", "2"], "keys of 3 bytes"),
        (["--duration", "never"], "--duration takes a time"),
        (["--port"], "--port needs a value"),
    ])
    func benchRefusals(words: [String], message: String) throws {
        let run = try CommandRun("kvbench", words)
        #expect(run.exitCode == 2)
        #expect(run.errors.contains(message))
    }

    @Test func benchAgainstNothingFails() throws {
        let run = try CommandRun("kvbench", ["--port", "1", "--duration", "1s"])
        #expect(run.exitCode == 1)
        #expect(run.errors.contains("connect"))
    }
}
