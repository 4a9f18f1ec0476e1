// A CUDA device for proofs: runs one kernel's blocks on the host, each thread a fiber of one OS thread.
//
// It stands in for what the kernels of ../cuda use: thread and block indices, __syncthreads, warp shuffles,
// static __shared__ memory, and the wrappers of common.cuh and mma.cuh, whose fragment layouts are written
// down here from the PTX ISA. Proven by it: indexing, arithmetic, barriers that every thread reaches, copies
// that are waited for. Not proven: speed, and races that none of the orders below brings out.
//
// The order of the fibers and the moment of asynchronous copies are free on a device, so both are varied:
// warps run one by one to the next barrier, first to last or last to first, or threads shuffled at every turn;
// copies happen at once or as late as the wait allows. A missing barrier or wait shows as different bits.
// hopper.hpp adds what sm_90a has beyond.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <type_traits>
#include <utility>
#include <vector>

#define AQUATINT_HOST 1
#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// All shared memory lies in one section, which is filled with NaN before every block.
#define __shared__ static __attribute__((section("device_shared")))

extern "C" unsigned char __start_device_shared[] __attribute__((weak));
extern "C" unsigned char __stop_device_shared[] __attribute__((weak));

// The model's functions are compiled with each kernel; or once, in a file with MODEL_HERE, for kernels in files with
// MODEL_ELSEWHERE.
#if defined(MODEL_HERE)
#define MODEL
#define MODEL_STATE
#elif defined(MODEL_ELSEWHERE)
#define MODEL inline __attribute__((gnu_inline))
#define MODEL_STATE extern
#else
#define MODEL inline
#define MODEL_STATE inline
#endif

namespace device {

typedef unsigned short u16;
typedef unsigned int u32;

struct Index {
  u32 x, y, z;
};

enum class Collective : int { None, Shuffle, LoadMatrix, LoadMatrixTransposed, Mma, Fence, Product, Commit, Wait };

// What a lane brings to a collective of its warp, and what it takes away.
struct Exchange {
  Collective kind;
  u32 in[10];
  const void* address;
  // A warpgroup's product.
  uint64_t a, b;
  const u32* factors;
  float* sums;
  u32 out[4];
};

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

struct Fiber {
  ucontext_t first;
  jmp_buf resume;
  bool started, done;
  Index thread;
  u32 lane, warp;
  // Waits until *turn differs from `seen`.
  const u32* turn;
  u32 seen;
  Exchange exchange;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  u32 arrived, turn;
};

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<char> stacks;
  u32 threads, blocks, arrived, turn, order, late_copies, late_products;
  unsigned long long random;
  Fiber* current;
  jmp_buf scheduler;
  ucontext_t home;
  void (*body)(void*);
  void* argument;
  Index block;
};

MODEL_STATE Machine machine;

[[noreturn]] MODEL void fail(const char* what) {
  std::fprintf(stderr, "device: %s (block %u, thread %u)\n", what, machine.block.x,
               machine.current ? machine.current->thread.x : 0);
  std::abort();
}

MODEL void wait(const u32* turn, u32 seen) {
  Fiber* self = machine.current;
  self->turn = turn;
  self->seen = seen;
  if (!_setjmp(self->resume)) _longjmp(machine.scheduler, 1);
}

MODEL void barrier() {
  if (++machine.arrived == machine.threads) {
    machine.arrived = 0;
    ++machine.turn;
  } else {
    wait(&machine.turn, machine.turn);
  }
}

MODEL void settle(Fiber* lanes);
// Of hopper.hpp.
MODEL void settle_hopper(Fiber* lanes);
MODEL void begin_hopper();
MODEL void end_hopper();
MODEL bool deliver_one();

MODEL void exchange() {
  Fiber* self = machine.current;
  Warp& warp = machine.warps[self->warp];
  if (++warp.arrived == 32) {
    Fiber* lanes = &machine.fibers[self->warp * 32];
    for (u32 i = 0; i < 32; ++i) {
      if (lanes[i].exchange.kind != self->exchange.kind) fail("the lanes of a warp met at different operations");
    }
    settle(lanes);
    for (u32 i = 0; i < 32; ++i) lanes[i].exchange.kind = Collective::None;
    warp.arrived = 0;
    ++warp.turn;
  } else {
    wait(&warp.turn, warp.turn);
  }
}

