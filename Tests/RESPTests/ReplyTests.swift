import KVBase
import RESP
import Testing

private func parse(_ parts: [ArraySlice<UInt8>]) -> [String] {
    var parser = ReplyParser(bulkBytesMax: 1_000, elementsMax: 100)
    var seen: [String] = []
    do throws(DatabaseError) {
        for part in parts {
            let bytes = Array(part)
            bytes.withUnsafeBytes { parser.append($0) }
            while let reply = try parser.next() { seen.append("\(reply)") }
        }
    } catch {
        seen.append("!\(error.code)")
    }
    return seen
}

private func replies(_ bytes: Bytes) throws -> [RESPReply] {
    var parser = ReplyParser()
    bytes.withUnsafeBytes { parser.append($0) }
    var out: [RESPReply] = []
    while let reply = try parser.next() { out.append(reply) }
    return out
}

@Suite struct ReplyTests {
    private func writeEverything(_ version: RESPVersion) -> Bytes {
        var writer = RESPWriter(version: version)
        writer.ok()
        writer.simple("PONG")
        writer.simple("two\r\nlines" as String)
        writer.error("ERR", "bad\nthing")
        for value in [0, 9, 10, -1, Int64.max, Int64.min] { writer.integer(value) }
        writer.bulk("text")
        writer.bulk([0, 13, 10, 255])
        writer.bulk([])
        writer.null()
        writer.boolean(true)
        writer.double(1.5)
        writer.array(count: 2)
        writer.integer(1)
        writer.array(count: 0)
        writer.map(pairs: 1)
        writer.bulk("k")
        writer.bulk("v")
        writer.set(count: 1)
        writer.bulk("m")
        writer.push(count: 1)
        writer.bulk("p")
        let count = writer.count
        let bytes = writer.take()
        #expect(bytes.count == count && writer.isEmpty)
        return bytes
    }

    private let common: [RESPReply] = [
        .simple("OK"), .simple("PONG"), .simple("two  lines"), .error("ERR bad thing"),
        .integer(0), .integer(9), .integer(10), .integer(-1), .integer(.max), .integer(.min),
        .bulk(Array("text".utf8)), .bulk([0, 13, 10, 255]), .bulk([]), .null,
    ]

    @Test func clientReadsWhatTheServerWritesInVersion2() throws {
        let expected =
            common + [
                .integer(1), .bulk(Array("1.5".utf8)), .array([.integer(1), .array([])]),
                .array([.bulk([0x6B]), .bulk([0x76])]), .array([.bulk([0x6D])]),
                .array([.bulk([0x70])]),
            ]
        #expect(try replies(writeEverything(.two)) == expected)
    }

    @Test func clientReadsWhatTheServerWritesInVersion3() throws {
        let expected =
            common + [
                .boolean(true), .double(1.5), .array([.integer(1), .array([])]),
                .map([.bulk([0x6B]), .bulk([0x76])]), .array([.bulk([0x6D])]),
                .push([.bulk([0x70])]),
            ]
        #expect(try replies(writeEverything(.three)) == expected)
    }

    @Test(arguments: [RESPVersion.two, .three])
    func everySplitMeansTheSame(version: RESPVersion) {
        let bytes = writeEverything(version)
        let whole = parse([bytes[...]])
        #expect(whole.last?.hasPrefix("!") == false)
        for split in 0...bytes.count {
            #expect(parse([bytes[..<split], bytes[split...]]) == whole, "split at \(split)")
        }
        #expect(parse(bytes.indices.map { bytes[$0...$0] }) == whole)
    }

    @Test func lesserTypesParse() throws {
        let text =
            "=7\r\ntxt:abc\r\n(12345678901234567890\r\n,inf\r\n|1\r\n+a\r\n+b\r\n:5\r\n*-1\r\n$-1\r\n"
        let expected: [RESPReply] = [
            .bulk(Array("abc".utf8)), .bigNumber("12345678901234567890"), .double(.infinity),
            .integer(5), .null, .null,
        ]
        #expect(try replies(Array(text.utf8)) == expected)
    }

    @Test(arguments: [
        "?\r\n", "+OK\n", ":\r\n", ":1x\r\n", "$-2\r\n", "$1001\r\n", "$1\r\nabc", "*101\r\n",
        "*x\r\n", "#x\r\n", ",x\r\n", "\n", "_x\r\n", String(repeating: "*1\r\n", count: 40),
        String(repeating: "x", count: 70_000),
    ])
    func malformedRepliesAreErrors(text: String) {
        #expect(parse([Array(text.utf8)[...]]) == ["!malformed"])
    }

    @Test(arguments: 1...10)
    func noiseNeverCrashes(seed: Int) {
        var random = SeededRandom(seed: UInt64(seed))
        let alphabet = Array("*$:+-_#%~>|,(=0123456789\r\n\r\ntf".utf8)
        var errors = 0
        for round in 0..<500 {
            let bytes = (0..<Int(random.below(80))).map { _ in
                alphabet[Int(random.below(UInt64(alphabet.count)))]
            }
            let whole = parse([bytes[...]])
            let cut = parse(bytes.indices.map { bytes[$0...$0] })
            #expect(whole == cut, "seed \(seed) round \(round): \(bytes)")
            if whole.last?.hasPrefix("!") == true { errors += 1 }
        }
        #expect(errors > 0, "seed \(seed)")
    }
}
