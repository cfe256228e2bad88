// Settings from their layers: defaults, the file, credentials, the environment, flags.

import Glibc
import KVBase

/// Knows a program's settings and reads them from every layer; a later layer overrides an earlier
/// one. Beside the declared settings it understands `--config PATH` (and `PROGRAM_CONFIG`),
/// `--check-config`, `--help` and `--version`.
public struct SettingsLoader: Sendable {
    public enum Outcome: Sendable {
        case settings(Settings)
        /// To be reported and no more: `--check-config`.
        case check(Settings)
        /// To be printed on standard output, then exit 0.
        case print(String)
    }

    public let program: String
    public let version: String
    /// One sentence for `--help`.
    public let summary: String
    public let settings: [Setting]

    public init(program: String, version: String, summary: String, settings: [Setting]) {
        self.program = program
        self.version = version
        self.summary = summary
        self.settings = settings
        for setting in settings {
            let isDefaultRight: Bool
            do throws(DatabaseError) {
                if let value = setting.defaultValue {
                    _ = try SettingValue.parse(value, as: setting.kind)
                }
                isDefaultRight = true
            } catch {
                isDefaultRight = false
            }
            precondition(isDefaultRight, "the default of \(setting.name) is wrong")
        }
    }

    /// Reads all layers. `arguments` starts with the program's name. Throws with every problem
    /// found, not only the first.
    public func load(arguments: [String], environment: [String: String])
        throws(ConfigurationError) -> Outcome
    {
        let flags = try parseFlags(Array(arguments.dropFirst()))
        if flags.wantsHelp { return .print(help()) }
        if flags.wantsVersion { return .print("\(program) \(version)\n") }

        var problems: [String] = []
        var entries = settings.map { setting in
            Settings.Entry(
                setting: setting,
                value: setting.defaultValue.flatMap { text in
                    try? SettingValue.parse(text, as: setting.kind)
                }, origin: .builtIn)
        }
        if let path = flags.config ?? environment["\(program)_config".uppercased()] {
            try applyFile(path, &entries, &problems)
        }
        if let directory = environment["CREDENTIALS_DIRECTORY"] {
            try applyCredentials(directory, &entries, &problems)
        }
        for index in entries.indices {
            let variable = entries[index].setting.variable(program: program)
            if let text = environment[variable] {
                apply(text, .environment(variable: variable), &entries[index], &problems)
            }
        }
        for (index, text) in flags.values {
            apply(text, .flag(entries[index].setting.flag), &entries[index], &problems)
        }
        // One with a mistake is there, and told of already.
        for entry in entries
        where entry.setting.isRequired && entry.value == nil && entry.origin == .builtIn {
            let setting = entry.setting
            problems.append(
                "\(setting.name) is required: set it in the file, by"
                    + " \(setting.variable(program: program)) or by \(setting.flag)")
        }
        guard problems.isEmpty else {
            throw ConfigurationError(problems, exitCode: .configuration)
        }
        let result = Settings(entries: entries)
        return flags.wantsCheck ? .check(result) : .settings(result)
    }

