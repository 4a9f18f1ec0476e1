// The end of a denoising step for rows that differ in everything: guidance, the clean estimate, the sampler's sums
//   guided   = n + scale * (p - n); rescaled: guided * rescale * deviation(p) / deviation(guided) + guided * (1 - rescale)
//              (Ho & Salimans 2022; Lin et al. 2023, equations 15 and 16), p and n the row's two predictions
//   denoised = clamp(a * sample + b * guided)
//   after[w] = sum of factor * {guided, denoised, noise, any value from before}
//
// predictions: [predictions, elements] in f32, f16 or bf16; all else in f32: state, values from before, [slots,
//   elements]; noise: [draws, elements]; after: [writes of all rows, elements]; counts: NaN and infinite values of a
//   row's first write, [rows, blocks]; ratios: [rows], read where a row is rescaled
// table: 12 words a row, floats by their bits:
//   0 p  1 n, p again without guidance  2 scale  3 rescale  4 the sample's slot  5 its draw  6 a  7 b  8 clamp, negative
//   without  9 its first write  10 its writes  11 where they are described: for each, the number of terms, then source
//   (0 guided, 1 denoised, 2 noise, from 3 on slots) and factor of each. A term that is not there is not read, so what
//   it would have been cannot matter.
// Three entries:
//   denoise_deviations  a block a row: deviation(p) / deviation(guided) where the row is rescaled; first the means, then
//     the squares around them; needed where some row is rescaled
//   denoise_step  four elements a thread, THREADS apart
//   denoise_input  y[e] = state[slot] * factor, what the network sees; table: slot and factor of each entry of the batch
// launch: 256 threads; denoise_deviations rows blocks, denoise_step rows * blocks, denoise_input entries * blocks, blocks
//   = ceil(elements / 1024)
// limits: rows * blocks < 2^31; elements < 2^32 - 1024
// parameters: u32 elements, u32 blocks
// reference: ops::denoise::reference; proof: ../host/cases/denoise.py
// Has never run on a GPU.

#define THREADS 256
#define WARPS (THREADS / 32)
#define ITEMS 4

#define HEAD 12
#define SOURCE_GUIDED 0u
#define SOURCE_DENOISED 1u
#define SOURCE_NOISE 2u
#define SOURCE_SLOTS 3u

struct Params {
  u32 elements;
  u32 blocks;
};

INLINE float number(const u32* word) { return __uint_as_float(*word); }

INLINE float guide(float positive, float negative, float scale) { return negative + (positive - negative) * scale; }

