// From the command line to a run and its report.

import BuildInfo
import EventLoop
import Glibc
import KVBase

enum BenchProgram {
    /// Exit codes: 0 no error occurred, 1 errors occurred or the run was cut off, 2 usage.
    static func run(_ arguments: [String]) -> Int32 {
        if arguments.contains("--help") || arguments.contains("-h") {
            print(BenchOptions.help)
            return 0
        }
        if arguments.contains("--version") {
            print("kvbench \(BuildInfo.text)")
            return 0
        }
        if arguments == ["observe"] {
            do throws(DatabaseError) {
                print(try ObservationCost.run(), terminator: "")
                return 0
            } catch {
                say("kvbench: \(error.message)")
                return 1
            }
        }
        let options: BenchOptions
        do throws(UsageError) {
            options = try BenchOptions(arguments)
        } catch {
            say("kvbench: \(error.message)\nsee: kvbench --help")
            return 2
        }
        do throws(DatabaseError) {
            let loop = try EventLoop()
            let run = BenchRun(options, loop: loop)
            run.start()
            loop.run()
            if run.counters.answered > 0 || options.isJSON {
                let report = BenchReport(options, run.counters, seconds: run.seconds)
                print(options.isJSON ? report.json : report.text)
            }
            if let reason = run.cutOff { say("kvbench: \(reason)") }
            return run.cutOff == nil && run.counters.errors.isEmpty ? 0 : 1
        } catch {
            say("kvbench: \(error.message)")
            return 1
        }
    }

    /// Writes a line for the person who watches.
    static func say(_ line: String, end: String = "\n") {
        let bytes = Array((line + end).utf8)
        _ = bytes.withUnsafeBytes { write(2, $0.baseAddress!, $0.count) }
    }
}
