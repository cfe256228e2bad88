import Foundation

/// A directory that is removed with its content when the test ends.
public final class TemporaryDirectory: Sendable {
    public let path: String

    public init() {
        path =
            FileManager.default.temporaryDirectory
            .appendingPathComponent("rangekeeper-" + UUID().uuidString).path
        try! FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// Names, in order.
    public var files: [String] {
        try! FileManager.default.contentsOfDirectory(atPath: path).sorted()
    }

    /// The bytes of a file; none when it is not there.
    public func read(_ name: String) -> [UInt8] {
        FileManager.default.contents(atPath: path + "/" + name).map { [UInt8]($0) } ?? []
    }

    public func write(_ name: String, _ bytes: [UInt8]) {
        try! Data(bytes).write(to: URL(filePath: path + "/" + name))
    }

    /// Another one with the same content.
    public func copy() -> TemporaryDirectory {
        let target = TemporaryDirectory()
        for name in files {
            try! FileManager.default.copyItem(
                atPath: path + "/" + name, toPath: target.path + "/" + name)
        }
        return target
    }
}
