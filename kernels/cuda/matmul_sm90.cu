// y = residual + gate * f(x · weightᵀ + bias); f is nothing or an activation of common.cuh: matmul.cu for Hopper
//
// x: [rows, inputs], weight: [outputs, inputs], bias: [outputs], residual, y: [rows, outputs], gate: [pictures,
// outputs], one row for all rows of a picture, contiguous; f16 or bf16; sums and all that follows in f32, rounded once
// parts: common.cuh, wgmma.cuh, gemm_sm90.cuh, this file
// constants: those of gemm_sm90.cuh; ACTIVATION (0 nothing, 1 gelu, 2 quick_gelu, 3 silu, 4 gelu_tanh)
// launch: see gemm_sm90.cuh; there are ceil(rows / 128) * ceil(outputs / TILE_N) tiles
// limits: inputs and outputs are multiples of 8 (TMA takes rows at multiples of 16 bytes) and at least 8; buffers
//   start at multiples of 16 bytes; rows, outputs, inputs < 2^31 - 256; fewer than 2^31 tiles
// tensor maps x, weight: rank 2, sizes [inputs, rows] and [inputs, outputs] from the innermost, row pitch
//   2 * inputs bytes, box [TILE_K, 128] and [TILE_K, TILE_N], swizzle as wide as a box's row (128 bytes at TILE_K 64,
//   64 at 32), no interleave, zeros outside
// parameters: u32 rows, u32 outputs, u32 inputs, u32 has_bias, u32 has_residual, u32 gate_rows (a picture's rows, 0 for
//   no gate). Where there is no bias, residual or gate, its buffer is not read: any will do.
// reference: ops::linear::reference; proof: ../host/cases/matmul_sm90.py
// Has never run on a GPU; launched on compute capability 9.0, where the environment has AQUATINT_CUDA_KERNELS alone.

struct Params {
  u32 rows;
  u32 outputs;
  u32 inputs;
  u32 has_bias;
  u32 has_residual;
  u32 gate_rows;
};

// The boxes of both matrices.
struct Boxes {
  const TensorMap *x, *weight;
  u32 row, output, position;

  INLINE void prefetch() const {
    prefetch_map(x);
    prefetch_map(weight);
  }
  INLINE void start(u32 first_row, u32 first_output) {
    row = first_row;
    output = first_output;
    position = 0;
  }
  INLINE void load(unsigned char* a, unsigned char* b, u64* full) {
    load_box(a, x, full, row, position);
    load_box(b, weight, full, output, position);
    position += TILE_K;
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    matmul_sm90(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                const elem* __restrict__ bias, const elem* __restrict__ residual, const elem* __restrict__ gate,
                elem* __restrict__ y, const __grid_constant__ Params params) {
  SHARED_MEMORY(shared, SHARED_BYTES);
  Epilogue epilogue;
  epilogue.bias = bias;
  epilogue.residual = residual;
  epilogue.gate = gate;
  epilogue.y = y;
  epilogue.rows = params.rows;
  epilogue.columns = params.outputs;
  epilogue.activation = ACTIVATION;
  epilogue.residual_rows = params.has_residual != 0 ? 1 : 0;
  epilogue.gate_rows = params.gate_rows;
  epilogue.has_bias = params.has_bias != 0;
  Work work(params.rows, params.outputs, (params.inputs + TILE_K - 1) / TILE_K);
  multiply(shared, work, Boxes{&x, &weight, 0, 0, 0}, epilogue);
}
