// The bounds that every part agrees on. Over a bound the answer is a typed error, not growth.

public enum Limits {
    /// Longest key and longest value, in bytes (the 1 MB of the source documents, as 2^20).
    public static let keyBytesMax = 1 << 20
    public static let valueBytesMax = 1 << 20
    /// Longest table name, in bytes; see `isValidTableName`.
    public static let tableNameBytesMax = 128
    /// Largest frame between daemons: room for one record of the largest size many times over.
    public static let frameBytesMax = 16 << 20
    /// Most fields in one client command (HSET pairs, HMGET fields, HDEL fields).
    public static let commandFieldsMax = 65_536
    /// Most bytes of one client command, all arguments together.
    public static let commandBytesMax = 64 << 20
    /// Records in one page of a sorted list unless the client asks otherwise, and the most it may.
    public static let listPageDefault = 500
    public static let listPageMax = 10_000
    /// Most bytes in one page of a list between node and router.
    public static let listPageBytesMax = 1 << 20
    /// Most tables and shards a table may be created with.
    public static let tablesMax = 10_000
    public static let initialShardsMax = 4_096
    /// Most bytes of a new table's split points.
    public static let splitBytesMax = 4 << 20
    /// Most shards of one group, and most bytes of what a group knows of its shards, their keys
    /// included: it travels in one frame, with room for records beside it.
    public static let groupShardsMax = 16_384
    public static let groupStateBytesMax = 11 << 20
    /// About the bytes of one piece of what may be larger than a frame: commands to a node, reports of
    /// shards, steps of the map. No element is larger than 3 MiB, so a piece fits a frame.
    public static let pieceBytesMax = 4 << 20

    /// Printable ASCII without space, at most 128 bytes, not starting with `_` (kept for the system).
    public static func isValidTableName(_ name: UnsafeRawBufferPointer) -> Bool {
        guard let first = name.first, first != UInt8(ascii: "_"), name.count <= tableNameBytesMax
        else { return false }
        return name.allSatisfy { $0 > 0x20 && $0 < 0x7F }
    }
}
