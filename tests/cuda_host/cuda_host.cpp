// The blocks of `cuda_host.h`.
#include "cuda_host.h"

#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <vector>

thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace {
constexpr size_t STACK = 64 << 10;

// One thread of a block after another runs on it, until one waits at a barrier.
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  dim3 thread;
  bool waits;
};

struct Block {
  const std::function<void()> &body;
  bool backwards;
  unsigned begun = 0, count = 0;
  std::vector<std::unique_ptr<Fiber>> fibers; // kept from block to block
  Fiber *running = nullptr;
  ucontext_t home;

  dim3 next() {
    unsigned n = backwards ? count - 1 - begun : begun;
    ++begun;
    return {n % blockDim.x, n / blockDim.x % blockDim.y,
            n / (blockDim.x * blockDim.y)};
  }
  void resume(Fiber &fiber) {
    running = &fiber;
    fiber.waits = false;
    threadIdx = fiber.thread;
    swapcontext(&home, &fiber.context);
  }
  bool run();
};
thread_local Block *block;

void begin() {
  while (block->begun < block->count) {
    threadIdx = block->running->thread = block->next();
    block->body();
  }
  // No thread is left to begin: `uc_link` leads home.
}

// Whether all threads met at every barrier.
bool Block::run() {
  begun = 0, count = blockDim.x * blockDim.y * blockDim.z;
  std::vector<Fiber *> waiting;
  for (size_t used = 0; begun < count; ++used) {
    if (used == fibers.size()) fibers.emplace_back(new Fiber);
    Fiber &fiber = *fibers[used];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = &home;
    makecontext(&fiber.context, begin, 0);
    resume(fiber);
    if (fiber.waits) waiting.push_back(&fiber);
  }
  while (!waiting.empty()) {
    if (waiting.size() != count) return false;
    // The other way round from barrier to barrier: an order that only happens to
    // work must not pass.
    std::reverse(waiting.begin(), waiting.end());
    for (Fiber *fiber : waiting) resume(*fiber);
    auto done = [](Fiber *fiber) { return !fiber->waits; };
    waiting.erase(std::remove_if(waiting.begin(), waiting.end(), done),
                  waiting.end());
  }
  return true;
}
} // namespace

void __syncthreads() {
  Fiber &fiber = *block->running;
  fiber.waits = true;
  swapcontext(&fiber.context, &block->home);
}

float __shfl_xor_sync(unsigned, float x, int mask) {
  static thread_local float given[1024];
  unsigned from = threadIdx.x ^ mask;
  given[threadIdx.x] = x;
  __syncthreads();
  float found = from < blockDim.x ? given[from] : x;
  __syncthreads();
  return found;
}

float f16_value(unsigned short bits) {
  int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float size = exponent == 31  ? (fraction ? NAN : INFINITY)
               : exponent == 0 ? std::ldexp((float)fraction, -24)
                               : std::ldexp((float)(fraction + 1024), exponent - 25);
  return bits >> 15 ? -size : size;
}

unsigned short f16_bits(float x) {
  unsigned short sign = std::signbit(x) ? 0x8000 : 0;
  float size = std::fabs(x);
  if (size != size) return 0x7FFF;
  if (size == 0.0f) return sign;
  if (size >= 65520.0f) return sign | 0x7C00; // half way to the next exponent
  int exponent;
  std::frexp(size, &exponent);
  // The step between neighbours is 2^(exponent - 11), and 2^-24 at least.
  int step = std::max(exponent - 11, -24);
  unsigned steps = (unsigned)std::nearbyint(std::ldexp(size, -step));
  return sign | (unsigned short)(steps + ((unsigned)(step + 24) << 10));
}

int run_grid(const unsigned *grid, const unsigned *threads, bool backwards,
             const std::function<void()> &thread) {
  Block here{thread, backwards};
  block = &here;
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads[0], threads[1], threads[2]};
  for (unsigned z = 0; z < grid[2]; ++z)
    for (unsigned y = 0; y < grid[1]; ++y)
      for (unsigned x = 0; x < grid[0]; ++x) {
        blockIdx = {x, y, z};
        if (!here.run()) return 1;
      }
  return 0;
}
