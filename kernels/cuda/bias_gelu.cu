// y = gelu(x + bias) (Hendrycks & Gimpel 2016); one entry a form:
//   bias_gelu       v / 2 * (1 + erf(v / sqrt(2)))
//   bias_gelu_tanh  v / 2 * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 v³))), as v * sigmoid of twice tanh's argument
//
// x, y: [rows, channels], bias: [channels], contiguous; f32, f16 or bf16; computed in f32
// constants: WIDTH, elements an access: 1, or CHUNK (4 in f32, 8 in f16 and bf16) where `channels` is a multiple
//   of it and the buffers start at multiples of 16 bytes
// launch: 256 threads, ceil(rows * channels / WIDTH / 256) blocks
// limits: rows * channels / WIDTH < 2^32 - 256
// parameters: u32 packs (rows * channels / WIDTH), u32 row_packs (channels / WIDTH)
// reference: ops::activation::bias_gelu_reference; proof: ../host/cases/transformer.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

#define THREADS 256

struct Params {
  u32 packs;
  u32 row_packs;
};

template <bool TANH>
INLINE void apply(const elem* __restrict__ x, const elem* __restrict__ bias, elem* __restrict__ y,
                  const Params& params) {
  u32 index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= params.packs) return;
  Pack<WIDTH> value = load<WIDTH>(x + size_t(index) * WIDTH);
  Pack<WIDTH> added = load<WIDTH>(bias + size_t(index % params.row_packs) * WIDTH);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    float sum = to_f32(value.values[i]) + to_f32(added.values[i]);
    value.values[i] = from_f32(TANH ? gelu_tanh(sum) : gelu(sum));
  }
  store<WIDTH>(y + size_t(index) * WIDTH, value);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    bias_gelu(const elem* __restrict__ x, const elem* __restrict__ bias, elem* __restrict__ y,
              const __grid_constant__ Params params) {
  apply<false>(x, bias, y, params);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    bias_gelu_tanh(const elem* __restrict__ x, const elem* __restrict__ bias, elem* __restrict__ y,
                   const __grid_constant__ Params params) {
  apply<true>(x, bias, y, params);
}
