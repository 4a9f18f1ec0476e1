// What every kernel shares: the element type, packed loads, warp sums, activations, asynchronous copies, the end of a
// matrix product.
//
// The launcher puts these parts together, in this order: its prelude of #define lines, common.cuh, the parts that the
// operation's file names, that file. Nothing is included at run time.
// Prelude: one of ELEM_F32, ELEM_F16, ELEM_BF16, then the constants that the operation's file names.
// With AQUATINT_HOST, ../host/device.hpp stands in for the device; see ../README.md.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define ALL_LANES 0xffffffffu
#define INLINE __device__ __forceinline__

// f16 and bf16 travel as their bits.
#if defined(ELEM_F32)
typedef float elem;
#define CHUNK 4
#elif defined(ELEM_F16) || defined(ELEM_BF16)
typedef u16 elem;
#define CHUNK 8
#else
#error "one of ELEM_F32, ELEM_F16, ELEM_BF16"
#endif
// CHUNK: elements in 16 bytes, the widest load.

#ifndef AQUATINT_HOST

INLINE float f16_to_f32(u16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}

INLINE u16 f32_to_f16(float x) {
  u16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

INLINE float bf16_to_f32(u16 x) { return __uint_as_float(u32(x) << 16); }

INLINE u16 f32_to_bf16(float x) {
  u16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}

#if !defined(ELEM_F32)
// Two elements in one register, `low` first in memory.
INLINE u32 pair_of(float low, float high) {
  u32 pair;
#if defined(ELEM_F16)
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#endif
  return pair;
}
#endif

// 2^x to 2 ulp; what would be subnormal is 0.
INLINE float quick_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Copies 16 bytes to shared memory in the background, or writes zeros there where `valid` is false.
// Both addresses are multiples of 16; `from` must be readable even if it is not valid.
INLINE void copy_async_16(void* to, const void* from, bool valid) {
  u32 address = u32(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(valid ? 16 : 0)
               : "memory");
}

// Closes this thread's group of copies.
INLINE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's latest groups are under way. Other threads see the data after
// a __syncthreads.
template <int PENDING>
INLINE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

#endif

INLINE float minus_infinity() { return __uint_as_float(0xff800000u); }

INLINE float to_f32(elem x) {
#if defined(ELEM_F32)
  return x;
#elif defined(ELEM_F16)
  return f16_to_f32(x);
#else
  return bf16_to_f32(x);
#endif
}

INLINE elem from_f32(float x) {
#if defined(ELEM_F32)
  return x;
#elif defined(ELEM_F16)
  return f32_to_f16(x);
#else
  return f32_to_bf16(x);
#endif
}

// N neighbours, read and written in one access: the address is a multiple of their size.
template <int N>
struct alignas(N * sizeof(elem)) Pack {
  elem values[N];
};

template <int N>
INLINE Pack<N> load(const elem* from) {
  return *reinterpret_cast<const Pack<N>*>(from);
}

template <int N>
INLINE void store(elem* to, const Pack<N>& pack) {
  *reinterpret_cast<Pack<N>*>(to) = pack;
}

// The sum over a warp, the same bits in every lane.
INLINE float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    x += __shfl_xor_sync(ALL_LANES, x, step);
  }
  return x;
}

#define ACTIVATION_NONE 0u
#define ACTIVATION_GELU 1u
#define ACTIVATION_QUICK_GELU 2u
#define ACTIVATION_SILU 3u
#define ACTIVATION_GELU_TANH 4u

// x / 2 * (1 + erf(x / sqrt(2)))
INLINE float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

// x * sigmoid(scale * x); the quick division is right to 2 ulp
INLINE float swish(float x, float scale) { return __fdividef(x, 1.0f + expf(-scale * x)); }

// x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³))), as x * sigmoid of twice tanh's argument
INLINE float gelu_tanh(float x) {
  float twice = x * (1.5957691216f + x * x * 0.0713548163f);
  return __fdividef(x, 1.0f + expf(-twice));
}

template <int N>
INLINE void activate(float (&values)[N], u32 activation) {
  switch (activation) {
    case ACTIVATION_GELU:
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = gelu(values[i]);
      break;
    case ACTIVATION_QUICK_GELU:
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = swish(values[i], 1.702f);
      break;
    case ACTIVATION_SILU:
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = swish(values[i], 1.0f);
      break;
    case ACTIVATION_GELU_TANH:
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] = gelu_tanh(values[i]);
      break;
    default:
      break;
  }
}

template <int N>
INLINE void to_f32(float (&values)[N], const Pack<N>& pack) {
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = to_f32(pack.values[i]);
}

template <int N>
INLINE Pack<N> from_f32(const float (&values)[N]) {
  Pack<N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.values[i] = from_f32(values[i]);
  return pack;
}

// Tile `index` of a matrix product, in strips of 8 rows of tiles, so that blocks that run together share rows of both
// matrices.
INLINE void tile_at(u32 index, u32 tiles_m, u32 tiles_n, u32& tile_m, u32& tile_n) {
  u32 strip = index / (8 * tiles_n);
  u32 within = index - strip * 8 * tiles_n;
  u32 height = min(8u, tiles_m - strip * 8);
  tile_m = strip * 8 + within % height;
  tile_n = within / height;
}

// y = residual + gate * f(sum + bias) for a matrix product's outputs.
struct Epilogue {
  const elem* bias;
  const elem* residual;
  const elem* gate;
  elem* y;
  u32 rows, columns;
  u32 activation;
  // Rows of y that share a row of the residual; 0 for no residual.
  u32 residual_rows;
  // Rows of y that share a row of the gate; 0 for no gate.
  u32 gate_rows;
  bool has_bias;

  // N neighbours of a row; nothing where they lie outside of the matrix.
  template <int N>
  INLINE void write(u32 row, u32 column, const float* sums) const {
    if (row >= rows || column >= columns) return;
    float values[N], more[N];
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = sums[i];
    if (has_bias) {
      to_f32(more, load<N>(bias + column));
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] += more[i];
    }
    activate(values, activation);
    if (gate_rows != 0) {
      to_f32(more, load<N>(gate + size_t(row / gate_rows) * columns + column));
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] *= more[i];
    }
    if (residual_rows != 0) {
      to_f32(more, load<N>(residual + size_t(row / residual_rows) * columns + column));
#pragma unroll
      for (int i = 0; i < N; ++i) values[i] += more[i];
    }
    store<N>(y + size_t(row) * columns + column, from_f32(values));
  }
};
