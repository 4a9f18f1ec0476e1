// y = f((x - mean) / sqrt(var + eps) * weight + bias) over each picture's channel groups, var biased (Wu & He
// 2018); f is nothing or silu
//
// x, y: [batch, pixels, channels], weight, bias: [channels], contiguous; f32, f16 or bf16; computed in f32
// partial: [batch, slices, groups, 2] in f32, the mean and the sum of squared deviations of a slice's elements
// Two launches of one geometry: group_norm_statistics writes `partial`, group_norm joins it and writes y.
// A block takes a slice of pixels and a tile of whole groups; each thread keeps one pack of channels and walks
// the pixels. Statistics are Welford's a thread and channel, joined as Chan et al. 1983 do, in a fixed order, so
// that a mean far larger than the deviation costs no digits.
// constants: WIDTH, elements an access: 1, or CHUNK (4 in f32, 8 in f16 and bf16) where `channels` is a multiple
//   of it and the buffers start at multiples of 16 bytes
// launch: 256 threads, batch * slices * tiles blocks, tiles = groups / tile_groups
//   tile_groups: the largest divisor of `groups` with tile_packs = tile_groups * channels / groups / WIDTH whole
//     and at most 256
//   slice_pixels: max(4 * (256 / tile_packs), ceil(pixels / 256)); slices: ceil(pixels / slice_pixels)
// limits: such a tile_groups exists (channels / groups <= 2048 in f16, 1024 in f32, 256 at WIDTH 1);
//   batch * slices * tiles < 2^31; slice_pixels * channels / groups < 2^24
// parameters: u32 pixels, u32 channels, u32 groups, u32 tile_groups, u32 slice_pixels, u32 slices, float eps,
//   u32 activation (0 nothing, 3 silu)
// reference: ops::norm::group_norm_reference; proof: ../host/cases/norm.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

#define THREADS 256
#define WARPS (THREADS / 32)

struct Params {
  u32 pixels;
  u32 channels;
  u32 groups;
  u32 tile_groups;
  u32 slice_pixels;
  u32 slices;
  float eps;
  u32 activation;
};

// What a block and a thread of it work on.
struct Place {
  u32 batch, slice, tile;
  u32 group_channels, tile_packs;
  // Threads side by side over pixels, and this thread's place among them; idle where lane >= lanes.
  u32 lanes, lane;
  u32 begin, end;
  // The thread's first channel, in the tile and in the picture.
  u32 tile_channel, channel;
};

INLINE Place place(const Params& params) {
  Place p;
  u32 tiles = params.groups / params.tile_groups;
  p.tile = blockIdx.x % tiles;
  p.slice = blockIdx.x / tiles % params.slices;
  p.batch = blockIdx.x / tiles / params.slices;
  p.group_channels = params.channels / params.groups;
  u32 tile_channels = params.tile_groups * p.group_channels;
  p.tile_packs = tile_channels / WIDTH;
  p.lanes = THREADS / p.tile_packs;
  p.lane = threadIdx.x / p.tile_packs;
  p.begin = p.slice * params.slice_pixels;
  p.end = min(p.begin + params.slice_pixels, params.pixels);
  p.tile_channel = threadIdx.x % p.tile_packs * WIDTH;
  p.channel = p.tile * tile_channels + p.tile_channel;
  return p;
}

// The mean and the squared deviations of many sets of `count(i)` elements, joined by one warp. Means are taken
// relative to the first set's, which has elements.
struct Moments {
  float mean, squares;
};

template <class Sets>
INLINE Moments join(const Sets& sets, u32 number, float total, u32 lane) {
  float shift = sets.mean(0);
  float sum = 0.0f;
  // Every lane takes every turn, so that the warp meets whole at the shuffles.
  for (u32 turn = 0; turn < number; turn += 32) {
    u32 i = turn + lane;
    if (i < number) sum += sets.count(i) * (sets.mean(i) - shift);
  }
  float offset = __fdividef(warp_sum(sum), total);
  float squares = 0.0f;
  for (u32 turn = 0; turn < number; turn += 32) {
    u32 i = turn + lane;
    if (i < number) {
      float distance = sets.mean(i) - shift - offset;
      squares += sets.squares(i) + sets.count(i) * distance * distance;
    }
  }
  Moments moments;
  moments.mean = shift + offset;
  moments.squares = warp_sum(squares);
  return moments;
}

// One group's channels in every lane of a block.
struct ThreadSets {
  const float* means;
  const float* deviations;
  u32 first_channel, group_channels, tile_channels;
  u32 lanes, pixels;

  INLINE u32 slot(u32 i) const { return i / group_channels * tile_channels + first_channel + i % group_channels; }
  INLINE float mean(u32 i) const { return means[slot(i)]; }
  INLINE float squares(u32 i) const { return deviations[slot(i)]; }
  INLINE float count(u32 i) const { return float((pixels + lanes - 1 - i / group_channels) / lanes); }
};

