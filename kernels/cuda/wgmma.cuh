// What Hopper adds (sm_90a): copies of boxes of a matrix by the tensor memory accelerator (TMA), barriers in shared
// memory that count the bytes that arrived, products of a warpgroup (wgmma) that read shared memory themselves, and
// registers that move from one warpgroup to another. For f16 and bf16.
//
// A box lies in shared memory row by row, ROW bytes each (128, 64 or 32), and its chunks of 16 bytes are swizzled: of
// a chunk's address, bits 4 and up are xored with bits 7 and up, 3 bits at ROW 128, 2 at 64, 1 at 32. TMA writes so
// and wgmma reads so, both by address: a box starts at a multiple of 1024 bytes.
//
// Fragment of a product's sums [64, N] (PTX ISA, "Matrix Fragments for wgmma.mma_async.m64nNk16"), with warp the
// warp in its group, group = lane / 4 and pair = lane % 4:
//   sums[i]: row 16 warp + group + 8 (i / 2 % 2), column 8 (i / 4) + 2 pair + i % 2
// constants: DYNAMIC, 1 where the launch brings the shared memory, else 0

#if defined(ELEM_F32)
#error "wgmma multiplies f16 and bf16"
#endif

#define WARPGROUP 128
// A swizzled pattern repeats after at most this many bytes.
#define PATTERN_BYTES 1024

#ifndef AQUATINT_HOST

// CUtensorMap of the driver's interface, made by cuTensorMapEncodeTiled.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

// Declares `name`, `bytes` of shared memory at a multiple of PATTERN_BYTES. The launch of a DYNAMIC kernel brings
// PATTERN_BYTES more.
#if DYNAMIC
extern __shared__ unsigned char launched_memory[];
#define SHARED_MEMORY(name, bytes) \
  unsigned char* name = launched_memory + (0u - shared_address(launched_memory)) % PATTERN_BYTES
#else
#define SHARED_MEMORY(name, bytes) __shared__ __align__(PATTERN_BYTES) unsigned char name[bytes]
#endif

INLINE u32 shared_address(const void* at) { return u32(__cvta_generic_to_shared(at)); }

// A barrier's turn ends when `arrivals` threads arrived and as many bytes as were announced.
INLINE void barrier_open(u64* barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Shows the barriers that this thread opened to TMA; other threads see them after a __syncthreads.
INLINE void barriers_opened() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

INLINE void barrier_arrive(u64* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives and announces bytes.
INLINE void barrier_arrive_expecting(u64* barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}

// Waits for the end of a turn of this parity; the turn before the first counts as one of parity 1.
INLINE void barrier_wait(u64* barrier, u32 parity) {
  u32 address = shared_address(barrier), over;
  do {
    asm volatile(
        "{\n"
        ".reg .pred over;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
        "selp.u32 %0, 1, 0, over;\n"
        "}"
        : "=r"(over)
        : "r"(address), "r"(parity)
        : "memory");
  } while (!over);
}

// Brings the description of a matrix near, ahead of its first box.
INLINE void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Copies the box whose first element is (row, column) in the background, with zeros outside of the matrix, and
// reports the whole box's bytes to the barrier, the zeros among them. The second is for one matrix of many, the third
// for one head's part of its rows: columns beyond that part are outside as well, though the next head's lie there.
INLINE void load_box(void* to, const TensorMap* map, u64* barrier, u32 row, u32 column) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
      : "memory");
}

INLINE void load_box(void* to, const TensorMap* map, u64* barrier, u32 matrix, u32 row, u32 column) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(row), "r"(matrix), "r"(shared_address(barrier))
      : "memory");
}

INLINE void load_box(void* to, const TensorMap* map, u64* barrier, u32 matrix, u32 row, u32 head, u32 column) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(to)),
      "l"(map), "r"(column), "r"(head), "r"(row), "r"(matrix), "r"(shared_address(barrier))
      : "memory");
}

// Copies the pixels of a picture's channels in im2col mode: a column of them, from the first on in the order of the
// map's bounding box, each moved by (offset_y, offset_x), zeros outside of the pictures.
INLINE void load_pixels(void* to, const TensorMap* map, u64* barrier, u32 picture, int y, int x, u32 channel,
                        u32 offset_y, u32 offset_x) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], "
      "[%1, {%2, %3, %4, %5}], [%6], {%7, %8};" ::"r"(shared_address(to)),
      "l"(map), "r"(channel), "r"(x), "r"(y), "r"(picture), "r"(shared_address(barrier)), "h"(u16(offset_x)),
      "h"(u16(offset_y))
      : "memory");
}

