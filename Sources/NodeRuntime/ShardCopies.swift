// The copies of shards that a group takes over, as its leader keeps them.

import KVBase
import NodeCore
import ShardCore

/// What the leader of a group that takes shards over has asked for. Everything that must survive a
/// leader is in the replicated state; this is lost with the leadership and begun anew.
struct ShardCopies {
    static let pageBytesMax: UInt32 = 256 << 10
    /// Silence after which the next replica of the former owner is asked.
    static let answerWait = Nanoseconds.milliseconds(500)
    /// An operation that learns nothing of its key in this time is given back.
    static let operationWait = Nanoseconds.seconds(3)
    static let waitingOperationsMax = 10_000
    static let waitingPagesMax = 256

    struct Chunk {
        var shard: ShardID
        var cursor: Bytes
        var token: UInt64
        var asked: Instant
        /// Logged: the cursor moves when it is applied.
        var isLogged = false
        var bytes: UInt64 = 0
        var records: UInt64 = 0
    }

    /// What was copied under this leadership, and whether the controller wants the copy to rest.
    struct Account {
        var epoch: Epoch
        var bytes: UInt64 = 0
        var records: UInt64 = 0
        var heldUntil = Instant.origin
    }

    /// Operations on one key, in their order, that wait for what the former owner holds of it.
    struct Fetch {
        var shard: ShardID
        var epoch: Epoch
        var routedKey: Bytes
        var token: UInt64
        var asked: Instant
        var deadline: Instant
        var operations: [(bytes: Bytes, waiter: Waiter)]
    }

    /// A page of a list, which waits for what the former owners hold of it.
    struct Page {
        struct Part {
            var request: ShardReadRequest
            var asked: Instant
            var answer: ShardRecords?
        }

        var operation: Bytes
        var waiter: Waiter
        var deadline: Instant
        var parts: [Part]
    }

    var chunks: [Chunk] = []
    var accounts = SortedRecords<ShardID, Account>()
    var pages: [Page] = []
    var fetches: [Fetch] = []
    var waitingOperations = 0
    var pace: CopyPace
    /// No chunk is asked for before: the copy gives way to requests.
    var notBefore = Instant.origin
    var isTimerSet = false
    /// Which replica of the former owner to ask; moves on when one does not answer.
    var turn = 0

    init(bytesPerSecond: UInt64) { pace = CopyPace(limit: bytesPerSecond) }
}
