// RocksDB C API, imported only by LSMEngine.
#pragma once
#include <rocksdb/c.h>
