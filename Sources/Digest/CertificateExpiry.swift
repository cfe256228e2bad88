// When certificates end to be valid (RFC 5280, section 4.1.2.5), by OpenSSL.

import COpenSSL
import Glibc
import KVBase

public enum CertificateExpiry {
    /// The earliest end of validity of the certificates in a PEM file, in seconds since 1970; nil when
    /// there is none in it, or one that cannot be read.
    public static func earliest(pem: Bytes) -> Int64? {
        var earliest: Int64?
        guard let source = BIO_new_mem_buf(pem, Int32(clamping: pem.count)) else { return nil }
        defer { BIO_free(source) }
        while let certificate = PEM_read_bio_X509(source, nil, nil, nil) {
            defer { X509_free(certificate) }
            guard let end = end(of: certificate) else { return nil }
            earliest = min(earliest ?? end, end)
        }
        return earliest
    }

    private static func end(of certificate: OpaquePointer) -> Int64? {
        var fields = tm()
        guard let time = X509_get0_notAfter(certificate), ASN1_TIME_to_tm(time, &fields) == 1
        else { return nil }
        return Int64(timegm(&fields))
    }
}
