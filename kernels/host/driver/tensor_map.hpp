// What is within the 128 bytes of a CUtensorMap that this driver has encoded: the TensorMap of ../hopper.hpp, and in
// its unused words what the launch checks.
#pragma once

#include <cstdint>

namespace cuda {

constexpr uint32_t MAP_MARK = 0x4d617031;

struct EncodedMap {
  uint64_t base;
  uint64_t sizes[4];
  uint64_t strides[3];
  uint32_t box[4];
  uint32_t swizzle;
  uint32_t rank;
  int32_t lower[2], upper[2], step[2];
  uint32_t mark, element, im2col, unused;
};
static_assert(sizeof(EncodedMap) == 128, "the size of a CUtensorMap");

}  // namespace cuda
