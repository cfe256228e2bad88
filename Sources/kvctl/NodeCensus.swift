// What the nodes of a cluster hold, asked of each of them: no controller is needed.

import Glibc
import KVBase
import OperatorClient
import ShardCore

struct NodeCensus {
    /// Of the nodes that answered.
    private(set) var holdings: [NodeHoldings] = []
    /// Addresses that did not, and why.
    private(set) var failures: [(address: String, reason: String)] = []
    private var asked: [String] = []

    /// Asks the nodes at `addresses`, and every further one that they know of.
    init(_ addresses: [String], timeout: Double) {
        var waiting = addresses
        while let address = waiting.popLast() {
            guard !address.isEmpty, !asked.contains(address) else { continue }
            asked.append(address)
            do throws(ClientError) {
                let answer = try NodeConnection.holdings(
                    address: address, deadline: Deadline(seconds: timeout))
                if Terminal.errorIsTTY {
                    Terminal.redrawMessage("\(answer.node.name): \(answer.replicas.count) replicas")
                }
                if !holdings.contains(where: {
                    $0.node.id == answer.node.id && $0.cluster == answer.cluster
                }) {
                    holdings.append(answer)
                }
                waiting += answer.nodes.map(\.rpcAddress)
            } catch {
                failures.append((address, error.message))
            }
        }
        if Terminal.errorIsTTY { Terminal.redrawMessage("") }
    }

    /// Asks until two answers in a row are alike in all that matters: what the lost controllers had
    /// asked for may still be on its way through a log. Gives up after a few rounds, with the last.
    static func settled(_ addresses: [String], timeout: Double) -> NodeCensus {
        var last = NodeCensus(addresses, timeout: timeout)
        for _ in 0..<roundsMax {
            usleep(500_000)
            let next = NodeCensus(addresses, timeout: timeout)
            if next.essence == last.essence { return next }
            last = next
        }
        return last
    }

    private static let roundsMax = 10

    /// The holdings without what rises all the time.
    private var essence: [NodeHoldings] {
        holdings.sorted { $0.node.id < $1.node.id }.map { holding in
            var holding = holding
            for index in holding.replicas.indices { holding.replicas[index].applied = .none }
            return holding
        }
    }

    var json: JSONValue {
        .array(
            holdings.map { holding in
                [
                    "name": .string(holding.node.name), "address": .string(holding.node.rpcAddress),
                    "replicas": .integer(Int64(holding.replicas.count)), "error": .null,
                ]
            }
                + failures.map {
                    ["address": .string($0.address), "error": .string($0.reason), "name": .null]
                })
    }
}
