// For every head of q and of k: n = x / sqrt(mean(x²) + eps) * weight (Zhang & Sennrich 2019), then each pair of neighbours
// turned by its token's angle (Su et al. 2021):
//   y[2i] = n[2i] * cos[t, i] - n[2i + 1] * sin[t, i]
//   y[2i + 1] = n[2i + 1] * cos[t, i] + n[2i] * sin[t, i]
//
// q, q_out: [rows, q_heads, head_dim], k, k_out: [rows, k_heads, head_dim], q_weight, k_weight: [head_dim], contiguous; f32,
//   f16 or bf16; cosines, sines: [tokens, head_dim / 2] in f32, row r is token r % tokens; computed in f32
// One warp a head, which it holds in registers; q's heads before k's in each row.
// parts: common.cuh, rows.cuh, this file
// constants, launch: those of rows.cuh, whose rows are the heads; WIDTH 4 where head_dim is a multiple of it, else 2
// limits: head_dim <= 256 (what variants.py compiles); rows * (q_heads + k_heads) < 2^32 - 4; elements below
//   1e19 / sqrt(head_dim), whose squares f32 can add up
// parameters: u32 rows, u32 tokens, u32 q_heads, u32 k_heads, u32 head_dim, float eps
// reference: ops::rope::reference; proof: ../host/cases/transformer.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

struct Params {
  u32 rows;
  u32 tokens;
  u32 q_heads;
  u32 k_heads;
  u32 head_dim;
  float eps;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    qk_norm_rope(const elem* __restrict__ q, const elem* __restrict__ k, const elem* __restrict__ q_weight,
                 const elem* __restrict__ k_weight, const float* __restrict__ cosines,
                 const float* __restrict__ sines, elem* __restrict__ q_out, elem* __restrict__ k_out,
                 const __grid_constant__ Params params) {
  u32 index = own_row();
  u32 heads = params.q_heads + params.k_heads;
  u32 row = index / heads;
  // A whole warp leaves together.
  if (row >= params.rows) return;
  u32 head = index - row * heads;
  bool of_q = head < params.q_heads;
  size_t place = of_q ? size_t(row) * params.q_heads + head : size_t(row) * params.k_heads + head - params.q_heads;
  const elem* from = (of_q ? q : k) + place * params.head_dim;
  const elem* weight = of_q ? q_weight : k_weight;
  elem* to = (of_q ? q_out : k_out) + place * params.head_dim;
  size_t angles = size_t(row % params.tokens) * (params.head_dim / 2);

  float values[PACKS][WIDTH];
  load_row(values, from, params.head_dim);
  float factor = rms_factor(values, params.head_dim, params.eps);

#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    u32 channel = first_channel(i);
    if (channel < params.head_dim) {
      Pack<WIDTH> pack = load<WIDTH>(weight + channel);
#pragma unroll
      for (int j = 0; j < WIDTH; j += 2) {
        float cosine = cosines[angles + (channel + j) / 2];
        float sine = sines[angles + (channel + j) / 2];
        float a = values[i][j] * factor * to_f32(pack.values[j]);
        float b = values[i][j + 1] * factor * to_f32(pack.values[j + 1]);
        pack.values[j] = from_f32(a * cosine - b * sine);
        pack.values[j + 1] = from_f32(b * cosine + a * sine);
      }
      store<WIDTH>(to + channel, pack);
    }
  }
}
