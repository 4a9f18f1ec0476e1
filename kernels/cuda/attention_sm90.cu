// y = softmax(scale q · kᵀ) · v for each head, without the scores in memory: attention.cu for Hopper (the roles of its
// warpgroups are those of Shah et al. 2024, arXiv:2407.08608, without the overlap within a warpgroup)
//
// q, y: [batch, queries, heads * HEAD_DIM], k, v: [batch, keys, heads * HEAD_DIM], contiguous; f16 or bf16; scores,
// softmax and sums in f32; the exponentials are rounded before they meet v
// A block takes QUERIES queries of one head, 64 for each of CONSUMERS warpgroups, and walks the keys in ascending
// order, KEYS a turn, so that a query's bits depend on its own tile's place alone. One thread of a last warpgroup fills
// a ring of STAGES stages by TMA, each KEYS rows of k and of v. Both products are wgmma: the scores from shared memory,
// the values with the exponentials in registers. While one warpgroup computes exponentials, the others multiply.
// A head's channels lie in BOXES boxes of 64, which TMA fills up with zeros: the scores add up whole steps of 16
// channels, the values' product has HEAD_DIM columns.
// parts: common.cuh, wgmma.cuh, this file
// constants: HEAD_DIM, 40, 64, 80, 128 or 160; CAUSAL, 1 where a query sees the keys up to its own place, else 0;
//   DYNAMIC 1
//   HEAD_DIM | BOXES CONSUMERS KEYS STAGES
//   40, 64   | 1     3         128  4
//   80, 128  | 2     3         128  2
//   160      | 3     2         96   2
// launch: 128 * (1 + CONSUMERS) threads, batch * heads * ceil(queries / (64 * CONSUMERS)) blocks; shared memory of
//   128 * BOXES * (64 * CONSUMERS + 2 * KEYS * STAGES) + 8 + 24 * STAGES + 1024 bytes
// limits: scale > 0; queries, keys >= 1 and < 2^31 - 256; buffers start at multiples of 16 bytes; fewer than 2^31
//   blocks
// tensor maps q, k, v: rank 4, sizes [HEAD_DIM, heads, queries or keys, batch] from the innermost, pitches without
//   gaps, boxes [64, 1, 64, 1] of q and [64, 1, KEYS, 1] of k and v, swizzle 128 bytes, no interleave, zeros outside
// parameters: u32 queries, u32 keys, u32 heads, float scale
// reference: ops::attention::reference; proof: ../host/cases/attention_sm90.py
// Has never run on a GPU; launched on compute capability 9.0, where the environment has AQUATINT_CUDA_KERNELS alone.

// A launch gives every thread LAUNCHED of 65536 registers; the producer leaves most of its own to the consumers.
#if HEAD_DIM == 160
#define CONSUMERS 2
#define KEYS 96
#define OF_CONSUMER 240
#else
#define CONSUMERS 3
#define KEYS 128
#define OF_CONSUMER 160
#endif
#define OF_PRODUCER 24
#define STAGES (HEAD_DIM <= 64 ? 4 : 2)
#define THREADS ((1 + CONSUMERS) * WARPGROUP)
#define LAUNCHED (65536 / THREADS / 8 * 8)
#define QUERIES (CONSUMERS * 64)
// A head's channels in boxes of 64, 128 bytes a row, and in steps of 16 for q · kᵀ.
#define BOXES ((HEAD_DIM + 63) / 64)
#define STEPS ((HEAD_DIM + 15) / 16)
#define QUERY_BOX_BYTES (64 * 128)
#define KEY_BOX_BYTES (KEYS * 128)
#define QUERY_BYTES (CONSUMERS * BOXES * QUERY_BOX_BYTES)
// Of k, and of v.
#define TILE_BYTES (BOXES * KEY_BOX_BYTES)
#define BARRIERS_AT (QUERY_BYTES + STAGES * 2 * TILE_BYTES)
#define SHARED_BYTES (BARRIERS_AT + 8 + STAGES * 24)

static_assert(OF_PRODUCER + CONSUMERS * OF_CONSUMER <= (1 + CONSUMERS) * LAUNCHED, "registers after the exchange");
static_assert(SHARED_BYTES + PATTERN_BYTES <= 227 * 1024, "shared memory");

#define LOG2_E 1.44269504f

struct Params {
  u32 queries;
  u32 keys;
  u32 heads;
  float scale;
};

// What a block works on.
struct Place {
  u32 batch, head, first_query;
  // Tiles of keys that some query of the block sees.
  u32 turns;

  INLINE explicit Place(const Params& params) {
    u32 tiles = (params.queries + QUERIES - 1) / QUERIES;
    u32 others = blockIdx.x / tiles;
    first_query = blockIdx.x % tiles * QUERIES;
    head = others % params.heads;
    batch = others / params.heads;
    u32 keys = CAUSAL ? min(params.keys, first_query + QUERIES) : params.keys;
    turns = (keys + KEYS - 1) / KEYS;
  }
};

