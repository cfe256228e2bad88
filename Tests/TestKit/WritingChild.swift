// A test of the same program that runs in a process of its own, writes, tells what is durable, and is killed.

import Foundation

public struct WritingChild {
    /// The child ended before it was killed.
    public struct EndedByItself: Error {}

    /// `Suite/function`.
    private let test: String
    /// For the child only.
    private let environment: [String: String]

    public init(test: String, environment: [String: String]) {
        self.test = test
        self.environment = environment
    }

    /// For the child: everything up to `number` is durable.
    public static func report(durable number: UInt64) {
        FileHandle.standardError.write(Data("durable \(number)\n".utf8))
    }

    /// Runs the child until it has reported `target` or more, and kills it. Answers what it reported last.
    public func runAndKill(atDurable target: UInt64) throws -> UInt64 {
        let child = Process()
        child.executableURL = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath()
        child.arguments = ["--testing-library", "swift-testing", "--filter", test]
        child.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        let pipe = Pipe()
        child.standardError = pipe
        child.standardOutput = FileHandle.nullDevice
        try child.run()
        defer {
            kill(child.processIdentifier, SIGKILL)
            child.waitUntilExit()
        }
        var durable: UInt64 = 0
        var text = ""
        while durable < target {
            let data = pipe.fileHandleForReading.availableData
            guard !data.isEmpty else { throw EndedByItself() }
            text += String(decoding: data, as: UTF8.self)
            var lines = text.split(separator: "\n", omittingEmptySubsequences: false)
            text = String(lines.removeLast())
            for line in lines where line.hasPrefix("durable ") {
                durable = max(durable, UInt64(line.dropFirst(8)) ?? 0)
            }
        }
        return durable
    }
}
