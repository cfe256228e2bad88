// Asking the control plane, whichever controller answers.

import Glibc
import KVBase

/// Sends admin requests to the first controller of a list that accepts them, and stays with it.
public final class ControllerClient {
    /// `host:port` of each controller; not empty.
    public let addresses: [String]
    private var connection: ControllerConnection?

    public init(addresses: [String]) {
        precondition(!addresses.isEmpty)
        self.addresses = addresses
    }

    /// Sends one request to the controller that acts: tries one after the other, follows what a standby
    /// says of who acts, and, while they answer and none acts, asks again until `deadline`.
    ///
    /// A request is sent again only when no connection was made or the controller refused it as
    /// not acting: a request that may have been carried out is never repeated.
    public func call(
        _ verb: String, _ arguments: JSONValue = [:], deadline: Deadline
    ) throws(ClientError) -> JSONValue {
        if let connection {
            do throws(ClientError) {
                return try connection.call(verb, arguments, deadline: deadline)
            } catch {
                if !error.isAnswer { self.connection = nil }
                guard error.kind == .answered(.notLeader) else { throw error }
            }
        }
        while true {
            var failures: [String] = []
            var last = ClientError(.unreachable, "")
            var isElecting = false
            var candidates = addresses
            var place = 0
            while place < candidates.count {
                let address = candidates[place]
                place += 1
                do throws(ClientError) {
                    // One dead host must not use up the time of the others.
                    let limited =
                        addresses.count > 1 ? deadline.limited(toSeconds: 2) : deadline
                    connection = try ControllerConnection(address: address, deadline: limited)
                } catch {
                    failures.append(error.message)
                    last = error
                    continue
                }
                do throws(ClientError) {
                    return try connection!.call(verb, arguments, deadline: deadline)
                } catch {
                    if !error.isAnswer { connection = nil }
                    guard error.kind == .answered(.notLeader) else { throw error }
                    failures.append(error.message)
                    last = error
                    isElecting = true
                    if !error.redirect.isEmpty, !candidates[..<place].contains(error.redirect) {
                        candidates.insert(error.redirect, at: place)
                    }
                }
            }
            if isElecting, !deadline.limited(toSeconds: Self.retrySeconds).hasPassed {
                usleep(UInt32(Self.retrySeconds * 1e6))
                if !deadline.hasPassed { continue }
            }
            throw ClientError(
                last.kind,
                "no controller answers: " + failures.joined(separator: "; "))
        }
    }

    /// Between two rounds while the controllers elect.
    private static let retrySeconds = 0.1
}

extension ClientError {
    /// Whether the daemon answered, so that the connection is still good.
    var isAnswer: Bool {
        if case .answered = kind { return true }
        return false
    }
}
