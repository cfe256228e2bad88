// ISA-L (CRC32C), imported only by Checksum.
#pragma once
#include <isa-l.h>
