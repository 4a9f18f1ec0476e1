// y = (x - mean) / sqrt(var + eps) * weight + bias over each row's channels, var biased (Ba et al. 2016)
//
// x, y: [rows, channels], weight, bias: [channels], contiguous; f32, f16 or bf16; computed in f32
// One warp a row, which it holds in registers. The second pass, over x - mean, also finds what rounding left of the
// mean, so that a mean far larger than the deviation costs no digits.
// constants: WIDTH, elements an access: 1, or CHUNK (4 in f32, 8 in f16 and bf16) where `channels` is a multiple
//   of it and the buffers start at multiples of 16 bytes; PACKS = ceil(channels / (32 * WIDTH))
// launch: 128 threads, ceil(rows / 4) blocks
// limits: PACKS * WIDTH <= 128 at WIDTH = CHUNK, so channels <= 4096 in every dtype; PACKS <= 64 at WIDTH 1, so channels
//   <= 2048 (128 would not fit into registers); rows < 2^32 - 4
// parameters: u32 rows, u32 channels, float eps, u32 padding
// reference: ops::norm::layer_norm_reference; proof: ../host/cases/norm.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

#define THREADS 128
#define WARPS (THREADS / 32)

struct Params {
  u32 rows;
  u32 channels;
  float eps;
  u32 padding;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm(const elem* __restrict__ x, const elem* __restrict__ weight, const elem* __restrict__ bias,
               elem* __restrict__ y, const __grid_constant__ Params params) {
  u32 lane = threadIdx.x % 32;
  u32 row = blockIdx.x * WARPS + threadIdx.x / 32;
  // A whole warp leaves together.
  if (row >= params.rows) return;
  const elem* from = x + size_t(row) * params.channels;
  elem* to = y + size_t(row) * params.channels;
  float share = __fdividef(1.0f, float(params.channels));

  float values[PACKS][WIDTH] = {};
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    u32 channel = (i * 32 + lane) * WIDTH;
    if (channel < params.channels) {
      Pack<WIDTH> pack = load<WIDTH>(from + channel);
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        values[i][j] = to_f32(pack.values[j]);
        sum += values[i][j];
      }
    }
  }
  float mean = warp_sum(sum) * share;

  float rest = 0.0f, squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    if ((i * 32 + lane) * WIDTH < params.channels) {
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        values[i][j] -= mean;
        rest += values[i][j];
        squares += values[i][j] * values[i][j];
      }
    }
  }
  rest = warp_sum(rest) * share;
  float variance = warp_sum(squares) * share - rest * rest;
  float factor = rsqrtf(fmaxf(variance, 0.0f) + params.eps);

#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    u32 channel = (i * 32 + lane) * WIDTH;
    if (channel < params.channels) {
      Pack<WIDTH> scale = load<WIDTH>(weight + channel);
      Pack<WIDTH> offset = load<WIDTH>(bias + channel);
      Pack<WIDTH> pack;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        float normalised = (values[i][j] - rest) * factor;
        pack.values[j] = from_f32(normalised * to_f32(scale.values[j]) + to_f32(offset.values[j]));
      }
      store<WIDTH>(to + channel, pack);
    }
  }
}
