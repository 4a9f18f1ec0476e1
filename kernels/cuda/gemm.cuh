// One tile of c = a bT with sums in f32, over rows of `a` that an operation's loader finds: the main loop of
// matmul and conv2d.
//
// A block takes TILE_M x TILE_N outputs and walks the inner dimension 64 bytes a turn (STEP elements) through a
// ring of STAGES stages in shared memory. f16 and bf16 multiply by mma.sync, in f32 each thread by fused
// multiply-adds (tf32 would lose digits). Every output is one sum in ascending order of the inner dimension: its
// bits depend neither on the tile nor on the place in it.
// constants: TILE, 128 (256 threads) or 64 (128 threads), the side of the square tile; ALIGNED, 1 where every
//   row of both matrices starts at a multiple of 16 bytes and is a whole number of chunks, else 0
//
// Shared memory: stages of TILE rows of `a` then TILE of `b`, each of 4 chunks of 16 bytes. Chunk c of row r
// lies in place c ^ (r / 2 % 4), so that 8 rows' chunks are in 32 different banks.

#if TILE == 128
#define THREADS 256
#define STAGES 3
#define WARPS_N 4
#else
#define THREADS 128
#define STAGES 4
#define WARPS_N 2
#endif
#define WARPS_M 2
// Blocks that a multiprocessor should hold: what bounds the registers.
#if TILE == 128 && !defined(ELEM_F32)
#define MIN_BLOCKS 2
#else
#define MIN_BLOCKS 1
#endif
#define STEP (4 * CHUNK)
#define STAGE_BYTES (2 * TILE * 64)
#define SHARED_BYTES (STAGES * STAGE_BYTES)
// Each thread loads chunk `thread % 4` of these many rows, THREADS / 4 apart.
#define ROWS_PER_THREAD (4 * TILE / THREADS)
// Floats from row to row of half a finished tile in shared memory, so that 4 rows' pairs are in different banks.
#define PITCH (TILE + 8)

INLINE u32 place_of(u32 row, u32 chunk) { return row * 64 + (chunk ^ (row / 2 % 4)) * 16; }

// The rows of a plain [rows, inner] matrix, one tile of them.
struct PlainRows {
  const elem* from;
  size_t inner;
  u32 first, rows;
  u32 position;

  INLINE PlainRows(const elem* matrix, u32 rows, u32 inner, u32 first)
      : from(matrix), inner(inner), first(first), rows(rows), position(threadIdx.x % 4 * CHUNK) {}

  // The chunk of this thread's i-th row, null where it lies outside.
  INLINE const elem* chunk(u32 i) const {
    u32 row = first + threadIdx.x / 4 + i * (THREADS / 4);
    return row < rows && position < inner ? from + row * inner + position : nullptr;
  }
  // Element `offset` of it, zero outside.
  INLINE elem element(u32 i, u32 offset) const {
    u32 row = first + threadIdx.x / 4 + i * (THREADS / 4);
    return row < rows && position + offset < inner ? from[row * inner + position + offset] : elem(0);
  }
  INLINE void advance() { position += STEP; }
};

template <class Rows>
INLINE void load_rows(unsigned char* stage, const Rows& rows, const elem* anywhere) {
#pragma unroll
  for (u32 i = 0; i < ROWS_PER_THREAD; ++i) {
    unsigned char* to = stage + place_of(threadIdx.x / 4 + i * (THREADS / 4), threadIdx.x % 4);
#if ALIGNED
    const elem* from = rows.chunk(i);
    copy_async_16(to, from ? from : anywhere, from != nullptr);
#else
    Pack<CHUNK> pack;
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) pack.values[j] = rows.element(i, j);
    store<CHUNK>(reinterpret_cast<elem*>(to), pack);
#endif
  }
}

#if defined(ELEM_F32)

// Thread t holds rows t / 16 + i * LANES_M and columns t % 16 + j * 16.
#define LANES_M (THREADS / 16)
#define SUMS_M (TILE / LANES_M)
#define SUMS_N (TILE / 16)

struct Sums {
  float values[SUMS_M][SUMS_N];
};

INLINE void multiply_stage(Sums& sums, const unsigned char* stage) {
  u32 row = threadIdx.x / 16, column = threadIdx.x % 16;
#pragma unroll 1
  for (u32 chunk = 0; chunk < 4; ++chunk) {
    Pack<4> a[SUMS_M];
#pragma unroll
    for (u32 i = 0; i < SUMS_M; ++i) {
      a[i] = load<4>(reinterpret_cast<const elem*>(stage + place_of(row + i * LANES_M, chunk)));
    }
#pragma unroll
    for (u32 j = 0; j < SUMS_N; ++j) {
      Pack<4> b = load<4>(reinterpret_cast<const elem*>(stage + TILE * 64 + place_of(column + j * 16, chunk)));
#pragma unroll
      for (u32 i = 0; i < SUMS_M; ++i) {
#pragma unroll
        for (u32 k = 0; k < 4; ++k) {
          sums.values[i][j] = fmaf(a[i].values[k], b.values[k], sums.values[i][j]);
        }
      }
    }
  }
}

