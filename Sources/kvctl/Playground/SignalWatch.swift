// Signals as events to wait for, instead of handlers that interrupt.

import Glibc

/// Holds back the signals that ask to stop, so that they are taken where it suits. Children get
/// their own, empty mask.
struct SignalWatch {
    private let signals: sigset_t

    init() {
        var set = sigset_t()
        sigemptyset(&set)
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGWINCH] { sigaddset(&set, signal) }
        sigprocmask(SIG_BLOCK, &set, nil)
        signals = set
    }

    /// Waits `milliseconds`, less when a signal comes; true when one asks to stop.
    func waitForStop(milliseconds: Int) -> Bool {
        var set = signals
        var time = timespec(
            tv_sec: milliseconds / 1000, tv_nsec: milliseconds % 1000 * 1_000_000)
        let signal = sigtimedwait(&set, nil, &time)
        return signal == SIGINT || signal == SIGTERM || signal == SIGHUP
    }
}
