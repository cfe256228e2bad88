// How to reach etcd, and why it did not answer.

import KVBase

/// What a controller needs to know of its etcd.
public struct EtcdSettings: Sendable {
    /// `http://HOST:PORT` or `https://HOST:PORT`, at least one.
    public var endpoints: [String]
    /// In front of every key; one per Rangekeeper cluster.
    public var prefix: String
    /// PEM files: the authority that etcd's certificate is checked against, the client's certificate
    /// and its key.
    public var authorityFile: String?
    public var certificateFile: String?
    public var keyFile: String?
    public var user: String?
    public var password: String?
    /// How long a request is tried at one endpoint, and at all of them together.
    public var attemptTimeout = Duration.seconds(2)
    public var patience = Duration.seconds(5)

    public init(endpoints: [String], prefix: String) {
        self.endpoints = endpoints
        self.prefix = prefix
    }
}

/// Why a request has no answer.
enum EtcdFailure: Error, Hashable, Sendable {
    /// No endpoint answered, or only with "try again": whether it was carried out is not known.
    case unavailable(String)
    /// Not carried out. The code is gRPC's.
    case refused(code: UInt64, String)

    static let notFound: UInt64 = 5
    /// A revision that etcd has compacted away, or has not come to.
    static let outOfRange: UInt64 = 11

    var message: String {
        switch self {
        case .unavailable(let message), .refused(_, let message): message
        }
    }
}
