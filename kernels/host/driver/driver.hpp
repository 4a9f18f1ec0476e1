// What the parts of the software driver share. See ../../README.md for what it is.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "abi.hpp"
#include "tensor_map.hpp"

namespace cuda {

// Held for the whole of every call: work is done when it is handed over.
extern std::recursive_mutex lock;

// One line about a violation, after which the program ends; with AQUATINT_CUDA_ERRORS=return, the call returns `result`.
__attribute__((format(printf, 2, 3))) inline Result violation(Result result, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "software CUDA driver: ");
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, "\n");
  va_end(arguments);
  const char* what = std::getenv("AQUATINT_CUDA_ERRORS");
  if (!what || std::strcmp(what, "return") != 0) std::abort();
  return result;
}

// A number from the environment.
inline int setting(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::atoi(text) : otherwise;
}

// The compute capability, 80 or 90.
inline int capability() { return setting("AQUATINT_CUDA_CAPABILITY", 90); }

// What NVRTC calls it. From Hopper on, kernels use what later devices need not have: sm_90a.
inline std::string architecture() {
  return "sm_" + std::to_string(capability()) + (capability() >= 90 ? "a" : "");
}

constexpr size_t STATIC_SHARED = 48 * 1024;
// The most that a block may have: of the programming guide's table of compute capabilities.
inline size_t most_shared() { return (capability() >= 90 ? 227 : 163) * 1024; }

// Needed before any work: cuInit and, but for what is done with an event alone, a context of this thread.
Result ready(const char* call, bool context);
#define READY_ANYWHERE()                                   \
  std::lock_guard<std::recursive_mutex> guard(cuda::lock); \
  if (cuda::Result refused = cuda::ready(__func__, false)) return refused
#define READY()                                            \
  std::lock_guard<std::recursive_mutex> guard(cuda::lock); \
  if (cuda::Result refused = cuda::ready(__func__, true)) return refused

// For each stream, how much of its work is known to be done.
typedef std::vector<uint64_t> Clock;

struct Stream {
  size_t index;
  bool blocking, live;
  Clock clock;
};

// Of memory.cpp.
struct Region {
  uint64_t start;
  size_t bytes, mapped;
  // Not page-locked host memory.
  bool device;
};
// The live region that holds all of these bytes, null if there is none.
const Region* region(uint64_t address, size_t bytes, bool device);
// Where an address lies, for messages.
std::string place(uint64_t address);
// Whether the bytes between a region's end and its guard page are as they were.
bool untouched(const Region& region);

// Of order.cpp.
Stream* stream_of(void* handle);
// A piece of work on a stream begins: everything that it waits for has happened before it.
void begin(Stream& stream);
// The work touches these bytes; false, after a message, where another stream's access is not ordered before.
bool touch(const char* call, Stream& stream, uint64_t from, size_t bytes, bool write);
// The host has waited for all of a stream's work, or for everything.
void wait_for(const Clock& clock);
void wait_for_all();
// Bytes of page-locked memory that the host may not read, or change, before it waits for the stream.
void deliver_later(Stream& stream, void* to, std::vector<unsigned char> bytes);
void keep_until_done(Stream& stream, const void* from, size_t bytes);
// Whether such bytes are still owed in a part of memory.
bool owed(uint64_t from, size_t bytes);
void forget(uint64_t from, size_t bytes);

}  // namespace cuda
