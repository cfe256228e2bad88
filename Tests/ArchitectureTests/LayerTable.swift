// The layers of the repository, lowest first: what Package.swift and every import are held to.

/// A layer and its targets. A target imports only from lower layers and from targets that stand
/// before it in its own layer.
struct Layer {
    let name: String
    let targets: [String]
}

enum LayerTable {
    static let layers = [
        Layer(name: "base", targets: ["KVBase"]),
        Layer(
            name: "cores",
            targets: [
                "ReplicationCore", "ShardCore", "NodeCore", "RouterCore", "ControllerCore",
                "MetadataCore",
            ]),
        Layer(
            name: "parts",
            targets: [
                "BuildInfo", "Threads", "Checksum", "Digest", "StorageAPI", "ReplicatedLog",
                "LSMEngine", "BTreeEngine", "WireProtocol", "RESP", "MetadataStore", "Compression",
                "HTTPClient", "EtcdMetadata", "ObjectStore", "MetadataBackup",
            ]),
        Layer(
            name: "shells",
            targets: [
                "EventLoop", "Metrics", "AdminHTTP", "SystemdSupport", "Configuration", "Daemon",
                "RPC", "NodeRuntime", "RouterRuntime", "ControllerRuntime", "OperatorClient",
            ]),
        Layer(
            name: "programs",
            targets: ["kvnode", "kvrouter", "kvcontrollerd", "kvctl", "kvbench", "kvsim"]),
    ]

    /// Beside the layers: the simulator's world, which sees cores and below only.
    static let simulationKit = "SimulationKit"
    /// What tests of several targets need, of nothing but the toolchain's own modules.
    static let testKit = "TestKit"

    /// Each C module and the one target that imports it.
    static let ownerOfCModule = [
        "CRocksDB": "LSMEngine", "CTableCheck": "LSMEngine", "CLMDB": "BTreeEngine",
        "CUV": "EventLoop",
        "CSystemd": "SystemdSupport", "CMicroHTTPD": "AdminHTTP", "CISAL": "Checksum",
        "CINIH": "Configuration", "COpenSSL": "Digest", "CZlib": "Metrics",
        "CRevision": "BuildInfo", "CZstd": "Compression", "CCurl": "HTTPClient",
    ]

    /// Modules of the toolchain that programs above the cores may use.
    static let systemModules: Set<String> = ["Glibc", "Synchronization"]
    /// Foundation costs start-up time and memory: only tools and the controller may have it.
    static let foundationModules: Set<String> = ["Foundation", "FoundationEssentials"]
    static let foundationUsers: Set<String> = [
        "kvctl", "OperatorClient", "ControllerRuntime", "kvbench", testKit,
    ]

    /// What a core must not contain, as whole words in code: clocks, threads, randomness, floating
    /// point and whatever differs from run to run. The reason stands beside.
    static let forbiddenInCores: [(word: String, why: String)] = [
        ("Date", "time is an argument"),
        ("ContinuousClock", "time is an argument"),
        ("SuspendingClock", "time is an argument"),
        ("clock_gettime", "time is an argument"),
        ("DispatchQueue", "cores have no threads"),
        ("Task", "cores have no tasks"),
        ("actor", "cores have no actors"),
        ("async", "cores do not wait"),
        ("await", "cores do not wait"),
        ("Mutex", "cores have no locks"),
        ("Atomic", "cores have no shared state"),
        ("random", "randomness is a seeded generator that is passed in"),
        ("shuffled", "randomness is a seeded generator that is passed in"),
        ("SystemRandomNumberGenerator", "randomness is a seeded generator that is passed in"),
        ("Hasher", "hash values differ from run to run"),
        ("hashValue", "hash values differ from run to run"),
        ("Float", "floating point rounds differently"),
        ("Double", "floating point rounds differently"),
        ("print", "cores do no I/O"),
    ]

    static func layerIndex(of target: String) -> Int? {
        layers.firstIndex { $0.targets.contains(target) }
    }

    static func isCore(_ target: String) -> Bool {
        layerIndex(of: target).map { layers[$0].name == "cores" } ?? false
    }

    /// Whether the layers let `target` use `module`, another target of this repository.
    static func allows(_ target: String, toUse module: String) -> Bool {
        guard let moduleLayer = layerIndex(of: module) else {
            // The simulator and the tests.
            let isTest = target.hasSuffix("Tests")
            return module == simulationKit && (target == "kvsim" || isTest)
                || module == testKit && isTest
        }
        if target == simulationKit {
            return layers[moduleLayer].name == "cores" || moduleLayer == 0
        }
        guard let layer = layerIndex(of: target) else { return target.hasSuffix("Tests") }
        guard layer == moduleLayer else { return moduleLayer < layer }
        let targets = layers[layer].targets
        return targets.firstIndex(of: module)! < targets.firstIndex(of: target)!
    }
}
