// What can go wrong between an operator's tool and a cluster.

import KVBase

/// A failure of a request to a daemon: a kind to act on, a sentence to read.
public struct ClientError: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Kind: Hashable, Sendable {
        /// No connection, or the connection broke.
        case unreachable
        /// The deadline passed.
        case timeout
        /// The peer does not follow the protocol.
        case malformed
        /// A file that describes the cluster is missing or damaged.
        case notFound
        /// The daemon answered with an error.
        case answered(ErrorCode)
    }

    public var kind: Kind
    public var message: String
    /// Where the peer says to ask instead (`host:port`); empty when it does not.
    public var redirect: String

    public init(_ kind: Kind, _ message: String, redirect: String = "") {
        self.kind = kind
        self.message = message
        self.redirect = redirect
    }

    public init(_ error: DatabaseError) {
        self.init(error.code == .malformed ? .malformed : .answered(error.code), error.message)
    }

    public var description: String { message }
}
