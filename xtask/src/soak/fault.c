// Preloaded into a run, it counts the file operations below some folders and lets one
// of them go wrong.
//
//   SOAK_UNDER   the folders, with ':' between them
//   SOAK_LOG     a file that gets a line per operation: its number, its name, the path
//   SOAK_AT      number of the operation that goes wrong
//   SOAK_HOW     fail: it fails. full: so does all that needs room from then on.
//                before, after: the process is killed there. half: after half a write.
//   SOAK_ERRNO   the error of fail and full
//   SOAK_OPS     counts only operations of this name
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum how { NOTHING, FAIL, FULL, BEFORE, AFTER, HALF };
static const char *under, *ops;
static long at = -1;
static int error_number = ENOSPC, log_file = -1;
static enum how how = NOTHING;
static atomic_long count;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
  under = getenv("SOAK_UNDER");
  ops = getenv("SOAK_OPS");
  const char *text = getenv("SOAK_AT");
  if (text) at = atol(text);
  if ((text = getenv("SOAK_ERRNO"))) error_number = atoi(text);
  const char *names[] = {"", "fail", "full", "before", "after", "half"};
  if ((text = getenv("SOAK_HOW")))
    for (int i = 1; i < 6; i++)
      if (!strcmp(text, names[i])) how = i;
  if ((text = getenv("SOAK_LOG")))
    log_file = REAL(open)(text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

// Whether a path lies in one of the folders.
static int inside(const char *path) {
  if (!under || !path) return 0;
  char full[8192];
  if (path[0] != '/') {
    char here[4096];
    if (!getcwd(here, sizeof here)) return 0;
    snprintf(full, sizeof full, "%s/%s", here, path);
    path = full;
  }
  for (const char *one = under; *one;) {
    size_t n = strcspn(one, ":");
    if (n && !strncmp(path, one, n)) return 1;
    one += n + (one[n] == ':');
  }
  return 0;
}

static int path_of(int fd, char *out, size_t n) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t k = readlink(link, out, n - 1);
  if (k < 0) return 0;
  out[k] = 0;
  return 1;
}

static int file_inside(int fd, char *path, size_t n) {
  return under && fd != log_file && path_of(fd, path, n) && inside(path);
}

// The path that a call with a folder and a name means.
static const char *joined(int folder, const char *name, char *out, size_t n) {
  if (folder == AT_FDCWD || name[0] == '/') return name;
  char base[4096];
  if (!path_of(folder, base, sizeof base)) return name;
  snprintf(out, n, "%s/%s", base, name);
  return out;
}

// What becomes of an operation: it is done, fails, or is done (or half) and the last.
enum fate { DONE, FAILS, LAST };

static enum fate fate(const char *op, const char *path, int needs_room) {
  if (ops && strcmp(op, ops)) return DONE;
  long n = atomic_fetch_add(&count, 1) + 1;
  if (log_file >= 0) {
    char line[9000];
    int k = snprintf(line, sizeof line, "%ld %s %s\n", n, op, path);
    if (REAL(write)(log_file, line, k) < 0) return DONE;
  }
  if (at < 0 || n < at || (n > at && how != FULL)) return DONE;
  switch (how) {
    case FULL:
      if (n > at && !needs_room) return DONE;  // fall through
    case FAIL:
      errno = error_number;
      return FAILS;
    case BEFORE: raise(SIGKILL);  // fall through
    case AFTER:
    case HALF: return LAST;
    default: return DONE;
  }
}

#define GUARD(op, path, room, call)                \
  enum fate f = fate(op, path, room);              \
  if (f == FAILS) return -1;                       \
  __typeof__(call) result = call;                  \
  if (f == LAST) raise(SIGKILL);                   \
  return result;

