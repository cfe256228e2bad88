// libuv, imported only by EventLoop. The functions here stand for variadic ones, which Swift
// cannot call.
#pragma once
#include <uv.h>

static inline int rangekeeper_uv_measure_idle_time(uv_loop_t *loop) {
    return uv_loop_configure(loop, UV_METRICS_IDLE_TIME);
}