// The sum over a block, the same bits in every thread.
INLINE float block_sum(float value, float* shared) {
  value = warp_sum(value);
  // The sum before may still be read.
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int warp = 0; warp < WARPS; ++warp) sum += shared[warp];
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    denoise_deviations(const elem* __restrict__ predictions, const u32* __restrict__ table, float* __restrict__ ratios,
                       const __grid_constant__ Params params) {
  __shared__ float shared[WARPS];
  const u32* head = table + size_t(blockIdx.x) * HEAD;
  const elem* positives = predictions + size_t(head[0]) * params.elements;
  const elem* negatives = predictions + size_t(head[1]) * params.elements;
  float scale = number(head + 2);
  if (number(head + 3) == 0.0f) return;

  float one = 0.0f, other = 0.0f;
#pragma unroll 4
  for (u32 i = threadIdx.x; i < params.elements; i += THREADS) {
    float positive = to_f32(positives[i]);
    one += positive;
    other += guide(positive, to_f32(negatives[i]), scale);
  }
  float mean = __fdividef(block_sum(one, shared), float(params.elements));
  float guided_mean = __fdividef(block_sum(other, shared), float(params.elements));
  one = other = 0.0f;
#pragma unroll 4
  for (u32 i = threadIdx.x; i < params.elements; i += THREADS) {
    float positive = to_f32(positives[i]);
    float a = positive - mean;
    float b = guide(positive, to_f32(negatives[i]), scale) - guided_mean;
    one += a * a;
    other += b * b;
  }
  // The number of elements is in both and cancels.
  float deviation = sqrtf(block_sum(one, shared));
  float guided_deviation = sqrtf(block_sum(other, shared));
  if (threadIdx.x == 0) ratios[blockIdx.x] = __fdividef(deviation, guided_deviation);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    denoise_step(const elem* __restrict__ predictions, const u32* __restrict__ table, const float* __restrict__ state,
                 const float* __restrict__ noise, const float* __restrict__ ratios, float* __restrict__ after,
                 float* __restrict__ counts, const __grid_constant__ Params params) {
  __shared__ float shared[WARPS];
  u32 row = blockIdx.x / params.blocks;
  u32 first = blockIdx.x % params.blocks * (THREADS * ITEMS) + threadIdx.x;
  const u32* head = table + size_t(row) * HEAD;
  // Threads beyond the end read the last element and write nothing.
  u32 at[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) at[i] = min(first + i * THREADS, params.elements - 1);

  const elem* positives = predictions + size_t(head[0]) * params.elements;
  float guided[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) guided[i] = to_f32(positives[at[i]]);
  if (head[1] != head[0]) {
    const elem* negatives = predictions + size_t(head[1]) * params.elements;
    float scale = number(head + 2), rescale = number(head + 3);
    float factor = rescale == 0.0f ? 1.0f : ratios[row];
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      guided[i] = guide(guided[i], to_f32(negatives[at[i]]), scale);
      if (rescale != 0.0f) guided[i] = guided[i] * factor * rescale + guided[i] * (1.0f - rescale);
    }
  }

  float denoised[ITEMS] = {};
  float of_sample = number(head + 6), of_guided = number(head + 7), range = number(head + 8);
  const float* sample = state + size_t(head[4]) * params.elements;
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    if (of_sample != 0.0f) denoised[i] = sample[at[i]] * of_sample;
    if (of_guided != 0.0f) denoised[i] += guided[i] * of_guided;
    if (range >= 0.0f) {
      // NaN stays NaN.
      float value = denoised[i];
      denoised[i] = value > range ? range : value < -range ? -range : value;
    }
  }

  const float* draw = noise + size_t(head[5]) * params.elements;
  float* to = after + size_t(head[9]) * params.elements;
  const u32* word = table + head[11];
  float count = 0.0f;
  for (u32 write = 0; write < head[10]; ++write) {
    float sum[ITEMS] = {};
    u32 terms = *word++;
    for (u32 term = 0; term < terms; ++term) {
      u32 source = *word++;
      float factor = number(word++);
      if (source == SOURCE_GUIDED || source == SOURCE_DENOISED) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) sum[i] += (source == SOURCE_GUIDED ? guided[i] : denoised[i]) * factor;
      } else {
        const float* from =
            source == SOURCE_NOISE ? draw : state + size_t(source - SOURCE_SLOTS) * params.elements;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) sum[i] += from[at[i]] * factor;
      }
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      if (first + i * THREADS < params.elements) {
        to[at[i]] = sum[i];
        // False for NaN as well as for infinity.
        if (write == 0 && !(fabsf(sum[i]) <= 3.402823466e+38f)) count += 1.0f;
      }
    }
    to += params.elements;
  }
  count = block_sum(count, shared);
  if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    denoise_input(const float* __restrict__ state, const u32* __restrict__ table, elem* __restrict__ y,
                  const __grid_constant__ Params params) {
  u32 entry = blockIdx.x / params.blocks;
  u32 first = blockIdx.x % params.blocks * (THREADS * ITEMS) + threadIdx.x;
  const float* sample = state + size_t(table[2 * entry]) * params.elements;
  float factor = number(table + 2 * entry + 1);
  elem* to = y + size_t(entry) * params.elements;
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    u32 at = first + i * THREADS;
    if (at < params.elements) to[at] = from_f32(sample[at] * factor);
  }
}
