// What a playground consists of: how many daemons of each kind, their ports, their command lines.

import Glibc
import OperatorClient

/// The numbers a playground is made from; they stay the same for its whole life.
struct PlaygroundPlan: Codable, Hashable {
    var nodes = 4
    /// How many of `nodes` are spares; the last ones.
    var spares = 1
    var routers = 1
    var controllers = 1
    var replicas = 3
    var groups = 2
    /// Data directories of each node.
    var disks = 1
    var portBase = 7000
    /// `etcd`: the controllers keep their metadata in a local etcd; nil: among themselves.
    var metadata: String?
    /// Where the metadata is backed up to; nil: nowhere.
    var backup: String?
    /// Nil when there is none beside the cluster.
    var prometheus: PrometheusPlan?

    static let metadataForms = ["embedded", "etcd"]
    static let routersMax = 9
    static let controllersMax = 5
    static let nodesMax = 100
    static let disksMax = 16

    /// Ports from the base on: two for each router, one for Prometheus and one for nothing, two for
    /// each controller, two for each node, then two for etcd.
    private static let controllerPorts = 2 * routersMax + 2
    private static let nodePorts = controllerPorts + 2 * controllersMax
    /// Ports that a plan may use, from its base on.
    static let portSpan = nodePorts + 2 * nodesMax + 2

    /// The daemons in the order in which they start. `directory` is absolute.
    func daemons(in directory: String, binaries: String) -> [DaemonPlan] {
        func plan(_ kind: DaemonPlan.Kind, _ index: Int, ports first: Int) -> DaemonPlan {
            let name = "\(kind.rawValue)-\(index + 1)"
            return DaemonPlan(
                kind: kind, name: name, binary: "\(binaries)/\(kind.program)",
                home: "\(directory)/\(name)", log: "\(directory)/logs/\(name).log",
                port: portBase + first + 2 * index,
                isSpare: kind == .node && index >= nodes - spares,
                disks: kind == .node ? disks : 1)
        }
        let controllerPlans = (0..<controllers).map {
            plan(.controller, $0, ports: Self.controllerPorts)
        }
        var all: [DaemonPlan] = []
        if metadata == "etcd" {
            var etcd = plan(.etcd, 0, ports: Self.nodePorts + 2 * nodes)
            etcd.binary = EtcdProgram.path
            all.append(etcd)
        }
        let addresses = controllerPlans.map(\.address).joined(separator: ",")
        all += controllerPlans
        all += (0..<nodes).map { plan(.node, $0, ports: Self.nodePorts) }
        all += (0..<routers).map { plan(.router, $0, ports: 0) }
        for index in all.indices {
            all[index].setArguments(
                controllers: addresses,
                peers: controllerPlans.map { "\($0.name)=\($0.address)" }.joined(separator: ","),
                etcd: all.first { $0.kind == .etcd }?.address, plan: self)
        }
        if let prometheus {
            all.append(
                DaemonPlan(
                    prometheus, in: directory, port: PrometheusPlan.port(base: portBase)))
        }
        return all
    }
}

/// One daemon of a playground.
struct DaemonPlan {
    enum Kind: String, CaseIterable {
        case etcd, controller, node, router, prometheus

        var program: String {
            switch self {
            case .etcd: "etcd"
            case .controller: "kvcontrollerd"
            case .node: "kvnode"
            case .router: "kvrouter"
            case .prometheus: "prometheus"
            }
        }
    }

    var kind: Kind
    var name: String
    /// Path of the program.
    var binary: String
    /// The directory of its own.
    var home: String
    var log: String
    /// Its service port (RPC, Redis protocol, web); the admin port is the next one, but that of
    /// Prometheus the same.
    var port: Int
    var isSpare: Bool
    /// How many data directories it has.
    var disks: Int
    /// Without the program's name.
    private(set) var arguments: [String] = []

    init(
        kind: Kind, name: String, binary: String, home: String, log: String, port: Int,
        isSpare: Bool, disks: Int
    ) {
        self.kind = kind
        self.name = name
        self.binary = binary
        self.home = home
        self.log = log
        self.port = port
        self.isSpare = isSpare
        self.disks = disks
    }

    init(_ prometheus: PrometheusPlan, in directory: String, port: Int) {
        self.init(
            kind: .prometheus, name: "prometheus", binary: prometheus.binary,
            home: "\(directory)/prometheus", log: "\(directory)/logs/prometheus.log", port: port,
            isSpare: false, disks: 1)
        arguments = [
            "--config.file=\(home)/prometheus.yml", "--storage.tsdb.path=\(data[0])",
            "--web.listen-address=\(address)",
        ]
    }

    var address: String { "127.0.0.1:\(port)" }
    var admin: String { kind == .prometheus ? address : "127.0.0.1:\(port + 1)" }
    /// Where its pages are.
    var url: String { "http://\(admin)" }

    /// `data`, or `data-1`, `data-2`, ... when there are several.
    var data: [String] {
        disks == 1 ? [home + "/data"] : (1...disks).map { "\(home)/data-\($0)" }
    }

    /// Each port with what it serves.
    var ports: [(port: Int, use: String)] {
        switch kind {
        case .etcd: [(port, "clients"), (port + 1, "peers")]
        case .controller, .node: [(port, "RPC"), (port + 1, "admin")]
        case .router: [(port, "Redis protocol"), (port + 1, "admin")]
        case .prometheus: [(port, "web")]
        }
    }

    fileprivate mutating func setArguments(
        controllers: String, peers: String, etcd: String?, plan: PlaygroundPlan
    ) {
        arguments = ["--name", name]
        if kind != .etcd { arguments += ["--listen-admin", admin] }
        switch kind {
        case .etcd:
            arguments += ["--data-dir", data[0], "--log-level", "warn"]
            arguments += ["--listen-client-urls", "http://\(address)"]
            arguments += ["--advertise-client-urls", "http://\(address)"]
            arguments += ["--listen-peer-urls", "http://\(admin)"]
            arguments += ["--initial-advertise-peer-urls", "http://\(admin)"]
            arguments += ["--initial-cluster", "\(name)=http://\(admin)"]
            arguments += [
                "--auto-compaction-mode", "periodic", "--auto-compaction-retention", "1h",
            ]
        case .controller:
            arguments += ["--listen-rpc", address, "--data", data[0]]
            arguments += ["--groups-initial", "\(plan.groups)"]
            arguments += ["--replicas-default", "\(plan.replicas)"]
            if let etcd {
                arguments += ["--metadata", "etcd", "--etcd-endpoints", "http://\(etcd)"]
            } else if plan.controllers > 1 {
                arguments += ["--peers", peers]
            }
            if let backup = plan.backup { arguments += ["--backup-to", backup] }
        case .node:
            arguments += ["--listen-rpc", address, "--data", data.joined(separator: ",")]
            arguments += ["--controllers", controllers]
            if isSpare { arguments.append("--spare") }
        case .router:
            arguments += ["--listen-resp", address, "--controllers", controllers]
        case .prometheus:
            preconditionFailure("it is given its arguments where it is made")
        }
    }
}

/// The etcd of this machine.
enum EtcdProgram {
    /// Where it is installed; just its name when it is not.
    static var path: String {
        let search = getenv("PATH").map { String(cString: $0) } ?? ""
        let places = search.split(separator: ":").map(String.init) + ["/usr/bin", "/usr/local/bin"]
        return places.map { $0 + "/etcd" }.first { access($0, X_OK) == 0 } ?? "etcd"
    }

    static var isInstalled: Bool { access(path, X_OK) == 0 }
}
