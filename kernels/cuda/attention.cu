// y = softmax(scale q · kᵀ) · v for each head, without the scores in memory (Vaswani et al. 2017; the online
// softmax of Milakov & Gimelshein 2018, tiled as in Dao 2023, arXiv:2307.08691)
//
// q, y: [batch, queries, heads * HEAD_DIM], k, v: [batch, keys, heads * HEAD_DIM], contiguous; f32, f16 or bf16;
// scores, softmax and sums in f32; in f16 and bf16 the exponentials are rounded before they meet v
// A block takes a tile of queries of one head and walks the keys in ascending order, so that a query's bits depend
// on its own tile's place alone.
// f16 and bf16: each warp has 16 queries, whose fragments stay in registers; v is loaded while the scores are
//   computed, the next k while v is used. At HEAD_DIM 512 four warps share 16 queries, a quarter of the channels
//   each, and add up their scores in a fixed order.
// f32: 4 threads share a query, 16 at HEAD_DIM 512, by fused multiply-adds (tf32 would lose digits).
// parts: common.cuh, mma.cuh, this file
// constants: HEAD_DIM, 8, 16, 24, 32, 40, 64, 80, 96, 128, 160 or 512; CAUSAL, 1 where a query sees the keys up to
//   its own place, else 0
// launch: THREADS threads, batch * heads * ceil(queries / QUERIES) blocks
//   f16, bf16: THREADS 128, QUERIES 64; at HEAD_DIM 512 256 and 32
//   f32: THREADS 128, QUERIES 32; at HEAD_DIM 512 128 and 8
// limits: keys >= 1; buffers start at multiples of 16 bytes; queries, keys < 2^31; fewer than 2^31 blocks
// parameters: u32 queries, u32 keys, u32 heads, float scale
// reference: ops::attention::reference; proof: ../host/cases/attention.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

struct Params {
  u32 queries;
  u32 keys;
  u32 heads;
  float scale;
};

#define LOG2_E 1.44269504f

// What a block works on, and the rows of the tensors from its batch and head on.
struct Place {
  u32 first_query;
  // Keys that some query of the tile sees.
  u32 keys;
  size_t stride, query_start, key_start;
};

INLINE Place place(const Params& params, u32 tile_queries) {
  Place p;
  u32 tiles = (params.queries + tile_queries - 1) / tile_queries;
  u32 tile = blockIdx.x % tiles;
  u32 head = blockIdx.x / tiles % params.heads;
  u32 batch = blockIdx.x / tiles / params.heads;
  p.first_query = tile * tile_queries;
  p.keys = CAUSAL ? min(params.keys, p.first_query + tile_queries) : params.keys;
  p.stride = size_t(params.heads) * HEAD_DIM;
  p.query_start = size_t(batch) * params.queries * p.stride + head * HEAD_DIM;
  p.key_start = size_t(batch) * params.keys * p.stride + head * HEAD_DIM;
  return p;
}

// Rows `first` to `first + ROWS` of k or v into shared memory, zeros beyond `rows` and beyond HEAD_DIM.
template <int ROWS, int ROW_CHUNKS, int ROW_BYTES, int BLOCK>
INLINE void load_rows(unsigned char* to, const elem* from, size_t stride, u32 first, u32 rows) {
#pragma unroll 4
  for (u32 i = threadIdx.x; i < ROWS * ROW_CHUNKS; i += BLOCK) {
    u32 row = i / ROW_CHUNKS, chunk = i % ROW_CHUNKS;
    bool valid = first + row < rows && chunk * CHUNK < HEAD_DIM;
    const elem* chunk_from = from + (valid ? (first + row) * stride + chunk * CHUNK : 0);
    copy_async_16(to + row * ROW_BYTES + chunk * 16, chunk_from, valid);
  }
}

#if defined(ELEM_F32)

