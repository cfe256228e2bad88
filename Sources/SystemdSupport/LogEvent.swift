// The kinds of events in the log that programs look for.

/// A kind of event. Its id is the journal's MESSAGE_ID, so that
/// `journalctl MESSAGE_ID=...` finds every event of the kind, whatever its words; an id is never given
/// to another kind. The list stands in docs/internals/logs.md too.
public struct LogEvent: Sendable {
    /// In lower case with underscores.
    public let name: String
    /// 32 hexadecimal digits.
    public let id: String

    /// Start-up is over, the daemon serves.
    public static let started = LogEvent(
        name: "started", id: "8f36c4874e754da9b5bcd7916f1acda0")
    /// The daemon was asked to stop.
    public static let stopping = LogEvent(
        name: "stopping", id: "ec0c41a038684794af240988ab3f753f")
    /// The stop is over.
    public static let stopped = LogEvent(
        name: "stopped", id: "35cf80ea08ef492eae83ed773c224883")
    /// The settings were read again.
    public static let settingsRead = LogEvent(
        name: "settings_read", id: "4ab39308363649029013b100022948c5")
    /// The settings were to be read again and are wrong; the old ones hold.
    public static let settingsRejected = LogEvent(
        name: "settings_rejected", id: "738b0bc509f5469ab40fa39b86bdd011")
    /// The log level was changed while running.
    public static let logLevelChanged = LogEvent(
        name: "log_level_changed", id: "cfe66d3d7fbc49998a706039db10d173")
    /// The start cannot go on; the process ends.
    public static let startFailed = LogEvent(
        name: "start_failed", id: "bc5e2c89e7a7400a8ff97cded0611e75")
    /// A watched stage makes no progress.
    public static let stageStalled = LogEvent(
        name: "stage_stalled", id: "0f71b1e8b49e4d9d8563c77372d9e1ec")
    /// Messages of one kind came too fast and were left out.
    public static let messagesLeftOut = LogEvent(
        name: "messages_left_out", id: "1b9ff751fa824f26ac613a86c1a1cf76")
    /// A request took longer than slow.request.
    public static let slowRequest = LogEvent(
        name: "slow_request", id: "d033931fbe594c8f972e9066aa95d932")
    /// A data directory failed; its replicas stop.
    public static let diskFailed = LogEvent(
        name: "disk_failed", id: "20fdd7050a3c417c9da5482e1126ecdf")
    /// A snapshot to a follower ended.
    public static let snapshotSent = LogEvent(
        name: "snapshot_sent", id: "46e490a3d5d64046b37d7ab4c93d6350")
    /// A snapshot was received and installed.
    public static let snapshotInstalled = LogEvent(
        name: "snapshot_installed", id: "0f823d06d8a84993b1e929445a74d33c")
    /// A controller admitted the node to the cluster.
    public static let nodeAdmitted = LogEvent(
        name: "node_admitted", id: "155474099c8a4f3ba8451efeac338dd7")
    /// The connection of a node or router to a controller broke.
    public static let controllerLost = LogEvent(
        name: "controller_lost", id: "e3a6fa6686ad4a3eb45d47868e620866")
    /// This controller began to act.
    public static let controllerActs = LogEvent(
        name: "controller_acts", id: "9cac1c50fde24ddbb9baa73312859553")
    /// This controller acts no more.
    public static let controllerStandsBy = LogEvent(
        name: "controller_stands_by", id: "8e9879b356e346309ab17eb568e158a9")
    /// The acting controller decided something.
    public static let decision = LogEvent(
        name: "decision", id: "f3155033de7348c4a12112d388d3590f")

    /// All kinds, in the order above.
    public static let all: [LogEvent] = [
        .started, .stopping, .stopped, .settingsRead, .settingsRejected, .logLevelChanged,
        .startFailed, .stageStalled, .messagesLeftOut, .slowRequest, .diskFailed, .snapshotSent,
        .snapshotInstalled, .nodeAdmitted, .controllerLost, .controllerActs, .controllerStandsBy,
        .decision,
    ]
}
