// `config`: settings of the control plane that change while it runs.

import OperatorClient

extension Command {
    static let settingCommands: [Command] = [
        Command(
            path: ["config", "list"],
            summary: "all run-time settings; a star marks what was changed",
            examples: ["config list --dir /tmp/rk", "config list --dir /tmp/rk -o json"],
            run: listSettings),
        Command(
            path: ["config", "get"], summary: "the value of one setting",
            positionals: [Positional(name: "NAME", kind: .setting)],
            examples: ["config get repair --dir /tmp/rk"], run: getSetting),
        Command(
            path: ["config", "set"], summary: "change a setting; it counts at once and is kept",
            positionals: [
                Positional(name: "NAME", kind: .setting), Positional(name: "VALUE"),
            ],
            examples: ["config set repair propose --dir /tmp/rk"], run: setSetting),
        Command(
            path: ["config"], summary: "same as: config list",
            examples: ["config --dir /tmp/rk"], run: listSettings),
    ]

    private static func listSettings(_ invocation: Invocation) throws(Failure) -> ExitCode {
        try show("config.list", [:], invocation) {
            SettingReport.lines($0["settings"].elements, $1)
        }
    }

    private static func getSetting(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let setting = try find(invocation.positionals[0], Cluster(invocation))
        Terminal.data(
            invocation.wantsJSON ? setting.encoded(pretty: true) : setting["value"].text)
        return .ok
    }

    private static func setSetting(_ invocation: Invocation) throws(Failure) -> ExitCode {
        let (name, value) = (invocation.positionals[0], invocation.positionals[1])
        let cluster = try Cluster(invocation)
        let before = try find(name, cluster)
        _ = try cluster.call("config.set", ["name": .string(name), "value": .string(value)])
        let setting = try find(name, cluster)
        if invocation.wantsJSON {
            Terminal.data(setting.encoded(pretty: true))
        } else {
            let now = setting["value"].text
            let was = before["value"].text
            Terminal.data("\(name) = \(now)" + (now == was ? ", as before" : " (was \(was))"))
        }
        return .ok
    }

    private static func find(_ name: String, _ cluster: Cluster) throws(Failure) -> JSONValue {
        let settings = try cluster.call("config.list")["settings"].elements
        guard let setting = settings.first(where: { $0["name"].string == name }) else {
            let names = settings.map(\.["name"].text)
            throw Failure(
                .refused,
                "there is no setting \(name)" + Suggestion.text(for: name, in: names)
                    + "\nsee: kvctl config list")
        }
        return setting
    }
}

enum SettingReport {
    static func lines(_ settings: [JSONValue], _ palette: Palette) -> [String] {
        var table = TextTable([
            .text("SETTING"), .text("VALUE"), .text("DEFAULT"), .text("MEANING"),
        ])
        for setting in settings {
            let isDefault = setting["isDefault"].bool == true
            let value = setting["value"].text
            table.add(
                [
                    setting["name"].text, isDefault ? value : palette.warning(value + " *"),
                    setting["default"].text, setting["description"].text,
                ])
        }
        return table.lines(palette)
    }
}
