import Digest
import KVBase
import Testing

@Suite struct CertificateExpiryTests {
    /// `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500`: until
    /// 2126-10-27 20:52:09 UTC, as a GeneralizedTime.
    private static let long = """
        -----BEGIN CERTIFICATE-----
        MIIBcDCCARWgAwIBAgIUfK1f0bN9PyTNurkJwtY/lnzMFtQwCgYIKoZIzj0EAwIw
        DDEKMAgGA1UEAwwBYTAgFw0yNjExMjAyMDUyMDlaGA8yMTI2MTAyNzIwNTIwOVow
        DDEKMAgGA1UEAwwBYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABKQPL7QsUjAB
        ucKVMPBXa6qewp75S/rJmTkvpie8AZZseEVputbTDjtJxs0CBHK+D3IGE49CjzV0
        WrWdGRcLp9SjUzBRMB0GA1UdDgQWBBTWEqzpJtKJ6ZQqC46JHFBuYj50jDAfBgNV
        HSMEGDAWgBTWEqzpJtKJ6ZQqC46JHFBuYj50jDAPBgNVHRMBAf8EBTADAQH/MAoG
        CCqGSM49BAMCA0kAMEYCIQCS0lgRwIAcicDK7lqLLf1nacB+xfBD2j4CTDKZJrVp
        DwIhAPuHKxKU9BZLw9epEilJtElfjKy/kivHQv06tYM7HjpP
        -----END CERTIFICATE-----
        """
    /// Likewise with `-days 3650`: until 2036-11-17 20:52:09 UTC, as a UTCTime.
    private static let short = """
        -----BEGIN CERTIFICATE-----
        MIIBbTCCAROgAwIBAgIUB/wtfvgbdh56q8usquA0bKSm1sIwCgYIKoZIzj0EAwIw
        DDEKMAgGA1UEAwwBYjAeFw0yNjExMjAyMDUyMDlaFw0zNjExMTcyMDUyMDlaMAwx
        CjAIBgNVBAMMAWIwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAR9ZeKX/Q3plZcm
        ohVjyFavmMeU1EyT+OwnVwoFAil4NKSmsBBZofoj40GST9yWHJ17pbNahsu0PmxF
        FH+XHgAUo1MwUTAdBgNVHQ4EFgQULwGQr08F8EJKXrIbHowCnc3Fvq4wHwYDVR0j
        BBgwFoAULwGQr08F8EJKXrIbHowCnc3Fvq4wDwYDVR0TAQH/BAUwAwEB/zAKBggq
        hkjOPQQDAgNIADBFAiBqkagh/ZWS1vbk6SPGbyZrIuRd0vdxKrmZEWG6epAj/wIh
        AP0U3LGX7w90MUV7C2YjnMjh+1vPJhPd/iXmw7EPy21t
        -----END CERTIFICATE-----
        """
    private static let longEnd: Int64 = 4_948_807_929
    private static let shortEnd: Int64 = 2_110_567_929

    @Test func theEndIsRead() {
        #expect(CertificateExpiry.earliest(pem: Bytes(Self.long.utf8)) == Self.longEnd)
        #expect(CertificateExpiry.earliest(pem: Bytes(Self.short.utf8)) == Self.shortEnd)
    }

    @Test func ofSeveralTheFirstToEndCounts() {
        for text in [Self.long + "\n" + Self.short, "words\n\(Self.short)\n\(Self.long)\n"] {
            #expect(CertificateExpiry.earliest(pem: Bytes(text.utf8)) == Self.shortEnd)
        }
    }

    @Test(arguments: [
        "", "words", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ])
    func whatIsNoCertificateHasNoEnd(_ text: String) {
        #expect(CertificateExpiry.earliest(pem: Bytes(text.utf8)) == nil)
    }
}
