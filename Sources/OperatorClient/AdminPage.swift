// Reading a page of a daemon's admin server: `/readyz`, `/livez`, `/metrics`.

import KVBase

/// One answer of an admin server.
public struct AdminPage: Sendable {
    public var status: Int
    public var body: String

    /// Bound of an answer that is read whole.
    private static let bytesMax = 16 << 20

    /// Fetches `path` from the admin server at `address` (`host:port`).
    public static func get(
        _ path: String, from address: String, deadline: Deadline
    ) throws(ClientError) -> AdminPage {
        let socket = try BlockingSocket(address: address, deadline: deadline)
        let request = "GET \(path) HTTP/1.0\r\nHost: \(address)\r\nConnection: close\r\n\r\n"
        try socket.send(Bytes(request.utf8), deadline: deadline)
        var received: Bytes = []
        while try socket.receive(into: &received, deadline: deadline) {
            guard received.count <= bytesMax else {
                throw ClientError(.malformed, "\(path) of \(address) is over \(bytesMax) bytes")
            }
        }
        let text = String(decoding: received, as: UTF8.self)
        let statusLine = text.prefix { $0 != "\r\n" && $0 != "\n" }.split(separator: " ")
        guard statusLine.count >= 2, let status = Int(statusLine[1]),
            let end = text.range(ofText: "\r\n\r\n")
        else { throw ClientError(.malformed, "\(address) does not speak HTTP") }
        return AdminPage(status: status, body: String(text[end...]))
    }

    /// The sum of all samples of a metric family in a `/metrics` page; nil when it has none.
    public func sum(ofMetric name: String) -> Double? {
        var sum: Double?
        for line in body.split(separator: "\n") where line.hasPrefix(name) {
            let rest = line.dropFirst(name.count)
            guard rest.first == " " || rest.first == "{",
                let value = rest.split(separator: " ").last, let number = Double(value)
            else { continue }
            sum = (sum ?? 0) + number
        }
        return sum
    }
}

extension String {
    /// The index behind the first occurrence of `text`.
    fileprivate func range(ofText text: String) -> Index? {
        let wanted = Array(text.utf8)
        let bytes = utf8
        var position = bytes.startIndex
        while position != bytes.endIndex {
            if bytes[position...].starts(with: wanted) {
                return bytes.index(position, offsetBy: wanted.count)
            }
            position = bytes.index(after: position)
        }
        return nil
    }
}
