import KVBase
import RESP
import Testing

/// What a reader made of a stream: one line per command, `!` and the message for an error.
private func parse(
    _ parts: [ArraySlice<UInt8>], limits: CommandLimits = CommandLimits(),
    stopAfterEach: Bool = false
) -> [String] {
    var reader = CommandReader(limits: limits)
    var seen: [String] = []
    let handle: (ClientCommand) -> Bool = { command in
        switch command {
        case .command(let command):
            let words = (0..<command.count).map { "<\(command.text($0))>" }
            seen.append(words.joined())
        case .oversized(let command):
            seen.append(
                "oversized \(command.argumentIndex) of \(command.argumentCount):"
                    + " \(command.argumentBytes)")
        }
        return !stopAfterEach
    }
    do throws(DatabaseError) {
        for part in parts {
            // A copy of its own, so that reading past the part's end is caught by the sanitizer.
            let bytes = Array(part)
            let outcome: Result<Void, DatabaseError> = bytes.withUnsafeBytes { raw in
                Result { () throws(DatabaseError) in
                    try reader.receive(raw, handle)
                    var before = -1
                    while stopAfterEach, reader.bufferedBytes != before {
                        before = reader.bufferedBytes
                        try reader.resume(handle)
                    }
                }
            }
            try outcome.get()
        }
    } catch {
        seen.append("!\(error.message)")
    }
    return seen
}

private func parse(_ text: String, limits: CommandLimits = CommandLimits()) -> [String] {
    parse([ArraySlice(text.utf8)], limits: limits)
}

private var small: CommandLimits {
    var limits = CommandLimits()
    limits.argumentsMax = 8
    limits.argumentBytesMax = 10
    limits.skippedArgumentBytesMax = 100
    limits.commandBytesMax = 60
    limits.skippedCommandBytesMax = 200
    limits.inlineBytesMax = 50
    return limits
}

@Suite struct CommandReaderTests {
    static let valid: [(String, [String])] = [
        ("*1\r\n$4\r\nPING\r\n", ["<PING>"]),
        ("*3\r\n$4\r\nHGET\r\n$1\r\nt\r\n$0\r\n\r\n", ["<HGET><t><>"]),
        (
            "*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n*1\r\n$4\r\nPING\r\nPING\r\n",
            ["<GET><a\r\nb>", "<PING>", "<PING>"]
        ),
        ("PING\n", ["<PING>"]),
        ("  SET  a\t b \r\n", ["<SET><a><b>"]),
        ("SET \"a b\\x41\\n\" 'c\\'d'\r\n", ["<SET><a bA\n><c'd>"]),
        ("\"\"\r\n", ["<>"]),
        ("\r\n\n   \r\n*0\r\n*-1\r\nPING\r\n", ["<PING>"]),
    ]

    @Test(arguments: valid)
    func parsesWhole(text: String, expected: [String]) {
        #expect(parse(text) == expected)
    }

    @Test(arguments: valid)
    func parsesAtEverySplit(text: String, expected: [String]) {
        let bytes = Array(text.utf8)
        for first in 0...bytes.count {
            #expect(parse([bytes[..<first], bytes[first...]]) == expected, "split at \(first)")
            for second in first...bytes.count {
                let parts = [bytes[..<first], bytes[first..<second], bytes[second...]]
                #expect(parse(parts) == expected, "split at \(first) and \(second)")
            }
        }
        let single = bytes.indices.map { bytes[$0...$0] }
        #expect(parse(single) == expected, "byte by byte")
        #expect(parse(single, stopAfterEach: true) == expected, "byte by byte, pausing")
        #expect(parse([bytes[...]], stopAfterEach: true) == expected, "pausing")
    }

    @Test(arguments: [
        "*a\r\n", "*\r\n", "*1 \r\n", "*+1\r\n", "*9\r\n", "*99999999999999999999\r\n",
        "*1\n", "*1\r\n:1\r\n", "*1\r\n$-1\r\n", "*1\r\n$a\r\n", "*1\r\n$101\r\n",
        "*1\r\n$9223372036854775807\r\n", "*1\r\n$-9223372036854775808\r\n", "*1\r\n$1\r\nabc",
        "*1\r\n$1\r\na\rb", "*1\r\n\r\n", "*" + String(repeating: "1", count: 80),
        "SET \"a\r\n", "SET 'a\r\n", "SET \"a\"b\r\n", String(repeating: "x", count: 50),
    ])
    func refusesMalformed(text: String) {
        let seen = parse(text, limits: small)
        #expect(seen.count == 1)
        #expect(seen.first?.hasPrefix("!Protocol error") == true, "\(seen)")
        let bytes = Array(text.utf8)
        let single = parse(bytes.indices.map { bytes[$0...$0] }, limits: small)
        #expect(single == seen, "the same byte by byte")
        #expect(parse([bytes[...], Array("PING\r\n".utf8)[...]], limits: small) == seen)
    }

