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
        (["table", "--dir", "/nonexistent"], 2, "kvctl table VERB"),
        (["--dir", "/nonexistent"], 2, "which command?"),
        (["--dir", "/nonexistent", "status"], 7, "there is no playground in /nonexistent"),
        (["ops", "--dir=/nonexistent", "list"], 7, "there is no playground in /nonexistent"),
        (["-o", "json", "ops", "--no-color", "show"], 2, "ID is missing"),
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
        (["split"], 2, "TABLE is missing"),
        (["split", "t", "--at", "a\\xZZ"], 2, "after a backslash comes xNN"),
        (["split", "t", "--at", "a\\"], 2, "after a backslash comes xNN"),
        (["split", "t", "--shard", "first"], 2, "--shard is a number, not 'first'"),
        (["split", "t", "--to", "any"], 2, "the number of a group or new or none, not 'any'"),
        (["split", "t", "--to", "0"], 2, "--to is the number of a group"),
        (["split", "t", "--wait", "--no-wait"], 2, "exclude each other"),
        (["split", "t", "--dry-run", "--wait"], 2, "nothing that could be waited for"),
        (["split", "t", "--at"], 2, "--at needs a value"),
        (["move", "stocks"], 2, "SHARD is a number, not 'stocks'"),
        (["move", "3", "--to", "none"], 2, "the number of a group or new, not 'none'"),
        (["merge", "-1"], 2, "SHARD is a number, not '-1'"),
        (["merge", "3", "4"], 2, "'4' is one argument too many"),
        (["apply"], 2, "PLAN|-|ID is missing"),
        (["apply", "/nonexistent/plan.json"], 1, "cannot read /nonexistent/plan.json"),
        (["apply", "-"], 2, "standard input holds no plan"),
        (["apply", "-", "--dry-run"], 2, "for the number of a proposal"),
        (["ops", "pause"], 2, "ID is missing"),
        (["ops", "reverse", "x"], 2, "ID is a number, not 'x'"),
        (["ops", "puase", "1"], 2, "did you mean pause?"),
        (["why", "shard"], 2, "why shard ID"),
        (["config", "lst"], 2, "did you mean list?"),
        (["config", "set", "repair"], 2, "VALUE is missing"),
        (["top", "--limit", "0"], 2, "--limit takes a number from 1"),
        (["node", "weight", "node-1", "-5"], 2, "WEIGHT is a number from 0 to 100, not '-5'"),
        (["node", "weight", "node-1", "256"], 2, "WEIGHT is a number from 0 to 100"),
        (["node", "maintenance", "node-1"], 2, "say either --for TIME or --end"),
        (["node", "maintenance", "node-1", "--for", "1h", "--end"], 2, "say either"),
        (["node", "maintenance", "node-1", "--for", "long"], 2, "--for takes a time"),
        (["node", "remove", "node-1"], 7, "this needs --yes"),
        (["drain", "node-1", "--end", "--dry-run"], 2, "--end has no plan"),
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
        "status", "nodes", "groups", "shards", "top", "split", "move", "merge", "apply", "replace",
        "drain", "transfer", "rebalance", "ops list", "ops show", "ops watch", "ops cancel",
        "ops pause", "ops resume", "ops reverse", "why", "doctor", "config", "config list",
        "config get", "config set", "node list", "node weight", "node spare", "node maintenance",
        "node scrub", "node remove", "table create", "table list", "table describe", "table drop",
        "get", "put", "del", "list", "playground up", "playground down",
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
        (["config", ""], ["list", "get", "set"]),
        (["ops", "p"], ["pause"]),
        (["split", "t", "--sh"], ["--shard"]),
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
        (["--hot", "0.1"], "--hot takes PART:SHARE"),
        (["--hot", "0:0.9"], "--hot takes PART:SHARE"),
        (["--hot", "0.1:0.9", "--keys", "zipf"], "no --keys"),
        (["--single-hot-key", "--workload", "load"], "no load"),
        (["--reads", "2"], "--reads takes a part from 0 to 1"),
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
