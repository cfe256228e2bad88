// What goes to etcd and what comes back: JSON, base64, keys and values. No etcd is needed.

import KVBase
import Testing

@testable import EtcdMetadata

@Suite struct EtcdCodecTests {
    @Test func base64GoesBothWays() {
        // RFC 4648, section 10.
        let vectors = [
            ("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="), ("foobar", "Zm9vYmFy"),
        ]
        for (plain, coded) in vectors {
            var text: Bytes = []
            Base64.append(Bytes(plain.utf8), to: &text)
            #expect(text == Bytes(coded.utf8))
            #expect(Base64.decode(text) == Bytes(plain.utf8))
        }
        for broken in ["Z", "Zg=", "Zg=a", "Z===", "Zm9v!mFy", "Zg==Zg=="] {
            #expect(Base64.decode(Bytes(broken.utf8)) == nil, "\(broken)")
        }
        let all = Bytes(0...255)
        var text: Bytes = []
        Base64.append(all, to: &text)
        #expect(Base64.decode(text) == all)
    }

    @Test func readsWhatEtcdAnswers() throws {
        let json = try JSONTree(
            parsing: Bytes(
                #"""
                {"header":{"cluster_id":"6012025715201963436","revision":"4"},"succeeded":true,
                 "responses":[{"response_range":{"kvs":[{"key":"YQ==","mod_revision":"3",
                 "create_revision":"2","value":"Mg==","lease":"7"}]}},{"response_put":{}}]}
                """#.utf8))
        let answer = try EtcdTransactionAnswer(json)
        #expect(answer.succeeded)
        #expect(answer.header.cluster == 6_012_025_715_201_963_436)
        #expect(answer.records.map(\.count) == [1, 0])
        #expect(answer.records[0][0].key == Bytes("a".utf8))
        #expect(answer.records[0][0].lease == 7)
        let texts = try JSONTree(parsing: Bytes(#"["\u00e9\n\ud83d\ude00\\\"", -1.5e3]"#.utf8))
        #expect(texts.elements.first?.string == "é\n😀\\\"")
        let ended = try EtcdWatchMessage(
            try JSONTree(
                parsing: Bytes(
                    #"{"result":{"header":{"cluster_id":"1"},"canceled":true,"compact_revision":"3"}}"#
                        .utf8)))
        guard case .compacted(oldest: 3) = ended else {
            Issue.record("\(ended)")
            return
        }
    }

    @Test(arguments: 0..<20)
    func brokenJSONIsRefused(seed: UInt64) {
        var random = SeededRandom(seed: seed)
        let whole = Bytes(
            #"{"a":[1,true,null,{"b":"c\u0041\n"}],"d":{"e":"","f":[[],{}]},"g":false}"#.utf8)
        #expect(throws: Never.self) { _ = try JSONTree(parsing: whole) }
        for end in 0..<whole.count {
            #expect(throws: DatabaseError.self) { _ = try JSONTree(parsing: Bytes(whole[..<end])) }
        }
        for _ in 0..<500 {
            var bytes = whole
            for _ in 0...random.below(3) {
                bytes[Int(random.below(UInt64(bytes.count)))] = UInt8(random.below(256))
            }
            // Either is right; what counts is that neither traps.
            _ = try? JSONTree(parsing: bytes)
        }
        let deep = Bytes(repeating: UInt8(ascii: "["), count: 100_000)
        #expect(throws: DatabaseError.self) { _ = try JSONTree(parsing: deep) }
    }

    @Test func keysAreFoundBack() {
        let layout = EtcdLayout(prefix: "a/b")
        #expect(layout == EtcdLayout(prefix: "a/b/"))
        let places: [(Bytes, EtcdLayout.Place)] = [
            (layout.head, .head), (layout.election, .election),
            (layout.data(Bytes(0...255)), .data(Bytes(0...255))), (layout.data([]), .data([])),
            (layout.lease(LeaseID(.max)), .lease(LeaseID(.max))),
            (layout.alive(LeaseID(1)), .alive(LeaseID(1))),
            (layout.controller("c-1"), .controller("c-1")),
            (
                layout.part(writer: .max, sequence: 3, index: 70_000),
                .part(writer: .max, sequence: 3, index: 70_000)
            ),
            (layout.prefix + Bytes("else".utf8), .foreign),
            (layout.part + Bytes(repeating: 1, count: 42), .foreign),
            (layout.lease + Bytes("12".utf8), .foreign),
        ]
        for (key, place) in places { #expect(layout.place(of: key) == place) }
        #expect(EtcdRequest.end(of: Bytes("a/".utf8)) == Bytes("a0".utf8))
        #expect(EtcdRequest.end(of: [1, 255, 255]) == [2])
        #expect(EtcdRequest.end(of: [255]) == [0])
    }

    @Test func headsAndValuesAreFoundBack() throws {
        var head = EtcdHead()
        (head.sequence, head.writer) = (9, .max)
        (head.revision, head.leaseHighest) = (Revision(7), LeaseID(2))
        #expect(try EtcdHead(head.encode()) == head)
        head.staged = EtcdHead.Staged(count: 5, next: 2)
        #expect(try EtcdHead(head.encode()) == head)
        let bytes = head.encode()
        for end in 0..<bytes.count {
            #expect(throws: DatabaseError.self) { _ = try EtcdHead(Bytes(bytes[..<end])) }
        }
        #expect(throws: DatabaseError.self) { _ = try EtcdHead(EtcdHead.Mark.moved(nil).encode()) }
        let record = MetadataRecord(
            key: [1], value: [], createRevision: Revision(3), modRevision: Revision(4),
            lease: LeaseID(5))
        #expect(try EtcdValue.decode(EtcdValue.encode(record), key: [1]) == record)
    }

    @Test func largeTransactionsAreCutWithinEtcdsLimits() throws {
        let changes = (0..<1_000).map { number in
            MetadataChange.put(
                key: Bytes("k\(number)".utf8), value: Bytes(repeating: 0, count: number * 90),
                lease: .none)
        }
        let parts = EtcdPart.cut(changes)
        #expect(parts.flatMap { $0 } == changes)
        for part in parts {
            #expect(part.count <= EtcdPart.changesMax)
            #expect(part.map(EtcdPart.byteCount).reduce(0, +) <= EtcdPart.bytesMax)
            #expect(EtcdPart.encode(part).count < 1_572_864 - 4_096)
            #expect(try EtcdPart.decode(EtcdPart.encode(part)) == part)
        }
    }

    /// Every key once, in order, and etcd looks at few keys that the page does not hold.
    @Test(arguments: 1...20 as ClosedRange<UInt64>)
    func windowsCoverEveryKeyOnce(_ seed: UInt64) {
        var random = SeededRandom(seed: seed)
        let prefix = Bytes("r/data/".utf8)
        var keys: Set<Bytes> = []
        for name in ["audit/", "node/", "shard/", "z/with a long name that goes on/"] {
            // Ids side by side, or spread.
            let isSpread = random.below(2) == 0
            let step = 1 + random.below(isSpread ? 1 << 20 : 2)
            let count = random.below(name == "shard/" ? 5_000 : 300)
            for id in 0..<count {
                let number = UInt32(truncatingIfNeeded: id * step)
                keys.insert(
                    prefix + Bytes(name.utf8) + withUnsafeBytes(of: number.bigEndian) { Bytes($0) })
            }
        }
        keys.insert(prefix)
        keys.insert(prefix + Bytes(repeating: 255, count: 40))
        let sorted = keys.sorted { compareBytes($0, $1) < 0 }
        var window = EtcdWindow(prefix: prefix)
        var seen: [Bytes] = []
        var walked = 0
        var calls = 0
        let limit = 100
        while let (from, end) = window.range {
            let inside = sorted.filter { compareBytes($0, from) >= 0 && compareBytes($0, end) < 0 }
            let page = Array(inside.prefix(limit))
            walked += inside.count
            calls += 1
            seen += page
            window.advance(page, hasMore: inside.count > limit, limit: limit)
            guard calls < 10_000 else { break }
        }
        #expect(seen == sorted, "seed \(seed)")
        #expect(walked < 20 * sorted.count + 1_000, "seed \(seed): \(walked) of \(sorted.count)")
        #expect(calls < sorted.count / 10 + 400, "seed \(seed): \(calls) pages")
    }
}
