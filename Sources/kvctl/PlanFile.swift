// Plans as files: what `--dry-run -o json` printed and `apply` takes.

import Glibc
import OperatorClient

enum PlanFile {
    /// The version of plans that this kvctl and its controllers understand.
    static let version = 1
    private static let bytesMax = 1 << 20

    /// Reads the plan in the file `path`, or from standard input for `-`.
    static func read(_ path: String) throws(Failure) -> JSONValue {
        let name = path == "-" ? "standard input" : path
        let bytes = try contents(path, name)
        guard let plan = JSONValue(parsing: bytes), case .object = plan,
            let version = plan["plan"].int
        else {
            throw Failure(
                .usage,
                "\(name) holds no plan; make one with: kvctl COMMAND --dry-run -o json")
        }
        guard version == Self.version else {
            throw Failure(
                .refused,
                "\(name) holds a plan of version \(version); this kvctl takes version "
                    + "\(Self.version): make the plan anew")
        }
        return plan
    }

    private static func contents(_ path: String, _ name: String) throws(Failure) -> [UInt8] {
        let descriptor = path == "-" ? 0 : open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw unreadable(name) }
        defer { if descriptor != 0 { close(descriptor) } }
        var bytes: [UInt8] = []
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = Glibc.read(descriptor, &buffer, buffer.count)
            if count < 0, errno == EINTR { continue }
            guard count >= 0 else { throw unreadable(name) }
            if count == 0 { return bytes }
            bytes += buffer[..<count]
            guard bytes.count <= bytesMax else {
                throw Failure(.usage, "\(name) is over \(bytesMax >> 20) MiB: that is no plan")
            }
        }
    }

    private static func unreadable(_ name: String) -> Failure {
        Failure(.failure, "cannot read \(name): \(String(cString: strerror(errno)))")
    }
}
