// y = residual + gate * f(x · weightᵀ + bias); f is nothing or an activation of common.cuh
//
// x: [rows, inputs], weight: [outputs, inputs], bias: [outputs], residual, y: [rows, outputs], gate: [pictures,
// outputs], one row for all rows of a picture, contiguous; f32, f16 or bf16; sums and all that follows in f32, rounded
// once
// parts: common.cuh, mma.cuh, gemm.cuh, this file
// constants: TILE and ALIGNED, see gemm.cuh. ALIGNED is 1 where `inputs` is a multiple of CHUNK (4 in f32, 8 in f16
//   and bf16); without it TILE is 64. Choose TILE 128 where one picture's tokens and `outputs` are at least 128.
// launch: 256 threads at TILE 128, 128 at TILE 64; ceil(rows / TILE) * ceil(outputs / TILE) blocks
// limits: buffers start at multiples of 16 bytes; rows, outputs, inputs < 2^32 - 128; fewer than 2^31 blocks
// parameters: u32 rows, u32 outputs, u32 inputs, u32 has_bias, u32 has_residual, u32 activation (0 nothing, 1 gelu,
//   2 quick_gelu, 3 silu, 4 gelu_tanh), u32 gate_rows (a picture's rows, 0 for no gate), u32 padding. Where there is no
//   bias, residual or gate, its buffer is not read: any will do.
// reference: ops::linear::reference; proof: ../host/cases/matmul.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

struct Params {
  u32 rows;
  u32 outputs;
  u32 inputs;
  u32 has_bias;
  u32 has_residual;
  u32 activation;
  u32 gate_rows;
  u32 padding;
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    matmul(const elem* __restrict__ x, const elem* __restrict__ weight, const elem* __restrict__ bias,
           const elem* __restrict__ residual, const elem* __restrict__ gate, elem* __restrict__ y,
           const __grid_constant__ Params params) {
  __shared__ __align__(16) unsigned char shared[SHARED_BYTES];
  u32 tile_m, tile_n;
  tile_at(blockIdx.x, (params.rows + TILE - 1) / TILE, (params.outputs + TILE - 1) / TILE, tile_m, tile_n);

  Sums sums = {};
  multiply_tile(sums, shared, PlainRows(x, params.rows, params.inputs, tile_m * TILE),
                PlainRows(weight, params.outputs, params.inputs, tile_n * TILE), params.inputs, x);

  Epilogue epilogue;
  epilogue.bias = bias;
  epilogue.residual = residual;
  epilogue.gate = gate;
  epilogue.y = y;
  epilogue.rows = params.rows;
  epilogue.columns = params.outputs;
  epilogue.activation = params.activation;
  epilogue.residual_rows = params.has_residual;
  epilogue.gate_rows = params.gate_rows;
  epilogue.has_bias = params.has_bias != 0;
  write_tile(epilogue, sums, shared, tile_m * TILE, tile_n * TILE);
}
