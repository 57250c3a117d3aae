/* Preloaded into a process, this makes one of its calls about files below a folder fail, or ends the process there.

   FAULT_ROOT     the folder, an absolute path without links
   FAULT_COUNTER  a file of 8 bytes, in which all processes count their calls
   FAULT_KIND     "write": opening to write, writing, syncing, renaming, making folders; "read": opening to read, reading
   FAULT_AT       the number of the call that fails, from 1; 0 only counts
   FAULT_ERRNO    its error; 0 kills the process instead
   FAULT_STICKY   "1": every later call of that kind fails too, as on a full disk
   FAULT_JUMP     seconds by which the clock of the wall jumps from that call on, instead of an error            */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static volatile uint64_t *counter;
static uint64_t fault_at;
static int fault_errno, sticky, of_reading;
static long jump;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("FAULT_ROOT"), *count = getenv("FAULT_COUNTER"), *value;
    if (!folder || !count) return;
    int file = open(count, O_RDWR);
    if (file < 0) return;
    void *map = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (map == MAP_FAILED) return;
    fault_at = (value = getenv("FAULT_AT")) ? strtoull(value, NULL, 10) : 0;
    fault_errno = (value = getenv("FAULT_ERRNO")) ? atoi(value) : 0;
    sticky = (value = getenv("FAULT_STICKY")) && *value == '1';
    of_reading = (value = getenv("FAULT_KIND")) && !strcmp(value, "read");
    jump = (value = getenv("FAULT_JUMP")) ? atol(value) : 0;
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    counter = map;
}

static int below_root(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

static int is_ours(int folder, const char *path) {
    char whole[2 * PATH_MAX], link[64];
    ssize_t length;
    if (!counter) return 0;
    if (path && *path == '/') return below_root(path);
    if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    length = readlink(link, whole, PATH_MAX - 1);
    if (length < 0) return 0;
    whole[length] = 0;
    if (path) snprintf(whole + length, sizeof whole - length, "/%s", path);
    return below_root(whole);
}

/* Count a call. Returns 1 if it must fail; errno is set then. */
static int fails(int reads, int folder, const char *path) {
    if (!counter || reads != of_reading || !is_ours(folder, path)) return 0;
    uint64_t number = __sync_add_and_fetch(counter, 1);
    if (!fault_at || jump || number < fault_at || (number > fault_at && !sticky)) return 0;
    if (!fault_errno) kill(getpid(), SIGKILL);
    errno = fault_errno;
    return 1;
}

/* A full disk still removes files. */
static int fails_removing(int folder, const char *path) {
    return fault_errno != ENOSPC && fails(0, folder, path);
}

static int reads_only(int flags) { return (flags & O_ACCMODE) == O_RDONLY && !(flags & O_CREAT); }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        REAL(name); \
        return fails(reads_only(flags), AT_FDCWD, path) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        REAL(name); \
        return fails(reads_only(flags), folder, path) ? -1 : real(folder, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        return fails(*mode == 'r', AT_FDCWD, path) ? NULL : real(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int file, const void *data, size_t count) {
    REAL(write);
    return fails(0, file, NULL) ? -1 : real(file, data, count);
}
ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(writev);
    return fails(0, file, NULL) ? -1 : real(file, parts, count);
}
ssize_t pwrite64(int file, const void *data, size_t count, off64_t at) {
    REAL(pwrite64);
    return fails(0, file, NULL) ? -1 : real(file, data, count, at);
}
ssize_t read(int file, void *data, size_t count) {
    REAL(read);
    return fails(1, file, NULL) ? -1 : real(file, data, count);
}
ssize_t pread64(int file, void *data, size_t count, off64_t at) {
    REAL(pread64);
    return fails(1, file, NULL) ? -1 : real(file, data, count, at);
}
int fsync(int file) {
    REAL(fsync);
    return fails(0, file, NULL) ? -1 : real(file);
}
int fdatasync(int file) {
    REAL(fdatasync);
    return fails(0, file, NULL) ? -1 : real(file);
}
int ftruncate64(int file, off64_t length) {
    REAL(ftruncate64);
    return fails(0, file, NULL) ? -1 : real(file, length);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails(0, AT_FDCWD, path) ? -1 : real(path, mode);
}
int rename(const char *from, const char *to) {
    REAL(rename);
    return fails(0, AT_FDCWD, to) ? -1 : real(from, to);
}
int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags) {
    REAL(renameat2);
    return fails(0, to_folder, to) ? -1 : real(from_folder, from, to_folder, to, flags);
}
int unlink(const char *path) {
    REAL(unlink);
    return fails_removing(AT_FDCWD, path) ? -1 : real(path);
}
int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    return fails_removing(folder, path) ? -1 : real(folder, path, flags);
}
int rmdir(const char *path) {
    REAL(rmdir);
    return fails_removing(AT_FDCWD, path) ? -1 : real(path);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(clock_gettime);
    int result = real(clock, now);
    if (jump && counter && clock == CLOCK_REALTIME && *counter >= fault_at) now->tv_sec += jump;
    return result;
}
