// Rows that a warp each holds in registers: for layer_norm.cu, rms_norm.cu and qk_norm_rope.cu.
//
// A lane has PACKS packs of WIDTH neighbours: pack i is the row's pack i * 32 + lane, zeros beyond the row.
// constants: WIDTH, elements an access; PACKS = ceil(channels / (32 * WIDTH))
// launch: 128 threads, ceil(rows / 4) blocks

#define THREADS 128
#define WARPS (THREADS / 32)

// The warp's row.
INLINE u32 own_row() { return blockIdx.x * WARPS + threadIdx.x / 32; }

// The first channel of the lane's pack.
INLINE u32 first_channel(int pack) { return (pack * 32 + threadIdx.x % 32) * WIDTH; }

INLINE void load_row(float (&values)[PACKS][WIDTH], const elem* from, u32 channels) {
#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) values[i][j] = 0.0f;
    u32 channel = first_channel(i);
    if (channel < channels) to_f32(values[i], load<WIDTH>(from + channel));
  }
}

// 1 / sqrt(mean(x²) + eps) of a row.
INLINE float rms_factor(const float (&values)[PACKS][WIDTH], u32 channels, float eps) {
  float squares = 0.0f;
#pragma unroll
  for (int i = 0; i < PACKS; ++i) {
#pragma unroll
    for (int j = 0; j < WIDTH; ++j) squares += values[i][j] * values[i][j];
  }
  return rsqrtf(__fdividef(warp_sum(squares), float(channels)) + eps);
}
