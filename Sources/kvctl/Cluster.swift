// The cluster that a command is about.

import Glibc
import OperatorClient

/// How to reach the cluster that the flags or the environment name.
struct Cluster {
    let controllers: ControllerClient
    /// Routers known without asking a controller (`host:port` of their Redis protocol).
    private let knownRouters: [String]
    /// RPC addresses of nodes, for when no controller can be asked.
    let knownNodes: [String]
    let timeout: Double

    init(_ invocation: Invocation) throws(Failure) {
        timeout = try invocation.requestTimeout()
        if let directory = invocation.string("dir") {
            let file = try failing { () throws(ClientError) in
                try PlaygroundFile(directory: directory)
            }
            guard !file.controllers.isEmpty else {
                throw Failure(.refused, "the playground in \(directory) names no controller")
            }
            controllers = ControllerClient(addresses: file.controllers.map(\.rpc))
            knownRouters = file.routers.map(\.resp)
            knownNodes = file.nodes.map(\.rpc)
            return
        }
        let addresses = Self.addresses("controllers", "KVCTL_CONTROLLERS", invocation)
        guard !addresses.isEmpty else {
            throw Failure(
                .usage,
                """
                which cluster? Name one by --dir DIR (a playground), by \
                --controllers HOST:PORT,... or by KVCTL_CONTROLLERS in the environment.
                To make one: kvctl playground up --dir DIR --detach
                """)
        }
        controllers = ControllerClient(addresses: addresses)
        knownRouters = []
        knownNodes = Self.addresses("nodes", "KVCTL_NODES", invocation)
    }

    /// The list that a flag or else the environment gives.
    private static func addresses(
        _ flag: String, _ variable: String, _ invocation: Invocation
    ) -> [String] {
        let list = invocation.string(flag) ?? getenv(variable).map { String(cString: $0) } ?? ""
        return list.split { $0 == "," || $0 == " " }.map(String.init)
    }

    /// Sends an admin request.
    func call(_ verb: String, _ arguments: JSONValue = [:]) throws(Failure) -> JSONValue {
        try failing { () throws(ClientError) in
            try controllers.call(verb, arguments, deadline: Deadline(seconds: timeout))
        }
    }

    /// Connects to a router: the first that accepts.
    func router() throws(Failure) -> RouterConnection {
        var addresses = knownRouters
        if addresses.isEmpty {
            addresses = try call("status")["routers"].elements.compactMap { $0["resp"].string }
        }
        var last = ClientError(.unreachable, "the cluster has no router")
        for address in addresses {
            do throws(ClientError) {
                return try RouterConnection(address: address, deadline: Deadline(seconds: timeout))
            } catch {
                last = error
            }
        }
        throw Failure(last)
    }

    /// Every daemon that an answer of `status` names, and where its admin server is.
    static func daemons(in status: JSONValue) -> [(name: String, admin: String)] {
        ["controllers", "routers", "nodes"].flatMap { status[$0].elements }.map {
            ($0["name"].text, $0["admin"].text)
        }
    }

    /// A deadline for one request from now.
    var deadline: Deadline { Deadline(seconds: timeout) }
}
