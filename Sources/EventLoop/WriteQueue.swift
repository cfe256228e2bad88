// The unwritten bytes of a connection, handed to libuv in gathered batches.

import CUV

/// Byte arrays in the order of writing. At most one batch is with libuv at a time; the rest waits
/// and goes along in the next.
struct WriteQueue {
    /// Buffers in one `writev`; far below the system's 1,024.
    private static let batchCountMax = 256

    private(set) var pendingBytes = 0
    private var waiting: [(bytes: [UInt8], offset: Int)] = []
    private var inFlight: WriteBatch?

    var isEmpty: Bool { inFlight == nil && waiting.isEmpty }

    /// Queues `bytes` from `offset` on. Precondition: something is left there.
    mutating func append(_ bytes: consuming [UInt8], from offset: Int) {
        pendingBytes += bytes.count - offset
        waiting.append((bytes, offset))
    }

    /// The next batch, unless one is under way or nothing waits.
    mutating func startBatch() -> WriteBatch? {
        guard inFlight == nil, !waiting.isEmpty else { return nil }
        let batch: WriteBatch
        if waiting.count <= Self.batchCountMax {
            batch = WriteBatch(waiting)
            waiting.removeAll()
        } else {
            batch = WriteBatch(Array(waiting.prefix(Self.batchCountMax)))
            waiting.removeFirst(Self.batchCountMax)
        }
        inFlight = batch
        return batch
    }

    /// Lets go of a batch that libuv is done with.
    mutating func finish(_ batch: WriteBatch) {
        precondition(inFlight === batch)
        pendingBytes -= batch.byteCount
        inFlight = nil
    }
}

/// One write request with the arrays it sends. libuv's `data` retains it until the write callback,
/// so the storage that libuv reads from stays where it is.
final class WriteBatch {
    let byteCount: Int
    private let parts: [(bytes: [UInt8], offset: Int)]
    private let request: UnsafeMutablePointer<uv_write_t> = .allocate(capacity: 1)
    private var completion: ((WriteBatch, Int32) -> Void)?

    init(_ parts: [(bytes: [UInt8], offset: Int)]) {
        self.parts = parts
        byteCount = parts.reduce(0) { $0 + $1.bytes.count - $1.offset }
    }

    deinit { request.deallocate() }

    /// Hands the batch to libuv. `completion` follows from the loop, unless the status says that
    /// libuv did not take it.
    func send(
        on stream: UnsafeMutablePointer<uv_stream_t>,
        _ completion: @escaping (WriteBatch, Int32) -> Void
    ) -> Int32 {
        self.completion = completion
        request.pointee.data = Unmanaged.passRetained(self).toOpaque()
        // The pointers outlive the closures: `parts` is immutable and owned until the callback,
        // and the storage of an array that nobody mutates does not move.
        let buffers = parts.map { part in
            part.bytes.withUnsafeBytes { raw in
                var buffer = uv_buf_t()
                buffer.base = UnsafeMutablePointer(
                    mutating: (raw.baseAddress! + part.offset).assumingMemoryBound(to: CChar.self))
                buffer.len = raw.count - part.offset
                return buffer
            }
        }
        let status = uv_write(request, stream, buffers, UInt32(buffers.count)) { request, status in
            let batch = Unmanaged<WriteBatch>.fromOpaque(request!.pointee.data).takeRetainedValue()
            let completion = batch.completion
            batch.completion = nil
            completion?(batch, status)
        }
        if status != 0 {
            self.completion = nil
            Unmanaged.passUnretained(self).release()
        }
        return status
    }
}