// Shared memory: the queries' boxes, each warpgroup's after the other's; the stages, each k's boxes and v's; the
// barriers.
struct Memory {
  unsigned char* start;
  // The queries are there; of each stage k and v, apart; every consumer's warp has left the stage.
  u64 *queries, *full_k, *full_v, *empty;

  INLINE explicit Memory(unsigned char* shared)
      : start(shared), queries(reinterpret_cast<u64*>(shared + BARRIERS_AT)), full_k(queries + 1),
        full_v(full_k + STAGES), empty(full_v + STAGES) {}

  INLINE void open() const {
    barrier_open(queries, 1);
    for (u32 stage = 0; stage < STAGES; ++stage) {
      barrier_open(full_k + stage, 1);
      barrier_open(full_v + stage, 1);
      barrier_open(empty + stage, CONSUMERS * 4);
    }
    barriers_opened();
  }
  INLINE unsigned char* keys(u32 stage) const { return start + QUERY_BYTES + stage * 2 * TILE_BYTES; }
  INLINE unsigned char* values(u32 stage) const { return keys(stage) + TILE_BYTES; }
};

INLINE void produce(const Memory& memory, const Place& place, const TensorMap* q, const TensorMap* k,
                    const TensorMap* v) {
  barrier_arrive_expecting(memory.queries, QUERY_BYTES);
#pragma unroll
  for (u32 i = 0; i < CONSUMERS * BOXES; ++i) {
    load_box(memory.start + i * QUERY_BOX_BYTES, q, memory.queries, place.batch, place.first_query + i / BOXES * 64,
             place.head, i % BOXES * 64);
  }
  u32 stage = 0, parity = 0;
#pragma unroll 1
  for (u32 turn = 0; turn < place.turns; ++turn) {
    // The turn before: the stage's first turn waits for nothing.
    barrier_wait(memory.empty + stage, parity ^ 1);
    barrier_arrive_expecting(memory.full_k + stage, TILE_BYTES);
#pragma unroll
    for (u32 i = 0; i < BOXES; ++i) {
      load_box(memory.keys(stage) + i * KEY_BOX_BYTES, k, memory.full_k + stage, place.batch, turn * KEYS, place.head,
               i * 64);
    }
    barrier_arrive_expecting(memory.full_v + stage, TILE_BYTES);
#pragma unroll
    for (u32 i = 0; i < BOXES; ++i) {
      load_box(memory.values(stage) + i * KEY_BOX_BYTES, v, memory.full_v + stage, place.batch, turn * KEYS, place.head,
               i * 64);
    }
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
}

// Of sums [64, N], value i belongs to the lane's first row or to the eighth after it.
INLINE constexpr u32 half_of(u32 i) { return i / 2 % 2; }

// scores = the warpgroup's queries times the tile's keys
INLINE void multiply_keys(float (&scores)[KEYS / 2], u64 queries, u64 keys) {
  products_begin();
#pragma unroll
  for (u32 step = 0; step < STEPS; ++step) {
    u32 box = step / 4, columns = 2 * (step % 4);
    multiply_matrices(scores, queries + box * (QUERY_BOX_BYTES >> 4) + columns,
                      keys + box * (KEY_BOX_BYTES >> 4) + columns, step);
  }
  products_commit();
  products_wait<0>();
  products_finished(scores);
}

// sums += exponentials times the tile's values. The layout of a product's sums is that of a factor.
INLINE void multiply_values(float (&sums)[HEAD_DIM / 2], const float (&weights)[KEYS / 2], u64 values) {
  u32 pairs[KEYS / 16][4];
#pragma unroll
  for (u32 i = 0; i < KEYS / 4; ++i) pairs[i / 4][i % 4] = pair_of(weights[2 * i], weights[2 * i + 1]);
  products_begin();
#pragma unroll
  for (u32 step = 0; step < KEYS / 16; ++step) multiply_rows(sums, pairs[step], values + step * 128);
  products_commit();
  products_wait<0>();
  products_finished(sums);
}

// Hides what the lane's two rows do not see: keys beyond the last, and with CAUSAL those behind the query.
INLINE void hide(float (&scores)[KEYS / 2], u32 first_key, u32 keys, u32 query) {
#pragma unroll
  for (u32 i = 0; i < KEYS / 2; ++i) {
    u32 key = first_key + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
    bool seen = key < keys && (!CAUSAL || key <= query + 8 * half_of(i));
    if (!seen) scores[i] = minus_infinity();
  }
}

// The softmax so far of the lane's two rows: the largest score, scaled; the lane's own part of the sum of exponentials.
struct Softmax {
  float top[2], total[2];
};

// Scores become exponentials relative to the largest so far, and what was summed before is corrected.
INLINE void exponentials(float (&scores)[KEYS / 2], Softmax& softmax, float (&sums)[HEAD_DIM / 2], float scale) {
  float correction[2];
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    float highest = minus_infinity();
#pragma unroll
    for (u32 i = 0; i < KEYS / 2; ++i) {
      if (half_of(i) == half) highest = fmaxf(highest, scores[i]);
    }
    highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));
    highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
    highest = fmaxf(softmax.top[half], highest * scale);
    correction[half] = quick_exp2(softmax.top[half] - highest);
    softmax.top[half] = highest;
    softmax.total[half] *= correction[half];
  }
