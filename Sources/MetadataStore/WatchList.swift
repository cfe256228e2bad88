// The watches of one store: which there are, what each sees of an event, and their end.

import KVBase

/// Belongs to one store, on its thread. When an event may leave is the store's matter: it queues a call
/// of `tell`, which does nothing once the watch has ended.
public final class WatchList {
    public typealias Handler = (Result<MetadataEvent, MetadataError>) -> Void

    private struct Watch {
        var id: WatchID
        var prefix: Bytes
        var handler: Handler
    }

    private var watches: [Watch] = []
    private var issued: UInt64 = 0

    public init() {}

    /// A new watch of the keys below `prefix`.
    public func add(prefix: Bytes, _ handler: @escaping Handler) -> WatchID {
        issued += 1
        watches.append(Watch(id: WatchID(issued), prefix: prefix, handler: handler))
        return WatchID(issued)
    }

    public func cancel(_ id: WatchID) { watches.removeAll { $0.id == id } }

    /// Who sees something of the event, and what, in the order in which they came.
    public func parts(of event: MetadataEvent) -> [(id: WatchID, event: MetadataEvent)] {
        watches.compactMap { watch in event.cut(to: watch.prefix).map { (watch.id, $0) } }
    }

    /// Calls the handler, if the watch is still there.
    public func tell(_ event: MetadataEvent, to id: WatchID) {
        watches.first { $0.id == id }?.handler(.success(event))
    }

    /// Ends all: nobody is told of events any more. Their handlers, which are owed the reason.
    public func end() -> [Handler] {
        defer { watches.removeAll() }
        return watches.map(\.handler)
    }
}
