// What every libuv handle has in common: memory that outlives the close, and one owner.

import CUV
import KVBase

/// Something that an event loop watches. Confined to the loop's thread.
///
/// The libuv structure is allocated here and freed in its close callback, never before; from
/// `activate` until that callback libuv's `data` holds a strong reference to the object, so that a
/// handle in use cannot go away under the loop.
public class LoopHandle {
    final let loop: EventLoop
    /// The libuv structure. Dangling once `isClosed`.
    final let raw: UnsafeMutableRawPointer
    final private(set) var isClosing = false
    final private(set) var isClosed = false

    /// Precondition: the loop has not ended.
    init(loop: EventLoop, byteCount: Int) {
        precondition(!loop.isClosed, "the loop has ended")
        self.loop = loop
        raw = .allocate(byteCount: byteCount, alignment: 16)
    }

    final var uvHandle: UnsafeMutablePointer<uv_handle_t> {
        raw.assumingMemoryBound(to: uv_handle_t.self)
    }

    /// Ties the object to its initialised libuv handle.
    final func activate() {
        uvHandle.pointee.data = Unmanaged.passRetained(self).toOpaque()
    }

    /// Gives the memory back of a handle whose libuv initialisation failed.
    final func abandon() {
        isClosing = true
        isClosed = true
        raw.deallocate()
    }

    /// Starts the close; idempotent. `handleDidClose` follows from the loop, never from here.
    final func closeHandle() {
        guard !isClosing else { return }
        isClosing = true
        uv_close(uvHandle) { handle in
            let owner = Unmanaged<LoopHandle>.fromOpaque(handle!.pointee.data).takeRetainedValue()
            owner.isClosed = true
            owner.raw.deallocate()
            owner.handleDidClose()
        }
    }

    /// Called once, when libuv has let go of the handle.
    func handleDidClose() {}

    /// Called for each handle still open when the loop ends.
    func tearDown() { closeHandle() }

    /// The object behind a handle that libuv passes to a callback.
    static func owner<Owner: LoopHandle>(
        _ data: UnsafeMutableRawPointer, as: Owner.Type = Owner.self
    ) -> Owner {
        unsafeDowncast(Unmanaged<LoopHandle>.fromOpaque(data).takeUnretainedValue(), to: Owner.self)
    }
}

extension DatabaseError {
    /// The error of a libuv call: `unavailable`, what was tried, and libuv's own words.
    init(uv status: Int32, _ what: String) {
        self.init(.unavailable, "\(what): \(String(cString: uv_strerror(status)))")
    }
}
