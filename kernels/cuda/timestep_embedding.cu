// y[r, c] = sin(t[r] * f[c]) or cos(t[r] * f[c]), the sinusoidal embedding of timesteps (Ho et al. 2020)
//
// f: [channels / 2], f32; y: [rows of all launches, channels]; f32, f16 or bf16; computed in f32, rounded once. The first
// channels / 2 columns are sines and the next cosines, or the other way round; an odd last column is 0. The product is
// rounded to f32, as PyTorch rounds it.
// Quarters of a turn are taken off in integers (Payne & Hanek 1983), which no compiler's reordering of floats can spoil; on
// what is left, at most pi / 4, Taylor's polynomials of degrees 9 and 10 are off by 2e-9.
// constants: none
// launch: 256 threads, ceil(rows * channels / 256) blocks
// limits: at most 64 rows a launch; |t * f| < 2^23, where the result is at most 1.2e-7 off; rows * channels < 2^32 - 256
// parameters: u32 first (the row of y that the launch begins with), u32 rows, u32 channels, u32 cosines_first,
//   f32 timesteps[64]
// reference: ops::embedding::sinusoids; proof: ../host/cases/timestep_embedding.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

#define THREADS 256

struct Params {
  u32 first;
  u32 rows;
  u32 channels;
  u32 cosines_first;
  float timesteps[64];
};

// sin(angle), or cos(angle) where `quarters` is 1.
INLINE float wave(float angle, u32 quarters) {
  u32 bits = __float_as_uint(angle) & 0x7fffffffu;
  float r = fabsf(angle);
  // Beyond pi / 4: turns are the 24 bits of the mantissa times 1 / (2 pi) (2^64 / (2 pi) is 0x28be60db9391054a), moved by
  // the exponent; whole ones drop out.
  if (bits > 0x3f490fdbu) {
    u64 mantissa = (bits & 0x7fffffu) | 0x800000u;
    u64 turns = mantissa * 0x28be60dbu + (mantissa * 0x9391054au >> 32);
    u32 turn = u32(turns >> (150u - min(bits >> 23, 150u)));
    u32 nearest = (turn + 0x20000000u) >> 30;
    quarters += nearest;
    // 2 pi / 2^32
    r = float(int(turn - (nearest << 30))) * 1.4629180793e-9f;
  }
  float square = r * r;
  float y;
  if (quarters % 2 == 0) {
    y = 1.0f / 362880.0f;
    y = y * square - 1.0f / 5040.0f;
    y = y * square + 1.0f / 120.0f;
    y = y * square - 1.0f / 6.0f;
    y = r + r * square * y;
  } else {
    y = -1.0f / 3628800.0f;
    y = y * square + 1.0f / 40320.0f;
    y = y * square - 1.0f / 720.0f;
    y = y * square + 1.0f / 24.0f;
    y = y * square - 0.5f;
    y = 1.0f + square * y;
  }
  return quarters & 2 ? -y : y;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    timestep_embedding(const float* __restrict__ frequencies, elem* __restrict__ y,
                       const __grid_constant__ Params params) {
  u32 index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= params.rows * params.channels) return;
  u32 row = index / params.channels, column = index % params.channels, half = params.channels / 2;
  float value = 0.0f;
  if (column < 2 * half) {
    bool second = column >= half;
    bool cosine = second != (params.cosines_first != 0);
    float angle = params.timesteps[row] * frequencies[second ? column - half : column];
    value = wave(angle, cosine ? 1 : 0);
    // The sine of a negative angle is that of its size, negated.
    if (!cosine && angle < 0.0f) value = -value;
  }
  y[(size_t(params.first) + row) * params.channels + column] = from_f32(value);
}
