// The driver API's names and numbers that this driver knows: those that the crate and cubecl use. From NVIDIA's "CUDA
// Driver API" and "NVRTC" manuals; only what crosses the boundary of the library is here.
#pragma once

#include <cstddef>
#include <cstdint>

#define API extern "C" __attribute__((visibility("default")))

namespace cuda {

enum Result : int {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  INVALID_PTX = 218,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  NOT_SUPPORTED = 801,
};

enum Attribute : int {
  MAX_THREADS_PER_BLOCK = 1,
  MAX_BLOCK_DIM_X = 2,
  MAX_BLOCK_DIM_Y = 3,
  MAX_BLOCK_DIM_Z = 4,
  MAX_GRID_DIM_X = 5,
  MAX_GRID_DIM_Y = 6,
  MAX_GRID_DIM_Z = 7,
  MAX_SHARED_MEMORY_PER_BLOCK = 8,
  WARP_SIZE = 10,
  MAX_REGISTERS_PER_BLOCK = 12,
  MULTIPROCESSOR_COUNT = 16,
  L2_CACHE_SIZE = 38,
  MAX_THREADS_PER_MULTIPROCESSOR = 39,
  COMPUTE_CAPABILITY_MAJOR = 75,
  COMPUTE_CAPABILITY_MINOR = 76,
  MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81,
  MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97,
  MEMORY_POOLS_SUPPORTED = 115,
};

// Of functions.
constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
constexpr int PREFERRED_SHARED_MEMORY_CARVEOUT = 9;
constexpr int STREAM_NON_BLOCKING = 1;
constexpr int EVENT_DISABLE_TIMING = 2;
constexpr uint32_t MEMORY_HOST = 1, MEMORY_DEVICE = 2;

// CUDA_MEMCPY2D
struct Copy2D {
  size_t from_x, from_y;
  uint32_t from_type;
  const void* from_host;
  uint64_t from_device;
  void* from_array;
  size_t from_pitch;
  size_t to_x, to_y;
  uint32_t to_type;
  void* to_host;
  uint64_t to_device;
  void* to_array;
  size_t to_pitch;
  size_t width, height;
};
static_assert(sizeof(Copy2D) == 128, "the size of a CUDA_MEMCPY2D");

constexpr uint32_t ELEMENT_FLOAT16 = 6, ELEMENT_BFLOAT16 = 9;
constexpr uint32_t SWIZZLE_32 = 1, SWIZZLE_128 = 3;

}  // namespace cuda
