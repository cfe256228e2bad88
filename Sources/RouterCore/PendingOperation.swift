// Operations that a router has taken over and not answered yet: a slab of plain structs.

import KVBase
import ShardCore

/// Whom an answer is for: a client, one of its reply slots, one part of that slot's command.
public struct Destination: Hashable, Sendable {
    public var client: UInt32
    public var slot: UInt32
    public var part: UInt32

    public init(client: UInt32, slot: UInt32, part: UInt32) {
        self.client = client
        self.slot = slot
        self.part = part
    }
}

/// One operation. Its place in the slab is its token on the wire.
///
/// Holds no reference, so that copying and overwriting costs no reference counting.
struct PendingOperation {
    enum State: UInt8 {
        case free
        /// In a frame to `link`, sent or about to be.
        case sent
        /// Waits to be sent (again).
        case held
        /// Sent, and its client was answered or left; the place stays taken until the node answers
        /// or the connection ends, so that no late answer meets another operation.
        case abandoned
    }

    static let none = UInt32.max

    var state = State.free
    var code = OperationCode.get
    var attempts: UInt8 = 0
    /// A list whose shards changed: its owner plans it anew instead of having it sent again.
    var wantsNewPlan = false
    /// Held until an operation of the same client for the same key is answered, not for a time.
    var waitsForTwin = false
    var destination = Destination(client: 0, slot: 0, part: 0)
    var table = TableID.none
    var group = GroupID.none
    /// The node connection it was sent on. Meaningful when sent or abandoned.
    var link: UInt32 = 0
    /// Its bytes: `offset..<offset + count` of a batch, the token left out.
    var batch: UInt32 = PendingOperation.none
    var offset: UInt32 = 0
    var count: UInt32 = 0
    var submitted = Instant.origin
    var deadline = Instant.origin
    /// The router's route version when it was submitted.
    var routeVersion: UInt64 = 0
    /// Not before then, unless the world changes. Meaningful when held.
    var retryAt = Instant.origin
    /// All operations in order of deadline. Next free place when free.
    var older = PendingOperation.none
    var newer = PendingOperation.none
    /// The client's operations in order of submission.
    var previousOfClient = PendingOperation.none
    var nextOfClient = PendingOperation.none

    var isWrite: Bool { code.isWrite }
}

/// A client as the router sees it: its unanswered operations in order.
struct ClientState {
    var isOpen = false
    var first = PendingOperation.none
    var last = PendingOperation.none
    var heldCount: UInt32 = 0
    var isListedAsHeld = false
    /// The router's route version when the client last had nothing unanswered.
    var routeVersion: UInt64 = 0
}

/// One node as the router reaches it.
struct NodeLink {
    var node: NodeID
    var isOpen = false
    /// The batch that this turn fills, if any.
    var current = PendingOperation.none
    /// Operations in `current`.
    var currentCount: UInt32 = 0
    var pendingBytes = 0
    var pendingOperations = 0
}

/// The body of one requests frame, kept after sending until each of its operations is answered, so
/// that an operation can be sent again without a copy made in advance.
struct RequestBatch {
    var writer = ByteWriter()
    /// Operations whose bytes are here.
    var users: UInt32 = 0
    /// Not handed to the connection yet: what is in it has certainly not been applied.
    var isOpen = true
}