#pragma unroll
  for (u32 i = 0; i < KEYS / 2; ++i) {
    scores[i] = quick_exp2(fmaf(scores[i], scale, -softmax.top[half_of(i)]));
    softmax.total[half_of(i)] += scores[i];
  }
#pragma unroll
  for (u32 i = 0; i < HEAD_DIM / 2; ++i) sums[i] *= correction[half_of(i)];
}

// From the lanes' pairs to 8 neighbours a lane, so that 4 lanes write 64 bytes of a row; what is left, in pairs.
INLINE void write(elem* y, const float (&sums)[HEAD_DIM / 2], const Softmax& softmax, const Params& params,
                  const Place& place, u32 query) {
  u32 lane = threadIdx.x % 32;
  size_t pitch = size_t(params.heads) * HEAD_DIM;
#pragma unroll
  for (u32 half = 0; half < 2; ++half) {
    float total = softmax.total[half];
    total += __shfl_xor_sync(ALL_LANES, total, 1);
    total += __shfl_xor_sync(ALL_LANES, total, 2);
    float share = __fdividef(1.0f, total);
    u32 row = query + 8 * half;
    elem* to = y + (size_t(place.batch) * params.queries + row) * pitch + place.head * HEAD_DIM;
#pragma unroll
    for (u32 i = 0; i < HEAD_DIM / 32; ++i) {
      float values[8];
#pragma unroll
      for (u32 j = 0; j < 8; ++j) values[j] = sums[16 * i + j / 2 * 4 + 2 * half + j % 2] * share;
      transpose_pairs(values, lane);
      if (row < params.queries) store<8>(to + 32 * i + lane % 4 * 8, from_f32(values));
    }
#pragma unroll
    for (u32 i = HEAD_DIM / 32 * 4; i < HEAD_DIM / 8; ++i) {
      float two[2] = {sums[4 * i + 2 * half] * share, sums[4 * i + 2 * half + 1] * share};
      if (row < params.queries) store<2>(to + 8 * i + lane % 4 * 2, from_f32(two));
    }
  }
}

INLINE void consume(const Memory& memory, const Place& place, elem* y, const Params& params) {
  u32 lane = threadIdx.x % 32, group = threadIdx.x / WARPGROUP;
  // The lane's rows are this one and the eighth after it.
  u32 query = place.first_query + threadIdx.x / 32 * 16 + lane / 4;
  u64 queries = describe_matrix<128>(memory.start + group * BOXES * QUERY_BOX_BYTES);
  float scale = params.scale * LOG2_E;
  float sums[HEAD_DIM / 2] = {};
  Softmax softmax = {{minus_infinity(), minus_infinity()}, {0.0f, 0.0f}};
  u32 stage = 0, parity = 0;
  barrier_wait(memory.queries, 0);
#pragma unroll 1
  for (u32 turn = 0; turn < place.turns; ++turn) {
    float scores[KEYS / 2];
    barrier_wait(memory.full_k + stage, parity);
    multiply_keys(scores, queries, describe_matrix<128>(memory.keys(stage)));
    u32 end = (turn + 1) * KEYS;
    if (end > params.keys || (CAUSAL && end > place.first_query)) hide(scores, turn * KEYS, params.keys, query);
    exponentials(scores, softmax, sums, scale);
    barrier_wait(memory.full_v + stage, parity);
    multiply_values(sums, scores, describe_rows<KEY_BOX_BYTES>(memory.values(stage)));
    if (lane == 0) barrier_arrive(memory.empty + stage);
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
  write(y, sums, softmax, params, place, query);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_sm90(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                   const __grid_constant__ TensorMap v, elem* __restrict__ y, const __grid_constant__ Params params) {
  SHARED_MEMORY(shared, SHARED_BYTES);
  Memory memory(shared);
  Place place(params);
  if (threadIdx.x == 0) {
    prefetch_map(&q);
    prefetch_map(&k);
    prefetch_map(&v);
    memory.open();
  }
  __syncthreads();
  if (threadIdx.x >= CONSUMERS * WARPGROUP) {
    give_registers<OF_PRODUCER>();
    if (threadIdx.x == CONSUMERS * WARPGROUP) produce(memory, place, &q, &k, &v);
  } else {
    take_registers<OF_CONSUMER>();
    consume(memory, place, y, params);
  }
}
