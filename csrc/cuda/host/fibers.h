// Threads of control that share one thread of the operating system: each runs on its own stack until it hands back.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <new>
#include <vector>

namespace fusedrnn::host {

constexpr size_t kStackBytes = 128 << 10;

// The stack of this number, kept for the process. It grows down towards a page that may not be touched.
inline std::byte* stack(size_t number) {
  static std::vector<std::byte*> stacks;
  while (stacks.size() <= number) {
    const size_t page = sysconf(_SC_PAGESIZE);
    void* const memory =
        mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE)) throw std::bad_alloc();
    stacks.push_back(static_cast<std::byte*>(memory) + page);
  }
  return stacks[number];
}

// Begins with setcontext and switches with _setjmp and _longjmp after that, which make no system call.
class Fiber {
 public:
  // `entry` must not return. A stack belongs to one fiber at a time.
  void prepare(std::byte* stack, void (*entry)()) {
    getcontext(&start_);
    start_.uc_stack = {.ss_sp = stack, .ss_flags = 0, .ss_size = kStackBytes};
    start_.uc_link = nullptr;
    makecontext(&start_, entry, 0);
  }

  // Until it hands back.
  void run() {
    if (_setjmp(outside_)) return;
    if (started_) _longjmp(inside_, 1);
    started_ = true;
    setcontext(&start_);
  }

  // Until it is run again.
  void hand_back() {
    if (!_setjmp(inside_)) _longjmp(outside_, 1);
  }

 private:
  bool started_ = false;
  ucontext_t start_;
  jmp_buf inside_, outside_;
};

}  // namespace fusedrnn::host
