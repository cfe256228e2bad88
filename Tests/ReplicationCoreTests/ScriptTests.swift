// Data-driven tests: `Scripts/*.txt` drive a small group and hold what was seen. After a change on
// purpose, run with RANGEKEEPER_REWRITE_SCRIPTS=1 and review the difference.

import Foundation
import Testing

struct ScriptTests {
    /// The sources, not the copy in the bundle: rewriting must reach them.
    static let folder = URL(filePath: #filePath).deletingLastPathComponent()
        .appending(path: "Scripts")

    static let names: [String] = {
        let files = try? FileManager.default.contentsOfDirectory(atPath: folder.path)
        return (files ?? []).filter { $0.hasSuffix(".txt") }.sorted()
    }()

    @Test func thereAreScripts() { #expect(Self.names.count >= 8) }

    @Test(arguments: names) func script(_ name: String) throws {
        let file = Self.folder.appending(path: name)
        let expected = try String(contentsOf: file, encoding: .utf8)
        let actual = Self.replay(expected)
        if ProcessInfo.processInfo.environment["RANGEKEEPER_REWRITE_SCRIPTS"] == "1" {
            try actual.write(to: file, atomically: true, encoding: .utf8)
        } else if actual != expected {
            let old = expected.split(separator: "\n", omittingEmptySubsequences: false)
            let new = actual.split(separator: "\n", omittingEmptySubsequences: false)
            let place = zip(old, new).enumerated().first { $1.0 != $1.1 }?.offset
            let line = place ?? min(old.count, new.count)
            Issue.record(
                """
                \(name):\(line + 1): expected "\(line < old.count ? old[line] : "(end)")", \
                got "\(line < new.count ? new[line] : "(end)")"
                """)
        }
    }

    /// Commands start with `>`, comments with `#`; every other line is output and replaced.
    static func replay(_ script: String) -> String {
        let cluster = ScriptedCluster()
        var result: [String] = []
        for line in script.split(separator: "\n", omittingEmptySubsequences: false) {
            if line.hasPrefix("> ") {
                result.append(String(line))
                result += cluster.execute(String(line.dropFirst(2))).map { "    " + $0 }
            } else if line.hasPrefix("#") || (line.isEmpty && result.last != "") {
                result.append(String(line))
            }
        }
        return result.joined(separator: "\n")
    }
}
