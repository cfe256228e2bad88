// `playground.json`: what runs in a playground directory, and where.

import FoundationEssentials

/// The content of `DIR/playground.json`. Addresses are `host:port`; a pid is that of the daemon
/// itself, null while it is stopped.
public struct PlaygroundFile: Decodable, Hashable, Sendable {
    public struct Router: Decodable, Hashable, Sendable {
        public var name: String
        public var pid: Int32?
        public var resp: String
        public var admin: String

        public init(name: String, pid: Int32?, resp: String, admin: String) {
            self.name = name
            self.pid = pid
            self.resp = resp
            self.admin = admin
        }
    }

    public struct Node: Decodable, Hashable, Sendable {
        public var name: String
        /// As the controller issued it; 0 until the node has registered.
        public var id: Int
        public var pid: Int32?
        public var rpc: String
        public var admin: String
        public var data: [String]
        public var log: String
        public var spare: Bool

        public init(
            name: String, id: Int, pid: Int32?, rpc: String, admin: String, data: [String],
            log: String, spare: Bool
        ) {
            self.name = name
            self.id = id
            self.pid = pid
            self.rpc = rpc
            self.admin = admin
            self.data = data
            self.log = log
            self.spare = spare
        }
    }

    public struct Controller: Decodable, Hashable, Sendable {
        public var name: String
        public var pid: Int32?
        public var rpc: String
        public var admin: String

        public init(name: String, pid: Int32?, rpc: String, admin: String) {
            self.name = name
            self.pid = pid
            self.rpc = rpc
            self.admin = admin
        }
    }

    public struct Prometheus: Decodable, Hashable, Sendable {
        public var pid: Int32?
        /// Where its pages are.
        public var url: String

        public init(pid: Int32?, url: String) {
            self.pid = pid
            self.url = url
        }
    }

    public var routers: [Router]
    public var nodes: [Node]
    public var controllers: [Controller]
    /// Nil, and not in the file, when the playground has none.
    public var prometheus: Prometheus?

    public static let fileName = "playground.json"

    public init(routers: [Router], nodes: [Node], controllers: [Controller]) {
        self.routers = routers
        self.nodes = nodes
        self.controllers = controllers
    }

    /// Reads the file in `directory`.
    public init(directory: String) throws(ClientError) {
        let path = directory + "/" + Self.fileName
        guard let data = FileManager.default.contents(atPath: path) else {
            throw ClientError(.notFound, "there is no playground in \(directory): no \(path)")
        }
        do {
            self = try JSONDecoder().decode(PlaygroundFile.self, from: data)
        } catch {
            throw ClientError(.notFound, "\(path) is damaged: \(error)")
        }
    }
}

extension PlaygroundFile {
    /// The file's content; every field is there, a missing pid as null.
    public var json: JSONValue {
        var fields: [String: JSONValue] = [
            "routers": .array(
                routers.map {
                    [
                        "name": .string($0.name), "pid": Self.json($0.pid),
                        "resp": .string($0.resp), "admin": .string($0.admin),
                    ]
                }),
            "nodes": .array(
                nodes.map {
                    [
                        "name": .string($0.name), "id": .integer(Int64($0.id)),
                        "pid": Self.json($0.pid), "rpc": .string($0.rpc),
                        "admin": .string($0.admin), "data": .array($0.data.map { .string($0) }),
                        "log": .string($0.log), "spare": .bool($0.spare),
                    ]
                }),
            "controllers": .array(
                controllers.map {
                    [
                        "name": .string($0.name), "pid": Self.json($0.pid),
                        "rpc": .string($0.rpc), "admin": .string($0.admin),
                    ]
                }),
        ]
        if let prometheus {
            fields["prometheus"] = [
                "pid": Self.json(prometheus.pid), "url": .string(prometheus.url),
            ]
        }
        return .object(fields)
    }

    private static func json(_ pid: Int32?) -> JSONValue {
        pid.map { .integer(Int64($0)) } ?? .null
    }
}
