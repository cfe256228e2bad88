#include "table_check.h"

#include <fcntl.h>
#include <rocksdb/convenience.h>
#include <rocksdb/env.h>
#include <rocksdb/file_system.h>
#include <rocksdb/options.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/table.h>
#include <unistd.h>

#include <cstring>
#include <exception>
#include <memory>
#include <string>

namespace {

class PacedFile final : public rocksdb::FSRandomAccessFileWrapper {
  public:
    PacedFile(std::unique_ptr<rocksdb::FSRandomAccessFile> file, const rangekeeper_read_pace &pace)
        : FSRandomAccessFileWrapper(file.get()), file_(std::move(file)), pace_(pace) {}

    rocksdb::IOStatus Read(uint64_t offset, size_t count, const rocksdb::IOOptions &options,
                           rocksdb::Slice *result, char *scratch,
                           rocksdb::IODebugContext *debug) const override {
        if (pace_.will_read(pace_.context, count) == 0) {
            return rocksdb::IOStatus::Aborted("stopped");
        }
        rocksdb::IOStatus status =
            file_->Read(offset, count, options, result, scratch, debug);
        pace_.did_read(pace_.context, status.ok() ? result->size() : 0);
        return status;
    }

    rocksdb::IOStatus MultiRead(rocksdb::FSReadRequest *requests, size_t count,
                                const rocksdb::IOOptions &options,
                                rocksdb::IODebugContext *debug) override {
        for (size_t index = 0; index < count; index++) {
            rocksdb::FSReadRequest &one = requests[index];
            one.status = Read(one.offset, one.len, options, &one.result, one.scratch, debug);
        }
        return rocksdb::IOStatus::OK();
    }

    // Nothing is read that nobody paces.
    rocksdb::IOStatus Prefetch(uint64_t, size_t, const rocksdb::IOOptions &,
                               rocksdb::IODebugContext *) override {
        return rocksdb::IOStatus::NotSupported("paced");
    }

  private:
    std::unique_ptr<rocksdb::FSRandomAccessFile> file_;
    const rangekeeper_read_pace &pace_;
};

class PacedFileSystem final : public rocksdb::FileSystemWrapper {
  public:
    explicit PacedFileSystem(const rangekeeper_read_pace &pace)
        : FileSystemWrapper(rocksdb::FileSystem::Default()), pace_(pace) {}

    const char *Name() const override { return "PacedFileSystem"; }

    rocksdb::IOStatus NewRandomAccessFile(const std::string &path,
                                          const rocksdb::FileOptions &options,
                                          std::unique_ptr<rocksdb::FSRandomAccessFile> *result,
                                          rocksdb::IODebugContext *debug) override {
        std::unique_ptr<rocksdb::FSRandomAccessFile> file;
        rocksdb::IOStatus status =
            target()->NewRandomAccessFile(path, options, &file, debug);
        if (status.ok()) result->reset(new PacedFile(std::move(file), pace_));
        return status;
    }

  private:
    const rangekeeper_read_pace &pace_;
};

/// Whether the file system opens the file for reads past the page cache.
bool opens_directly(const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (file >= 0) {
        close(file);
        return true;
    }
    // Then at least nothing that lies in the cache is taken for what is on the disk.
    file = open(path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        close(file);
    }
    return false;
}

rocksdb::Status check(const char *path, const rangekeeper_read_pace &pace) {
    std::unique_ptr<rocksdb::Env> environment =
        rocksdb::NewCompositeEnv(std::make_shared<PacedFileSystem>(pace));
    rocksdb::Options options;
    options.env = environment.get();
    options.use_direct_reads = opens_directly(path);
    rocksdb::BlockBasedTableOptions table;
    table.no_block_cache = true;
    options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
    rocksdb::SstFileReader reader(options);
    rocksdb::Status status = reader.Open(path);
    return status.ok() ? reader.VerifyChecksum() : status;
}

}  // namespace

int rangekeeper_check_table(const char *path, const rangekeeper_read_pace *pace, char *message,
                            size_t message_bytes) {
    std::string text;
    int result = RANGEKEEPER_TABLE_WHOLE;
    try {
        rocksdb::Status status = check(path, *pace);
        text = status.ToString();
        if (status.ok()) {
            result = RANGEKEEPER_TABLE_WHOLE;
        } else if (status.IsAborted()) {
            result = RANGEKEEPER_TABLE_STOPPED;
        } else if (status.IsCorruption()) {
            result = RANGEKEEPER_TABLE_DAMAGED;
        } else {
            result = RANGEKEEPER_TABLE_UNREADABLE;
        }
    } catch (const std::exception &error) {
        text = error.what();
        result = RANGEKEEPER_TABLE_UNREADABLE;
    }
    if (message_bytes > 0) {
        size_t count = text.size() < message_bytes ? text.size() : message_bytes - 1;
        memcpy(message, text.data(), count);
        message[count] = 0;
    }
    return result;
}
