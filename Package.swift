// swift-tools-version: 6.2
import PackageDescription

// The layers, lowest first. A target imports only from layers below it;
// Tests/ArchitectureTests holds the sources to this table.

let settings: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .enableUpcomingFeature("MemberImportVisibility"),
    .enableUpcomingFeature("ExistentialAny"),
    .treatAllWarnings(as: .error),
]

func system(_ name: String, pkgConfig: String, apt: String) -> Target {
    .systemLibrary(
        name: name, path: "Sources/C/\(name)", pkgConfig: pkgConfig, providers: [.apt([apt])])
}

func library(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
    .target(name: name, dependencies: dependencies, swiftSettings: settings)
}

func program(_ name: String, _ dependencies: [Target.Dependency]) -> Target {
    .executableTarget(name: name, dependencies: dependencies, swiftSettings: settings)
}

func tests(_ name: String, _ dependencies: [Target.Dependency], resources: [Resource]? = nil)
    -> Target
{
    .testTarget(
        name: name, dependencies: dependencies, resources: resources, swiftSettings: settings)
}

let package = Package(
    name: "rangekeeper",
    targets: [
        // C: one module per system library, each imported by exactly one Swift target.
        system("CRocksDB", pkgConfig: "rocksdb", apt: "librocksdb-dev"),
        system("CLMDB", pkgConfig: "lmdb", apt: "liblmdb-dev"),
        system("CUV", pkgConfig: "libuv", apt: "libuv1-dev"),
        system("CSystemd", pkgConfig: "libsystemd", apt: "libsystemd-dev"),
        system("CMicroHTTPD", pkgConfig: "libmicrohttpd", apt: "libmicrohttpd-dev"),
        system("CISAL", pkgConfig: "libisal", apt: "libisal-dev"),
        system("CINIH", pkgConfig: "inih", apt: "libinih-dev"),
        system("COpenSSL", pkgConfig: "libcrypto", apt: "libssl-dev"),
        system("CZlib", pkgConfig: "zlib", apt: "zlib1g-dev"),
        // Source of this repository: one text, which is written into finished programs.
        .target(name: "CRevision", path: "Sources/C/CRevision"),
        // Source of this repository: RocksDB's C interface has no check of a table file.
        .target(
            name: "CTableCheck", path: "Sources/C/CTableCheck",
            linkerSettings: [.linkedLibrary("rocksdb")]),
        system("CZstd", pkgConfig: "libzstd", apt: "libzstd-dev"),
        system("CCurl", pkgConfig: "libcurl", apt: "libcurl4-openssl-dev"),

        // Base
        library("KVBase"),

        // Cores: deterministic state machines, no I/O.
        library("ReplicationCore", ["KVBase"]),
        library("ShardCore", ["KVBase"]),
        library("NodeCore", ["KVBase", "ReplicationCore", "ShardCore"]),
        library("RouterCore", ["KVBase", "ShardCore"]),
        library("ControllerCore", ["KVBase", "ShardCore"]),
        library("MetadataCore", ["KVBase", "ReplicationCore"]),

        // Parts
        library("BuildInfo", ["CRevision"]),
        library("Threads", ["KVBase"]),
        library("Checksum", ["KVBase", "CISAL"]),
        library("Digest", ["KVBase", "COpenSSL"]),
        library("StorageAPI", ["KVBase"]),
        library("ReplicatedLog", ["KVBase", "Threads", "Checksum", "ReplicationCore"]),
        library("LSMEngine", ["KVBase", "StorageAPI", "CRocksDB", "CTableCheck"]),
        library("BTreeEngine", ["KVBase", "Checksum", "StorageAPI", "CLMDB"]),
        library("WireProtocol", ["KVBase", "Checksum", "ReplicationCore", "ShardCore"]),
        library("RESP", ["KVBase"]),
        library(
            "MetadataStore",
            [
                "KVBase", "Threads", "Checksum", "ReplicationCore", "MetadataCore", "ReplicatedLog",
            ]),
        library("Compression", ["KVBase", "CZstd"]),
        library("HTTPClient", ["KVBase", "CCurl"]),
        library(
            "EtcdMetadata", ["KVBase", "MetadataCore", "MetadataStore", "HTTPClient"]),
        library("ObjectStore", ["KVBase", "HTTPClient"]),
        library("MetadataBackup", ["KVBase", "Checksum", "Compression", "ObjectStore"]),

        // Shells
        library("EventLoop", ["KVBase", "Threads", "CUV"]),
        library("Metrics", ["KVBase", "CZlib"]),
        library("AdminHTTP", ["KVBase", "CMicroHTTPD"]),
        library("SystemdSupport", ["KVBase", "CSystemd"]),
        library("Configuration", ["KVBase", "CINIH"]),
        library(
            "Daemon",
            [
                "KVBase", "BuildInfo", "Threads", "EventLoop", "Metrics", "AdminHTTP",
                "SystemdSupport", "Configuration",
            ]),
        library("RPC", ["KVBase", "EventLoop", "WireProtocol"]),
        library(
            "NodeRuntime",
            [
                "KVBase", "Threads", "ReplicationCore", "ShardCore", "NodeCore", "StorageAPI",
                "ReplicatedLog", "LSMEngine", "BTreeEngine", "WireProtocol", "EventLoop", "RPC",
                "Metrics", "Daemon",
                "AdminHTTP", "Configuration", "SystemdSupport",
            ]),
        library(
            "RouterRuntime",
            [
                "KVBase", "ShardCore", "RouterCore", "WireProtocol", "RESP", "EventLoop", "RPC",
                "Metrics", "Daemon", "AdminHTTP", "Configuration", "SystemdSupport",
            ]),
        library(
            "ControllerRuntime",
            [
                "KVBase", "Threads", "ReplicationCore", "ShardCore", "ControllerCore",
                "MetadataCore", "Digest", "ReplicatedLog", "MetadataStore", "EtcdMetadata",
                "ObjectStore",
                "MetadataBackup", "WireProtocol", "EventLoop", "RPC", "Metrics", "Daemon",
                "AdminHTTP", "Configuration", "SystemdSupport",
            ]),
        library("OperatorClient", ["KVBase", "ShardCore", "WireProtocol", "RESP"]),

        // Programs
        program("kvnode", ["NodeRuntime"]),
        program("kvrouter", ["RouterRuntime"]),
        program("kvcontrollerd", ["ControllerRuntime"]),
        program(
            "kvctl",
            [
                "KVBase", "BuildInfo", "Threads", "ReplicationCore", "ShardCore",
                "ControllerCore", "MetadataCore", "WireProtocol", "RESP", "MetadataStore",
                "EtcdMetadata", "Digest",
                "ObjectStore",
                "MetadataBackup", "OperatorClient",
            ]),
        program(
            "kvbench", ["KVBase", "BuildInfo", "Threads", "RESP", "EventLoop", "Metrics"]),
        program(
            "kvsim",
            [
                "KVBase", "ReplicationCore", "ShardCore", "ControllerCore", "MetadataCore",
                "MetadataStore", "ReplicatedLog", "ObjectStore", "MetadataBackup", "WireProtocol",
                "SimulationKit",
            ]),

        // Tests
        .target(
            name: "SimulationKit",
            dependencies: ["KVBase", "ReplicationCore", "ShardCore", "NodeCore"],
            path: "Tests/SimulationKit", swiftSettings: settings),
        .target(
            name: "TestKit", dependencies: [], path: "Tests/TestKit", swiftSettings: settings),
        tests("KVBaseTests", ["KVBase"]),
        tests("ThreadsTests", ["KVBase", "Threads"]),
        tests(
            "ReplicationCoreTests", ["KVBase", "ReplicationCore", "SimulationKit"],
            resources: [.copy("Scripts")]),
        tests("ShardCoreTests", ["KVBase", "ShardCore"]),
        tests(
            "NodeCoreTests",
            ["KVBase", "ReplicationCore", "ShardCore", "NodeCore", "SimulationKit"]),
        tests("RouterCoreTests", ["KVBase", "ShardCore", "RouterCore"]),
        tests(
            "ControllerCoreTests",
            ["KVBase", "ReplicationCore", "ShardCore", "NodeCore", "ControllerCore", "Digest"]),
        tests(
            "ReplicatedLogTests",
            ["KVBase", "Checksum", "ReplicationCore", "ReplicatedLog", "TestKit"]),
        tests("StorageTests", ["KVBase", "StorageAPI", "LSMEngine", "BTreeEngine", "TestKit"]),
        tests("WireProtocolTests", ["KVBase", "ReplicationCore", "ShardCore", "WireProtocol"]),
        tests("RESPTests", ["KVBase", "RESP"]),
        tests(
            "MetadataStoreTests",
            [
                "KVBase", "ReplicationCore", "MetadataCore", "ReplicatedLog", "MetadataStore",
                "EtcdMetadata", "TestKit",
            ]),
        tests("HTTPClientTests", ["KVBase", "HTTPClient"]),
        tests("MetadataBackupTests", ["KVBase", "ObjectStore", "MetadataBackup", "TestKit"]),
        tests(
            "ControllerRuntimeTests",
            [
                "KVBase", "Threads", "EventLoop", "Metrics", "SystemdSupport", "ObjectStore",
                "MetadataBackup", "ControllerRuntime",
            ]),
        tests(
            "ShellTests",
            [
                "KVBase", "Threads", "EventLoop", "Metrics", "AdminHTTP", "SystemdSupport",
                "Configuration", "Daemon", "RPC", "WireProtocol",
            ]),
        tests("ArchitectureTests", []),
        tests("IntegrationTests", ["KVBase", "RESP"]),
    ],
    cxxLanguageStandard: .cxx17
)
