// y[b, i, j, c] = x[b, i / 2, j / 2, c]: each pixel becomes a square of 2 by 2
//
// x: [batch, height, width, channels], y: [batch, 2 * height, 2 * width, channels], contiguous; copied bit by bit
// constants: WIDTH, elements an access: 1, or CHUNK (4 in f32, 8 in f16 and bf16) where `channels` is a multiple
//   of it and the buffers start at multiples of 16 bytes
// launch: 256 threads, ceil(batch * height * width * channels / WIDTH / 256) blocks
// limits: batch * height * width * channels / WIDTH < 2^32 - 256; y may be larger
// parameters: u32 packs (elements of x / WIDTH), u32 width, u32 pixel_packs (channels / WIDTH), u32 padding
// reference: ops::upsample::reference; proof: ../host/cases/pointwise.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

#define THREADS 256

struct Params {
  u32 packs;
  u32 width;
  u32 pixel_packs;
  u32 padding;
};

extern "C" __global__ void __launch_bounds__(THREADS)
    upsample_nearest_2x(const elem* __restrict__ x, elem* __restrict__ y, const __grid_constant__ Params params) {
  u32 index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= params.packs) return;
  u32 pixel = index / params.pixel_packs;
  u32 pack = index - pixel * params.pixel_packs;
  // A row of pixels, counted over the whole batch.
  u32 row = pixel / params.width;
  u32 column = pixel - row * params.width;
  Pack<WIDTH> value = load<WIDTH>(x + size_t(index) * WIDTH);
  size_t out_width = 2 * size_t(params.width);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    size_t out_pixel = (2 * size_t(row) + i / 2) * out_width + 2 * size_t(column) + i % 2;
    store<WIDTH>(y + (out_pixel * params.pixel_packs + pack) * WIDTH, value);
  }
}
