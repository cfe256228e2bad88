// The verbs about run-time settings and about nodes.

import ControllerCore
import KVBase
import ShardCore

struct SettingView: Encodable {
    var name: String
    var value: String
    var `default`: String
    var isDefault: Bool
    var description: String
    /// The form of its values.
    var allowed: String
}

struct SettingsView: Encodable {
    var settings: [SettingView]
}

extension ControllerServer {
    static let settingVerbs = [
        "config.list", "config.set", "node.weight", "node.spare", "node.spare.end",
        "node.maintenance", "node.maintenance.end", "node.remove",
    ]

    func serveSettings(
        _ request: AdminRequest, _ views: ClusterViews, _ token: UInt32,
        _ session: ControllerSession
    ) throws(DatabaseError) {
        let arguments = request.arguments ?? AdminRequest.Arguments()
        guard request.verb != "config.list" else {
            return session.adminSuccess(token, views.settings())
        }
        guard request.verb != "config.set" else {
            let name = try required(arguments.name, "name")
            return submit(
                .configure(name: name, value: try required(arguments.value, "value")), token,
                session)
        }
        let node = try required(arguments.node, "node")
        switch request.verb {
        case "node.weight":
            guard let weight = UInt8(exactly: try required(arguments.weight, "weight")) else {
                throw DatabaseError(
                    .invalidRequest, "a weight is a number from 0 to \(NodeStatus.weightMax)")
            }
            submit(.setWeight(node: node, weight: weight), token, session)
        case "node.spare": submit(.setSpare(node: node, true), token, session)
        case "node.spare.end": submit(.setSpare(node: node, false), token, session)
        case "node.maintenance":
            let seconds = try required(arguments.seconds, "seconds")
            guard seconds > 0, seconds < 1e9 else {
                throw DatabaseError(.invalidRequest, "seconds is above 0 and below 1e9")
            }
            let time = Nanoseconds(UInt64(seconds * 1e9))
            submit(.maintenance(node: node, for: time), token, session)
        case "node.maintenance.end": submit(.endMaintenance(node: node), token, session)
        default: submit(.removeNode(node), token, session)
        }
    }
}

extension ClusterViews {
    func settings() -> SettingsView {
        SettingsView(
            settings: controller.configuration.map { setting in
                SettingView(
                    name: setting.name, value: setting.value, default: setting.defaultValue,
                    isDefault: setting.isDefault, description: setting.meaning,
                    allowed: setting.allowed)
            })
    }
}
