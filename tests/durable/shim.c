/* What a test wants the system to do to the files whose path contains SHIM_MATCH: preload it with LD_PRELOAD.
 *
 * SHIM_COUNT   append one byte to this file for every sync that is asked for
 * SHIM_DELAY   sleep so many microseconds in every sync: a slower disk
 * SHIM_SHADOW  after every sync, copy the file into this folder: what is on the medium after a power cut
 * SHIM_FULL    while this file exists, writes fail with ENOSPC
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int matches(int fd, char *path, size_t size) {
    const char *part = getenv("SHIM_MATCH");
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (part == NULL || length < 0) return 0;
    path[length] = 0;
    return strstr(path, part) != NULL;
}

static void copy(int fd, const char *path) {
    const char *folder = getenv("SHIM_SHADOW"), *name = strrchr(path, '/');
    static char buffer[1 << 16];
    char target[4096], temporary[4100];
    if (folder == NULL || name == NULL) return;
    snprintf(target, sizeof target, "%s%s", folder, name);
    snprintf(temporary, sizeof temporary, "%s.new", target);
    int out = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    off_t offset = 0;
    ssize_t got;  /* read through SQLite's own descriptor: closing another one would drop its locks */
    if (out < 0) return;
    while ((got = pread(fd, buffer, sizeof buffer, offset)) > 0) {
        if (write(out, buffer, got) != got) return;
        offset += got;
    }
    close(out);
    rename(temporary, target);
}

static int sync_with(int fd, const char *which) {
    int (*real)(int) = dlsym(RTLD_NEXT, which);
    char path[4096];
    if (!matches(fd, path, sizeof path)) return real(fd);
    const char *count = getenv("SHIM_COUNT"), *delay = getenv("SHIM_DELAY");
    if (count != NULL) {
        int out = open(count, O_WRONLY | O_CREAT | O_APPEND, 0600);
        if (out >= 0) {
            if (write(out, "s", 1) != 1) abort();
            close(out);
        }
    }
    if (delay != NULL) usleep(atoi(delay));
    int result = real(fd);
    copy(fd, path);
    return result;
}

int fsync(int fd) { return sync_with(fd, "fsync"); }
int fdatasync(int fd) { return sync_with(fd, "fdatasync"); }

static int is_full(int fd) {
    const char *flag = getenv("SHIM_FULL");
    char path[4096];
    return flag != NULL && access(flag, F_OK) == 0 && matches(fd, path, sizeof path);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
    if (is_full(fd)) { errno = ENOSPC; return -1; }
    return real(fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    if (is_full(fd)) { errno = ENOSPC; return -1; }
    return real(fd, data, size, offset);
}
