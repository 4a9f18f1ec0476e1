// Tiles of c = a bT on Hopper with sums in f32, over boxes that an operation's loader brings by TMA: the main loop of
// matmul_sm90 and conv2d_sm90.
//
// A block takes tiles of TILE_M x TILE_N outputs, one after the other. One thread fills a ring of STAGES stages, TILE_K
// columns of both matrices each; two warpgroups multiply, 64 rows of a tile each, and write it while the next tile's
// first stages arrive. Every output is one sum in ascending order of the inner dimension, 16 columns a step: its bits
// depend neither on the tile nor on the place in it, nor on the number of blocks.
// constants: TILE_N, TILE_K, STAGES, DYNAMIC (see wgmma.cuh)
//   128, 32, 2, 0: two blocks a multiprocessor, within the 48 KB that a launch without dynamic memory has
//   128, 64, 3, 1: two blocks a multiprocessor
//   256, 64, 4, 1: one block a multiprocessor, for matrices with tiles enough for all of them
// launch: 384 threads at TILE_N 256, 288 at 128; as many blocks as fit on the device at once, and no more than there
//   are tiles; DYNAMIC: STAGES * (128 + TILE_N) * TILE_K * 2 + STAGES * 16 + 1024 bytes of shared memory

#define TILE_M 128
#define CONSUMERS 2
#define CONSUMERS_THREADS (CONSUMERS * WARPGROUP)
#define ROW_BYTES (2 * TILE_K)
#define STAGE_BYTES ((TILE_M + TILE_N) * ROW_BYTES)
#define SHARED_BYTES (STAGES * STAGE_BYTES + STAGES * 16)

#if TILE_N == 256
// A consumer needs more registers than a launch can give to all: it takes those of a producer's whole warpgroup.
#define BLOCKS 1
#define THREADS (CONSUMERS_THREADS + WARPGROUP)
#define LAUNCHED 168
#define OF_PRODUCER 24
#define OF_CONSUMER 240
static_assert(OF_PRODUCER + CONSUMERS * OF_CONSUMER <= (1 + CONSUMERS) * LAUNCHED, "registers after the exchange");
#else
// The producer is one warp, so that two blocks' registers suffice.
#define BLOCKS 2
#define THREADS (CONSUMERS_THREADS + 32)
#define LAUNCHED 96
#endif
// Warps have their registers in one quarter of a multiprocessor each.
static_assert((BLOCKS * THREADS / 32 + 3) / 4 * 32 * LAUNCHED <= 16384, "registers at the launch");
static_assert(DYNAMIC ? BLOCKS * (SHARED_BYTES + PATTERN_BYTES + 1024) <= 228 * 1024 : SHARED_BYTES <= 48 * 1024,
              "shared memory; the device takes 1 KB a block for itself");
static_assert(TILE_M * ROW_BYTES % PATTERN_BYTES == 0 && STAGE_BYTES % PATTERN_BYTES == 0, "boxes at whole patterns");

// A place in the ring, and the parity of the turn there.
struct Place {
  u32 stage, parity;

  INLINE void advance() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The stages, each a box of a and one of b, and for each stage a barrier that ends a turn when it is full, and
// one when every consumer's warp has left it.
struct Ring {
  unsigned char* stages;
  u64* full;
  u64* empty;

  INLINE explicit Ring(unsigned char* shared)
      : stages(shared), full(reinterpret_cast<u64*>(shared + STAGES * STAGE_BYTES)), empty(full + STAGES) {}

  INLINE void open() const {
    for (u32 stage = 0; stage < STAGES; ++stage) {
      barrier_open(full + stage, 1);
      barrier_open(empty + stage, CONSUMERS * 4);
    }
    barriers_opened();
  }
};

// The tiles, and the turns of each.
struct Work {
  u32 tiles_m, tiles_n, turns;