#define THREADS 128
#if HEAD_DIM == 512
#define LANES 16
#define KEYS 8
#else
#define LANES 4
#define KEYS 32
#endif
#define QUERIES (THREADS / LANES)
#define ROW_CHUNKS (HEAD_DIM / 4)
#define ROW_BYTES (HEAD_DIM * 4)
// Chunks of 4 channels that a thread has: every LANES-th.
#define OWN ((ROW_CHUNKS + LANES - 1) / LANES)
// Keys between two corrections of the sums.
#define GROUP 8

INLINE Pack<4> row_chunk(const unsigned char* tile, u32 row, u32 chunk) {
  return load<4>(reinterpret_cast<const elem*>(tile + row * ROW_BYTES + chunk * 16));
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention(const elem* __restrict__ q, const elem* __restrict__ k, const elem* __restrict__ v,
              elem* __restrict__ y, const __grid_constant__ Params params) {
  __shared__ __align__(16) unsigned char k_tile[KEYS * ROW_BYTES];
  __shared__ __align__(16) unsigned char v_tile[KEYS * ROW_BYTES];
  Place p = place(params, QUERIES);
  u32 lane = threadIdx.x % LANES;
  u32 query = p.first_query + threadIdx.x / LANES;

  float own[OWN][4] = {};
  float sums[OWN][4] = {};
  size_t row = p.query_start + query * p.stride;
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    u32 chunk = i * LANES + lane;
    if (chunk < ROW_CHUNKS && query < params.queries) to_f32(own[i], load<4>(q + row + chunk * 4));
  }
  float scale = params.scale * LOG2_E;
  float top = minus_infinity(), total = 0.0f;

  for (u32 first = 0; first < p.keys; first += KEYS) {
    load_rows<KEYS, ROW_CHUNKS, ROW_BYTES, THREADS>(k_tile, k + p.key_start, p.stride, first, params.keys);
    load_rows<KEYS, ROW_CHUNKS, ROW_BYTES, THREADS>(v_tile, v + p.key_start, p.stride, first, params.keys);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
#pragma unroll 1
    for (u32 group = 0; group < KEYS; group += GROUP) {
      float scores[GROUP];
      float highest = top;
#pragma unroll
      for (int j = 0; j < GROUP; ++j) {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
          u32 chunk = i * LANES + lane;
          if (chunk < ROW_CHUNKS) {
            Pack<4> key = row_chunk(k_tile, group + j, chunk);
#pragma unroll
            for (int c = 0; c < 4; ++c) sum = fmaf(own[i][c], key.values[c], sum);
          }
        }
#pragma unroll
        for (int step = 1; step < LANES; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
        u32 index = first + group + j;
        bool seen = index < params.keys && (!CAUSAL || index <= query);
        scores[j] = seen ? sum * scale : minus_infinity();
        highest = fmaxf(highest, scores[j]);
      }
      float correction = exp2f(top - highest);
      top = highest;
      total *= correction;
#pragma unroll
      for (int i = 0; i < OWN; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[i][c] *= correction;
      }
#pragma unroll
      for (int j = 0; j < GROUP; ++j) {
        float weight = exp2f(scores[j] - top);
        total += weight;
#pragma unroll
        for (int i = 0; i < OWN; ++i) {
          u32 chunk = i * LANES + lane;
          if (chunk < ROW_CHUNKS) {
            Pack<4> value = row_chunk(v_tile, group + j, chunk);
#pragma unroll
            for (int c = 0; c < 4; ++c) sums[i][c] = fmaf(weight, value.values[c], sums[i][c]);
          }
        }
      }
    }
    // Every thread has left the tile before it is filled again.
    __syncthreads();
  }

  if (query >= params.queries) return;
  float share = __fdividef(1.0f, total);
#pragma unroll
  for (int i = 0; i < OWN; ++i) {
    u32 chunk = i * LANES + lane;
    if (chunk < ROW_CHUNKS) {
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[i][c] *= share;
      store<4>(y + row + chunk * 4, from_f32(sums[i]));
    }
  }
}

#else

