// The settings of a controller whose metadata is in etcd.

import Configuration
import EtcdMetadata
import Glibc
import KVBase
import MetadataCore
import ReplicatedLog

extension ControllerServerSettings {
    /// Nil when the metadata is not in etcd; throws when the settings contradict each other.
    static func etcd(
        _ settings: Settings, _ place: MetadataPlace, _ data: String, _ address: String,
        _ adminAddress: String
    ) throws(DatabaseError) -> EtcdNode.Settings? {
        let endpoints = settings.list("etcd.endpoints")
        if settings.string("metadata") != "etcd" {
            guard endpoints.isEmpty else {
                throw DatabaseError(
                    .invalidRequest, "etcd.endpoints is set, but not: metadata = etcd")
            }
        } else {
            guard settings.list("peers").isEmpty else {
                throw DatabaseError(
                    .invalidRequest,
                    "peers is for metadata = embedded; controllers of one etcd.prefix find each other"
                )
            }
            guard !endpoints.isEmpty else {
                throw DatabaseError(.invalidRequest, "metadata = etcd needs etcd.endpoints")
            }
        }
        switch place {
        case .embedded: return nil
        case .etcd(let move):
            var own = try etcd(
                settings, endpoints.isEmpty ? move.endpoints : endpoints, move.prefix, data,
                address,
                adminAddress)
            own.move = move
            return own
        case .configured: break
        }
        guard settings.string("metadata") == "etcd" else {
            if access(data + "/etcd", F_OK) == 0, access(data + "/quorum/identity", F_OK) != 0 {
                throw DatabaseError(
                    .refused,
                    "this controller kept its metadata in etcd (\(data)/etcd is there): set metadata = "
                        + "etcd, or remove that directory to begin a new cluster")
            }
            return nil
        }
        for file in ["/quorum/identity", "/metadata"] where access(data + file, F_OK) == 0 {
            throw DatabaseError(
                .refused,
                "\(data)\(file) is the embedded metadata of a cluster, and etcd would begin another one: "
                    + "set metadata = embedded, or name another data directory; to move the metadata: "
                    + "kvctl metadata migrate")
        }
        return try etcd(
            settings, endpoints, settings.string("etcd.prefix"), data, address, adminAddress)
    }

    /// etcd at these endpoints, with what the settings say of certificates and users.
    static func etcd(
        _ settings: Settings, _ endpoints: [String], _ prefix: String, _ data: String,
        _ address: String, _ adminAddress: String
    ) throws(DatabaseError) -> EtcdNode.Settings {
        let authority = settings.optionalString("etcd.ca")
        let certificate = settings.optionalString("etcd.cert")
        let key = settings.optionalString("etcd.key")
        var etcd = EtcdSettings(
            endpoints: try endpoints.map { (text) throws(DatabaseError) in
                try endpoint(text, isSecure: authority != nil || certificate != nil)
            }, prefix: prefix)
        guard !etcd.prefix.isEmpty, etcd.prefix.utf8.count <= 256 else {
            throw DatabaseError(.invalidRequest, "etcd.prefix has 1 to 256 bytes")
        }
        guard (certificate == nil) == (key == nil) else {
            throw DatabaseError(.invalidRequest, "etcd.cert and etcd.key go together")
        }
        for file in [authority, certificate, key] {
            if let file, access(file, R_OK) != 0 {
                throw DatabaseError(
                    .invalidRequest, "\(file) cannot be read: \(String(cString: strerror(errno)))")
            }
        }
        (etcd.authorityFile, etcd.certificateFile, etcd.keyFile) = (authority, certificate, key)
        etcd.user = settings.optionalString("etcd.user")
        let passwordFile = settings.optionalString("etcd.password.file")
        guard (etcd.user == nil) == (passwordFile == nil) else {
            throw DatabaseError(
                .invalidRequest, "etcd.user and etcd.password.file go together")
        }
        if let passwordFile { etcd.password = try password(in: passwordFile) }
        return EtcdNode.Settings(
            etcd: etcd, name: settings.string("name"), address: address,
            adminAddress: adminAddress,
            sessionSeconds: settings.duration("etcd.session").count / 1_000_000_000,
            directory: data + "/etcd")
    }

    private static func endpoint(
        _ text: String, isSecure: Bool
    ) throws(DatabaseError) -> String {
        let wanted = text.hasSuffix("/") ? String(text.dropLast()) : text
        for scheme in ["http://", "https://"] where wanted.hasPrefix(scheme) {
            let place = wanted.dropFirst(scheme.count)
            guard !place.isEmpty, !place.contains("/"), !place.contains("@") else { break }
            guard !isSecure || scheme == "https://" else {
                throw DatabaseError(
                    .invalidRequest,
                    "etcd.endpoints: \(text) is not https, but etcd.ca or etcd.cert is set")
            }
            return wanted
        }
        throw DatabaseError(
            .invalidRequest,
            "etcd.endpoints is a list of http://HOST:PORT or https://HOST:PORT, not '\(text)'")
    }

    private static func password(in path: String) throws(DatabaseError) -> String {
        guard let bytes = try DurableFile.read(path, bytesMax: 4_096) else {
            throw DatabaseError(.invalidRequest, "etcd.password.file: there is no \(path)")
        }
        let text = String(decoding: bytes, as: UTF8.self)
        let password = text.hasSuffix("\n") ? String(text.dropLast()) : text
        guard !password.isEmpty else {
            throw DatabaseError(.invalidRequest, "etcd.password.file: \(path) is empty")
        }
        return password
    }
}