    @Test func oversizedArgumentIsSkippedAndReported() {
        let long = String(repeating: "v", count: 11)
        let text = "*3\r\n$3\r\nSET\r\n$11\r\n\(long)\r\n$2\r\nab\r\n*1\r\n$4\r\nPING\r\n"
        let expected = ["oversized 1 of 3: 11", "<PING>"]
        let bytes = Array(text.utf8)
        for split in 0...bytes.count {
            #expect(
                parse([bytes[..<split], bytes[split...]], limits: small) == expected,
                "split at \(split)")
        }
    }

    @Test func commandOverItsTotalIsSkippedUpToABound() {
        let argument = "$9\r\n123456789\r\n"
        let five = "*5\r\n" + String(repeating: argument, count: 5) + "PING\r\n"
        #expect(parse(five, limits: small) == ["oversized 3 of 5: 9", "<PING>"])
        let huge =
            "*5\r\n"
            + String(repeating: "$90\r\n\(String(repeating: "x", count: 90))\r\n", count: 5)
        #expect(parse(huge, limits: small).first?.hasPrefix("!Protocol error") == true)
    }

    @Test func skippingHoldsNoMemory() throws {
        var reader = CommandReader()
        let size = 32 << 20
        let head = Array("*2\r\n$3\r\nSET\r\n$\(size)\r\n".utf8)
        var reports = 0
        func feed(_ bytes: [UInt8]) throws(DatabaseError) {
            let outcome = bytes.withUnsafeBytes { raw in
                Result { () throws(DatabaseError) in
                    try reader.receive(raw) { command in
                        if case .oversized = command { reports += 1 }
                        return true
                    }
                }
            }
            try outcome.get()
        }
        try feed(head)
        let part = Array(repeating: UInt8(1), count: 64 << 10)
        for _ in 0..<(size / part.count) {
            try feed(part)
            #expect(reader.bufferedBytes == 0)
        }
        #expect(reports == 0)
        try feed([0x0D, 0x0A])
        #expect(reports == 1)
        #expect(reader.bufferedBytes == 0)
    }

    @Test func largestRecordFitsAndOneByteMoreStillReachesTheCaller() {
        for size in [Limits.valueBytesMax, Limits.valueBytesMax + 1] {
            let value = String(repeating: "v", count: size)
            let seen = parse("*2\r\n$3\r\nSET\r\n$\(size)\r\n\(value)\r\n")
            #expect(seen == ["<SET><\(value)>"])
        }
    }

    @Test func wordsCompareWithoutCase() {
        var matches: [Bool] = []
        var number: Int64?
        var reader = CommandReader()
        Array("hGet T -42\r\n".utf8).withUnsafeBytes { raw in
            try? reader.receive(raw) { command in
                guard case .command(let command) = command else { return false }
                matches = [
                    command.argument(0, is: "HGET"), command.argument(0, is: "HSET"),
                    command.argument(0, is: "HGE"), command.argument(1, is: "T"),
                ]
                number = command.integer(2)
                return true
            }
        }
        #expect(matches == [true, false, false, true])
        #expect(number == -42)
    }
}

@Suite struct CommandFuzzTests {
    /// Random commands, encoded, cut at random places: what comes out is what went in.
    @Test(arguments: 1...20)
    func randomCommandsSurviveRandomCuts(seed: Int) {
        var random = SeededRandom(seed: UInt64(seed))
        var encoded: Bytes = []
        var expected: [String] = []
        for _ in 0..<200 {
            let arguments = (0..<Int(random.below(6) + 1)).map { _ in
                (0..<Int(random.below(40))).map { _ in UInt8(random.below(128)) }
            }
            CommandEncoder.append(arguments, to: &encoded)
            expected.append(
                arguments.map { "<\(String(decoding: $0, as: UTF8.self))>" }.joined())
        }
        var parts: [ArraySlice<UInt8>] = []
        var rest = encoded[...]
        while !rest.isEmpty {
            let count = min(rest.count, Int(random.below(60)) + 1)
            parts.append(rest.prefix(count))
            rest = rest.dropFirst(count)
        }
        #expect(parse(parts, stopAfterEach: random.chance(1, in: 2)) == expected, "seed \(seed)")
    }

    /// Damaged streams never crash, and split or whole they mean the same.
    @Test(arguments: 1...20)
    func damagedStreamsMeanTheSameHoweverCut(seed: Int) {
        var random = SeededRandom(seed: UInt64(seed) &* 7919)
        let alphabet = Array("*$0123456789\r\n-+:abc\"' \\x".utf8)
        var errors = 0
        for round in 0..<300 {
            var bytes: Bytes = []
            if random.chance(1, in: 2) {
                for _ in 0..<3 { bytes += CommandEncoder.encode("HSET", "table", "key", "value") }
                for _ in 0...random.below(3) {
                    let index = Int(random.below(UInt64(bytes.count)))
                    bytes[index] = alphabet[Int(random.below(UInt64(alphabet.count)))]
                }
            } else {
                bytes = (0..<Int(random.below(120))).map { _ in
                    alphabet[Int(random.below(UInt64(alphabet.count)))]
                }
            }
            let whole = parse([bytes[...]], limits: small)
            let cut = parse(bytes.indices.map { bytes[$0...$0] }, limits: small)
            #expect(whole == cut, "seed \(seed) round \(round): \(bytes)")
            if whole.last?.hasPrefix("!") == true { errors += 1 }
        }
        // The canary: a fuzzer that damages nothing proves nothing.
        #expect(errors > 0, "seed \(seed)")
    }
}