// Leaves a warpgroup COUNT registers a thread, of which it held more, or fewer: then it waits until they are free.
template <int COUNT>
INLINE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
INLINE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// Orders accesses to registers before the products that follow.
INLINE void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Closes a group of products.
INLINE void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING of this warp's latest groups are under way.
template <int PENDING>
INLINE void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from reading sums ahead of the wait before.
template <int N>
INLINE void products_finished(float (&sums)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

#if defined(ELEM_F16)
#define WGMMA_TYPES "f32.f16.f16"
#else
#define WGMMA_TYPES "f32.bf16.bf16"
#endif
// Operands: ten registers' names, from the tens' digits, before others or at a list's end; sums, from the first.
#define LAST_NAMES(tens)                                                                                     \
  "%" #tens "0, %" #tens "1, %" #tens "2, %" #tens "3, %" #tens "4, %" #tens "5, %" #tens "6, %" #tens "7, " \
  "%" #tens "8, %" #tens "9"
#define NAMES(tens) LAST_NAMES(tens) ", "
#define SUMS_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 4), SUMS_4(i + 8), SUMS_4(i + 12)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)

// sums = a bT (+ sums, where `add` is not 0) for 16 columns of a [64, 16] and b [N, 16], N twice the sums' count, in
// the background. Of a group's products, each takes the sums that the one before left.
INLINE void multiply_matrices(float (&sums)[48], u64 a, u64 b, u32 add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %50, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n96k16." WGMMA_TYPES " {" NAMES() NAMES(1) NAMES(2) NAMES(3)
      "%40, %41, %42, %43, %44, %45, %46, %47}, %48, %49, add, 1, 1, 0, 0;\n"
      "}"
      : SUMS_32(0), SUMS_16(32)
      : "l"(a), "l"(b), "r"(add));
}
INLINE void multiply_matrices(float (&sums)[64], u64 a, u64 b, u32 add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16." WGMMA_TYPES " {" NAMES() NAMES(1) NAMES(2) NAMES(3) NAMES(4) NAMES(5)
      "%60, %61, %62, %63}, %64, %65, add, 1, 1, 0, 0;\n"
      "}"
      : SUMS_32(0), SUMS_32(32)
      : "l"(a), "l"(b), "r"(add));
}
INLINE void multiply_matrices(float (&sums)[128], u64 a, u64 b, u32 add) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16." WGMMA_TYPES " {" NAMES() NAMES(1) NAMES(2) NAMES(3) NAMES(4) NAMES(5)
      NAMES(6) NAMES(7) NAMES(8) NAMES(9) NAMES(10) NAMES(11)
      "%120, %121, %122, %123, %124, %125, %126, %127}, %128, %129, add, 1, 1, 0, 0;\n"
      "}"
      : SUMS_32(0), SUMS_32(32), SUMS_32(64), SUMS_32(96)
      : "l"(a), "l"(b), "r"(add));
}

// sums += a b for b [16, N] by rows and a [64, 16] in registers (PTX ISA, "Matrix Fragments for
// wgmma.mma_async.m64nNk16"): a[r] has row 16 warp + group + 8 (r % 2), columns 2 pair + 8 (r / 2) and the next.
INLINE void multiply_rows(float (&sums)[20], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n40k16." WGMMA_TYPES " {" NAMES() LAST_NAMES(1)
               "}, {%20, %21, %22, %23}, %24, 1, 1, 1, 1;"
               : SUMS_16(0), SUMS_4(16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
INLINE void multiply_rows(float (&sums)[32], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16." WGMMA_TYPES " {" NAMES() NAMES(1) NAMES(2)
               "%30, %31}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
               : SUMS_32(0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
INLINE void multiply_rows(float (&sums)[40], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n80k16." WGMMA_TYPES " {" NAMES() NAMES(1) NAMES(2) LAST_NAMES(3)
               "}, {%40, %41, %42, %43}, %44, 1, 1, 1, 1;"
               : SUMS_32(0), SUMS_4(32), SUMS_4(36)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
INLINE void multiply_rows(float (&sums)[64], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16." WGMMA_TYPES " {" NAMES() NAMES(1) NAMES(2) NAMES(3) NAMES(4)
               NAMES(5) "%60, %61, %62, %63}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
               : SUMS_32(0), SUMS_32(32)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
INLINE void multiply_rows(float (&sums)[80], const u32 (&a)[4], u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n160k16." WGMMA_TYPES " {" NAMES() NAMES(1) NAMES(2) NAMES(3) NAMES(4)
               NAMES(5) NAMES(6) LAST_NAMES(7) "}, {%80, %81, %82, %83}, %84, 1, 1, 1, 1;"
               : SUMS_32(0), SUMS_32(32), SUMS_16(64)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif

// A box's description for wgmma (PTX ISA, "Matrix Descriptor"): rows of ROW bytes, groups of 8 rows one after the
// other. Bits 0-13: the address, 32-45: from group to group of 8 rows, both in 16 bytes; 62-63: the swizzle. Bits
// 16-29, the way along a row, mean nothing where the swizzle is as wide as a row. The next 16 columns are 32 bytes
// further, 2 in these units.
template <u32 ROW>
INLINE u64 describe_matrix(const void* box) {
  static_assert(ROW == 128 || ROW == 64 || ROW == 32, "a swizzle's width");
  u64 swizzle = ROW == 128 ? 1 : ROW == 64 ? 2 : 3;
  return u64((shared_address(box) & 0x3ffff) >> 4) | u64(1) << 16 | u64(8 * ROW >> 4) << 32 | swizzle << 62;
}

// The same for the second factor of products by rows, [16, N]: N in boxes of 64, BOX_BYTES apart, of which bits 16-29
// tell; the last may hold more columns than N. The next 16 rows are 2048 bytes further, 128 in these units.
template <u32 BOX_BYTES>
INLINE u64 describe_rows(const void* box) {
  return u64((shared_address(box) & 0x3ffff) >> 4) | u64(BOX_BYTES >> 4) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}

// Of 4 lanes with 4 pairs each, lane l gets pair l of each: the transposed 4 x 4 pairs.
INLINE void transpose_pairs(float (&pairs)[8], u32 lane) {
#pragma unroll
  for (u32 step = 1; step < 4; step *= 2) {
    bool upper = lane & step;
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
      if (i & step) continue;
#pragma unroll
      for (u32 j = 0; j < 2; ++j) {
        float& low = pairs[2 * i + j];
        float& high = pairs[2 * (i + step) + j];
        float other = __shfl_xor_sync(ALL_LANES, upper ? low : high, step);
        if (upper) {
          low = other;
        } else {
          high = other;
        }
      }
    }
  }
}
