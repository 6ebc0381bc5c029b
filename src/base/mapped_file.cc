#include "base/mapped_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "base/mutex.h"

namespace gemma4 {
namespace {

// What the signal handler needs of a mapped file. `begin` is 0 where the slot is free.
struct Slot {
  std::atomic<uintptr_t> begin = 0, end = 0;
  std::atomic<bool> lost = false;
  const MappedFile* file = nullptr;  // under slots_mutex
  const char* path = nullptr;        // written before `begin`
};

constexpr size_t kSlots = 4096;  // mapped files at a time; the shards of a checkpoint are at most a few hundred
static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

Mutex slots_mutex;
Slot slots[kSlots];
std::atomic<size_t> slots_used = 0;  // those from here on were never taken

std::atomic<LostPages> lost_pages = LostPages::kExit;
uintptr_t page_size = 0;
struct sigaction earlier = {};  // what SIGBUS did before

size_t take_slot(const MappedFile* file, const char* path, const void* data, size_t size) {
  const MutexLock lock(slots_mutex);
  size_t i = 0;
  while (i < kSlots && slots[i].file != nullptr) ++i;
  if (i == kSlots) throw Error("cannot map " + std::string(path) + ": too many files are mapped");
  Slot& slot = slots[i];
  slot.file = file;
  slot.path = path;
  slot.lost = false;
  slot.end = reinterpret_cast<uintptr_t>(data) + size;
  slot.begin = reinterpret_cast<uintptr_t>(data);
  slots_used = std::max(slots_used.load(), i + 1);
  return i;
}

void free_slot(size_t i) {
  const MutexLock lock(slots_mutex);
  slots[i].begin = 0;
  slots[i].end = 0;
  slots[i].file = nullptr;
}

// From here to on_bus_error(): only what a signal handler may call.

Slot* slot_at(uintptr_t address) {
  const size_t count = slots_used;
  for (size_t i = 0; i < count; ++i) {
    const uintptr_t begin = slots[i].begin;
    // A mapping ends with a whole page.
    const uintptr_t end = (slots[i].end + page_size - 1) / page_size * page_size;
    if (begin != 0 && address >= begin && address < end) return &slots[i];
  }
  return nullptr;
}

void say(const char* text) {
  if (::write(STDERR_FILENO, text, std::strlen(text)) < 0) return;  // nowhere to say it
}

[[noreturn]] void exit_without(const char* path) {
  say("gemma4: ");
  say(path);
  say(" can no longer be read: it was cut short while it was in use, or its disk failed\n");
  ::_exit(kExitDevice);
}

void on_bus_error(int signal, siginfo_t* info, void*) {
  const bool sent = info->si_code <= 0;  // by kill(): there is no address
  Slot* slot = sent ? nullptr : slot_at(reinterpret_cast<uintptr_t>(info->si_addr));
  if (slot == nullptr) {
    ::sigaction(SIGBUS, &earlier, nullptr);
    if (sent) ::raise(signal);  // pending until this returns; else the same access raises it again
    return;
  }
  if (lost_pages == LostPages::kExit) exit_without(slot->path);
  slot->lost = true;
  // The whole mapping at once: a page at a time, a large file would need more mappings than a process may have.
  const uintptr_t begin = slot->begin;
  void* zeros = ::mmap(reinterpret_cast<void*>(begin), slot->end - begin, PROT_READ,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (zeros == MAP_FAILED) exit_without(slot->path);
}

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  return std::shared_ptr<const MappedFile>(new MappedFile(path));
}

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path), file_(path, false) {
  if (::fstat(file_.number(), &opened_) != 0) throw_errno(path, "read");
  size_ = static_cast<size_t>(opened_.st_size);
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file_.number(), 0);
  if (data == MAP_FAILED) throw_errno(path, "map");
  data_ = static_cast<const std::byte*>(data);
  try {
    slot_ = take_slot(this, path_.c_str(), data, size_);
  } catch (...) {
    ::munmap(data, size_);
    throw;
  }
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) return;
  free_slot(slot_);
  ::munmap(const_cast<std::byte*>(data_), size_);
}

bool MappedFile::changed() const {
  struct stat now = {};
  if (::fstat(file_.number(), &now) != 0) return true;
  return now.st_size != opened_.st_size || now.st_mtim.tv_sec != opened_.st_mtim.tv_sec ||
         now.st_mtim.tv_nsec != opened_.st_mtim.tv_nsec;
}

void check_mapped_files() {
  const MutexLock lock(slots_mutex);
  const size_t count = slots_used;
  for (size_t i = 0; i < count; ++i) {
    const MappedFile* file = slots[i].file;
    if (file == nullptr) continue;
    if (slots[i].lost) {
      throw DeviceError(file->path().string() +
                        " can no longer be read: it was cut short while it was in use, or its disk failed");
    }
    if (file->changed()) throw DeviceError(file->path().string() + " was changed while it was in use; start again");
  }
}

void handle_lost_pages(LostPages how) {
  lost_pages = how;
  static const bool installed = [] {
    page_size = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    struct sigaction action = {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    return ::sigaction(SIGBUS, &action, &earlier) == 0;
  }();
  if (!installed) throw Error("cannot handle SIGBUS");
}

void forget_pages(const void* data, size_t size) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(data), last = first + size;
  const MutexLock lock(slots_mutex);  // no mapping may go away, and its addresses to the heap, before madvise()
  const size_t count = slots_used;
  for (size_t i = 0; i < count; ++i) {
    if (slots[i].file == nullptr) continue;
    const uintptr_t begin = (std::max<uintptr_t>(first, slots[i].begin) + page - 1) / page * page;
    const uintptr_t end = std::min<uintptr_t>(last, slots[i].end) / page * page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
}

}  // namespace gemma4
