// Shifts the wall clock of a process by the nanoseconds in the file $GR2_CLOCK, which may change at any time.
// Loaded with LD_PRELOAD; monotonic clocks are left alone, as they are when an administrator sets the time.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile int64_t* shift;

__attribute__((constructor)) static void open_shift(void) {
  const char* path = getenv("GR2_CLOCK");
  int file = path ? open(path, O_RDONLY) : -1;
  if (file < 0) return;
  void* at = mmap(0, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
  if (at != MAP_FAILED) shift = at;
}

static int64_t shifted(const struct timespec* at) {
  return at->tv_sec * 1000000000LL + at->tv_nsec + (shift ? *shift : 0);
}

int clock_gettime(clockid_t clock, struct timespec* at) {
  static int (*real)(clockid_t, struct timespec*);
  if (!real) real = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
  int code = real(clock, at);
  if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
    int64_t now = shifted(at);
    at->tv_sec = now / 1000000000LL;
    at->tv_nsec = now % 1000000000LL;
  }
  return code;
}

int gettimeofday(struct timeval* restrict at, void* restrict zone) {
  (void)zone;
  struct timespec now;
  int code = clock_gettime(CLOCK_REALTIME, &now);
  at->tv_sec = now.tv_sec;
  at->tv_usec = now.tv_nsec / 1000;
  return code;
}

time_t time(time_t* at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
