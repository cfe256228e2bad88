// OpenSSL's digests, imported only by Digest.
#pragma once
#include <openssl/sha.h>
