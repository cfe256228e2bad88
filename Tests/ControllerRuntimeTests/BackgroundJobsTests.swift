// Jobs off the loop, also where the system gives no thread for one.

import EventLoop
import KVBase
import Testing
import Threads

@testable import ControllerRuntime

@Suite struct BackgroundJobsTests {
    @Test func aJobWithoutAThreadFailsOnTheLoopAndTheNextOneRuns() throws {
        let loop = try EventLoop()
        let jobs = BackgroundJobs(loop) { (name, body) throws(DatabaseError) in
            guard name != "refused" else {
                throw DatabaseError(.unavailable, "thread refused: no thread is left")
            }
            return try NamedThread(name: name, body)
        }
        var ends: [Result<String, DatabaseError>] = []
        for name in ["first", "refused", "refused", "last"] {
            jobs.run(name) { () throws(DatabaseError) in
                name
            } _: { (end) in
                ends.append(end)
                if ends.count == 4 { loop.stop() }
            }
        }
        #expect(ends.isEmpty, "whoever starts a job is not called back before it goes on")
        loop.stopInTime()
        loop.run()
        jobs.close()
        let refusal = DatabaseError(.unavailable, "thread refused: no thread is left")
        #expect(
            ends == [.success("first"), .failure(refusal), .failure(refusal), .success("last")])
    }

    @Test func aJobFailsAsItsWorkDoes() throws {
        let loop = try EventLoop()
        let jobs = BackgroundJobs(loop)
        var ends: [Result<Int, DatabaseError>] = []
        jobs.run("fails") { () throws(DatabaseError) -> Int in
            throw DatabaseError(.storageFailed, "nothing there")
        } _: {
            ends.append($0)
            loop.stop()
        }
        loop.stopInTime()
        loop.run()
        jobs.close()
        #expect(ends == [.failure(DatabaseError(.storageFailed, "nothing there"))])
    }
}

extension EventLoop {
    /// A test that waits for what does not come ends all the same.
    func stopInTime() { schedule(after: .seconds(20)) { self.stop() } }
}
