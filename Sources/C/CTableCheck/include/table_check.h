// Reads one of RocksDB's table files and verifies the checksum of every block of it.
#ifndef RANGEKEEPER_TABLE_CHECK_H
#define RANGEKEEPER_TABLE_CHECK_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
    void *context;
    /// Before a read; may wait. Zero ends the check.
    int (*will_read)(void *context, size_t bytes);
    /// After it, with what was read.
    void (*did_read)(void *context, size_t bytes);
} rangekeeper_read_pace;

enum {
    RANGEKEEPER_TABLE_WHOLE = 0,
    /// A checksum does not match, or the file contradicts itself.
    RANGEKEEPER_TABLE_DAMAGED = 1,
    /// `will_read` ended the check.
    RANGEKEEPER_TABLE_STOPPED = 2,
    /// The file cannot be opened or read.
    RANGEKEEPER_TABLE_UNREADABLE = 3,
};

/// Past the page cache where the file system can do that, so that it is the disk which is read.
/// `message` gets what is wrong, cut to `message_bytes` with the zero at its end.
int rangekeeper_check_table(const char *path, const rangekeeper_read_pace *pace, char *message,
                            size_t message_bytes);

#ifdef __cplusplus
}
#endif

#endif