    /// The environment that the process was started with.
    public static func processEnvironment() -> [String: String] {
        var content: Bytes = []
        let descriptor = open("/proc/self/environ", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { return [:] }
        defer { close(descriptor) }
        var buffer: Bytes = Array(repeating: 0, count: 64 << 10)
        while case let count = read(descriptor, &buffer, buffer.count), count > 0 {
            content.append(contentsOf: buffer[..<count])
        }
        var environment: [String: String] = [:]
        for part in content.split(separator: 0) {
            guard let equals = part.firstIndex(of: UInt8(ascii: "=")) else { continue }
            let name = String(decoding: part[..<equals], as: UTF8.self)
            environment[name] = String(decoding: part[(equals + 1)...], as: UTF8.self)
        }
        return environment
    }

    // MARK: Layers

    private func applyFile(
        _ path: String, _ entries: inout [Settings.Entry], _ problems: inout [String]
    ) throws(ConfigurationError) {
        var seen: [Int: String] = [:]
        for item in try INIFile.read(path: path) {
            let name = item.section.isEmpty ? item.key : "\(item.section).\(item.key)"
            let origin = Settings.Origin.file(path: path, line: item.line)
            guard let index = settings.firstIndex(where: { $0.name == name }) else {
                let hint = Suggestion.phrase(for: name, among: settings.map(\.name))
                problems.append("\(origin): unknown setting \"\(name)\"\(hint)")
                continue
            }
            var text = item.value
            if let before = seen[index] {
                guard settings[index].isList else {
                    problems.append("\(origin): \(name) is given twice; a value takes one line")
                    continue
                }
                text = before + "," + text
            }
            seen[index] = text
            apply(text, origin, &entries[index], &problems)
        }
    }

    /// What the service manager handed over, one file each; see systemd.exec(5).
    private func applyCredentials(
        _ directory: String, _ entries: inout [Settings.Entry], _ problems: inout [String]
    ) throws(ConfigurationError) {
        for index in entries.indices where entries[index].setting.isCredential {
            let path = "\(directory)/\(entries[index].setting.name)"
            guard access(path, F_OK) == 0 else { continue }
            guard !entries[index].setting.isPath else {
                apply(path, .credential(path: path), &entries[index], &problems)
                continue
            }
            var content = try INIFile.content(of: path)
            // As editors and `echo` leave it.
            if content.last == 0x0A { content.removeLast() }
            guard let text = String(validating: content, as: UTF8.self) else {
                problems.append("\(path): not UTF-8 text")
                continue
            }
            apply(text, .credential(path: path), &entries[index], &problems)
        }
    }

    private func apply(
        _ text: String, _ origin: Settings.Origin, _ entry: inout Settings.Entry,
        _ problems: inout [String]
    ) {
        do throws(DatabaseError) {
            entry.origin = origin
            entry.value = try SettingValue.parse(text, as: entry.setting.kind)
        } catch {
            let shown = entry.setting.isSecret ? "(secret)" : text
            let value = shown.count > 80 ? "\(shown.prefix(80))..." : shown
            problems.append("\(origin): \(entry.setting.name) = \"\(value)\": \(error.message)")
        }
    }

    // MARK: Flags

    private struct Flags {
        var config: String?
        var wantsHelp = false
        var wantsVersion = false
        var wantsCheck = false
        /// Index of the setting and its text, in the order given.
        var values: [(Int, String)] = []
    }

    private func parseFlags(_ arguments: [String]) throws(ConfigurationError) -> Flags {
        var flags = Flags()
        var rest = arguments[...]
        while let argument = rest.popFirst() {
            guard argument.hasPrefix("--") else {
                if argument == "-h" {
                    flags.wantsHelp = true
                    continue
                }
                throw usage("unexpected argument \"\(argument)\"")
            }
            var name = argument
            var value: String?
            if let equals = argument.firstIndex(of: "=") {
                name = String(argument[..<equals])
                value = String(argument[argument.index(after: equals)...])
            }
            switch name {
            case "--help": flags.wantsHelp = true
            case "--version": flags.wantsVersion = true
            case "--check-config": flags.wantsCheck = true
            case "--config":
                guard let path = value ?? rest.popFirst() else {
                    throw usage("--config needs a path")
                }
                flags.config = path
            default:
                if let index = settings.firstIndex(where: { $0.flag == name }) {
                    if value == nil, !settings[index].isBoolean { value = rest.popFirst() }
                    guard let text = value ?? (settings[index].isBoolean ? "true" : nil) else {
                        throw usage("\(name) needs a value")
                    }
                    flags.values.append((index, text))
                } else if value == nil, name.hasPrefix("--no-"),
                    let index = settings.firstIndex(where: {
                        $0.isBoolean && $0.flag == "--" + name.dropFirst(5)
                    })
                {
                    flags.values.append((index, "false"))
                } else {
                    let known =
                        settings.map(\.flag) + [
                            "--config", "--check-config", "--help", "--version",
                        ]
                    throw usage("unknown flag \(name)\(Suggestion.phrase(for: name, among: known))")
                }
            }
        }
        return flags
    }

    private func usage(_ why: String) -> ConfigurationError {
        ConfigurationError(["\(why) (see \(program) --help)"], exitCode: .usage)
    }

    // MARK: Help

    private func help() -> String {
        var text = """
            \(program): \(summary)

            Usage: \(program) [--config PATH] [--SETTING VALUE ...]
              --config PATH     read settings from this INI file
              --check-config    check all settings, print them with their origin, and exit
              --version         print the version and exit
              --help            print this text and exit

            A setting section.key stands as `key = value` under [section] in the file, as
            \(program.uppercased())_SECTION_KEY in the environment and as --section-key on the command
            line; the later ones override. For those marked [credential] the file section.key in the
            directory CREDENTIALS_DIRECTORY (systemd's LoadCredential=) comes after the INI file: its
            content, or where a PATH is asked for its path. SIGHUP has all of them read again: those
            marked [reload] take effect, the others wait for the next start.

            Settings:

            """
        for setting in settings {
            text += "  \(setting.flag) \(setting.placeholder)\n      \(setting.help)"
            if let value = setting.defaultValue {
                text += value.isEmpty ? "" : " [default: \(value)]"
            } else if setting.isRequired {
                text += " [required]"
            }
            if setting.isCredential { text += " [credential]" }
            if setting.reloads { text += " [reload]" }
            text += "\n"
        }
        return text
    }
}