#define OPEN(name)                                                      \
  int name(const char *p, int flags, ...) {                             \
    va_list v;                                                          \
    va_start(v, flags);                                                 \
    mode_t m = va_arg(v, mode_t);                                       \
    va_end(v);                                                          \
    if (!inside(p)) return REAL(name)(p, flags, m);                     \
    int room = (flags & O_CREAT) != 0;                                  \
    GUARD(room ? "create" : "open", p, room, REAL(name)(p, flags, m))   \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                       \
  int name(int d, const char *q, int flags, ...) {                         \
    va_list v;                                                             \
    va_start(v, flags);                                                    \
    mode_t m = va_arg(v, mode_t);                                          \
    va_end(v);                                                             \
    char b[8192];                                                          \
    const char *p = joined(d, q, b, sizeof b);                             \
    if (!inside(p)) return REAL(name)(d, q, flags, m);                     \
    int room = (flags & O_CREAT) != 0;                                     \
    GUARD(room ? "create" : "open", p, room, REAL(name)(d, q, flags, m))   \
  }
OPENAT(openat)
OPENAT(openat64)

#define READ(name, args, pass)                                 \
  ssize_t name args {                                          \
    char p[4096];                                              \
    if (!file_inside(fd, p, sizeof p)) return REAL(name) pass; \
    GUARD("read", p, 0, REAL(name) pass)                       \
  }
READ(read, (int fd, void *b, size_t n), (fd, b, n))
READ(pread64, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o))

#define WRITE(name, args, pass, half)                          \
  ssize_t name args {                                          \
    char p[4096];                                              \
    if (!file_inside(fd, p, sizeof p)) return REAL(name) pass; \
    enum fate f = fate("write", p, 1);                         \
    if (f == FAILS) return -1;                                 \
    if (f == LAST && how == HALF) n /= half;                   \
    ssize_t result = REAL(name) pass;                          \
    if (f == LAST) raise(SIGKILL);                             \
    return result;                                             \
  }
WRITE(write, (int fd, const void *b, size_t n), (fd, b, n), 2)
WRITE(pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), 2)
WRITE(writev, (int fd, const struct iovec *v, int n), (fd, v, n), 1)

#define OF_FILE(name, op, room, args, pass)                    \
  int name args {                                              \
    char p[4096];                                              \
    if (!file_inside(fd, p, sizeof p)) return REAL(name) pass; \
    GUARD(op, p, room, REAL(name) pass)                        \
  }
OF_FILE(fsync, "fsync", 0, (int fd), (fd))
OF_FILE(fdatasync, "fsync", 0, (int fd), (fd))
OF_FILE(ftruncate64, "truncate", 1, (int fd, off64_t n), (fd, n))
OF_FILE(fallocate64, "reserve", 1, (int fd, int m, off64_t o, off64_t n), (fd, m, o, n))

#define OF_PATH(name, op, room, args, pass)    \
  int name args {                              \
    if (!inside(p)) return REAL(name) pass;    \
    GUARD(op, p, room, REAL(name) pass)        \
  }
OF_PATH(mkdir, "mkdir", 1, (const char *p, mode_t m), (p, m))
OF_PATH(unlink, "unlink", 0, (const char *p), (p))
OF_PATH(rmdir, "rmdir", 0, (const char *p), (p))
OF_PATH(rename, "rename", 0, (const char *p, const char *to), (p, to))
OF_PATH(link, "link", 1, (const char *p, const char *to), (p, to))

int unlinkat(int d, const char *q, int flags) {
  char b[8192];
  const char *p = joined(d, q, b, sizeof b);
  if (!inside(p)) return REAL(unlinkat)(d, q, flags);
  GUARD(flags & AT_REMOVEDIR ? "rmdir" : "unlink", p, 0, REAL(unlinkat)(d, q, flags))
}

int renameat2(int d, const char *q, int e, const char *to, unsigned flags) {
  char b[8192];
  const char *p = joined(d, q, b, sizeof b);
  if (!inside(p)) return REAL(renameat2)(d, q, e, to, flags);
  GUARD("rename", p, 0, REAL(renameat2)(d, q, e, to, flags))
}

ssize_t copy_file_range(int a, off64_t *x, int fd, off64_t *y, size_t n, unsigned z) {
  char p[4096];
  if (!file_inside(fd, p, sizeof p)) return REAL(copy_file_range)(a, x, fd, y, n, z);
  GUARD("copy", p, 1, REAL(copy_file_range)(a, x, fd, y, n, z))
}
