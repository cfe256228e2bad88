// When a playground accepts writes: every group has a leader, every router has a map.

import OperatorClient

/// Asks the daemons how far they are.
struct ReadinessCheck {
    /// What is still missing, and the daemon whose log most likely tells why.
    struct Obstacle {
        var reason: String
        var daemon: DaemonPlan
        /// Of the cluster: no daemon can be blamed for it alone.
        var isOfCluster = true
    }

    private let controllers: ControllerClient
    private let controller: DaemonPlan
    private let all: [DaemonPlan]
    private let groups: Int

    init(_ playground: Playground) {
        all = playground.daemons
        groups = playground.state.plan.groups
        let plans = all.filter { $0.kind == .controller }
        controller = plans[0]
        controllers = ControllerClient(addresses: plans.map(\.address))
    }

    /// What keeps `daemons` and the cluster from serving, nil when nothing does; and the ids of the
    /// nodes that the controller knows.
    mutating func obstacle(to daemons: [DaemonPlan]) -> (Obstacle?, nodes: [String: Int]) {
        for daemon in daemons where daemon.kind == .controller {
            do throws(ClientError) {
                _ = try ControllerClient(addresses: [daemon.address]).call(
                    "controller.list", deadline: Deadline(seconds: 1))
            } catch {
                return (
                    Obstacle(reason: error.message, daemon: daemon, isOfCluster: false), [:]
                )
            }
        }
        let status: JSONValue
        do throws(ClientError) {
            status = try controllers.call("status", deadline: Deadline(seconds: 1))
        } catch {
            return (Obstacle(reason: error.message, daemon: controller), [:])
        }
        var ids: [String: Int] = [:]
        var states: [String: String] = [:]
        for node in status["nodes"].elements {
            guard let name = node["name"].string else { continue }
            ids[name] = node["id"].int
            states[name] = node["state"].string
        }
        for daemon in daemons where daemon.kind == .node {
            let state = states[daemon.name] ?? "not registered"
            // All but dead ones serve; on a busy machine every disk may answer late at first.
            guard ["up", "spare", "ill", "maintenance", "draining"].contains(state) else {
                return (
                    Obstacle(
                        reason: "\(daemon.name) is \(state)", daemon: daemon, isOfCluster: false),
                    ids
                )
            }
        }
        let known = status["groups"].elements
        guard known.count >= groups else {
            let reason = "\(known.count) of \(groups) groups placed"
            return (Obstacle(reason: reason, daemon: controller), ids)
        }
        for group in known where group["leader"].string == nil {
            let member = group["replicas"].elements.first?["node"].string
            let daemon = all.first { $0.name == member } ?? controller
            return (
                Obstacle(reason: "group \(group["id"].text) has no leader", daemon: daemon), ids
            )
        }
        for daemon in daemons where daemon.kind == .router {
            let page = try? AdminPage.get(
                "/readyz", from: daemon.admin, deadline: Deadline(seconds: 1))
            guard page?.status == 200 else {
                let reason = page?.body.split(separator: "\n").first.map(String.init) ?? "no answer"
                return (
                    Obstacle(
                        reason: "\(daemon.name) is not ready: \(reason)", daemon: daemon,
                        isOfCluster: false), ids
                )
            }
        }
        for daemon in daemons where daemon.kind == .prometheus {
            let page = try? AdminPage.get(
                "/-/ready", from: daemon.admin, deadline: Deadline(seconds: 1))
            guard page?.status == 200 else {
                return (
                    Obstacle(
                        reason: "\(daemon.name) is not ready", daemon: daemon, isOfCluster: false),
                    ids
                )
            }
        }
        return (nil, ids)
    }

    /// Whether a daemon does what it can without the others.
    static func isAlive(_ daemon: DaemonPlan) -> Bool {
        let page =
            switch daemon.kind {
            case .etcd: ("/health", daemon.address)
            case .prometheus: ("/-/ready", daemon.admin)
            case .controller, .node, .router: ("/livez", daemon.admin)
            }
        let answer = try? AdminPage.get(page.0, from: page.1, deadline: Deadline(seconds: 1))
        return answer?.status == 200
    }
}
