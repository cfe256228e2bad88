// libuv, imported only by EventLoop. The functions here stand for variadic ones, which Swift
// cannot call.
#pragma once
#include <sys/prctl.h>
#include <uv.h>

static inline int rangekeeper_uv_measure_idle_time(uv_loop_t *loop) {
    return uv_loop_configure(loop, UV_METRICS_IDLE_TIME);
}

// Names the calling thread; longer names are cut to 15 bytes.
static inline void rangekeeper_name_thread(const char *name) { prctl(PR_SET_NAME, name); }