#if HEAD_DIM == 512
#define PARTS 4
#define QUERY_WARPS 2
#define KEYS 16
#else
#define PARTS 1
#define QUERY_WARPS 4
#define KEYS 64
#endif
#define THREADS (32 * PARTS * QUERY_WARPS)
#define QUERIES (16 * QUERY_WARPS)
// A warp's channels, and in steps of 16 for q · kᵀ (40 is filled up with zeros).
#define DIM (HEAD_DIM / PARTS)
#define STEPS ((DIM + 15) / 16)
#define ROW_CHUNKS (2 * STEPS * PARTS)
// An odd number of chunks, so that the same chunk of 8 rows lies in 32 different banks.
#define ROW_BYTES (16 * ROW_CHUNKS + 16)

// The fragments of 16 queries: `from` is the warp's first channel of the lane's first row.
INLINE void load_queries(u32 (&fragments)[STEPS][4], const elem* from, size_t stride, u32 query, u32 queries) {
  u32 pair = threadIdx.x % 4;
#pragma unroll
  for (int step = 0; step < STEPS; ++step) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      int column = step * 16 + r / 2 * 8;
      fragments[step][r] = 0;
      if (column < DIM && query + r % 2 * 8 < queries) {
        Pack<2> two = load<2>(from + (r % 2 * 8) * stride + column + 2 * pair);
        fragments[step][r] = u32(two.values[0]) | u32(two.values[1]) << 16;
      }
    }
  }
}

// scores = the warp's queries times the tile's keys, over the warp's channels.
INLINE void multiply_keys(float (&scores)[KEYS / 8][4], const u32 (&queries)[STEPS][4], const unsigned char* tile) {
  u32 lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[j][i] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < STEPS; ++step) {
#pragma unroll
    for (int j = 0; j < KEYS / 8; j += 2) {
      // Matrices: the two halves of the 16 channels for 8 keys, then for the next 8 keys.
      u32 b[4];
      load_matrix_4(b, tile + (j * 8 + lane / 16 * 8 + lane % 8) * ROW_BYTES + step * 32 + lane / 8 % 2 * 16);
      u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      multiply_add(scores[j], queries[step], left);
      multiply_add(scores[j + 1], queries[step], right);
    }
  }
}

// sums += exponentials times the tile's values, over the warp's channels.
INLINE void multiply_values(float (&sums)[DIM / 8][4], const float (&weights)[KEYS / 8][4], const unsigned char* tile) {
  u32 lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < KEYS / 16; ++step) {
    // The layout of a product's sums is that of a factor.
    const float(&low)[4] = weights[2 * step];
    const float(&high)[4] = weights[2 * step + 1];
    u32 a[4] = {pair_of(low[0], low[1]), pair_of(low[2], low[3]), pair_of(high[0], high[1]),
                pair_of(high[2], high[3])};
#pragma unroll
    for (int j = 0; j < DIM / 8; j += 2) {
      // Matrices: keys 0-7 and 8-15 of 8 channels, then of the next 8.
      u32 b[4];
      load_matrix_4_transposed(b, tile + (step * 16 + lane % 16) * ROW_BYTES + (j + lane / 16) * 16);
      u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
      multiply_add(sums[j], a, left);
      if (j + 1 < DIM / 8) multiply_add(sums[j + 1], a, right);
    }
  }
}

// The softmax so far of the lane's two rows: the largest score, the lane's own part of the sum of exponentials.
struct Softmax {
  float top[2], total[2];
};