  INLINE Work(u32 rows, u32 columns, u32 turns)
      : tiles_m((rows + TILE_M - 1) / TILE_M), tiles_n((columns + TILE_N - 1) / TILE_N), turns(turns) {}
};

// `loader` starts at a tile, and then brings the boxes of one turn after the other.
template <class Loader>
INLINE void produce(const Ring& ring, const Work& work, Loader loader) {
  Place place = {0, 0};
#pragma unroll 1
  for (u32 tile = blockIdx.x; tile < work.tiles_m * work.tiles_n; tile += gridDim.x) {
    u32 tile_m, tile_n;
    tile_at(tile, work.tiles_m, work.tiles_n, tile_m, tile_n);
    loader.start(tile_m * TILE_M, tile_n * TILE_N);
#pragma unroll 1
    for (u32 turn = 0; turn < work.turns; ++turn) {
      unsigned char* stage = ring.stages + place.stage * STAGE_BYTES;
      u64* full = ring.full + place.stage;
      // The turn before: the stage's first turn waits for nothing.
      barrier_wait(ring.empty + place.stage, place.parity ^ 1);
      barrier_arrive_expecting(full, STAGE_BYTES);
      loader.load(stage, stage + TILE_M * ROW_BYTES, full);
      place.advance();
    }
  }
}

// One tile's sums of this warpgroup's 64 rows. A stage is left a turn late, when its products are over.
INLINE void multiply_tile(float (&sums)[TILE_N / 2], const Ring& ring, Place& place, u32 turns, u64 a, u64 b) {
  u32 lane = threadIdx.x % 32, left = 0;
#pragma unroll 1
  for (u32 turn = 0; turn < turns; ++turn) {
    u32 at = place.stage * (STAGE_BYTES >> 4);
    barrier_wait(ring.full + place.stage, place.parity);
    products_begin();
#pragma unroll
    for (u32 k = 0; k < TILE_K / 16; ++k) {
      multiply_matrices(sums, a + at + 2 * k, b + at + 2 * k, turn + k);
    }
    products_commit();
    products_wait<1>();
    if (turn > 0 && lane == 0) barrier_arrive(ring.empty + left);
    left = place.stage;
    place.advance();
  }
  products_wait<0>();
  products_finished(sums);
  if (lane == 0) barrier_arrive(ring.empty + left);
}

// From the lanes' pairs to 8 neighbours a lane, so that 4 lanes read and write 64 bytes of a row.
INLINE void write_tile(const Epilogue& epilogue, const float (&sums)[TILE_N / 2], u32 first_row, u32 first_column) {
  u32 lane = threadIdx.x % 32;
  u32 row = first_row + threadIdx.x % WARPGROUP / 32 * 16 + lane / 4;
  u32 column = first_column + lane % 4 * 8;
#pragma unroll
  for (u32 i = 0; i < TILE_N / 32; ++i) {
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
      float values[8];
#pragma unroll
      for (u32 j = 0; j < 4; ++j) {
        values[2 * j] = sums[16 * i + 4 * j + 2 * half];
        values[2 * j + 1] = sums[16 * i + 4 * j + 2 * half + 1];
      }
      transpose_pairs(values, lane);
      epilogue.write<8>(row + 8 * half, column + 32 * i, values);
    }
  }
}

INLINE void consume(const Ring& ring, const Work& work, const Epilogue& epilogue) {
  u32 rows_before = threadIdx.x / WARPGROUP * 64;
  u64 a = describe_matrix<ROW_BYTES>(ring.stages + rows_before * ROW_BYTES);
  u64 b = describe_matrix<ROW_BYTES>(ring.stages + TILE_M * ROW_BYTES);
  Place place = {0, 0};
  float sums[TILE_N / 2] = {};
#pragma unroll 1
  for (u32 tile = blockIdx.x; tile < work.tiles_m * work.tiles_n; tile += gridDim.x) {
    u32 tile_m, tile_n;
    tile_at(tile, work.tiles_m, work.tiles_n, tile_m, tile_n);
    multiply_tile(sums, ring, place, work.turns, a, b);
    write_tile(epilogue, sums, tile_m * TILE_M + rows_before, tile_n * TILE_N);
  }
}

// What every thread of a block does. `memory` has SHARED_BYTES.
template <class Loader>
INLINE void multiply(unsigned char* memory, const Work& work, const Loader& loader, const Epilogue& epilogue) {
  Ring ring(memory);
  if (threadIdx.x == 0) {
    loader.prefetch();
    ring.open();
  }
  __syncthreads();
  if (threadIdx.x >= CONSUMERS_THREADS) {
#if TILE_N == 256
    give_registers<OF_PRODUCER>();
#endif
    if (threadIdx.x == CONSUMERS_THREADS) produce(ring, work, loader);
  } else {
#if TILE_N == 256
    take_registers<OF_CONSUMER>();
#endif
    consume(ring, work, epilogue);
  }
}
