import KVBase
import Testing

struct HexadecimalTests {
    @Test func writesAFixedWidth() {
        #expect(hex(0) == "0000000000000000")
        #expect(hex(0xAB, count: 2) == "ab")
        #expect(hex(.max) == "ffffffffffffffff")
    }

    @Test(arguments: [0, 1, 0x12AB, UInt64.max])
    func readsWhatItWrites(value: UInt64) {
        #expect(UInt64(hex: hex(value)) == value)
    }

    /// Two names of one number would be two files of one number.
    @Test(arguments: [
        "", "0", "+00000000000000f", "-00000000000000f", "000000000000000F", "000000000000000g",
        "00000000000000000",
    ])
    func readsNothingElse(text: String) {
        #expect(UInt64(hex: text) == nil)
    }
}
