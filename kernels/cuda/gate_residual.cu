// y = residual + gate * x, the gate one row a picture (AdaLN-zero, Peebles & Xie 2023)
//
// residual, x, y: [pictures, tokens, channels], gate: [pictures, channels], contiguous; f32, f16 or bf16; computed in f32
// constants: WIDTH, elements an access: 1, or CHUNK (4 in f32, 8 in f16 and bf16) where `channels` is a multiple
//   of it and the buffers start at multiples of 16 bytes
// launch: 256 threads, ceil(pictures * tokens * channels / WIDTH / 256) blocks
// limits: pictures * tokens * channels / WIDTH < 2^32 - 256
// parameters: u32 packs (of y), u32 picture_packs (tokens * channels / WIDTH), u32 row_packs (channels / WIDTH),
//   u32 padding
// reference: ops::modulate::gate_residual_reference; proof: ../host/cases/transformer.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

#define THREADS 256

struct Params {
  u32 packs;
  u32 picture_packs;
  u32 row_packs;
  u32 padding;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    gate_residual(const elem* __restrict__ residual, const elem* __restrict__ x, const elem* __restrict__ gate,
                  elem* __restrict__ y, const __grid_constant__ Params params) {
  u32 index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= params.packs) return;
  u32 picture = index / params.picture_packs;
  u32 column = index % params.row_packs;
  Pack<WIDTH> sum = load<WIDTH>(residual + size_t(index) * WIDTH);
  Pack<WIDTH> branch = load<WIDTH>(x + size_t(index) * WIDTH);
  Pack<WIDTH> share = load<WIDTH>(gate + (size_t(picture) * params.row_packs + column) * WIDTH);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    sum.values[i] = from_f32(to_f32(sum.values[i]) + to_f32(share.values[i]) * to_f32(branch.values[i]));
  }
  store<WIDTH>(y + size_t(index) * WIDTH, sum);
}
