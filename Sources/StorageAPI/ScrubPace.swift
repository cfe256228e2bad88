// How a check of data at rest shares the disk with everybody else.

import KVBase

/// Asked before each read of a check, and told after it; on the checking thread.
public protocol ScrubPace: AnyObject, Sendable {
    /// Waits as long as it takes. False: the check is to end.
    func willRead(_ bytes: Int) -> Bool
    func didRead(_ bytes: Int)
}
