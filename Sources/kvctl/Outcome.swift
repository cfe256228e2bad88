// How a command ends: the exit codes scripts rely on, and a message for a person.

import KVBase
import OperatorClient

/// Exit codes of kvctl; see docs/kvctl.md. Never renumber.
enum ExitCode: Int32 {
    case ok = 0
    case failure = 1
    case usage = 2
    case unreachable = 3
    case unauthenticated = 4
    case unhealthy = 5
    case timeout = 6
    case refused = 7
    /// By Ctrl-C, as a shell has it.
    case interrupted = 130
}

/// Why a command did not do what it was asked.
struct Failure: Error {
    var code: ExitCode
    var message: String

    init(_ code: ExitCode, _ message: String) {
        self.code = code
        self.message = message
    }

    init(_ error: ClientError) {
        message = error.message
        switch error.kind {
        case .unreachable: code = .unreachable
        case .timeout: code = .timeout
        case .malformed: code = .failure
        case .notFound: code = .refused
        case .answered(let answer): code = Self.exitCode(of: answer)
        }
    }

    private static func exitCode(of code: ErrorCode) -> ExitCode {
        switch code {
        case .invalidRequest: .usage
        case .unauthenticated: .unauthenticated
        case .notLeader, .staleEpoch, .unavailable, .overloaded, .storageFailed: .unhealthy
        case .deadlineExceeded: .timeout
        case .tableExists, .conditionFailed, .fenced, .refused, .tooLarge: .refused
        case .tableNotFound, .unknownOutcome, .malformed: .failure
        }
    }
}

/// Runs `body` and turns what a client library throws into a `Failure`.
func failing<Result>(_ body: () throws(ClientError) -> Result) throws(Failure) -> Result {
    do throws(ClientError) {
        return try body()
    } catch {
        throw Failure(error)
    }
}
