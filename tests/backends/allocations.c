// Loaded before everything else: counts what C++ takes from the heap. `new` is found here first; whatever takes memory
// with aligned_alloc (runtime/scratch.h) too.
#include <stdlib.h>

static long count = 0;

long allocations(void) { return __atomic_load_n(&count, __ATOMIC_RELAXED); }

void* _Znwm(size_t bytes) {
  __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
  return malloc(bytes ? bytes : 1);
}

void _ZdlPv(void* p) { free(p); }
void _ZdlPvm(void* p, size_t bytes) {
  (void)bytes;
  free(p);
}

void* aligned_alloc(size_t alignment, size_t bytes) {
  void* p = NULL;
  __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
  return posix_memalign(&p, alignment, bytes) ? NULL : p;
}
