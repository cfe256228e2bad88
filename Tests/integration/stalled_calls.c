/* Preloaded into daemons, to hold up calls that a healthy machine never holds up.
 *
 * While the file named by STALL_LOOP exists, the thread `loop` does not come back from waiting: it is
 * stuck. Every read of the file system below SLOW_READS_BELOW takes SLOW_READS_MICROSECONDS more, and
 * none ends while the file named by STALL_READS exists: a disk that is slow, or hangs. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

static int stalls(const char *variable) {
    const char *path = getenv(variable);
    return path != NULL && access(path, F_OK) == 0;
}

static int is_loop(void) {
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    return strcmp(name, "loop") == 0;
}

int epoll_pwait(int file, struct epoll_event *events, int count, int timeout, const sigset_t *mask) {
    static int (*real)(int, struct epoll_event *, int, int, const sigset_t *);
    if (real == NULL) real = dlsym(RTLD_NEXT, "epoll_pwait");
    while (is_loop() && stalls("STALL_LOOP")) usleep(5000);
    return real(file, events, count, timeout, mask);
}

int epoll_wait(int file, struct epoll_event *events, int count, int timeout) {
    return epoll_pwait(file, events, count, timeout, NULL);
}

static void slow_down(int file) {
    const char *below = getenv("SLOW_READS_BELOW");
    const char *delay = getenv("SLOW_READS_MICROSECONDS");
    char link[64], path[4096];
    ssize_t length;

    if (below == NULL) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    if (strncmp(path, below, strlen(below)) != 0) return;
    if (delay != NULL) usleep((useconds_t)atoi(delay));
    while (stalls("STALL_READS")) usleep(5000);
}

ssize_t pread(int file, void *target, size_t count, off_t offset) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (real == NULL) real = dlsym(RTLD_NEXT, "pread");
    slow_down(file);
    return real(file, target, count, offset);
}

ssize_t pread64(int file, void *target, size_t count, off64_t offset) {
    return pread(file, target, count, offset);
}
