// Runs a program of this build to its end.

import Foundation

/// What a program printed, and how it ended.
struct CommandRun {
    var exitCode: Int32
    var output: String
    var errors: String

    /// Where this build's programs are: beside the test program.
    static let directory = URL(filePath: "/proc/self/exe").resolvingSymlinksInPath()
        .deletingLastPathComponent()

    init(_ program: String, _ arguments: [String]) throws {
        let process = Process()
        process.executableURL = Self.directory.appending(path: program)
        process.arguments = arguments
        process.environment = [:]
        process.standardInput = FileHandle.nullDevice
        let output = Pipe()
        let errors = Pipe()
        process.standardOutput = output
        process.standardError = errors
        try process.run()
        // Both fit into a pipe's buffer, so reading one after the other cannot block the program.
        self.output = String(
            decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        self.errors = String(
            decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        exitCode = process.terminationStatus
    }
}
