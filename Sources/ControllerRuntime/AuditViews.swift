// The audit log as operators see it.

import ControllerCore

extension AuditTrail {
    /// The newest `limit` commands, oldest first.
    func commands(limit: Int) -> [AuditedCommandView] {
        var commands: [AuditedCommandView] = []
        // For look-up only.
        var places: [UInt64: Int] = [:]
        for entry in entries {
            switch entry.event {
            case .requested(let arguments):
                places[entry.number] = commands.count
                commands.append(
                    AuditedCommandView(
                        number: entry.number, at: entry.at, caller: entry.caller,
                        address: entry.address, verb: entry.verb, arguments: arguments,
                        outcome: "unknown",
                        text: "no answer was noted: the controller changed or lost its store"))
            case .answered(let request, let isDone, let text):
                guard let place = places[request] else { continue }
                commands[place].outcome = isDone ? "done" : "refused"
                commands[place].text = text
            }
        }
        return commands.suffix(limit)
    }
}

struct AuditedCommandView: Encodable {
    var number: UInt64
    /// Milliseconds since 1970.
    var at: UInt64
    var caller: String
    var address: String
    var verb: String
    /// As JSON.
    var arguments: String
    /// `done`: accepted and stored; an operation goes on from there. `refused`, or `unknown`.
    var outcome: String
    var text: String
}

struct AuditView: Encodable {
    var commands: [AuditedCommandView]
}

struct AuditVerdictView: Encodable {
    /// The oldest and the newest entry that are kept; newest below oldest when there is none.
    var first: UInt64
    var last: UInt64
    /// To be noted elsewhere, and given to a later check.
    var head: Nullable<String>
    var isWhole: Bool
    /// Null when the log is whole.
    var fault: Nullable<String>
}
