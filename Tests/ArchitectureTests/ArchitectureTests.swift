import Foundation
import Testing

/// The repository that these sources lie in.
private enum Repository {
    static let root = URL(filePath: #filePath).deletingLastPathComponent()
        .deletingLastPathComponent().deletingLastPathComponent()

    static func read(_ path: String) throws -> String {
        try String(contentsOf: root.appending(path: path), encoding: .utf8)
    }

    /// The targets that have a directory, with the directory.
    static func targets() throws -> [(name: String, directory: String)] {
        try ["Sources", "Tests"].flatMap { parent in
            try FileManager.default.contentsOfDirectory(atPath: root.appending(path: parent).path)
                .filter { $0 != "C" && !$0.hasPrefix(".") && $0 != "integration" }
                .map { ($0, "\(parent)/\($0)") }
        }
    }

    /// The Swift files below a directory.
    static func swiftFiles(below directory: String) -> [String] {
        let base = root.appending(path: directory).path
        let names = FileManager.default.enumerator(atPath: base)?.compactMap { $0 as? String } ?? []
        return names.filter { $0.hasSuffix(".swift") }.sorted().map { "\(directory)/\($0)" }
    }
}

@Suite struct ArchitectureTests {
    @Test func manifestObeysTheLayers() throws {
        let targets = ArchitectureChecks.targets(inManifest: try Repository.read("Package.swift"))
        #expect(targets.count > 30, "the manifest is read")
        #expect(targets["EventLoop"] == ["KVBase", "Threads", "CUV"])
        #expect(ArchitectureChecks.complaints(aboutManifest: targets) == [])
    }

    @Test func everyTargetIsDeclaredAndPlaced() throws {
        let declared = ArchitectureChecks.targets(inManifest: try Repository.read("Package.swift"))
        for (name, directory) in try Repository.targets() {
            #expect(declared[name] != nil, "\(directory) is not a target of Package.swift")
            if directory.hasPrefix("Sources/") {
                #expect(LayerTable.layerIndex(of: name) != nil, "\(name) is in no layer")
            }
        }
    }

    @Test func sourcesObeyTheLayersAndTheStyle() throws {
        let declared = ArchitectureChecks.targets(inManifest: try Repository.read("Package.swift"))
        var files = 0
        var complaints: [String] = []
        for (name, directory) in try Repository.targets() {
            for path in Repository.swiftFiles(below: directory) {
                files += 1
                complaints += ArchitectureChecks.complaints(
                    about: try Repository.read(path), path: path, target: name,
                    dependencies: declared[name] ?? [])
            }
        }
        #expect(files > 50, "the sources are read")
        #expect(complaints == [], "\(complaints.joined(separator: "\n"))")
    }

    @Test func everyCModuleHasItsOneImporter() throws {
        let modules = try FileManager.default.contentsOfDirectory(
            atPath: Repository.root.appending(path: "Sources/C").path)
        #expect(Set(modules) == Set(LayerTable.ownerOfCModule.keys))
        // Headers of two libraries in one target need not agree; source of this repository does.
        let libraries = modules.filter { name in
            let map = Repository.root.appending(path: "Sources/C/\(name)/module.modulemap").path
            return FileManager.default.fileExists(atPath: map)
        }
        let owners = libraries.compactMap { LayerTable.ownerOfCModule[$0] }
        #expect(owners.count > 5 && Set(owners).count == owners.count)
    }
}

/// The canary: a checker that finds nothing in bad sources proves nothing about good ones.
@Suite struct ArchitectureCheckTests {
    private func complaints(_ text: String, target: String, dependencies: [String] = ["KVBase"])
        -> [String]
    {
        ArchitectureChecks.complaints(
            about: text, path: "f", target: target, dependencies: dependencies)
    }

    @Test(arguments: [
        ("import CUV", "RPC", "f:1: only EventLoop may import CUV"),
        ("\nimport Foundation", "EventLoop", "f:2: EventLoop must do without Foundation"),
        ("import Glibc", "NodeCore", "f:1: NodeCore is pure and must do without Glibc"),
        ("import Dispatch", "EventLoop", "f:1: unknown module Dispatch"),
        ("import RESP", "ShardCore", "f:1: the layers do not let ShardCore import RESP"),
        ("import NodeCore", "ShardCore", "f:1: the layers do not let ShardCore import NodeCore"),
        ("@testable import RPC", "RESP", "f:1: the layers do not let RESP import RPC"),
        ("import struct RPC.Frame", "RESP", "f:1: the layers do not let RESP import RPC"),
        (
            "import Checksum", "WireProtocol",
            "f:1: Checksum is not a dependency of WireProtocol in Package.swift"
        ),
        ("import Testing", "KVBase", "f:1: Testing belongs to tests"),
        (
            "let x: Double = 1", "ShardCore",
            "f:1: Double in a core: floating point rounds differently"
        ),
        ("func f() async {}", "NodeCore", "f:1: async in a core: cores do not wait"),
        (
            "let a = Int.random(in: 0..<2)", "RouterCore",
            "f:1: random in a core: randomness is a seeded generator that is passed in"
        ),
        ("/* a\n */ let d = Date()", "RouterCore", "f:2: Date in a core: time is an argument"),
        (
            "let s = \"\\(\"x\")\"; let d = Date()", "RouterCore",
            "f:1: Date in a core: time is an argument"
        ),
    ])
    func plantedViolationsAreFound(text: String, target: String, expected: String) {
        #expect(complaints(text, target: target) == [expected])
    }

    @Test(arguments: [
        ("import KVBase", "NodeCore"), ("import Synchronization", "EventLoop"),
        ("// uses Double and Date()", "NodeCore"), ("let s = \"Date Double\"", "NodeCore"),
        ("/* async /* await */ actor */ let x = 1", "NodeCore"),
        ("let s = \"\"\"\n  Task {\n  \"\"\"", "NodeCore"), ("let updatedDates = 1", "NodeCore"),
        ("import Foundation", "kvctl"), ("import Foundation", "RPCTests"),
    ])
    func harmlessSourcesPass(text: String, target: String) {
        #expect(complaints(text, target: target) == [])
    }

    @Test func longFilesAndLooseEndsAreFound() {
        let long = String(repeating: "\n", count: ArchitectureChecks.linesMax)
        #expect(complaints(long, target: "RPC") == ["f:801: longer than 800 lines"])
        #expect(complaints("// TO" + "DO later", target: "RPC").count == 1)
    }

    @Test func forbiddenDependenciesAreFound() {
        let manifest = """
            library("ShardCore", ["KVBase", "EventLoop"]),
            library("RPC", ["KVBase", "CUV"]),
            .target(
                name: "SimulationKit", dependencies: ["RESP"], path: "x"),
            """
        let targets = ArchitectureChecks.targets(inManifest: manifest)
        #expect(
            ArchitectureChecks.complaints(aboutManifest: targets) == [
                "Package.swift: only EventLoop may depend on CUV",
                "Package.swift: the layers do not let ShardCore depend on EventLoop",
                "Package.swift: the layers do not let SimulationKit depend on RESP",
            ])
    }
}
