// What can be set of the B+ tree engine.

public struct BTreeOptions: Sendable {
    /// Refuse to start without the files of an earlier run.
    public var expectExisting = false
    /// Address space reserved for the tree, and so the most it can grow to. Reserving takes no disk
    /// space; when the system refuses, half is tried, and so on down to 1 GiB. A process has about
    /// 127 TiB of address space for all of its engines together: with more than a hundred of them
    /// set less, such as the size of the disk.
    public var mapBytes = 1 << 40
    /// Memory of changes not yet in the tree beyond which `apply` makes a checkpoint itself.
    public var overlayBytesMax = 256 << 20
    /// Snapshots open at once.
    public var snapshotsMax = 500

    public init() {}
}