// Scores become exponentials relative to the largest so far, and what was summed before is corrected.
INLINE void exponentials(float (&scores)[KEYS / 8][4], Softmax& softmax, float (&sums)[DIM / 8][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float highest = softmax.top[half];
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j) {
      highest = fmaxf(highest, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
    float correction = exp2f(softmax.top[half] - highest);
    float total = softmax.total[half] * correction;
#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[j][i] = exp2f(scores[j][i] - highest);
        total += scores[j][i];
      }
    }
#pragma unroll
    for (int j = 0; j < DIM / 8; ++j) {
      sums[j][2 * half] *= correction;
      sums[j][2 * half + 1] *= correction;
    }
    softmax.top[half] = highest;
    softmax.total[half] = total;
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention(const elem* __restrict__ q, const elem* __restrict__ k, const elem* __restrict__ v,
              elem* __restrict__ y, const __grid_constant__ Params params) {
  __shared__ __align__(16) unsigned char k_tile[KEYS * ROW_BYTES];
  __shared__ __align__(16) unsigned char v_tile[KEYS * ROW_BYTES];
#if PARTS > 1
  // Each warp's own scores, 32 lanes side by side.
  __shared__ float partial[PARTS * QUERY_WARPS][KEYS / 8 * 4][32];
#endif
  Place p = place(params, QUERIES);
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 part = warp % PARTS;
  // The lane's rows are this one and the eighth after it.
  u32 query = p.first_query + warp / PARTS * 16 + lane / 4;
  const elem* keys = k + p.key_start;
  const elem* values = v + p.key_start;

  load_rows<KEYS, ROW_CHUNKS, ROW_BYTES, THREADS>(k_tile, keys, p.stride, 0, params.keys);
  copy_async_commit();
  u32 queries[STEPS][4];
  size_t row = p.query_start + query * p.stride + part * DIM;
  load_queries(queries, q + row, p.stride, query, params.queries);

  float scale = params.scale * LOG2_E;
  float sums[DIM / 8][4] = {};
  Softmax softmax = {{minus_infinity(), minus_infinity()}, {0.0f, 0.0f}};
#pragma unroll 1
  for (u32 first = 0; first < p.keys; first += KEYS) {
    load_rows<KEYS, ROW_CHUNKS, ROW_BYTES, THREADS>(v_tile, values, p.stride, first, params.keys);
    copy_async_commit();
    copy_async_wait<1>();
    __syncthreads();

    float scores[KEYS / 8][4];
    multiply_keys(scores, queries, k_tile + part * DIM * 2);
#if PARTS > 1
#pragma unroll
    for (int j = 0; j < KEYS / 8 * 4; ++j) partial[warp][j][lane] = scores[j / 4][j % 4];
#endif
    // Every warp has left k_tile, and its part of the scores is there.
    __syncthreads();
    if (first + KEYS < p.keys) {
      load_rows<KEYS, ROW_CHUNKS, ROW_BYTES, THREADS>(k_tile, keys, p.stride, first + KEYS, params.keys);
    }
    copy_async_commit();
#if PARTS > 1
#pragma unroll
    for (int j = 0; j < KEYS / 8 * 4; ++j) {
      float sum = 0.0f;
#pragma unroll
      for (int i = 0; i < PARTS; ++i) sum += partial[warp / PARTS * PARTS + i][j][lane];
      scores[j / 4][j % 4] = sum;
    }
#endif

#pragma unroll
    for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        u32 key = first + j * 8 + lane % 4 * 2 + i % 2;
        bool seen = key < params.keys && (!CAUSAL || key <= query + i / 2 * 8);
        scores[j][i] = seen ? scores[j][i] * scale : minus_infinity();
      }
    }
    exponentials(scores, softmax, sums);
    copy_async_wait<1>();
    __syncthreads();
    multiply_values(sums, scores, v_tile + part * DIM * 2);
    // Every warp has left v_tile before it is filled again.
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = softmax.total[half];
    total += __shfl_xor_sync(ALL_LANES, total, 1);
    total += __shfl_xor_sync(ALL_LANES, total, 2);
    float share = __fdividef(1.0f, total);
    if (query + half * 8 < params.queries) {
      elem* to = y + row + half * 8 * p.stride + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < DIM / 8; ++j) {
        float two[2] = {sums[j][2 * half] * share, sums[j][2 * half + 1] * share};
        store<2>(to + j * 8, from_f32(two));
      }
    }
  }
}

#endif
