/*
 * Stands between a process and its disk, by LD_PRELOAD. Looks at files directly in one directory only (DISK_ROOT).
 *
 * - What is certain to outlive a power failure is kept in another directory (DISK_SHADOW): data.INODE is a file as of its
 *   last fsync(2) or fdatasync(2), names.NUMBER the list of names after the NUMBER-th change of names, and the control file says which of
 *   these was brought to the disk by fsync(2) of the directory.
 * - Every step that changes something is counted. The process can be killed before a certain step, or in the middle of it.
 * - fsync(2) and fdatasync(2) can be made to fail.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* Shared with the test: see disk.rs. */
struct control {
    int fail_syncs;             /* this many, or all when negative */
    int kill_at;                /* so many steps from now, the last one not made; 0: never */
    int kill_inside;            /* the last one made by half, where it is a write */
    int steps;
    int syncs;
    int names;                  /* number of the newest list of names */
    int names_synced;           /* of the one that is on the disk */
};

static struct control none;
static struct control *control = &none;
static char root[PATH_MAX];
static size_t root_length;
static const char *shadow;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name)) real(#name))

static void *real(const char *name)
{
    return dlsym(RTLD_NEXT, name);
}

__attribute__((constructor)) static void begin(void)
{
    const char *directory = getenv("DISK_ROOT"), *file = getenv("DISK_CONTROL");
    shadow = getenv("DISK_SHADOW");
    if (!directory || !file || !shadow || !realpath(directory, root))
        return;
    int fd = REAL(open)(file, O_RDWR | O_CLOEXEC);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        abort();
    REAL(close)(fd);
    control = map;
    root_length = strlen(root);
}

/* Whether the path of a descriptor is one that counts: 1 a file, 2 the directory. */
static int counts(int fd)
{
    char link[64], path[PATH_MAX];
    int saved = errno;
    if (!root_length)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length < (ssize_t) root_length || memcmp(path, root, root_length))
        return 0;
    return (size_t) length == root_length ? 2 : path[root_length] == '/';
}

static int path_counts(const char *path)
{
    return root_length && !strncmp(path, root, root_length) && path[root_length] == '/';
}