MODEL bool in_shared(const void* address, size_t bytes) {
  const unsigned char* at = static_cast<const unsigned char*>(address);
  return at >= __start_device_shared && at + bytes <= __stop_device_shared;
}

MODEL void copy(const Copy& c) {
  if (c.valid) {
    std::memcpy(c.to, c.from, 16);
  } else {
    std::memset(c.to, 0, 16);
  }
}

MODEL float f16(u16 bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return float(half);
}

MODEL float bf16(u16 bits) {
  u32 word = u32(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

MODEL u32 bits(float value) {
  u32 word;
  std::memcpy(&word, &value, 4);
  return word;
}

MODEL float real(u32 word) {
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// mma.sync.aligned.m16n8k16.row.col.f32.{f16,bf16}.{f16,bf16}.f32. PTX ISA, "Matrix Fragments for mma.m16n8k16
// with floating point type": with group = lane / 4 and pair = lane % 4,
//   A: register r holds row group + 8 (r % 2), columns 2 pair + 8 (r / 2) and the next
//   B: register r holds column group, rows 2 pair + 8 r and the next
//   C, D: value v is row group + 8 (v / 2), column 2 pair + v % 2
// in[0..4] is A, in[4..6] B, in[6..10] C. The device's own rounding inside a product is not specified; here the
// sum is taken in f64 and rounded once.
MODEL void multiply(Fiber* lanes, bool brain) {
  auto element = [&](u32 word, int high) {
    u16 half = u16(high ? word >> 16 : word);
    return double(brain ? bf16(half) : f16(half));
  };
  double a[16][16], b[16][8];
  for (u32 lane = 0; lane < 32; ++lane) {
    const u32* in = lanes[lane].exchange.in;
    u32 group = lane / 4, pair = lane % 4;
    for (u32 r = 0; r < 4; ++r) {
      for (u32 i = 0; i < 2; ++i) a[group + 8 * (r % 2)][2 * pair + 8 * (r / 2) + i] = element(in[r], i);
    }
    for (u32 r = 0; r < 2; ++r) {
      for (u32 i = 0; i < 2; ++i) b[2 * pair + 8 * r + i][group] = element(in[4 + r], i);
    }
  }
  for (u32 lane = 0; lane < 32; ++lane) {
    Exchange& e = lanes[lane].exchange;
    for (u32 v = 0; v < 4; ++v) {
      u32 row = lane / 4 + 8 * (v / 2), column = 2 * (lane % 4) + v % 2;
      double sum = real(e.in[6 + v]);
      for (u32 k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      e.out[v] = bits(float(sum));
    }
  }
}

// ldmatrix.sync.aligned.m8n8.x4{.trans}.shared.b16: lane l brings the address of row l % 8 of matrix l / 8;
// register r of lane l gets elements 2 (l % 4) and the next of row l / 4 of matrix r, transposed: of that column.
MODEL void load_matrices(Fiber* lanes, bool transposed) {
  u16 matrix[4][8][8];
  for (u32 lane = 0; lane < 32; ++lane) {
    std::memcpy(matrix[lane / 8][lane % 8], lanes[lane].exchange.address, 16);
  }
  for (u32 lane = 0; lane < 32; ++lane) {
    for (u32 r = 0; r < 4; ++r) {
      u32 row = lane / 4, column = 2 * (lane % 4);
      u16 low = transposed ? matrix[r][column][row] : matrix[r][row][column];
      u16 high = transposed ? matrix[r][column + 1][row] : matrix[r][row][column + 1];
      lanes[lane].exchange.out[r] = low | u32(high) << 16;
    }
  }
}

MODEL void settle(Fiber* lanes) {
  switch (lanes[0].exchange.kind) {
    case Collective::Shuffle:
      for (u32 i = 0; i < 32; ++i) {
        lanes[i].exchange.out[0] = lanes[lanes[i].exchange.in[1]].exchange.in[0];
      }
      break;
    case Collective::LoadMatrix:
      load_matrices(lanes, false);
      break;
    case Collective::LoadMatrixTransposed:
      load_matrices(lanes, true);
      break;
    case Collective::Mma:
#if defined(ELEM_BF16)
      multiply(lanes, true);
#else
      multiply(lanes, false);
#endif
      break;
    default:
      settle_hopper(lanes);
  }
}

MODEL void enter() {
  machine.body(machine.argument);
  machine.current->done = true;
  _longjmp(machine.scheduler, 1);
}

MODEL bool ready(const Fiber& fiber) { return !fiber.done && (!fiber.turn || *fiber.turn != fiber.seen); }

MODEL void resume(Fiber& fiber) {
  machine.current = &fiber;
  fiber.turn = nullptr;
  if (_setjmp(machine.scheduler)) return;
  if (fiber.started) _longjmp(fiber.resume, 1);
  fiber.started = true;
  setcontext(&fiber.first);
}

constexpr size_t STACK = 128 * 1024;

MODEL void run_block() {
  std::memset(__start_device_shared, 0xff, __stop_device_shared - __start_device_shared);
  std::vector<u32> order(machine.threads);
  for (u32 i = 0; i < machine.threads; ++i) {
    order[i] = machine.order == 1 ? machine.threads - 1 - i : i;
    Fiber& fiber = machine.fibers[i];
    fiber.started = fiber.done = false;
    fiber.turn = nullptr;
    fiber.open.clear();
    fiber.groups.clear();
    fiber.exchange.kind = Collective::None;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = &machine.stacks[i * STACK];
    fiber.first.uc_stack.ss_size = STACK;
    fiber.first.uc_link = &machine.home;
    makecontext(&fiber.first, enter, 0);
  }
  machine.arrived = 0;
  begin_hopper();
  for (u32 left = machine.threads; left > 0;) {
    if (machine.order == 2) {
      for (u32 i = machine.threads - 1; i > 0; --i) {
        machine.random = machine.random * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order[i], order[(machine.random >> 33) % (i + 1)]);
      }
    }
    bool moved = machine.order == 2 && machine.random >> 62 == 0 && deliver_one();
    for (u32 at = 0; at < machine.threads; at += 32) {
      // A warp as far as it gets on its own; in the shuffled order, a turn for each of any 32 threads.
      bool ran;
      do {
        ran = false;
        for (u32 i = at; i < at + 32; ++i) {
          Fiber& fiber = machine.fibers[order[i]];
          if (!ready(fiber)) continue;
          ran = moved = true;
          resume(fiber);
          left -= fiber.done;
        }
      } while (ran && machine.order != 2);
    }
    if (!moved && !deliver_one()) fail("some threads wait at a barrier or shuffle that others never reach");
  }
  end_hopper();
  machine.current = nullptr;
}

}  // namespace device

#include "hopper.hpp"

namespace device {

template <class T>
T argument(void** pointers, size_t index, const void* params) {
  if constexpr (std::is_pointer_v<T>) {
    return static_cast<T>(pointers[index]);
  } else if constexpr (std::is_same_v<T, TensorMap>) {
    TensorMap map;
    std::memcpy(&map, pointers[index], sizeof map);
    return map;
  } else {
    return *static_cast<const T*>(params);
  }
}

template <class... Arguments>
struct Call {
  void (*kernel)(Arguments...);
  void** pointers;
  const void* params;

  template <size_t... I>
  void run(std::index_sequence<I...>) {
    kernel(argument<Arguments>(pointers, I, params)...);
  }
  static void body(void* self) { static_cast<Call*>(self)->run(std::index_sequence_for<Arguments...>()); }
};

template <class... Arguments>
void launch(void (*kernel)(Arguments...), void** pointers, const void* params, u32 blocks, u32 threads, u32 order,
            u32 late) {
  Call<Arguments...> call{kernel, pointers, params};
  if (threads % 32 != 0) fail("threads are not whole warps");
  machine.threads = threads;
  machine.fibers.resize(threads);
  machine.warps.assign(threads / 32, Warp{});
  machine.stacks.resize(threads * STACK);
  machine.order = order;
  machine.late_copies = late & 1;
  machine.late_products = late & 2;
  machine.blocks = blocks;
  machine.random = 1;
  machine.body = Call<Arguments...>::body;
  machine.argument = &call;
  for (u32 i = 0; i < threads; ++i) {
    machine.fibers[i].thread = {i, 0, 0};
    machine.fibers[i].lane = i % 32;
    machine.fibers[i].warp = i / 32;
  }
  for (u32 block = 0; block < blocks; ++block) {
    machine.block = {block, 0, 0};
    run_block();
  }
}

}  // namespace device

#define threadIdx (device::machine.current->thread)
#define blockIdx (device::machine.block)
#define gridDim (device::Index{device::machine.blocks, 1, 1})

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __uint_as_float(unsigned word) { return device::real(word); }
inline unsigned __float_as_uint(float x) { return device::bits(x); }
inline float __fdividef(float x, float y) { return x / y; }

inline void __syncthreads() { device::barrier(); }

inline float __shfl_xor_sync(unsigned mask, float value, int step) {
  if (mask != 0xffffffffu) device::fail("a shuffle of part of a warp");
  device::Exchange& e = device::machine.current->exchange;
  e.kind = device::Collective::Shuffle;
  e.in[0] = device::bits(value);
  e.in[1] = device::machine.current->lane ^ unsigned(step);
  device::exchange();
  return device::real(e.out[0]);
}

inline float f16_to_f32(unsigned short x) { return device::f16(x); }

inline unsigned short f32_to_f16(float x) {
  _Float16 half = _Float16(x);
  unsigned short word;
  std::memcpy(&word, &half, 2);
  return word;
}

inline float bf16_to_f32(unsigned short x) { return device::bf16(x); }

inline unsigned short f32_to_bf16(float x) {
  unsigned word = device::bits(x);
  if (x != x) return 0x7fff;
  return (unsigned short)((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

#if defined(ELEM_F16)
inline unsigned pair_of(float low, float high) { return f32_to_f16(low) | unsigned(f32_to_f16(high)) << 16; }
#elif defined(ELEM_BF16)
inline unsigned pair_of(float low, float high) { return f32_to_bf16(low) | unsigned(f32_to_bf16(high)) << 16; }
#endif

inline float quick_exp2(float x) {
  float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

inline void copy_async_16(void* to, const void* from, bool valid) {
  if (!device::in_shared(to, 16)) device::fail("an asynchronous copy to outside of shared memory");
  if (uintptr_t(to) % 16 != 0 || uintptr_t(from) % 16 != 0) device::fail("an asynchronous copy not aligned to 16");
  device::Copy c{to, from, valid};
  // Read even where it is not valid: the address must be good.
  volatile char probe = *static_cast<const volatile char*>(from);
  (void)probe;
  if (!device::machine.late_copies) device::copy(c);
  device::machine.current->open.push_back(c);
}

inline void copy_async_commit() {
  device::Fiber* self = device::machine.current;
  self->groups.push_back(std::move(self->open));
  self->open.clear();
}

template <int PENDING>
inline void copy_async_wait() {
  device::Fiber* self = device::machine.current;
  while (self->groups.size() > PENDING) {
    if (device::machine.late_copies) {
      for (const device::Copy& c : self->groups.front()) device::copy(c);
    }
    self->groups.pop_front();
  }
}

inline void load_matrix_4(unsigned (&registers)[4], const void* row) {
  if (!device::in_shared(row, 16) || uintptr_t(row) % 16 != 0) device::fail("ldmatrix of a bad address");
  device::Exchange& e = device::machine.current->exchange;
  e.kind = device::Collective::LoadMatrix;
  e.address = row;
  device::exchange();
  std::memcpy(registers, e.out, 16);
}

inline void load_matrix_4_transposed(unsigned (&registers)[4], const void* row) {
  if (!device::in_shared(row, 16) || uintptr_t(row) % 16 != 0) device::fail("ldmatrix of a bad address");
  device::Exchange& e = device::machine.current->exchange;
  e.kind = device::Collective::LoadMatrixTransposed;
  e.address = row;
  device::exchange();
  std::memcpy(registers, e.out, 16);
}

inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  device::Exchange& e = device::machine.current->exchange;
  e.kind = device::Collective::Mma;
  std::memcpy(e.in, a, 16);
  std::memcpy(e.in + 4, b, 8);
  std::memcpy(e.in + 6, sum, 16);
  device::exchange();
  std::memcpy(sum, e.out, 16);
}
