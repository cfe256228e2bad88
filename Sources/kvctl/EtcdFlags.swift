// etcd as the place of metadata, as the flags of a command name it.

import EtcdMetadata
import FoundationEssentials
import KVBase

enum EtcdFlags {
    static let all: [Flag] = [
        .option("etcd-endpoints", "URL,...", "as the controllers' etcd.endpoints"),
        .option("etcd-prefix", "PREFIX", "as etcd.prefix: rangekeeper/ unless told"),
        .option("etcd-ca", "FILE", "as etcd.ca"),
        .option("etcd-cert", "FILE", "as etcd.cert"),
        .option("etcd-key", "FILE", "as etcd.key"),
        .option("etcd-user", "NAME", "as etcd.user"),
        .option("etcd-password-file", "FILE", "as etcd.password.file"),
    ]

    static func settings(_ invocation: Invocation) throws(Failure) -> EtcdSettings {
        let endpoints = (invocation.string("etcd-endpoints") ?? "").split(separator: ",")
            .map(String.init)
        guard !endpoints.isEmpty,
            endpoints.allSatisfy({ $0.hasPrefix("http://") || $0.hasPrefix("https://") })
        else { throw invocation.usage("--etcd-endpoints is a list of http://HOST:PORT") }
        var settings = EtcdSettings(
            endpoints: endpoints, prefix: invocation.string("etcd-prefix") ?? "rangekeeper/")
        settings.authorityFile = invocation.string("etcd-ca")
        settings.certificateFile = invocation.string("etcd-cert")
        settings.keyFile = invocation.string("etcd-key")
        settings.user = invocation.string("etcd-user")
        settings.attemptTimeout = .seconds(10)
        settings.patience = .seconds(30)
        if let file = invocation.string("etcd-password-file") {
            guard let text = try? String(contentsOfFile: file, encoding: .utf8) else {
                throw Failure(.refused, "--etcd-password-file: \(file) cannot be read")
            }
            settings.password = text.hasSuffix("\n") ? String(text.dropLast()) : text
        }
        return settings
    }
}
