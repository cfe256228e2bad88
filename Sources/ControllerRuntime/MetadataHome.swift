// Where a controller's metadata is, and who among the controllers may act: the one seam between the
// server and the two ways to keep metadata.

import KVBase
import MetadataCore
import MetadataStore

/// All on the loop's thread.
protocol MetadataHome: AnyObject {
    /// Leadership, readiness or the controllers changed.
    var onChange: () -> Void { get set }
    /// The metadata cannot be kept or read any more.
    var onFailure: (DatabaseError) -> Void { get set }
    /// The metadata has left: this controller is to follow.
    var onMove: (MetadataMove) -> Void { get set }

    /// Nil until there is one.
    var metadata: (any MetadataStore)? { get }
    /// This controller's copy, as far as it has come.
    var state: RevisionedState? { get }
    /// 0 as long as it is not known.
    var cluster: UInt64 { get }
    /// The cluster id when there is none yet.
    var clusterCandidate: UInt64 { get }
    /// What the hello says of this controller.
    var helloNode: NodeID { get }

    /// A number of its own for each time in which this controller may act; nil when it may not.
    var leadership: UInt64? { get }
    /// No other controller can act at this moment, given that this one may.
    func isAlone(at now: Instant) -> Bool
    /// Who may act, as far as it is known.
    var leader: (name: String, address: String)? { get }
    /// Why this controller cannot act, when there is more to say than that another one does.
    var obstacle: String? { get }

    /// The records whose keys begin with one of `prefixes`, from where they are kept and not from a copy of it.
    func readStored(
        _ prefixes: [Bytes],
        _ completion: @escaping (Result<[MetadataRecord], DatabaseError>) -> Void)

    func start() throws(DatabaseError)
    /// The end of a turn: requests go out.
    func endTurn()
    /// Lets another controller act at once; false when there is none, or it need not be waited for.
    func handOver() -> Bool
    func close()

    func updateMetrics()
    /// The controllers, for operators; `acting`: whether this one acts, and in which term.
    func controllerViews(acting term: UInt64?, admin: String) -> [ControllerView]
    func controllersView(acting term: UInt64?, admin: String) -> ControllersView
}
