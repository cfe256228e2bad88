// OpenSSL's digests and certificates, imported only by Digest.
#pragma once
#include <openssl/bio.h>
#include <openssl/pem.h>
#include <openssl/sha.h>
#include <openssl/x509.h>
