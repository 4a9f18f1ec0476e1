// y = (x - mean) / sqrt(var + eps) * slope + offset over each row's channels, var biased (Ba et al. 2016); one entry a form:
//   layer_norm           slope = weight, offset = bias, both [channels]
//   layer_norm_modulate  slope = 1 + weight, offset = bias, both [pictures, channels], the row of a token's picture (AdaLN,
//     Peebles & Xie 2023)
//
// x, y: [rows, channels], contiguous; f32, f16 or bf16; computed in f32
// One warp a row, which it holds in registers. The second pass, over x - mean, also finds what rounding left of the
// mean, so that a mean far larger than the deviation costs no digits.
// parts: common.cuh, rows.cuh, this file
// constants: those of rows.cuh; WIDTH 1, or CHUNK (4 in f32, 8 in f16 and bf16) where `channels` is a multiple of it and
//   the buffers start at multiples of 16 bytes
// launch: that of rows.cuh
// limits: PACKS * WIDTH <= 128 at WIDTH = CHUNK, so channels <= 4096 in every dtype; PACKS <= 64 at WIDTH 1, so channels
//   <= 2048 (128 would not fit into registers); rows < 2^32 - 4
// parameters: u32 rows, u32 channels, float eps, u32 picture (rows of one; layer_norm does not read it)
// reference: ops::norm::layer_norm_reference, ops::modulate::layer_norm_modulate_reference; proof: ../host/cases/norm.py,
//   ../host/cases/transformer.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

struct Params {
  u32 rows;
  u32 channels;
  float eps;
  u32 picture;
};

template <bool MODULATE>
INLINE void normalise(const elem* __restrict__ x, const elem* __restrict__ weight, const elem* __restrict__ bias,
                      elem* __restrict__ y, const Params& params) {
  u32 row = own_row();
  // A whole warp leaves together.
  if (row >= params.rows) return;
  const elem* from = x + size_t(row) * params.channels;
  elem* to = y + size_t(row) * params.channels;
  size_t affine = MODULATE ? size_t(row / params.picture) * params.channels : 0;
  float share = __fdividef(1.0f, float(params.channels));

  float values[PACKS][WIDTH];
  load_row(values, from, params.channels);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) sum += values[i][j];
  }
  float mean = warp_sum(sum) * share;

  float rest = 0.0f, squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    if (first_channel(i) < params.channels) {
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
    u32 channel = first_channel(i);
    if (channel < params.channels) {
      Pack<WIDTH> scale = load<WIDTH>(weight + affine + channel);
      Pack<WIDTH> offset = load<WIDTH>(bias + affine + channel);
      Pack<WIDTH> pack;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) {
        float normalised = (values[i][j] - rest) * factor;
        float slope = MODULATE ? 1.0f + to_f32(scale.values[j]) : to_f32(scale.values[j]);
        pack.values[j] = from_f32(normalised * slope + to_f32(offset.values[j]));
      }
      store<WIDTH>(to + channel, pack);
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm(const elem* __restrict__ x, const elem* __restrict__ weight, const elem* __restrict__ bias,
               elem* __restrict__ y, const __grid_constant__ Params params) {
  normalise<false>(x, weight, bias, y, params);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    layer_norm_modulate(const elem* __restrict__ x, const elem* __restrict__ weight, const elem* __restrict__ bias,
                        elem* __restrict__ y, const __grid_constant__ Params params) {
  normalise<true>(x, weight, bias, y, params);
}
