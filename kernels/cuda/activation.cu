// y = f(x), element by element
//
// x, y: `elements` values, contiguous; f32, f16 or bf16; computed in f32
// f: 1 gelu, x / 2 * (1 + erf(x / sqrt(2))); 2 quick_gelu, x * sigmoid(1.702 x); 3 silu, x * sigmoid(x);
//   4 gelu_tanh, x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))
// constants: WIDTH, elements an access: 1, or CHUNK (4 in f32, 8 in f16 and bf16) where `elements` is a multiple
//   of it and the buffers start at multiples of 16 bytes
// launch: 256 threads, ceil(elements / WIDTH / 256) blocks
// limits: elements / WIDTH < 2^32 - 256
// parameters: u32 packs (elements / WIDTH), u32 activation
// reference: ops::activation::unary_reference; proof: ../host/cases/pointwise.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

#define THREADS 256

struct Params {
  u32 packs;
  u32 activation;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    activation(const elem* __restrict__ x, elem* __restrict__ y, const __grid_constant__ Params params) {
  u32 index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= params.packs) return;
  float values[WIDTH];
  to_f32(values, load<WIDTH>(x + size_t(index) * WIDTH));
  activate(values, params.activation);
  store<WIDTH>(y + size_t(index) * WIDTH, from_f32(values));
}
