// The commands that a router knows: name, arity, class.

import KVBase
import RESP

/// A command by name. Raw values only tell commands apart.
enum CommandID: UInt8 {
    case hset, hmset, hsetnx, hget, hmget, hdel, hexists, hstrlen
    case kvPut, kvGet, kvDel
    case hlen, hkeys, hvals, hgetall, hscan, kvList
    case del, exists, type, scan, keys, dbsize
    case kvCreate, kvDrop, kvDescribe, kvTables, kvHelp
    case ping, echo, hello, auth, select, quit, reset, command, client, info, config, time
}

struct CommandSpec {
    var id: CommandID
    /// In lower case.
    var name: String
    /// Arguments with the name: exactly that many, or at least when negative.
    var arity: Int
    var isWrite = false
    /// Position of the table's name among the arguments; 0 for none.
    var keyPosition = 0
    /// Waits until everything before it on its connection is answered, and holds up what follows
    /// until it is answered itself.
    var isBarrier = false
    /// Form and meaning, for KV.HELP.
    var help = ""
}

enum CommandTable {
    static let specs: [CommandSpec] = [
        .init(id: .hset, name: "hset", arity: -4, isWrite: true, keyPosition: 1),
        .init(id: .hmset, name: "hmset", arity: -4, isWrite: true, keyPosition: 1),
        .init(id: .hsetnx, name: "hsetnx", arity: 4, isWrite: true, keyPosition: 1),
        .init(id: .hget, name: "hget", arity: 3, keyPosition: 1),
        .init(id: .hmget, name: "hmget", arity: -3, keyPosition: 1),
        .init(id: .hdel, name: "hdel", arity: -3, isWrite: true, keyPosition: 1),
        .init(id: .hexists, name: "hexists", arity: 3, keyPosition: 1),
        .init(id: .hstrlen, name: "hstrlen", arity: 3, keyPosition: 1),
        .init(
            id: .kvPut, name: "kv.put", arity: -4, isWrite: true, keyPosition: 1,
            help: "KV.PUT table key value [IF sequencer|ABSENT]: write; answers the sequencer"),
        .init(
            id: .kvGet, name: "kv.get", arity: -3, keyPosition: 1,
            help: "KV.GET table key [QUORUM]: value and sequencer, or nil"),
        .init(
            id: .kvDel, name: "kv.del", arity: -3, isWrite: true, keyPosition: 1,
            help: "KV.DEL table key [IF sequencer]: delete; answers 1 when there was a record"),
        .init(id: .hlen, name: "hlen", arity: 2, keyPosition: 1, isBarrier: true),
        .init(id: .hkeys, name: "hkeys", arity: 2, keyPosition: 1, isBarrier: true),
        .init(id: .hvals, name: "hvals", arity: 2, keyPosition: 1, isBarrier: true),
        .init(id: .hgetall, name: "hgetall", arity: 2, keyPosition: 1, isBarrier: true),
        .init(id: .hscan, name: "hscan", arity: -3, keyPosition: 1, isBarrier: true),
        .init(
            id: .kvList, name: "kv.list", arity: -2, keyPosition: 1, isBarrier: true,
            help: "KV.LIST table [FROM key] [TO key] [LIMIT n] [CURSOR c] [QUORUM]: cursor (nil at "
                + "the end), then key, value, sequencer of each record in order of key"),
        .init(id: .del, name: "del", arity: -2, isWrite: true, keyPosition: 1, isBarrier: true),
        .init(id: .del, name: "unlink", arity: -2, isWrite: true, keyPosition: 1, isBarrier: true),
        .init(id: .exists, name: "exists", arity: -2, keyPosition: 1),
        .init(id: .type, name: "type", arity: 2, keyPosition: 1),
        .init(id: .scan, name: "scan", arity: -2),
        .init(id: .keys, name: "keys", arity: 2),
        .init(id: .dbsize, name: "dbsize", arity: 1),
        .init(
            id: .kvCreate, name: "kv.create", arity: -2, isWrite: true, keyPosition: 1,
            isBarrier: true,
            help: "KV.CREATE table [PARTITION RANGE|HASH] [ENGINE LSM|BTREE] [REPLICAS n] "
                + "[VRANGES n] [SPLIT key ...] [IFMISSING]: create a table"),
        .init(
            id: .kvDrop, name: "kv.drop", arity: 2, isWrite: true, keyPosition: 1, isBarrier: true,
            help: "KV.DROP table: drop a table with all its records"),
        .init(
            id: .kvDescribe, name: "kv.describe", arity: 2, keyPosition: 1,
            help: "KV.DESCRIBE table: partitioning, engine, replicas, shards, groups"),
        .init(
            id: .kvTables, name: "kv.tables", arity: 1, help: "KV.TABLES: names of all tables"),
        .init(id: .kvHelp, name: "kv.help", arity: 1, help: "KV.HELP: this text"),
        .init(id: .ping, name: "ping", arity: -1),
        .init(id: .echo, name: "echo", arity: 2),
        .init(id: .hello, name: "hello", arity: -1, isBarrier: true),
        .init(id: .auth, name: "auth", arity: -2, isBarrier: true),
        .init(id: .select, name: "select", arity: 2),
        .init(id: .quit, name: "quit", arity: -1, isBarrier: true),
        .init(id: .reset, name: "reset", arity: 1, isBarrier: true),
        .init(id: .command, name: "command", arity: -1),
        .init(id: .client, name: "client", arity: -2),
        .init(id: .info, name: "info", arity: -1),
        .init(id: .config, name: "config", arity: -2),
        .init(id: .time, name: "time", arity: 1),
    ]

    /// By name in capitals.
    private static let byName: [Bytes: CommandSpec] = {
        var table: [Bytes: CommandSpec] = [:]
        for spec in specs { table[Bytes(spec.name.uppercased().utf8)] = spec }
        return table
    }()

    private static let nameBytesMax = 16

    static func find(_ name: UnsafeRawBufferPointer) -> CommandSpec? {
        guard name.count <= nameBytesMax else { return nil }
        return byName[Bytes(name.map { (0x61...0x7A).contains($0) ? $0 - 0x20 : $0 })]
    }

    static func find(_ name: String) -> CommandSpec? {
        Bytes(name.utf8).withUnsafeBytes { find($0) }
    }
}

extension CommandID {
    var isWalk: Bool {
        switch self {
        case .hlen, .hkeys, .hvals, .hgetall, .hscan, .kvList: true
        default: false
        }
    }

    var operationClass: OperationClass {
        switch self {
        case .hset, .hmset, .hsetnx, .kvPut: .put
        case .hget, .hmget, .hexists, .hstrlen, .kvGet: .get
        case .hdel, .kvDel: .delete
        case .hlen, .hkeys, .hvals, .hgetall, .hscan, .kvList: .list
        case .del, .kvCreate, .kvDrop: .table
        default: .other
        }
    }
}
