/* Preloaded into daemons, to refuse threads that a healthy machine never refuses.
 *
 * While the file named by REFUSE_THREAD exists, no thread begins whose name is in it. The name is that of a
 * NamedThread: it stands inline in the Swift object that is the thread's argument, behind the object's header. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER = 16, INLINE = 15 };

static int is_refused(const void *argument) {
    const char *path = getenv("REFUSE_THREAD");
    FILE *file = path == NULL || argument == NULL ? NULL : fopen(path, "r");
    char name[INLINE + 1] = "";
    size_t length;

    if (file == NULL) return 0;
    length = fread(name, 1, INLINE, file);
    fclose(file);
    return length > 0 && memcmp((const char *)argument + HEADER, name, length) == 0;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*body)(void *),
                   void *argument) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (real == NULL) real = dlsym(RTLD_NEXT, "pthread_create");
    return is_refused(argument) ? EAGAIN : real(thread, attributes, body, argument);
}
