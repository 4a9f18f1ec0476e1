// y[b, i, j, n] = Σ x[b, stride i + ky - top, stride j + kx - left, c] · weight[n, ky, kx, c] + bias[n] + residual,
// with zeros around x: conv2d.cu for Hopper
//
// x: [batch, height, width, inputs], weight: [outputs, kernel_height, kernel_width, inputs], bias: [outputs],
// y: [batch, out_height, out_width, outputs], contiguous; f16 or bf16; residual: y's shape, or [batch, outputs], one
// vector a picture; sums, bias and residual in f32, rounded once
// An implicit matrix product: a row is a pixel of y, the inner dimension runs over (ky, kx, c). TMA itself finds the
// pixels under the kernel, in its im2col mode: from a first pixel on, a box takes TILE_M pixels in y's order, each
// moved by the tap (ky, kx). A tap's channels are filled up to whole boxes with zeros.
// parts: common.cuh, wgmma.cuh, gemm_sm90.cuh, this file
// constants: those of gemm_sm90.cuh
// launch: see gemm_sm90.cuh; there are ceil(batch * out_height * out_width / 128) * ceil(outputs / TILE_N) tiles
// limits: inputs and outputs are multiples of 8 (TMA takes pixels at multiples of 16 bytes) and at least 8; top, left,
//   kernel_height, kernel_width <= 127; stride <= 8; buffers start at multiples of 16 bytes; height, width < 2^16;
//   batch * out_height * out_width, outputs and kernel_height * kernel_width * inputs < 2^31 - 256; fewer than 2^31
//   tiles
// tensor map x: im2col, rank 4, sizes [inputs, width, height, batch] from the innermost, pitches without gaps, TILE_K
//   channels a pixel, 128 pixels a column, strides [1, stride, stride, 1]; lower corner [-left, -top]; upper corner
//   [(out_width - 1) stride - left - (width - 1), the same of the height], -128 to 127
// tensor map weight: rank 3, sizes [inputs, kernel_height * kernel_width, outputs], box [TILE_K, 1, TILE_N]
// both: swizzle as wide as a box's row (128 bytes at TILE_K 64, 64 at 32), no interleave, zeros outside
// parameters, all u32: batch, out_height, out_width, inputs, outputs, kernel_height, kernel_width, stride, top, left,
//   has_bias, residual (0 none, 1 y's shape, 2 one vector a picture). Where there is none, its buffer is not read: any
//   will do.
// reference: ops::conv::reference; proof: ../host/cases/conv2d_sm90.py
// Has never run on a GPU; launched on compute capability 9.0, where the environment has AQUATINT_CUDA_KERNELS alone.

struct Params {
  u32 batch, out_height, out_width, inputs, outputs;
  u32 kernel_height, kernel_width;
  u32 stride, top, left;
  u32 has_bias, residual;
};

// The boxes of the pixels under the kernel, and of the weights.
struct Boxes {
  const TensorMap *x, *weight;
  u32 out_height, out_width, inputs, kernel_width, stride, top, left;
  // The first pixel, under the kernel's first corner.
  u32 picture;
  int corner_y, corner_x;
  u32 output;
  u32 kernel_y, kernel_x, tap, channel;

  INLINE Boxes(const TensorMap* x, const TensorMap* weight, const Params& params)
      : x(x), weight(weight), out_height(params.out_height), out_width(params.out_width), inputs(params.inputs),
        kernel_width(params.kernel_width), stride(params.stride), top(params.top), left(params.left) {}

  INLINE void prefetch() const {
    prefetch_map(x);
    prefetch_map(weight);
  }
  INLINE void start(u32 first_row, u32 first_output) {
    u32 line = first_row / out_width;
    picture = line / out_height;
    corner_x = int((first_row - line * out_width) * stride) - int(left);
    corner_y = int((line - picture * out_height) * stride) - int(top);
    output = first_output;
    kernel_y = kernel_x = tap = channel = 0;
  }
  INLINE void load(unsigned char* a, unsigned char* b, u64* full) {
    load_pixels(a, x, full, picture, corner_y, corner_x, channel, kernel_y, kernel_x);
    load_box(b, weight, full, output, tap, channel);
    channel += TILE_K;
    if (channel >= inputs) {
      channel = 0;
      ++tap;
      if (++kernel_x == kernel_width) {
        kernel_x = 0;
        ++kernel_y;
      }
    }
  }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    conv2d_sm90(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                const elem* __restrict__ bias, const elem* __restrict__ residual, elem* __restrict__ y,
                const __grid_constant__ Params params) {
  SHARED_MEMORY(shared, SHARED_BYTES);
  u32 pixels = params.out_height * params.out_width;
  Epilogue epilogue;
  epilogue.bias = bias;
  epilogue.residual = residual;
  epilogue.gate = nullptr;
  epilogue.y = y;
  epilogue.rows = params.batch * pixels;
  epilogue.columns = params.outputs;
  epilogue.activation = ACTIVATION_NONE;
  epilogue.residual_rows = params.residual == 2 ? pixels : params.residual;
  epilogue.gate_rows = 0;
  epilogue.has_bias = params.has_bias != 0;
  Work work(epilogue.rows, params.outputs,
            params.kernel_height * params.kernel_width * ((params.inputs + TILE_K - 1) / TILE_K));
  multiply(shared, work, Boxes(&x, &weight, params), epilogue);
}
