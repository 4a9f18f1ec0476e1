// y = a * f(b), where a and b are the two halves of a token's channels (Shazeer 2020): for geglu.cu and swiglu.cu, which
// say what f is.
//
// x: [rows, 2 * channels], y: [rows, channels], contiguous; f32, f16 or bf16; computed in f32
// constants: WIDTH, elements an access: 1, or CHUNK (4 in f32, 8 in f16 and bf16) where `channels` is a multiple
//   of it and the buffers start at multiples of 16 bytes
// launch: 256 threads, ceil(rows * channels / WIDTH / 256) blocks
// limits: rows * channels / WIDTH < 2^32 - 256
// parameters: u32 packs (rows * channels / WIDTH), u32 row_packs (channels / WIDTH)

#define THREADS 256

struct Params {
  u32 packs;
  u32 row_packs;
};

template <float (*F)(float)>
INLINE void multiply_halves(const elem* __restrict__ x, elem* __restrict__ y, const Params& params) {
  u32 index = blockIdx.x * THREADS + threadIdx.x;
  if (index >= params.packs) return;
  u32 row = index / params.row_packs;
  // Pack `index` of y lies at index + row * row_packs in x, since every row of x is two of y.
  const elem* from = x + (size_t(index) + size_t(row) * params.row_packs) * WIDTH;
  Pack<WIDTH> value = load<WIDTH>(from);
  Pack<WIDTH> gate = load<WIDTH>(from + size_t(params.row_packs) * WIDTH);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    value.values[i] = from_f32(to_f32(value.values[i]) * F(to_f32(gate.values[i])));
  }
  store<WIDTH>(y + size_t(index) * WIDTH, value);
}
