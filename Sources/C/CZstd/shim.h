// zstd, imported only by Compression.
#pragma once
#include <zstd.h>
