#include "meter.h"

#include <malloc.h>

#include <atomic>
#include <cerrno>

namespace {

std::atomic<long> live{0}, highest{0};

[[maybe_unused]] void count(long bytes) {
  const long now = live += bytes;
  if (now > highest) highest = now;
}

}  // namespace

#if defined(__SANITIZE_ADDRESS__)  // as <sanitizer/allocator_interface.h>, which gcc does not install

extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void*, size_t),
                                                         void (*on_free)(const volatile void*));
extern "C" size_t __sanitizer_get_allocated_size(const volatile void* memory);

static const int kInstalled =
    __sanitizer_install_malloc_and_free_hooks([](const volatile void*, size_t size) { count(static_cast<long>(size)); },
                                              [](const volatile void* memory) {
                                                if (memory != nullptr)
                                                  count(-static_cast<long>(__sanitizer_get_allocated_size(memory)));
                                              });

#elif !defined(__SANITIZE_THREAD__)

extern "C" {

void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void __libc_free(void*);

static void* counted(void* memory) {
  if (memory != nullptr) count(static_cast<long>(malloc_usable_size(memory)));
  return memory;
}

void* malloc(size_t size) { return counted(__libc_malloc(size)); }
void* calloc(size_t count, size_t size) { return counted(__libc_calloc(count, size)); }
void* memalign(size_t alignment, size_t size) { return counted(__libc_memalign(alignment, size)); }
void* aligned_alloc(size_t alignment, size_t size) { return memalign(alignment, size); }
int posix_memalign(void** memory, size_t alignment, size_t size) {
  *memory = memalign(alignment, size);
  return *memory == nullptr ? ENOMEM : 0;
}
void free(void* memory) {
  if (memory != nullptr) count(-static_cast<long>(malloc_usable_size(memory)));
  __libc_free(memory);
}
void* realloc(void* memory, size_t size) {
  const long before = memory == nullptr ? 0 : static_cast<long>(malloc_usable_size(memory));
  void* moved = __libc_realloc(memory, size);
  if (moved != nullptr || size == 0) count(-before);
  return counted(moved);
}

}  // extern "C"

#endif

namespace gemma4 {

void MemoryMeter::start() { live = 0, highest = 0; }

size_t MemoryMeter::peak() { return static_cast<size_t>(highest.load()); }

}  // namespace gemma4
