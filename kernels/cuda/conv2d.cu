// y[b, i, j, n] = Σ x[b, stride i + ky - top, stride j + kx - left, c] · weight[n, ky, kx, c] + bias[n] + residual,
// with zeros around x: the cross-correlation of every framework's conv2d
//
// x: [batch, height, width, inputs], weight: [outputs, kernel_height, kernel_width, inputs], bias: [outputs],
// y: [batch, out_height, out_width, outputs], contiguous; f32, f16 or bf16; residual: y's shape, or [batch, outputs],
// one vector a picture; sums, bias and residual in f32, rounded once
// An implicit matrix product: a row is a pixel of y, the inner dimension runs over (ky, kx, c), and the chunks
// under the kernel are found as they are loaded.
// parts: common.cuh, mma.cuh, gemm.cuh, this file
// constants: TILE and ALIGNED, see gemm.cuh. ALIGNED is 1 where `inputs` is a multiple of CHUNK (4 in f32, 8 in f16
//   and bf16); without it TILE is 64. Choose TILE 128 where out_height * out_width and `outputs` are at least 128.
// launch: 256 threads at TILE 128, 128 at TILE 64; ceil(batch * out_height * out_width / TILE) *
//   ceil(outputs / TILE) blocks
// limits: buffers start at multiples of 16 bytes; batch * out_height * out_width, outputs and kernel_height *
//   kernel_width * inputs < 2^32 - 128; height, width, stride * out_height + kernel_height and the same of the width
//   < 2^31; fewer than 2^31 blocks
// parameters, all u32: batch, height, width, inputs, out_height, out_width, outputs, kernel_height, kernel_width,
//   stride, top, left (the zeros before the first row and column; those behind follow from the output's size),
//   has_bias, residual (0 none, 1 y's shape, 2 one vector a picture). Where there is none, its buffer is not read:
//   any will do.
// reference: ops::conv::reference; proof: ../host/cases/conv2d.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

struct Params {
  u32 batch, height, width, inputs;
  u32 out_height, out_width, outputs;
  u32 kernel_height, kernel_width;
  u32 stride, top, left;
  u32 has_bias, residual;
};

// The pixels of x under the kernel, for the rows of one tile.
struct PixelRows {
  const elem* x;
  u32 height, width, inputs, kernel_height, kernel_width;
  // Of this thread's rows: the place under the kernel's first corner, which may lie outside of the picture.
  int corner_y[ROWS_PER_THREAD], corner_x[ROWS_PER_THREAD];
  long long corner[ROWS_PER_THREAD];
  // Of this thread's chunk: its place in the inner dimension, and the same as kernel row, column and channel.
  u32 position, kernel_y, kernel_x, channel;

  INLINE PixelRows(const elem* x, const Params& params, u32 first)
      : x(x), height(params.height), width(params.width), inputs(params.inputs), kernel_height(params.kernel_height),
        kernel_width(params.kernel_width), position(threadIdx.x % 4 * CHUNK), kernel_y(0), kernel_x(0), channel(0) {
    u32 pixels = params.out_height * params.out_width;
#pragma unroll
    for (u32 i = 0; i < ROWS_PER_THREAD; ++i) {
      u32 row = first + threadIdx.x / 4 + i * (THREADS / 4);
      u32 picture = row / pixels;
      u32 pixel = row - picture * pixels;
      u32 out_y = pixel / params.out_width;
      u32 out_x = pixel - out_y * params.out_width;
      corner_y[i] = int(out_y * params.stride) - int(params.top);
      corner_x[i] = int(out_x * params.stride) - int(params.left);
      corner[i] = ((static_cast<long long>(picture) * height + corner_y[i]) * width + corner_x[i]) * inputs;
      // Below every picture: a row outside of y reads zeros.
      if (picture >= params.batch) corner_y[i] = int(height);
    }
    skip(position);
  }

  INLINE void skip(u32 elements) {
    channel += elements;
    while (channel >= inputs && kernel_y < kernel_height) {
      channel -= inputs;
      if (++kernel_x == kernel_width) {
        kernel_x = 0;
        ++kernel_y;
      }
    }
  }

  INLINE bool inside(u32 i, u32 y, u32 x) const {
    // A negative place is a large unsigned one.
    return u32(corner_y[i]) + y < height && u32(corner_x[i]) + x < width;
  }

  INLINE const elem* chunk(u32 i) const {
    if (kernel_y >= kernel_height || !inside(i, kernel_y, kernel_x)) return nullptr;
    return x + (corner[i] + (static_cast<long long>(kernel_y) * width + kernel_x) * inputs + channel);
  }

  INLINE elem element(u32 i, u32 offset) const {
    u32 tap = (position + offset) / inputs;
    u32 at = (position + offset) - tap * inputs;
    u32 y = tap / kernel_width, column = tap % kernel_width;
    if (y >= kernel_height || !inside(i, y, column)) return elem(0);
    return x[corner[i] + (static_cast<long long>(y) * width + column) * inputs + at];
  }

  INLINE void advance() {
    position += STEP;
    skip(STEP);
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    conv2d(const elem* __restrict__ x, const elem* __restrict__ weight, const elem* __restrict__ bias,
           const elem* __restrict__ residual, elem* __restrict__ y, const __grid_constant__ Params params) {
  __shared__ __align__(16) unsigned char shared[SHARED_BYTES];
  u32 pixels = params.out_height * params.out_width;
  u32 rows = params.batch * pixels;
  u32 inner = params.kernel_height * params.kernel_width * params.inputs;
  u32 tile_m, tile_n;
  tile_at(blockIdx.x, (rows + TILE - 1) / TILE, (params.outputs + TILE - 1) / TILE, tile_m, tile_n);

  Sums sums = {};
  multiply_tile(sums, shared, PixelRows(x, params, tile_m * TILE),
                PlainRows(weight, params.outputs, inner, tile_n * TILE), inner, x);

  Epilogue epilogue;
  epilogue.bias = bias;
  epilogue.residual = residual;
  epilogue.gate = nullptr;
  epilogue.y = y;
  epilogue.rows = rows;
  epilogue.columns = params.outputs;
  epilogue.activation = ACTIVATION_NONE;
  epilogue.residual_rows = params.residual == 2 ? pixels : params.residual;
  epilogue.gate_rows = 0;
  epilogue.has_bias = params.has_bias != 0;
  write_tile(epilogue, sums, shared, tile_m * TILE, tile_n * TILE);
}
