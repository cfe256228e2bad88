import KVBase
import Testing

@testable import MetadataBackup

@Suite struct BackupObjectTests {
    static let records = (0..<200).map { number in
        MetadataRecord(
            key: Bytes("shard/\(1_000 + number)".utf8), value: Bytes("value \(number)".utf8),
            createRevision: Revision(UInt64(number) + 1),
            modRevision: Revision(UInt64(number) + 7), lease: .none)
    }
    static let snapshot = BackupObject(
        name: BackupName(snapshotAt: Revision(300), at: 1_700_000_000_000), cluster: 0xC1,
        contents: .snapshot(records))
    static let log = BackupObject(
        name: BackupName(logFrom: Revision(301), to: Revision(302), at: 1_700_000_000_900),
        cluster: 0xC1,
        contents: .log([
            BackupEvent(
                revision: Revision(301), at: 1_700_000_000_100,
                changes: [.put(key: [1], value: [2, 3], lease: .none), .delete(key: [0])]),
            BackupEvent(
                revision: Revision(302), at: 1_700_000_000_900, changes: [.delete(key: [2])]),
        ]))

    @Test(arguments: [BackupName.Kind.snapshot, .log])
    func comesBackAsItWas(_ kind: BackupName.Kind) throws {
        let object = kind == .snapshot ? Self.snapshot : Self.log
        #expect(try BackupObject(try object.encoded(), named: object.name) == object)
        #expect(BackupName(object.name.text) == object.name)
    }

    @Test(arguments: [BackupName.Kind.snapshot, .log])
    func everyFlippedBitIsFoundAndNamed(_ kind: BackupName.Kind) throws {
        let object = kind == .snapshot ? Self.snapshot : Self.log
        let bytes = try object.encoded()
        for position in bytes.indices {
            for bit in 0..<8 {
                var damaged = bytes
                damaged[position] ^= 1 << UInt8(bit)
                let error = #expect(throws: DatabaseError.self) {
                    try BackupObject(damaged, named: object.name)
                }
                #expect(error?.message.contains(object.name.text) == true)
            }
        }
    }

    @Test(arguments: [BackupName.Kind.snapshot, .log])
    func everyCutIsFound(_ kind: BackupName.Kind) throws {
        let object = kind == .snapshot ? Self.snapshot : Self.log
        let bytes = try object.encoded()
        for count in bytes.indices {
            #expect(throws: DatabaseError.self) {
                try BackupObject(Bytes(bytes[..<count]), named: object.name)
            }
        }
        #expect(throws: DatabaseError.self) {
            try BackupObject(bytes + [0], named: object.name)
        }
    }

    @Test func logThatSkipsARevisionIsDamaged() throws {
        var log = Self.log
        guard case .log(var events) = log.contents else { return }
        events[1].revision = Revision(303)
        log = BackupObject(
            name: BackupName(logFrom: Revision(301), to: Revision(303), at: log.name.at),
            cluster: 0xC1, contents: .log(events))
        let bytes = try log.encoded()
        let error = #expect(throws: DatabaseError.self) {
            try BackupObject(bytes, named: log.name)
        }
        #expect(error?.message.contains("revision 303 is where 302 should be") == true)
    }

    @Test func snapshotTellsTheGapThatItCloses() throws {
        var snapshot = Self.snapshot
        snapshot.gapFrom = Revision(250)
        #expect(try BackupObject(try snapshot.encoded(), named: snapshot.name) == snapshot)
    }

    @Test func renamedObjectIsRefused() throws {
        let bytes = try Self.log.encoded()
        let name = BackupName(logFrom: Revision(301), to: Revision(305), at: 9)
        let error = #expect(throws: DatabaseError.self) { try BackupObject(bytes, named: name) }
        #expect(error?.message.contains("was renamed") == true)
    }

    @Test(arguments: [
        "", "snapshot-.rkb", "snapshot-12-13.rkb", "log-0000000000000001-0000000000000002.rkb",
        "log-0000000000000002-0000000000000001-0000000000000003.rkb", "snapshot-x-y.rkb",
        "snapshot-0000000000000001-0000000000000002.rkb.partial",
        "snapshot-0000000000000001-0000000000000002-0000000000000003.rkb",
    ])
    func notTheNameOfAnObject(_ text: String) {
        #expect(BackupName(text) == nil)
    }
}
