// kvsim: runs the replication core through seeded simulations until one breaks an invariant, and
// measures what one machine cannot run.

import Glibc
import SimulationKit

let usage = """
    usage: kvsim [--seeds N] [--seed S] [--replicas 3|5] [--seconds T] [--canary NAME] [--verbose]
           kvsim map [--shards N] [--key-bytes N] [--tables N] [--lookups N]
           kvsim controller [--groups N] [--nodes N] [--spares N] [--shards N] [--failures N]
           kvsim metadata [--into DIR --peers NAME=HOST:PORT,...] [--backup DIR] [--holdings DIR]
                          [--groups N] [--nodes N] [--spares N] [--shards N] [--node-port N]

    Simulates a replication group under faults, one run per seed, and checks every invariant after
    every event. Stops at the first run that fails and prints the command that repeats it.

      --seeds N      how many seeds to run, from --seed on (default 100)
      --seed S       the first seed (default 1); alone, runs only this one
      --replicas N   voters at the start, 3 or 5 (default: drawn from the seed)
      --seconds T    simulated seconds with faults per seed (default 20)
      --canary NAME  break the driver on purpose: lyingDisk, forgottenPromise or wildClocks
      --verbose      one line per seed
      --help         this text

    kvsim map measures the cluster map as a router holds it: memory per shard, time per look-up,
    time per split, move and merge (default: 1000000 shards of one table, keys of 16 bytes).

    kvsim controller drives the real controller with simulated nodes and a store in memory, and
    measures its steps: heartbeats, ticks, tables, a take-over, nodes that die at once (default: 1000
    groups on 600 nodes with 150 spares, 200000 shards, 100 nodes die).

    kvsim metadata writes the metadata of a cluster of simulated nodes (default: 1000000 shards, else as
    kvsim controller), for measurements with real processes: as the data directory of the first of
    the controllers that --peers names, as a backup, and as the answers of its nodes, one file named by
    the port of each (127.0.0.1, from --node-port on).

    Exit status: 0 all runs held, 1 a run failed, 2 wrong usage.
    """

struct Arguments {
    var seeds: UInt64?
    var seed: UInt64?
    var replicas: Int?
    var seconds: UInt64 = 20
    var canary: Canary?
    var isVerbose = false
}

func refuse(_ problem: String) -> Never {
    let text = "kvsim: \(problem)\n\(usage)\n"
    _ = text.utf8.withContiguousStorageIfAvailable { write(2, $0.baseAddress, $0.count) }
    exit(2)
}

func parse(_ words: [String]) -> Arguments {
    var arguments = Arguments()
    var rest = words[...]
    while let flag = rest.popFirst() {
        func value() -> String {
            guard let word = rest.popFirst() else { refuse("\(flag) needs a value") }
            return word
        }
        func number(in range: ClosedRange<UInt64>) -> UInt64 {
            let word = value()
            guard let number = UInt64(word), range.contains(number) else {
                refuse("\(flag) takes a number from \(range.lowerBound) to \(range.upperBound)")
            }
            return number
        }
        switch flag {
        case "--seeds": arguments.seeds = number(in: 1...1_000_000_000)
        case "--seed": arguments.seed = number(in: 0...UInt64.max / 2)
        case "--replicas":
            arguments.replicas = Int(number(in: 3...5))
            if arguments.replicas == 4 { refuse("--replicas takes 3 or 5") }
        case "--seconds": arguments.seconds = number(in: 1...100_000)
        case "--canary":
            let word = value()
            guard let canary = Canary(rawValue: word) else { refuse("no canary named \(word)") }
            arguments.canary = canary
        case "--verbose": arguments.isVerbose = true
        case "--help":
            print(usage)
            exit(0)
        default: refuse("unknown option \(flag)")
        }
    }
    return arguments
}

func cpuSeconds() -> Double {
    var time = timespec()
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time)
    return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

func describe(_ report: SimulationReport) -> String {
    "\(report.failure ?? "ok"), digest \(String(report.digest, radix: 16)),"
        + " \(report.events) events, \(report.committed) committed,"
        + " \(report.acknowledgedWrites) acknowledged, \(report.leaseReads) lease reads,"
        + " \(report.quorumReads) quorum reads, \(report.leaderships) leaderships,"
        + " \(report.crashes) crashes, \(report.snapshots) snapshots,"
        + " \(report.membershipChanges) membership changes, \(report.transfers) transfers"
}

func runAll(_ arguments: Arguments) -> Int32 {
    let first = arguments.seed ?? 1
    let count = arguments.seeds ?? (arguments.seed == nil ? 100 : 1)
    let isTerminal = isatty(1) == 1
    let start = cpuSeconds()
    var simulated = 0.0
    var writes = 0
    for done in 0..<count {
        let seed = first + done
        let options = SimulationOptions(
            seed: seed, replicas: arguments.replicas, seconds: arguments.seconds,
            canary: arguments.canary)
        if arguments.isVerbose {
            // Before the run, so that even a trap leaves the seed on the screen.
            print("seed \(seed)", terminator: ": ")
            fflush(nil)
        }
        let report = Simulation.run(options)
        simulated += Double(report.simulatedNanoseconds) / 1e9
        writes += report.acknowledgedWrites
        if arguments.isVerbose { print(describe(report)) }
        if let failure = report.failure {
            print("\(isTerminal ? "\r" : "")seed \(seed) failed \(failure)")
            print("repeat with: \(report.repeatCommand)")
            return 1
        }
        if isTerminal, !arguments.isVerbose, done % 10 == 9 {
            print("\r\(done + 1) of \(count) seeds", terminator: "")
            fflush(nil)
        }
    }
    let elapsed = max(cpuSeconds() - start, 0.001)
    print(
        "\(isTerminal ? "\r" : "")\(count) seeds held: \(tenths(Double(count) / elapsed)) seeds/s,"
            + " \(tenths(simulated / elapsed)) simulated seconds per CPU second,"
            + " \(writes) acknowledged writes")
    return 0
}

let words = CommandLine.arguments.dropFirst()
switch words.first {
case "controller": ControllerMeasurement(words.dropFirst()).run()
case "metadata": MetadataMaker(words.dropFirst()).run()
case "map": MapMeasurement(words.dropFirst()).run()
default: exit(runAll(parse(Array(words))))
}
