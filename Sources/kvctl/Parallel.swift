// The same call for many things at once, for calls that wait for others.

import Synchronization
import Threads

/// `body` of each item, `atOnce` of them at a time, each on a thread of its own; results in the order of
/// the items. `progress` is told how many are done, one call after the other.
func inParallel<Item: Sendable, Value: Sendable>(
    _ items: [Item], atOnce: Int, progress: @escaping @Sendable (Int) -> Void = { _ in },
    _ body: @escaping @Sendable (Item) -> Value
) -> [Value] {
    let crew = Crew(items, progress, body)
    var threads: [NamedThread] = []
    for _ in 0..<min(atOnce, items.count) {
        if let thread = try? NamedThread(name: "crew", { crew.work() }) { threads.append(thread) }
    }
    // No thread could be had: this one does it all.
    if threads.isEmpty { crew.work() }
    for thread in threads { thread.join() }
    return crew.results()
}

private final class Crew<Item: Sendable, Value: Sendable>: Sendable {
    private struct State {
        var next = 0
        var done = 0
        var results: [Value?]
    }

    private let items: [Item]
    private let progress: @Sendable (Int) -> Void
    private let body: @Sendable (Item) -> Value
    private let state: Mutex<State>

    init(
        _ items: [Item], _ progress: @escaping @Sendable (Int) -> Void,
        _ body: @escaping @Sendable (Item) -> Value
    ) {
        self.items = items
        self.progress = progress
        self.body = body
        state = Mutex(State(results: [Value?](repeating: nil, count: items.count)))
    }

    func work() {
        while let place = take() {
            let value = body(items[place])
            state.withLock { state in
                state.results[place] = value
                state.done += 1
                progress(state.done)
            }
        }
    }

    private func take() -> Int? {
        state.withLock { state in
            guard state.next < items.count else { return nil }
            state.next += 1
            return state.next - 1
        }
    }

    func results() -> [Value] { state.withLock { $0.results.compactMap { $0 } } }
}