/* Counts a step; 1 when the process is to die in the middle of it. Locked. */
static int step(int can_be_halved)
{
    control->steps++;
    if (!control->kill_at || --control->kill_at)
        return 0;
    if (control->kill_inside && can_be_halved)
        return 1;
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static ino_t inode(int fd)
{
    struct stat status;
    return fstat(fd, &status) ? 0 : status.st_ino;
}

static void data_path(char *path, ino_t number)
{
    snprintf(path, PATH_MAX, "%s/data.%lu", shadow, (unsigned long) number);
}

/* Keeps a file as it is. */
static void keep(int fd)
{
    char path[PATH_MAX], temporary[PATH_MAX + 8], buffer[65536], link[64];
    off_t at = 0;
    ssize_t length;
    data_path(path, inode(fd));
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int from = REAL(open)(link, O_RDONLY | O_CLOEXEC);
    int to = REAL(open)(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (from < 0 || to < 0)
        abort();
    while ((length = pread(from, buffer, sizeof buffer, at)) > 0) {
        if (REAL(pwrite)(to, buffer, length, at) != length)
            abort();
        at += length;
    }
    REAL(close)(from);
    REAL(close)(to);
    if (REAL(rename)(temporary, path))
        abort();
}

/* What was written through a descriptor whose writes are synchronous. */
static void keep_range(int fd, const void *bytes, size_t length, off_t at)
{
    char path[PATH_MAX];
    data_path(path, inode(fd));
    int to = REAL(open)(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (to < 0 || REAL(pwrite)(to, bytes, length, at) != (ssize_t) length)
        abort();
    REAL(close)(to);
}

static void keep_names(void)
{
    char path[PATH_MAX], temporary[PATH_MAX + 8];
    int number = control->names + 1;
    snprintf(path, sizeof path, "%s/names.%d", shadow, number);
    snprintf(temporary, sizeof temporary, "%s.tmp", path);
    FILE *list = fopen(temporary, "w");
    DIR *directory = opendir(root);
    struct dirent *entry;
    if (!list || !directory)
        abort();
    while ((entry = readdir(directory)))
        if (entry->d_type == DT_REG)
            fprintf(list, "%lu %s\n", (unsigned long) entry->d_ino, entry->d_name);
    closedir(directory);
    fclose(list);
    if (REAL(rename)(temporary, path))
        abort();
    control->names = number;
}

#define LOCKED(code) do { int saved_errno = errno; pthread_mutex_lock(&lock); errno = saved_errno; code; \
    saved_errno = errno; pthread_mutex_unlock(&lock); errno = saved_errno; } while (0)

static int synchronize(int fd, int (*call)(int))
{
    int kind = counts(fd), result = 0;
    if (!kind)
        return call(fd);
    LOCKED({
        step(0);
        control->syncs++;
        if (control->fail_syncs) {
            if (control->fail_syncs > 0)
                control->fail_syncs--;
            errno = EIO;
            result = -1;
        } else if (kind == 2) {
            control->names_synced = control->names;
        } else {
            keep(fd);
        }
    });
    return result;
}

int fsync(int fd) { return synchronize(fd, REAL(fsync)); }
int fdatasync(int fd) { return synchronize(fd, REAL(fdatasync)); }

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at)
{
    __typeof__(&pwrite) call = REAL(pwrite);
    ssize_t result;
    if (counts(fd) != 1)
        return call(fd, bytes, length, at);
    LOCKED({
        if (step(1)) {
            call(fd, bytes, length / 2, at);
            die();
        }
        result = call(fd, bytes, length, at);
        if (result > 0 && fcntl(fd, F_GETFL) & O_DSYNC)
            keep_range(fd, bytes, result, at);
    });
    return result;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) { return pwrite(fd, bytes, length, at); }

ssize_t write(int fd, const void *bytes, size_t length)
{
    __typeof__(&write) call = REAL(write);
    ssize_t result;
    if (counts(fd) != 1)
        return call(fd, bytes, length);
    LOCKED({
        if (step(1)) {
            call(fd, bytes, length / 2);
            die();
        }
        result = call(fd, bytes, length);
    });
    return result;
}

ssize_t writev(int fd, const struct iovec *pieces, int number)
{
    __typeof__(&writev) call = REAL(writev);
    ssize_t result;
    if (counts(fd) != 1)
        return call(fd, pieces, number);
    LOCKED({
        if (step(1)) {
            call(fd, pieces, number / 2);
            die();
        }
        result = call(fd, pieces, number);
    });
    return result;
}

ssize_t pwritev(int fd, const struct iovec *pieces, int number, off_t at)
{
    __typeof__(&pwritev) call = REAL(pwritev);
    ssize_t result;
    if (counts(fd) != 1)
        return call(fd, pieces, number, at);
    LOCKED({
        if (step(1)) {
            call(fd, pieces, number / 2, at);
            die();
        }
        result = call(fd, pieces, number, at);
    });
    return result;
}

ssize_t pwritev64(int fd, const struct iovec *pieces, int number, off64_t at) { return pwritev(fd, pieces, number, at); }

int ftruncate(int fd, off_t length)
{
    __typeof__(&ftruncate) call = REAL(ftruncate);
    int result;
    if (counts(fd) != 1)
        return call(fd, length);
    LOCKED({ step(0); result = call(fd, length); });
    return result;
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

static int open_it(int directory, const char *path, int flags, mode_t mode)
{
    __typeof__(&openat) call = REAL(openat);
    int fd;
    if (!(flags & O_CREAT) || !path_counts(path))
        return call(directory, path, flags, mode);
    LOCKED({
        struct stat status;
        int is_new = lstat(path, &status) != 0;
        if (is_new)
            step(0);
        fd = call(directory, path, flags, mode);
        if (fd >= 0 && is_new) {
            char data[PATH_MAX];
            data_path(data, inode(fd));
            REAL(unlink)(data);
            keep_names();
        }
    });
    return fd;
}

static mode_t mode_of(int flags, va_list list)
{
    return flags & (O_CREAT | O_TMPFILE) ? (mode_t) va_arg(list, int) : 0;
}

#define OPEN(name, directory, ...) int name(__VA_ARGS__, int flags, ...) \
    { va_list list; va_start(list, flags); mode_t mode = mode_of(flags, list); va_end(list); \
      return open_it(directory, path, flags, mode); }

OPEN(open, AT_FDCWD, const char *path)
OPEN(open64, AT_FDCWD, const char *path)
OPEN(openat, at, int at, const char *path)
OPEN(openat64, at, int at, const char *path)

#define NAMES(name, parameters, arguments, path) int name parameters \
    { __typeof__(&name) call = REAL(name); int result; if (!path_counts(path)) return call arguments; \
      LOCKED({ step(0); result = call arguments; if (!result) keep_names(); }); return result; }

NAMES(rename, (const char *from, const char *to), (from, to), to)
NAMES(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), to)
NAMES(renameat2, (int a, const char *from, int b, const char *to, unsigned c), (a, from, b, to, c), to)
NAMES(link, (const char *from, const char *to), (from, to), to)
NAMES(linkat, (int a, const char *from, int b, const char *to, int c), (a, from, b, to, c), to)
NAMES(unlink, (const char *path), (path), path)
NAMES(unlinkat, (int a, const char *path, int c), (a, path, c), path)
