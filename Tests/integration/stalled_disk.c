/* Preloaded into daemons: fsync and fdatasync of files below a directory wait for as long as the file
 * named by STALL_CONTROL names that directory. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void wait_while_stalled(int file) {
    const char *control = getenv("STALL_CONTROL");
    char link[64], path[4096], prefix[4096];
    ssize_t length;

    if (control == NULL) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    for (;;) {
        int source = open(control, O_RDONLY | O_CLOEXEC);
        if (source < 0) return;
        length = read(source, prefix, sizeof prefix - 1);
        close(source);
        if (length <= 0) return;
        prefix[length] = 0;
        if (strncmp(path, prefix, strlen(prefix)) != 0) return;
        usleep(5000);
    }
}

int fdatasync(int file) {
    static int (*real)(int);
    if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_while_stalled(file);
    return real(file);
}

int fsync(int file) {
    static int (*real)(int);
    if (real == NULL) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_while_stalled(file);
    return real(file);
}