// Lays half of the tile's rows, the first or the second, into `rows` of PITCH values.
INLINE void lay_out(const Sums& sums, float* rows, u32 half) {
#pragma unroll
  for (u32 i = 0; i < SUMS_M; ++i) {
    if (i / (SUMS_M / 2) == half) {
      float* row = rows + (threadIdx.x / 16 + i % (SUMS_M / 2) * LANES_M) * PITCH;
#pragma unroll
      for (u32 j = 0; j < SUMS_N; ++j) row[threadIdx.x % 16 + j * 16] = sums.values[i][j];
    }
  }
}

#else

// A warp's part of the tile, in products of 16 x 8.
#define WARP_M (TILE / WARPS_M)
#define WARP_N (TILE / WARPS_N)
#define SUMS_M (WARP_M / 16)
#define SUMS_N (WARP_N / 8)

struct Sums {
  float values[SUMS_M][SUMS_N][4];
};

INLINE void multiply_stage(Sums& sums, const unsigned char* stage) {
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  u32 row = warp / WARPS_N * WARP_M, column = warp % WARPS_N * WARP_N;
#pragma unroll
  for (u32 k = 0; k < 2; ++k) {
    u32 a[SUMS_M][4];
#pragma unroll
    for (u32 i = 0; i < SUMS_M; ++i) {
      // Matrices: rows 0-7 and 8-15 of the first 8 columns, then of the next 8.
      load_matrix_4(a[i], stage + place_of(row + i * 16 + lane % 16, 2 * k + lane / 16));
    }
#pragma unroll
    for (u32 j = 0; j < SUMS_N; j += 2) {
      // Matrices: the two halves of the inner 16 for 8 columns, then for the next 8 columns.
      u32 b[4];
      load_matrix_4(b, stage + TILE * 64 + place_of(column + j * 8 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
      u32 left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
      for (u32 i = 0; i < SUMS_M; ++i) {
        multiply_add(sums.values[i][j], a[i], left);
        multiply_add(sums.values[i][j + 1], a[i], right);
      }
    }
  }
}

// Lays half of the tile's rows, the first or the second, into `rows` of PITCH values.
INLINE void lay_out(const Sums& sums, float* rows, u32 half) {
  u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp / WARPS_N != half) return;
  float* row = rows + lane / 4 * PITCH + warp % WARPS_N * WARP_N + lane % 4 * 2;
#pragma unroll
  for (u32 i = 0; i < SUMS_M; ++i) {
#pragma unroll
    for (u32 j = 0; j < SUMS_N; ++j) {
      float* to = row + i * 16 * PITCH + j * 8;
      to[0] = sums.values[i][j][0];
      to[1] = sums.values[i][j][1];
      to[8 * PITCH] = sums.values[i][j][2];
      to[8 * PITCH + 1] = sums.values[i][j][3];
    }
  }
}

#endif

// `shared` has SHARED_BYTES at a multiple of 16; `anywhere` may be read, at a multiple of 16.
template <class A, class B>
INLINE void multiply_tile(Sums& sums, unsigned char* shared, A a, B b, u32 inner, const elem* anywhere) {
  u32 turns = (inner + STEP - 1) / STEP;
#pragma unroll
  for (u32 turn = 0; turn < STAGES - 1; ++turn) {
    if (turn < turns) {
      load_rows(shared + turn * STAGE_BYTES, a, anywhere);
      load_rows(shared + turn * STAGE_BYTES + TILE * 64, b, anywhere);
      a.advance();
      b.advance();
    }
    copy_async_commit();
  }
  u32 stage = 0, free_stage = STAGES - 1;
#pragma unroll 1
  for (u32 turn = 0; turn < turns; ++turn) {
    // This turn's stage is there, and every thread has left the one that is filled next.
    copy_async_wait<STAGES - 2>();
    __syncthreads();
    if (turn + STAGES - 1 < turns) {
      load_rows(shared + free_stage * STAGE_BYTES, a, anywhere);
      load_rows(shared + free_stage * STAGE_BYTES + TILE * 64, b, anywhere);
      a.advance();
      b.advance();
    }
    copy_async_commit();
    multiply_stage(sums, shared + stage * STAGE_BYTES);
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    free_stage = free_stage + 1 == STAGES ? 0 : free_stage + 1;
  }
}

template <int N>
INLINE void write_rows(const Epilogue& epilogue, const float* sums, u32 first_row, u32 first_column) {
#pragma unroll 1
  for (u32 i = threadIdx.x; i < TILE / 2 * TILE / N; i += THREADS) {
    u32 row = i / (TILE / N), column = i % (TILE / N) * N;
    epilogue.write<N>(first_row + row, first_column + column, sums + row * PITCH + column);
  }
}

// Through shared memory, so that neighbouring threads write neighbouring outputs.
INLINE void write_tile(const Epilogue& epilogue, const Sums& sums, unsigned char* shared, u32 first_row,
                       u32 first_column) {
  float* finished = reinterpret_cast<float*>(shared);
#pragma unroll 1
  for (u32 half = 0; half < 2; ++half) {
    __syncthreads();
    lay_out(sums, finished, half);
    __syncthreads();
    if (epilogue.columns % CHUNK == 0) {
      write_rows<CHUNK>(epilogue, finished, first_row + half * (TILE / 2), first_column);
    } else {
      write_rows<1>(epilogue, finished, first_row + half * (TILE / 2), first_column);
    }
  }
}
