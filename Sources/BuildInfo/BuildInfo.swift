// Which build this is.

import CRevision

public enum BuildInfo {
    /// The version of all programs of this repository.
    public static let version = "0.1.0"

    /// The source revision; `unknown` for a build that nobody stamped (`scripts/stamp-revision`).
    public static var revision: String { String(cString: rangekeeper_revision()) }

    /// Both, as `--version` tells them.
    public static var text: String { "\(version) (\(revision))" }
}