// One group in every slice of a picture.
struct SliceSets {
  const float* partial;
  u32 stride, group_channels, slice_pixels, pixels;

  INLINE float mean(u32 i) const { return partial[size_t(i) * stride]; }
  INLINE float squares(u32 i) const { return partial[size_t(i) * stride + 1]; }
  INLINE float count(u32 i) const { return float(min(slice_pixels, pixels - i * slice_pixels) * group_channels); }
};

extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm_statistics(const elem* __restrict__ x, float* __restrict__ partial,
                          const __grid_constant__ Params params) {
  __shared__ float means[THREADS * WIDTH];
  __shared__ float deviations[THREADS * WIDTH];
  Place p = place(params);
  u32 tile_channels = p.tile_packs * WIDTH;

  if (p.lane < p.lanes) {
    float mean[WIDTH] = {};
    float squares[WIDTH] = {};
    float count = 0.0f;
    const elem* from = x + size_t(p.batch) * params.pixels * params.channels + p.channel;
#pragma unroll 4
    for (u32 pixel = p.begin + p.lane; pixel < p.end; pixel += p.lanes) {
      Pack<WIDTH> pack = load<WIDTH>(from + size_t(pixel) * params.channels);
      count += 1.0f;
      float share = __fdividef(1.0f, count);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        float value = to_f32(pack.values[i]);
        float distance = value - mean[i];
        mean[i] += distance * share;
        squares[i] += distance * (value - mean[i]);
      }
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      means[p.lane * tile_channels + p.tile_channel + i] = mean[i];
      deviations[p.lane * tile_channels + p.tile_channel + i] = squares[i];
    }
  }
  __syncthreads();

  ThreadSets sets;
  sets.means = means;
  sets.deviations = deviations;
  sets.group_channels = p.group_channels;
  sets.tile_channels = tile_channels;
  sets.lanes = p.lanes;
  sets.pixels = p.end - p.begin;
  float total = float(sets.pixels) * float(p.group_channels);
  // A group a warp; the warps take every turn together, the last of them perhaps a group that is done.
  for (u32 turn = 0; turn < params.tile_groups; turn += WARPS) {
    u32 group = min(turn + threadIdx.x / 32, params.tile_groups - 1);
    sets.first_channel = group * p.group_channels;
    Moments moments = join(sets, p.lanes * p.group_channels, total, threadIdx.x % 32);
    if (threadIdx.x % 32 == 0) {
      size_t slot = (size_t(p.batch) * params.slices + p.slice) * params.groups + p.tile * params.tile_groups + group;
      partial[2 * slot] = moments.mean;
      partial[2 * slot + 1] = moments.squares;
    }
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    group_norm(const elem* __restrict__ x, const float* __restrict__ partial, const elem* __restrict__ weight,
               const elem* __restrict__ bias, elem* __restrict__ y, const __grid_constant__ Params params) {
  // A tile has at most as many groups as packs have elements in all.
  __shared__ float means[THREADS * WIDTH];
  __shared__ float factors[THREADS * WIDTH];
  Place p = place(params);

  SliceSets sets;
  sets.stride = 2 * params.groups;
  sets.group_channels = p.group_channels;
  sets.slice_pixels = params.slice_pixels;
  sets.pixels = params.pixels;
  float total = float(params.pixels) * float(p.group_channels);
  for (u32 turn = 0; turn < params.tile_groups; turn += WARPS) {
    u32 group = min(turn + threadIdx.x / 32, params.tile_groups - 1);
    size_t first = size_t(p.batch) * params.slices * params.groups + p.tile * params.tile_groups + group;
    sets.partial = partial + 2 * first;
    Moments moments = join(sets, params.slices, total, threadIdx.x % 32);
    if (threadIdx.x % 32 == 0) {
      means[group] = moments.mean;
      factors[group] = rsqrtf(__fdividef(moments.squares, total) + params.eps);
    }
  }
  __syncthreads();

  if (p.lane >= p.lanes) return;
  float mean[WIDTH], factor[WIDTH], offset[WIDTH];
  Pack<WIDTH> weights = load<WIDTH>(weight + p.channel);
  Pack<WIDTH> biases = load<WIDTH>(bias + p.channel);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    u32 group = (p.tile_channel + i) / p.group_channels;
    mean[i] = means[group];
    factor[i] = factors[group] * to_f32(weights.values[i]);
    offset[i] = to_f32(biases.values[i]);
  }
  size_t start = size_t(p.batch) * params.pixels * params.channels + p.channel;
#pragma unroll 4
  for (u32 pixel = p.begin + p.lane; pixel < p.end; pixel += p.lanes) {
    size_t at = start + size_t(pixel) * params.channels;
    Pack<WIDTH> pack = load<WIDTH>(x + at);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      float value = (to_f32(pack.values[i]) - mean[i]) * factor[i] + offset[i];
      pack.values[i] = from_f32(params.activation == ACTIVATION_SILU ? swish(value, 1.0f) : value);
    }
    store<WIDTH>(y + at, pack);
  }
}
