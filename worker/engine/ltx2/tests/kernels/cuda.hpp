// What the kernels use of CUDA, on a CPU. The threads of a block are fibers of one thread, which take turns at barriers. Included
// in place of `device.cuh`.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __shared__ static thread_local

using std::max;
using std::min;

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

static float rsqrtf(float value) { return 1.0f / std::sqrt(value); }

static unsigned bf16_bits(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static unsigned pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }

#define HAS_FLOAT8

static unsigned e4m3_bits(float value) {
  if (std::isnan(value)) return 0x7f;
  const float amount = std::min(std::fabs(value), 448.0f);
  if (amount == 0.0f) return std::signbit(value) ? 0x80 : 0;
  int exponent;
  std::frexp(amount, &exponent);  // amount < 2^exponent
  exponent = std::max(exponent - 1, -6);
  const unsigned steps = static_cast<unsigned>(std::nearbyint(std::ldexp(amount, 3 - exponent)));
  // Below 8 steps, the value is subnormal. 16 steps are the first value of the next exponent.
  const unsigned bits = ((exponent + 6) << 3) + steps;
  return bits | (std::signbit(value) ? 0x80 : 0);
}

static unsigned pack_e4m3(float a, float b, float c, float d) {
  return e4m3_bits(a) | e4m3_bits(b) << 8 | e4m3_bits(c) << 16 | e4m3_bits(d) << 24;
}

struct Index {
  unsigned x;
};
static thread_local Index threadIdx, blockIdx, blockDim;

namespace host {

constexpr unsigned WARP = 32, MOST_THREADS = 1024;
constexpr std::size_t STACK_BYTES = 64 << 10;

struct Barrier {
  unsigned arrived = 0, turn = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  bool ended;
  unsigned shuffles;
};

// The block that runs in this thread.
static thread_local std::vector<Fiber> fibers;
static thread_local std::function<void()> body;
static thread_local ucontext_t scheduler;
static thread_local Barrier whole, warps[MOST_THREADS / WARP];
static thread_local float shuffled[2][MOST_THREADS];
static thread_local bool progress;

static void wait(Barrier& barrier, unsigned threads) {
  const unsigned turn = barrier.turn;
  progress = true;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    barrier.turn++;
  }
  while (barrier.turn == turn) swapcontext(&fibers[threadIdx.x].context, &scheduler);
}

static void enter() {
  body();
  fibers[threadIdx.x].ended = progress = true;
}

static void run_block() {
  const unsigned threads = blockDim.x;
  if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
  whole = {};
  std::fill(std::begin(warps), std::end(warps), Barrier{});
  for (unsigned i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.ended = false;
    fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  // Every second round goes backwards: a barrier that is missing then shows.
  unsigned running = threads;
  for (bool backwards = false; running > 0; backwards = !backwards) {
    progress = false;
    for (unsigned k = 0; k < threads; k++) {
      threadIdx.x = backwards ? threads - 1 - k : k;
      Fiber& fiber = fibers[threadIdx.x];
      if (fiber.ended) continue;
      swapcontext(&scheduler, &fiber.context);
      if (fiber.ended) running--;
    }
    if (!progress) {
      std::fprintf(stderr, "threads of a kernel wait at a barrier for others that have ended\n");
      std::abort();
    }
  }
}

template <typename... Args, std::size_t... I>
void launch(
    void (*kernel)(Args...), void* const* arguments, unsigned blocks, unsigned threads,
    std::index_sequence<I...>) {
  if (threads % WARP != 0 || threads > MOST_THREADS) {
    std::fprintf(stderr, "blocks are whole warps, given %u threads\n", threads);
    std::abort();
  }
  body = [&] { kernel(*static_cast<Args*>(arguments[I])...); };
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) run_block();
}

template <typename... Args>
void launch(void (*kernel)(Args...), void* const* arguments, unsigned blocks, unsigned threads) {
  launch(kernel, arguments, blocks, threads, std::index_sequence_for<Args...>());
}

}  // namespace host

static void __syncthreads() { host::wait(host::whole, blockDim.x); }

// Two places, taken in turn: one is read while the other may be written already.
static float __shfl_xor_sync(unsigned, float value, int mask) {
  float(&places)[host::MOST_THREADS] = host::shuffled[host::fibers[threadIdx.x].shuffles++ % 2];
  places[threadIdx.x] = value;
  host::wait(host::warps[threadIdx.x / host::WARP], host::WARP);
  return places[threadIdx.x ^ mask];
}

#define ON_HOST(kernel)                                                                                \
  extern "C" void kernel##_on_host(void* const* arguments, unsigned blocks, unsigned threads) {        \
    host::launch(kernel, arguments, blocks, threads);                                                  \
  }
