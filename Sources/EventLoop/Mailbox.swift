// The bounded queue by which other threads reach a loop.

import CUV
import KVBase
import Synchronization

/// Messages from any thread to one loop. `post` costs one short lock, and one wake-up of the loop
/// for all that was posted since it last looked.
///
/// `@unchecked`: `spare` belongs to the loop's thread, everything else is under the lock.
public final class Mailbox<Message: Sendable>: @unchecked Sendable {
    private struct State {
        var queue: [Message] = []
        /// Nil once the loop has ended.
        var wake: WakeHandle?
    }

    /// Most messages that wait at a time.
    public let capacity: Int
    private let state = Mutex(State())
    /// Empty between deliveries; swapped with the queue so that both keep their memory. Only the
    /// loop's thread touches it.
    private var spare: [Message] = []

    init(capacity: Int) {
        precondition(capacity > 0)
        self.capacity = capacity
    }

    /// Queues `message` and wakes the loop. False when `capacity` messages wait already or the loop
    /// has ended: the message was not taken.
    public func post(_ message: Message) -> Bool {
        state.withLock { state in
            guard let wake = state.wake, state.queue.count < capacity else { return false }
            state.queue.append(message)
            if state.queue.count == 1 { wake() }
            return true
        }
    }

    /// Queues all of `messages`, or none of them when there is not room for all.
    public func post(contentsOf messages: [Message]) -> Bool {
        state.withLock { state in
            guard let wake = state.wake, state.queue.count + messages.count <= capacity else {
                return false
            }
            let wasEmpty = state.queue.isEmpty
            state.queue.append(contentsOf: messages)
            if wasEmpty, !messages.isEmpty { wake() }
            return true
        }
    }

    /// Messages that wait for the loop.
    public var count: Int { state.withLock { $0.queue.count } }

    func attach(_ waker: MailboxWaker) {
        let handle = waker.handle
        state.withLock { $0.wake = handle }
        waker.detach = { [unowned self] in
            state.withLock { state in
                state.wake = nil
                state.queue = []
            }
        }
    }

    func deliver(to receive: ([Message]) -> Void) {
        state.withLock { state in swap(&state.queue, &spare) }
        guard !spare.isEmpty else { return }
        receive(spare)
        spare.removeAll(keepingCapacity: true)
    }
}

/// The part of a mailbox's libuv handle that every thread may use.
///
/// `@unchecked`: `uv_async_send` is the one call of libuv that is safe on any thread, as long as
/// the handle has not been closed; a mailbox sees to that by its lock.
struct WakeHandle: @unchecked Sendable {
    fileprivate let pointer: UnsafeMutablePointer<uv_async_t>
    func callAsFunction() { uv_async_send(pointer) }
}

/// The libuv half of a mailbox.
final class MailboxWaker: LoopHandle {
    var detach: (() -> Void)?
    private var receive: (() -> Void)?

    init(loop: EventLoop, _ receive: @escaping () -> Void) {
        self.receive = receive
        super.init(loop: loop, byteCount: MemoryLayout<uv_async_t>.size)
        let status = uv_async_init(loop.uv, raw.assumingMemoryBound(to: uv_async_t.self)) {
            let waker: MailboxWaker = LoopHandle.owner($0!.pointee.data)
            waker.receive?()
        }
        precondition(status == 0, "uv_async_init")
        activate()
    }

    var handle: WakeHandle { WakeHandle(pointer: raw.assumingMemoryBound(to: uv_async_t.self)) }

    override func tearDown() {
        detach?()
        detach = nil
        receive = nil
        closeHandle()
    }
}
