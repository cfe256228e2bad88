import KVBase
import Testing

@Suite struct ByteCodingTests {
    private let sequencer = Sequencer(time: 1 << 40, counter: 2, node: NodeID(3))

    private func written() -> Bytes {
        var writer = ByteWriter()
        writer.write(UInt8(1))
        writer.write(UInt16(0x0203))
        writer.write(UInt32(0x0405_0607))
        writer.write(UInt64.max)
        writer.write(true)
        writer.write(GroupID(9))
        writer.write(sequencer)
        writer.write("text ü")
        writer.write([1, 2] as Bytes)
        writer.write(nil as Bytes?)
        writer.write([] as Bytes?)
        writer.write(list: [Term(1), Term(2)]) { $0.write($1) }
        return writer.bytes
    }

    /// Reads it all; true when every value is what was written.
    private func read(_ reader: inout ByteReader) throws(DatabaseError) -> Bool {
        var matches = try reader.readUInt8() == 1
        matches = try reader.readUInt16() == 0x0203 && matches
        matches = try reader.readUInt32() == 0x0405_0607 && matches
        matches = try reader.readUInt64() == .max && matches
        matches = try reader.readBool() && matches
        matches = try reader.read(GroupID.self) == GroupID(9) && matches
        matches = try reader.readSequencer() == sequencer && matches
        matches = try reader.readString() == "text ü" && matches
        matches = try reader.readBytes() == [1, 2] && matches
        matches = try reader.readOptionalBytes() == nil && matches
        matches = try reader.readOptionalBytes() == [] && matches
        let terms: [Term] = try reader.readList(elementBytesMin: 8) {
            reader throws(DatabaseError) in try reader.read()
        }
        return terms == [Term(1), Term(2)] && matches
    }

    @Test func roundTrip() throws {
        let matches = try ByteReader.decode(written()) { reader throws(DatabaseError) in
            try read(&reader)
        }
        #expect(matches)
    }

    @Test func integersAreLittleEndian() {
        var writer = ByteWriter()
        writer.write(UInt32(0x0102_0304))
        writer.patch(0x0506_0708, at: 0)
        #expect(writer.bytes == [8, 7, 6, 5])
    }

    @Test func everyTruncationIsMalformed() {
        let bytes = written()
        for count in 0..<bytes.count {
            let error = #expect(throws: DatabaseError.self, "cut to \(count)") {
                _ = try ByteReader.decode(Array(bytes[..<count])) {
                    reader throws(DatabaseError) in try read(&reader)
                }
            }
            #expect(error?.code == .malformed)
        }
        #expect(throws: DatabaseError.self, "a byte too many") {
            _ = try ByteReader.decode(bytes + [0]) { reader throws(DatabaseError) in
                try read(&reader)
            }
        }
    }

    @Test(arguments: 1...20)
    func damageNeverTraps(seed: Int) {
        var random = SeededRandom(seed: UInt64(seed))
        let whole = written()
        var refused = 0
        for _ in 0..<500 {
            var bytes = whole
            for _ in 0...random.below(3) {
                bytes[Int(random.below(UInt64(bytes.count)))] = UInt8(random.below(256))
            }
            let matches = try? ByteReader.decode(bytes) { reader throws(DatabaseError) in
                try read(&reader)
            }
            if matches == nil { refused += 1 }
            #expect(matches != true || bytes == whole, "seed \(seed): \(bytes)")
        }
        #expect(refused > 0, "seed \(seed)")
    }

    @Test func hostileCountsReserveNothing() {
        var writer = ByteWriter()
        writer.write(UInt32.max)
        #expect(throws: DatabaseError.self) {
            _ = try ByteReader.decode(writer.bytes) { reader throws(DatabaseError) in
                try reader.readList { reader throws(DatabaseError) in try reader.readUInt64() }
            }
        }
        #expect(throws: DatabaseError.self) {
            _ = try ByteReader.decode(writer.bytes) { reader throws(DatabaseError) in
                try reader.readBytes()
            }
        }
    }

    @Test func booleansAndTextAreStrict() {
        #expect(throws: DatabaseError.self) {
            _ = try ByteReader.decode([2]) { reader throws(DatabaseError) in try reader.readBool() }
        }
        #expect(throws: DatabaseError.self) {
            _ = try ByteReader.decode([1, 0, 0, 0, 0xFF]) { reader throws(DatabaseError) in
                try reader.readString()
            }
        }
    }
}
