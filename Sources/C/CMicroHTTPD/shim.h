// libmicrohttpd, imported only by AdminHTTP. The function here stands for a variadic one, which
// Swift cannot call.
#pragma once
#include <microhttpd.h>

// A daemon on its own thread that takes over the listening socket `descriptor`.
static inline struct MHD_Daemon *rangekeeper_mhd_start(
    int descriptor, unsigned int connections_max, unsigned int timeout_seconds,
    size_t connection_memory_bytes, MHD_AccessHandlerCallback handler, void *argument) {
    return MHD_start_daemon(
        MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, handler, argument,
        MHD_OPTION_LISTEN_SOCKET, descriptor, MHD_OPTION_CONNECTION_LIMIT, connections_max,
        MHD_OPTION_CONNECTION_TIMEOUT, timeout_seconds, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        connection_memory_bytes, MHD_OPTION_END);
}
