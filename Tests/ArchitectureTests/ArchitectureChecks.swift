// The checks themselves, as functions from text to complaints, so that they can be tested too.

enum ArchitectureChecks {
    static let linesMax = 800

    /// Everything wrong with one file of `target`. `dependencies` are those of Package.swift.
    static func complaints(
        about text: String, path: String, target: String, dependencies: [String]
    ) -> [String] {
        let source = SourceText(text)
        var found = imports(of: source, target: target, dependencies: dependencies)
        if LayerTable.isCore(target) { found += forbiddenConstructs(in: source) }
        found += style(of: source)
        return found.map { "\(path):\($0)" }
    }

    private static func imports(
        of source: SourceText, target: String, dependencies: [String]
    ) -> [String] {
        let isTest = target.hasSuffix("Tests")
        let isBelowParts =
            target == "KVBase" || LayerTable.isCore(target) || target == LayerTable.simulationKit
        return source.imports.compactMap { module, line in
            if let owner = LayerTable.ownerOfCModule[module] {
                return owner == target ? nil : "\(line): only \(owner) may import \(module)"
            }
            if LayerTable.foundationModules.contains(module) {
                return isTest || LayerTable.foundationUsers.contains(target)
                    ? nil : "\(line): \(target) must do without \(module)"
            }
            if module == "Testing" {
                return isTest ? nil : "\(line): Testing belongs to tests"
            }
            if LayerTable.systemModules.contains(module) {
                return isBelowParts && !isTest
                    ? "\(line): \(target) is pure and must do without \(module)" : nil
            }
            guard
                LayerTable.layerIndex(of: module) != nil
                    || [LayerTable.simulationKit, LayerTable.testKit].contains(module)
            else { return "\(line): unknown module \(module)" }
            guard LayerTable.allows(target, toUse: module) else {
                return "\(line): the layers do not let \(target) import \(module)"
            }
            return dependencies.contains(module)
                ? nil : "\(line): \(module) is not a dependency of \(target) in Package.swift"
        }
    }

    private static func forbiddenConstructs(in source: SourceText) -> [String] {
        LayerTable.forbiddenInCores.flatMap { word, why in
            source.lines(containing: word).map { "\($0): \(word) in a core: \(why)" }
        }
    }

    private static func style(of source: SourceText) -> [String] {
        var found: [String] = []
        if source.lines.count > linesMax {
            found.append("\(source.lines.count): longer than \(linesMax) lines")
        }
        // Put together, so that this file may be checked as well.
        for word in ["TO" + "DO", "FIX" + "ME", "XX" + "X"] {
            for (index, line) in source.lines.enumerated()
            where SourceText.contains(line, word) {
                found.append("\(index + 1): \(word): finish it, or write it down as an issue")
            }
        }
        return found
    }

    /// The targets that Package.swift declares by `library`, `program` and `tests`, and the
    /// simulator, with their dependencies.
    static func targets(inManifest manifest: String) -> [String: [String]] {
        var targets: [String: [String]] = [:]
        let declaration = /\b(?:library|program|tests)\(\s*"(\w+)"\s*(?:,\s*\[([^\]]*)\])?/
        for match in manifest.matches(of: declaration) {
            targets[String(match.1)] = names(in: match.2 ?? "")
        }
        let plain = /name: "(\w+)",\s*dependencies: \[([^\]]*)\],\s*path:/
        for match in manifest.matches(of: plain) {
            targets[String(match.1)] = names(in: match.2)
        }
        return targets
    }

    private static func names(in list: Substring) -> [String] {
        list.matches(of: /"(\w+)"/).map { String($0.1) }
    }

    /// Dependencies in Package.swift that the layers forbid.
    static func complaints(aboutManifest targets: [String: [String]]) -> [String] {
        targets.sorted { $0.key < $1.key }.flatMap { target, dependencies in
            dependencies.compactMap { module -> String? in
                if let owner = LayerTable.ownerOfCModule[module] {
                    return owner == target
                        ? nil : "Package.swift: only \(owner) may depend on \(module)"
                }
                return LayerTable.allows(target, toUse: module)
                    ? nil : "Package.swift: the layers do not let \(target) depend on \(module)"
            }
        }
    }
}
