// zlib, imported only by Metrics. The function here stands for a macro, which Swift cannot call.
#pragma once
#include <string.h>
#include <zlib.h>

// Compresses `count` bytes as one gzip member, fast rather than small. Returns the bytes written to
// `output`, 0 when that is too small or there is no memory.
static inline size_t rangekeeper_gzip(
    const void *input, size_t count, void *output, size_t capacity) {
    z_stream stream;
    memset(&stream, 0, sizeof(stream));
    // 15 bits of window, and 16 for gzip's framing.
    if (deflateInit2(&stream, 1, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK) return 0;
    stream.next_in = (Bytef *)input;
    stream.avail_in = (uInt)count;
    stream.next_out = (Bytef *)output;
    stream.avail_out = (uInt)capacity;
    int status = deflate(&stream, Z_FINISH);
    size_t written = stream.total_out;
    deflateEnd(&stream);
    return status == Z_STREAM_END ? written : 0;
}
