// The device and its context: one, of compute capability 8.0 or 9.0, whose numbers are those of the programming guide's
// table of compute capabilities; the environment chooses (see ../../README.md).

#include "driver.hpp"

using namespace cuda;

std::recursive_mutex cuda::lock;

namespace {

bool initialised = false;
// Its address is the context.
char context;
thread_local void* current = nullptr;

// -1 for one that this driver does not know.
int attribute(int which) {
  switch (which) {
    case MAX_THREADS_PER_BLOCK:
    case MAX_BLOCK_DIM_X:
    case MAX_BLOCK_DIM_Y:
      return 1024;
    case MAX_BLOCK_DIM_Z:
      return 64;
    case MAX_GRID_DIM_X:
      return 2147483647;
    case MAX_GRID_DIM_Y:
    case MAX_GRID_DIM_Z:
      return 65535;
    case MAX_SHARED_MEMORY_PER_BLOCK:
      return int(STATIC_SHARED);
    case MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return int(most_shared());
    case MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return int(most_shared()) + 1024;
    case WARP_SIZE:
      return 32;
    case MAX_REGISTERS_PER_BLOCK:
      return 65536;
    case MULTIPROCESSOR_COUNT:
      return setting("AQUATINT_CUDA_MULTIPROCESSORS", capability() >= 90 ? 132 : 108);
    case L2_CACHE_SIZE:
      return (capability() >= 90 ? 50 : 40) << 20;
    case MAX_THREADS_PER_MULTIPROCESSOR:
      return 2048;
    case COMPUTE_CAPABILITY_MAJOR:
      return capability() / 10;
    case COMPUTE_CAPABILITY_MINOR:
      return capability() % 10;
    case MEMORY_POOLS_SUPPORTED:
      return 1;
    default:
      return -1;
  }
}

}  // namespace

Result cuda::ready(const char* call, bool context) {
  if (!initialised) return violation(NOT_INITIALIZED, "%s: before cuInit", call);
  if (context && !current) return violation(INVALID_CONTEXT, "%s: this thread has no current context", call);
  return SUCCESS;
}

API Result cuInit(unsigned flags) {
  std::lock_guard<std::recursive_mutex> guard(lock);
  if (flags != 0) return violation(INVALID_VALUE, "%s: flags %u, expected 0", __func__, flags);
  if (capability() != 80 && capability() != 90) {
    return violation(INVALID_VALUE, "AQUATINT_CUDA_CAPABILITY is %d, expected 80 or 90", capability());
  }
  initialised = true;
  return SUCCESS;
}

API Result cuDriverGetVersion(int* version) {
  *version = 13000;
  return SUCCESS;
}

API Result cuDeviceGetCount(int* count) {
  *count = 1;
  return SUCCESS;
}

API Result cuDeviceGet(int* device, int ordinal) {
  *device = 0;
  return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

API Result cuDeviceGetName(char* name, int bytes, int) {
  std::snprintf(name, size_t(bytes), "software sm_%d", capability());
  return SUCCESS;
}

API Result cuDeviceGetPCIBusId(char* id, int bytes, int) {
  std::snprintf(id, size_t(bytes), "0000:00:00.0");
  return SUCCESS;
}

API Result cuDeviceGetAttribute(int* value, int which, int) {
  *value = attribute(which);
  if (*value < 0) return violation(INVALID_VALUE, "%s: attribute %d is not known to this driver", __func__, which);
  return SUCCESS;
}

API Result cuDevicePrimaryCtxRetain(void** out, int) {
  *out = &context;
  return SUCCESS;
}

API Result cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

API Result cuCtxSetCurrent(void* given) {
  if (given && given != &context) return violation(INVALID_CONTEXT, "%s: no such context: %p", __func__, given);
  current = given;
  return SUCCESS;
}

API Result cuCtxGetCurrent(void** out) {
  *out = current;
  return SUCCESS;
}

API Result cuCtxGetDevice(int* device) {
  READY();
  *device = 0;
  return SUCCESS;
}

API Result cuGetErrorName(Result result, const char** name) {
  static thread_local char text[32];
  std::snprintf(text, sizeof text, "CUDA error %d", int(result));
  *name = text;
  return SUCCESS;
}

API Result cuGetErrorString(Result result, const char** text) { return cuGetErrorName(result, text); }
