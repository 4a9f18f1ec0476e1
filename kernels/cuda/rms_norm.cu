// y = x / sqrt(mean(x²) + eps) * weight over each row's channels (Zhang & Sennrich 2019)
//
// x, y: [rows, channels], weight: [channels], contiguous; f32, f16 or bf16; computed in f32
// One warp a row, which it holds in registers.
// parts: common.cuh, rows.cuh, this file
// constants: those of rows.cuh; WIDTH 1, or CHUNK (4 in f32, 8 in f16 and bf16) where `channels` is a multiple of it and
//   the buffers start at multiples of 16 bytes
// launch: that of rows.cuh
// limits: PACKS * WIDTH <= 128 at WIDTH = CHUNK, so channels <= 4096 in every dtype; PACKS <= 64 at WIDTH 1, so channels
//   <= 2048 (128 would not fit into registers); rows < 2^32 - 4; elements below
//   1e19 / sqrt(channels), whose squares f32 can add up
// parameters: u32 rows, u32 channels, float eps, u32 padding
// reference: ops::norm::rms_norm_reference; proof: ../host/cases/transformer.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

struct Params {
  u32 rows;
  u32 channels;
  float eps;
  u32 padding;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    rms_norm(const elem* __restrict__ x, const elem* __restrict__ weight, elem* __restrict__ y,
             const __grid_constant__ Params params) {
  u32 row = own_row();
  // A whole warp leaves together.
  if (row >= params.rows) return;
  const elem* from = x + size_t(row) * params.channels;
  elem* to = y + size_t(row) * params.channels;

  float values[PACKS][WIDTH];
  load_row(values, from, params.channels);
  float factor = rms_factor(values, params.channels, params.eps);

#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    u32 channel = first_channel(i);
    if (channel < params.channels) {
      Pack<WIDTH> pack = load<WIDTH>(weight + channel);
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) pack.values[j] = from_f32(values[i][j] * factor * to_f32(pack.values[j]));
      store<WIDTH>(to + channel, pack);
    }
  }
}
