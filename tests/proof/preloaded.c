/* Preloaded by tests/proof/preloaded.py: a wall clock that jumps when a file appears, and writes that take long.

   GPO_PROOF_CLOCK names the file; it holds the seconds to add. GPO_PROOF_WRITE_US is how long a write or fsync of a
   file sleeps before. The monotonic clock is left alone, as a real jump leaves it. Deadlines by the wall clock, which
   the kernel holds against its own, are brought back to that: else, behind a jump back, every such wait would be over
   at once, and its thread would spin. Waits that are under way at the jump end as if there were none.

   Every process that has the library leaves marks in the folder GPO_PROOF_MARKS: PID.here, PID.jumped when it first
   sees the other clock, PID.slept when its first write has slept. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static void leave_mark(const char *what) {
    const char *folder = getenv("GPO_PROOF_MARKS");
    char path[4096];
    if (folder == NULL) return;
    snprintf(path, sizeof path, "%s/%d.%s", folder, (int)getpid(), what);
    int file = open(path, O_WRONLY | O_CREAT, 0644);
    if (file >= 0) close(file);
}

__attribute__((constructor)) static void begin(void) { leave_mark("here"); }

static long jumped(void) {
    static long offset = 0;
    static pid_t marked = 0;
    const char *path = getenv("GPO_PROOF_CLOCK");
    if (offset == 0 && path != NULL && access(path, R_OK) == 0) {
        FILE *file = fopen(path, "r");
        if (file != NULL) {
            if (fscanf(file, "%ld", &offset) != 1) offset = 0;
            fclose(file);
        }
    }
    /* A child that was forked behind the jump has the offset, but no mark of its own. */
    if (offset != 0 && marked != getpid()) {
        marked = getpid();
        leave_mark("jumped");
    }
    return offset;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *) = NULL;
    if (real == NULL) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += jumped();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *) = NULL;
    if (real == NULL) real = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    if (result == 0) now->tv_sec += jumped();
    return result;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where != NULL) *where = now.tv_sec;
    return now.tv_sec;
}

/* By the kernel's clock. Deadlines of conditions that wait by the monotonic clock come here too: they are small. */
static const struct timespec *kernels(const struct timespec *deadline, struct timespec *own) {
    if (deadline == NULL || deadline->tv_sec < 1000000000) return deadline;
    *own = *deadline;
    own->tv_sec -= jumped();
    return own;
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *) = NULL;
    struct timespec own;
    /* The symbol has an older form on x86-64, which another kind of condition was for. */
    if (real == NULL) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (real == NULL) real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    return real(condition, mutex, kernels(deadline, &own));
}

int pthread_cond_clockwait(
    pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *deadline) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *) = NULL;
    struct timespec own;
    if (real == NULL) real = dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    return real(condition, mutex, clock, kernels(deadline, &own));
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *deadline) {
    static int (*real)(pthread_mutex_t *, const struct timespec *) = NULL;
    struct timespec own;
    if (real == NULL) real = dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
    return real(mutex, kernels(deadline, &own));
}

int sem_timedwait(sem_t *semaphore, const struct timespec *deadline) {
    static int (*real)(sem_t *, const struct timespec *) = NULL;
    struct timespec own;
    if (real == NULL) real = dlsym(RTLD_NEXT, "sem_timedwait");
    return real(semaphore, kernels(deadline, &own));
}

/* Abseil, within Ray, waits by the system call itself. */
long syscall(long number, ...) {
    static long (*real)(long, ...) = NULL;
    struct timespec own;
    long given[6];
    va_list rest;
    va_start(rest, number);
    for (int place = 0; place < 6; place++) given[place] = va_arg(rest, long);
    va_end(rest);
    if (real == NULL) real = dlsym(RTLD_NEXT, "syscall");
    if (number == SYS_futex && (given[1] & FUTEX_CLOCK_REALTIME) != 0)
        given[3] = (long)kernels((const struct timespec *)given[3], &own);
    return real(number, given[0], given[1], given[2], given[3], given[4], given[5]);
}

static void dawdle(int file) {
    static pid_t marked = 0;
    const char *microseconds = getenv("GPO_PROOF_WRITE_US");
    struct stat found;
    if (microseconds == NULL || fstat(file, &found) != 0 || !S_ISREG(found.st_mode)) return;
    usleep(atoi(microseconds));
    if (marked != getpid()) {
        marked = getpid();
        leave_mark("slept");
    }
}

ssize_t write(int file, const void *content, size_t size) {
    static ssize_t (*real)(int, const void *, size_t) = NULL;
    if (real == NULL) real = dlsym(RTLD_NEXT, "write");
    dawdle(file);
    return real(file, content, size);
}

ssize_t pwrite(int file, const void *content, size_t size, off_t place) {
    static ssize_t (*real)(int, const void *, size_t, off_t) = NULL;
    if (real == NULL) real = dlsym(RTLD_NEXT, "pwrite");
    dawdle(file);
    return real(file, content, size, place);
}

ssize_t pwrite64(int file, const void *content, size_t size, off64_t place) {
    static ssize_t (*real)(int, const void *, size_t, off64_t) = NULL;
    if (real == NULL) real = dlsym(RTLD_NEXT, "pwrite64");
    dawdle(file);
    return real(file, content, size, place);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    static ssize_t (*real)(int, const struct iovec *, int) = NULL;
    if (real == NULL) real = dlsym(RTLD_NEXT, "writev");
    dawdle(file);
    return real(file, parts, count);
}

int fsync(int file) {
    static int (*real)(int) = NULL;
    if (real == NULL) real = dlsym(RTLD_NEXT, "fsync");
    dawdle(file);
    return real(file);
}
