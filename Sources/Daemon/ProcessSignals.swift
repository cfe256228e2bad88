// The signals of a daemon: blocked everywhere, waited for by one thread.

import Glibc

enum ProcessSignals {
    private static func set() -> sigset_t {
        var set = sigset_t()
        sigemptyset(&set)
        for signal in [SIGTERM, SIGINT, SIGHUP] { sigaddset(&set, signal) }
        return set
    }

    /// Blocks the signals for this thread and every one it starts; ignores SIGPIPE.
    static func block() {
        var set = set()
        pthread_sigmask(SIG_BLOCK, &set, nil)
        signal(SIGPIPE, SIG_IGN)
    }

    /// The next of them.
    static func wait() -> Int32 {
        var set = set()
        var number: Int32 = 0
        while sigwait(&set, &number) != 0 {}
        return number
    }
}
