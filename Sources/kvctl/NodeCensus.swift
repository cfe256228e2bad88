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
    /// Alike for two censuses that heard the same of all that matters.
    private var fingerprint = 0

    private static let askedAtOnce = 16
    private static let roundsMax = 10

    /// Asks the nodes at `addresses`, and every further one that they know of.
    init(_ addresses: [String], timeout: Double) {
        var asked: Set<String> = [""]
        var seen: Set<NodeHoldings.Speaker> = []
        var waiting = addresses.filter { asked.insert($0).inserted }
        while !waiting.isEmpty {
            let (done, all) = (asked.count - 1 - waiting.count, asked.count - 1)
            let answers = inParallel(
                waiting, atOnce: Self.askedAtOnce,
                progress: { RestoreProgress.show("nodes asked: \(done + $0) of \(all)") },
                { address in Self.ask(address, timeout: timeout) })
            var known: [String] = []
            for (address, answer) in zip(waiting, answers) {
                switch answer {
                case .success(let holding):
                    if seen.insert(holding.speaker).inserted { holdings.append(holding) }
                    for node in holding.nodes where asked.insert(node.rpcAddress).inserted {
                        known.append(node.rpcAddress)
                    }
                case .failure(let error): failures.append((address, error.message))
                }
            }
            waiting = known
        }
        RestoreProgress.end()
        holdings.sort { ($0.cluster, $0.node.id) < ($1.cluster, $1.node.id) }
        fingerprint = essence
    }

    private static func ask(
        _ address: String, timeout: Double
    ) -> Result<NodeHoldings, ClientError> {
        do throws(ClientError) {
            return .success(
                try NodeConnection.holdings(address: address, deadline: Deadline(seconds: timeout)))
        } catch {
            return .failure(error)
        }
    }

    /// Asks until two answers in a row are alike in all that matters: what the lost controllers had
    /// asked for may still be on its way through a log. Gives up after a few rounds, with the last.
    static func settled(_ addresses: [String], timeout: Double) -> NodeCensus {
        var census = NodeCensus(addresses, timeout: timeout)
        for _ in 0..<roundsMax {
            usleep(500_000)
            let before = census.fingerprint
            // Never two of them: each may be as large as the map of the cluster, several times.
            census.holdings = []
            census = NodeCensus(addresses, timeout: timeout)
            if census.fingerprint == before { break }
        }
        return census
    }

    /// The holdings without what rises all the time.
    private var essence: Int {
        var hasher = Hasher()
        for var holding in holdings {
            for index in holding.replicas.indices { holding.replicas[index].applied = .none }
            hasher.combine(holding)
        }
        return hasher.finalize()
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

extension NodeHoldings {
    fileprivate struct Speaker: Hashable {
        var cluster: UInt64
        var node: NodeID
    }

    fileprivate var speaker: Speaker { Speaker(cluster: cluster, node: node.id) }
}

/// Where a restore has come to, for the person at the terminal.
enum RestoreProgress {
    static func show(_ text: String) {
        if Terminal.errorIsTTY { Terminal.redrawMessage(text) }
    }

    static func end() { show("") }
}
