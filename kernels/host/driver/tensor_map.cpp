// cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col: what the driver API's manual demands of their arguments, and what
// the kernels' model of TMA can do beyond that: 16-bit elements, rank 2 to 4, a swizzle as wide as a box's row, zeros
// outside.

#include "driver.hpp"

using namespace cuda;

namespace {

struct Arguments {
  const char* call;
  uint32_t element, rank;
  uint64_t base;
  const uint64_t *sizes, *strides;
  const uint32_t* steps;
  uint32_t interleave, swizzle, promotion, fill;
};

#define DEMAND(condition, ...) \
  if (!(condition)) return violation(INVALID_VALUE, __VA_ARGS__)

// What both kinds of map have.
Result encode(const Arguments& a, EncodedMap* map) {
  *map = EncodedMap{};
  DEMAND(capability() >= 90, "%s: tensor maps need sm_90, the device is sm_%d", a.call, capability());
  DEMAND(a.element == ELEMENT_FLOAT16 || a.element == ELEMENT_BFLOAT16,
         "%s: element type %u, expected FLOAT16 (6) or BFLOAT16 (9)", a.call, a.element);
  DEMAND(a.rank >= 2 && a.rank <= 4, "%s: rank %u, expected 2 to 4", a.call, a.rank);
  DEMAND(a.base % 16 == 0, "%s: the address 0x%lx is no multiple of 16", a.call, a.base);
  DEMAND(a.interleave == 0, "%s: interleave %u, expected none (0)", a.call, a.interleave);
  DEMAND(a.swizzle >= SWIZZLE_32 && a.swizzle <= SWIZZLE_128, "%s: swizzle %u, expected 32, 64 or 128 bytes (1 to 3)",
         a.call, a.swizzle);
  DEMAND(a.promotion <= 3, "%s: L2 promotion %u, expected 0 to 3", a.call, a.promotion);
  DEMAND(a.fill == 0, "%s: fill %u, expected zeros (0)", a.call, a.fill);
  uint64_t extent = 2 * a.sizes[0];
  for (uint32_t i = 0; i < a.rank; ++i) {
    DEMAND(a.sizes[i] >= 1 && a.sizes[i] <= 1ull << 32, "%s: size %u is %lu, expected 1 to 2^32", a.call, i, a.sizes[i]);
    map->sizes[i] = a.sizes[i];
    if (i == 0) continue;
    uint64_t pitch = a.strides[i - 1], least = i == 1 ? 2 * a.sizes[0] : a.strides[i - 2] * a.sizes[i - 1];
    DEMAND(pitch % 16 == 0 && pitch < 1ull << 40, "%s: pitch %u is %lu bytes, expected a multiple of 16 below 2^40",
           a.call, i - 1, pitch);
    DEMAND(pitch >= least, "%s: pitch %u is %lu bytes, the dimension within has %lu", a.call, i - 1, pitch, least);
    map->strides[i - 1] = pitch;
    extent += (a.sizes[i] - 1) * pitch;
  }
  for (uint32_t i = 0; i < a.rank; ++i) {
    DEMAND(a.steps[i] >= 1 && a.steps[i] <= 8, "%s: element stride %u is %u, expected 1 to 8", a.call, i, a.steps[i]);
  }
  for (uint32_t i = a.rank; i < 4; ++i) {
    map->sizes[i] = 1;
    map->strides[i - 1] = extent + (16 - extent % 16) % 16;
  }
  DEMAND(region(a.base, extent, true), "%s: %lu bytes from %s are no live device memory", a.call, extent,
         place(a.base).c_str());
  map->base = a.base;
  map->swizzle = 16u << a.swizzle;
  map->rank = a.rank;
  map->step[0] = map->step[1] = 1;
  map->mark = MAP_MARK;
  map->element = a.element;
  return SUCCESS;
}

// A box's row, which the swizzle limits.
Result row(const char* call, EncodedMap* map, uint32_t elements) {
  DEMAND(elements >= 1 && elements <= 256, "%s: the box's row has %u elements, expected 1 to 256", call, elements);
  DEMAND(2 * elements % 16 == 0, "%s: the box's row has %u bytes, expected a multiple of 16", call, 2 * elements);
  DEMAND(2 * elements == map->swizzle, "%s: the box's row has %u bytes, its swizzle %u", call, 2 * elements,
         map->swizzle);
  map->box[0] = elements;
  return SUCCESS;
}

}  // namespace

API Result cuTensorMapEncodeTiled(EncodedMap* to, uint32_t element, uint32_t rank, void* base, const uint64_t* sizes,
                                  const uint64_t* strides, const uint32_t* box, const uint32_t* steps,
                                  uint32_t interleave, uint32_t swizzle, uint32_t promotion, uint32_t fill) {
  READY();
  DEMAND(uintptr_t(to) % 64 == 0, "%s: the map's address %p is no multiple of 64", __func__, static_cast<void*>(to));
  EncodedMap map;
  Arguments all{__func__, element, rank, uint64_t(base), sizes, strides, steps, interleave, swizzle, promotion, fill};
  if (Result refused = encode(all, &map)) return refused;
  if (Result refused = row(__func__, &map, box[0])) return refused;
  for (uint32_t i = 1; i < 4; ++i) map.box[i] = i < rank ? box[i] : 1;
  for (uint32_t i = 1; i < rank; ++i) {
    DEMAND(box[i] >= 1 && box[i] <= 256, "%s: size %u of the box is %u, expected 1 to 256", __func__, i, box[i]);
    DEMAND(steps[i] == 1, "%s: element stride %u is %u, expected 1", __func__, i, steps[i]);
  }
  *to = map;
  return SUCCESS;
}

API Result cuTensorMapEncodeIm2col(EncodedMap* to, uint32_t element, uint32_t rank, void* base, const uint64_t* sizes,
                                   const uint64_t* strides, const int* lower, const int* upper, uint32_t channels,
                                   uint32_t pixels, const uint32_t* steps, uint32_t interleave, uint32_t swizzle,
                                   uint32_t promotion, uint32_t fill) {
  READY();
  DEMAND(uintptr_t(to) % 64 == 0, "%s: the map's address %p is no multiple of 64", __func__, static_cast<void*>(to));
  DEMAND(rank == 4, "%s: rank %u, expected 4", __func__, rank);
  EncodedMap map;
  Arguments all{__func__, element, rank, uint64_t(base), sizes, strides, steps, interleave, swizzle, promotion, fill};
  if (Result refused = encode(all, &map)) return refused;
  if (Result refused = row(__func__, &map, channels)) return refused;
  DEMAND(pixels >= 1 && pixels <= 1024, "%s: %u pixels a column, expected 1 to 1024", __func__, pixels);
  map.box[1] = pixels;
  map.box[2] = map.box[3] = 1;
  map.im2col = 1;
  // Of x, then of y.
  for (uint32_t i = 0; i < 2; ++i) {
    DEMAND(lower[i] >= -128 && lower[i] <= 127 && upper[i] >= -128 && upper[i] <= 127,
           "%s: corners %u are %d and %d, expected -128 to 127", __func__, i, lower[i], upper[i]);
    DEMAND(int64_t(sizes[i + 1]) - 1 + upper[i] >= lower[i], "%s: no pixel is between corners %u, %d and %d", __func__, i,
           lower[i], upper[i]);
    map.lower[i] = lower[i];
    map.upper[i] = upper[i];
    map.step[i] = int32_t(steps[i + 1]);
  }
  *to = map;
  return SUCCESS;
}
