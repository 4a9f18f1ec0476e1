// Device memory and page-locked host memory, and copies between them.
//
// Each allocation lies between pages that cannot be touched, its end at the second; it is filled with ones, which is NaN
// in every type, and its pages are taken away when it is freed. A copy to page-locked memory arrives when the host waits
// for it; page-locked memory that is copied from must be as it was until then.

#include <sys/mman.h>
#include <unistd.h>

#include "driver.hpp"

using namespace cuda;

namespace {

// Of a device address, as cubecl expects (the manual promises 256), and of a host's.
constexpr size_t ALIGNMENT = 512;
constexpr unsigned char CANARY = 0xa5;

std::map<uint64_t, Region> regions;
// What was freed, for messages.
std::map<uint64_t, uint64_t> freed;
size_t used = 0;

size_t page() { return size_t(sysconf(_SC_PAGESIZE)); }

size_t total() { return size_t(setting("AQUATINT_CUDA_MEGABYTES", 16384)) << 20; }

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

Result allocate(const char* call, uint64_t* address, size_t bytes, bool device) {
  if (bytes == 0) return violation(INVALID_VALUE, "%s: an allocation of no bytes", call);
  if (device && bytes > total() - used) return OUT_OF_MEMORY;
  size_t padded = rounded(bytes, ALIGNMENT), mapped = rounded(padded, page());
  void* map = mmap(nullptr, mapped + 2 * page(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return OUT_OF_MEMORY;
  unsigned char* first = static_cast<unsigned char*>(map) + page();
  if (mprotect(first, mapped, PROT_READ | PROT_WRITE) != 0) return OUT_OF_MEMORY;
  unsigned char* start = first + mapped - padded;
  std::memset(first, CANARY, mapped);
  std::memset(start, 0xff, bytes);
  *address = uint64_t(start);
  regions[*address] = Region{*address, bytes, mapped, device};
  if (device) used += bytes;
  return SUCCESS;
}

Result release(const char* call, uint64_t address, bool device) {
  auto found = regions.find(address);
  if (found == regions.end() || found->second.device != device) {
    return violation(INVALID_VALUE, "%s: %s is no start of live %s memory", call, place(address).c_str(),
                     device ? "device" : "page-locked host");
  }
  Region region = found->second;
  if (!untouched(region)) return violation(INVALID_VALUE, "%s: a write beyond the end of %s", call, place(address).c_str());
  if (owed(region.start, region.bytes)) {
    return violation(INVALID_VALUE, "%s: a copy of %s is under way", call, place(address).c_str());
  }
  regions.erase(found);
  freed[region.start] = region.bytes;
  if (device) used -= region.bytes;
  void* first = reinterpret_cast<void*>(rounded(region.start + region.bytes, page()) - region.mapped);
  madvise(first, region.mapped, MADV_DONTNEED);
  mprotect(first, region.mapped, PROT_NONE);
  return SUCCESS;
}

const Region* around(uint64_t address) {
  auto next = regions.upper_bound(address);
  if (next == regions.begin()) return nullptr;
  const Region& region = std::prev(next)->second;
  return address < region.start + region.bytes ? &region : nullptr;
}

// One side of a copy. Host memory that is not page-locked is any other memory.
Result side(const char* call, uint64_t address, size_t bytes, bool device) {
  if (device && !region(address, bytes, true)) {
    return violation(INVALID_VALUE, "%s: %zu bytes from %s are no live device memory", call, bytes,
                     place(address).c_str());
  }
  const Region* locked = around(address);
  if (!device && locked && (locked->device || !region(address, bytes, false))) {
    return violation(INVALID_VALUE, "%s: %zu bytes from %s are no host memory", call, bytes, place(address).c_str());
  }
  return SUCCESS;
}

// A copy of rows, from or to the host or neither, in a stream's order.
struct Rows {
  const char* call;
  uint64_t to, from;
  bool to_device, from_device;
  size_t to_pitch, from_pitch, width, height;
};

Result copy(const Rows& rows, Stream& stream) {
  if (rows.width == 0 || rows.height == 0) return SUCCESS;
  if (rows.to_pitch < rows.width || rows.from_pitch < rows.width) {
    return violation(INVALID_VALUE, "%s: rows of %zu bytes at pitches of %zu and %zu", rows.call, rows.width,
                     rows.from_pitch, rows.to_pitch);
  }
  size_t to_bytes = (rows.height - 1) * rows.to_pitch + rows.width;
  size_t from_bytes = (rows.height - 1) * rows.from_pitch + rows.width;
  if (Result refused = side(rows.call, rows.to, to_bytes, rows.to_device)) return refused;
  if (Result refused = side(rows.call, rows.from, from_bytes, rows.from_device)) return refused;
  if (rows.to_device && rows.from_device && rows.to < rows.from + from_bytes && rows.from < rows.to + to_bytes) {
    return violation(INVALID_VALUE, "%s: source and target overlap at %s", rows.call, place(rows.to).c_str());
  }
  begin(stream);
  if (rows.from_device && !touch(rows.call, stream, rows.from, from_bytes, false)) return INVALID_VALUE;
  if (rows.to_device && !touch(rows.call, stream, rows.to, to_bytes, true)) return INVALID_VALUE;
  bool later = !rows.to_device && around(rows.to);
  if (!rows.from_device && around(rows.from)) {
    keep_until_done(stream, reinterpret_cast<const void*>(rows.from), from_bytes);
  }
  for (size_t row = 0; row < rows.height; ++row) {
    unsigned char* to = reinterpret_cast<unsigned char*>(rows.to + row * rows.to_pitch);
    const unsigned char* from = reinterpret_cast<const unsigned char*>(rows.from + row * rows.from_pitch);
    if (later) {
      deliver_later(stream, to, {from, from + rows.width});
      std::memset(to, 0xff, rows.width);
    } else {
      std::memcpy(to, from, rows.width);
    }
  }
  // "For transfers from device memory to pageable host memory, the function will return only once the copy has
  // completed."
  if (!rows.to_device && !later) wait_for(stream.clock);
  return SUCCESS;
}

Result line(const char* call, uint64_t to, bool to_device, uint64_t from, bool from_device, size_t bytes, void* handle) {
  Stream* stream = stream_of(handle);
  if (!stream) return violation(INVALID_HANDLE, "%s: no such stream: %p", call, handle);
  return copy({call, to, from, to_device, from_device, bytes, bytes, bytes, 1}, *stream);
}

}  // namespace

namespace cuda {

const Region* region(uint64_t address, size_t bytes, bool device) {
  const Region* found = around(address);
  bool whole = found && found->device == device && address + bytes <= found->start + found->bytes;
  return whole ? found : nullptr;
}

std::string place(uint64_t address) {
  char text[160];
  auto next = regions.upper_bound(address);
  auto gone = freed.upper_bound(address);
  std::snprintf(text, sizeof text, "0x%lx", address);
  if (next != regions.begin()) {
    const Region& region = std::prev(next)->second;
    uint64_t offset = address - region.start;
    if (offset < region.bytes + 2 * page()) {
      std::snprintf(text, sizeof text, "0x%lx (byte %lu of the %zu of %s)", address, offset, region.bytes,
                    region.device ? "a device allocation" : "a page-locked host allocation");
      return text;
    }
  }
  if (gone != freed.begin()) {
    auto [start, bytes] = *std::prev(gone);
    if (address - start < bytes) {
      std::snprintf(text, sizeof text, "0x%lx (byte %lu of %lu that were freed)", address, address - start, bytes);
    }
  }
  return text;
}

bool untouched(const Region& region) {
  uint64_t end = rounded(region.start + region.bytes, page());
  for (uint64_t at = region.start + region.bytes; at < end; ++at) {
    if (*reinterpret_cast<const unsigned char*>(at) != CANARY) return false;
  }
  return true;
}

}  // namespace cuda

API Result cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = total();
  return SUCCESS;
}

API Result cuMemGetInfo_v2(size_t* left, size_t* all) {
  READY();
  *all = total();
  *left = total() - used;
  return SUCCESS;
}

API Result cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  READY();
  return allocate(__func__, address, bytes, true);
}

API Result cuMemAllocAsync(uint64_t* address, size_t bytes, void* handle) {
  READY();
  if (!stream_of(handle)) return violation(INVALID_HANDLE, "%s: no such stream: %p", __func__, handle);
  return allocate(__func__, address, bytes, true);
}

// Waits for all work, which may still use the memory.
API Result cuMemFree_v2(uint64_t address) {
  READY();
  if (address == 0) return SUCCESS;
  wait_for_all();
  if (const Region* found = region(address, 1, true)) forget(found->start, found->bytes);
  return release(__func__, address, true);
}

// In a stream's order: what other streams do with the memory must be ordered before.
API Result cuMemFreeAsync(uint64_t address, void* handle) {
  READY();
  Stream* stream = stream_of(handle);
  if (!stream) return violation(INVALID_HANDLE, "%s: no such stream: %p", __func__, handle);
  begin(*stream);
  if (const Region* found = region(address, 1, true)) {
    if (!touch(__func__, *stream, found->start, found->bytes, true)) return INVALID_VALUE;
    forget(found->start, found->bytes);
  }
  return release(__func__, address, true);
}

API Result cuMemAllocHost_v2(void** address, size_t bytes) {
  READY();
  uint64_t found = 0;
  Result result = allocate(__func__, &found, bytes, false);
  *address = reinterpret_cast<void*>(found);
  return result;
}

API Result cuMemHostAlloc(void** address, size_t bytes, unsigned) { return cuMemAllocHost_v2(address, bytes); }

API Result cuMemFreeHost(void* address) {
  READY();
  return release(__func__, uint64_t(address), false);
}

API Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
  READY();
  return line(__func__, to, true, uint64_t(from), false, bytes, stream);
}

API Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
  READY();
  return line(__func__, uint64_t(to), false, from, true, bytes, stream);
}

API Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
  READY();
  return line(__func__, to, true, from, true, bytes, stream);
}

API Result cuMemcpyHtoD_v2(uint64_t to, const void* from, size_t bytes) {
  READY();
  Result result = line(__func__, to, true, uint64_t(from), false, bytes, nullptr);
  wait_for(stream_of(nullptr)->clock);
  return result;
}

API Result cuMemcpyDtoH_v2(void* to, uint64_t from, size_t bytes) {
  READY();
  Result result = line(__func__, uint64_t(to), false, from, true, bytes, nullptr);
  wait_for(stream_of(nullptr)->clock);
  return result;
}

API Result cuMemcpy2DAsync_v2(const Copy2D* c, void* handle) {
  READY();
  Stream* stream = stream_of(handle);
  if (!stream) return violation(INVALID_HANDLE, "%s: no such stream: %p", __func__, handle);
  for (uint32_t type : {c->from_type, c->to_type}) {
    if (type != MEMORY_HOST && type != MEMORY_DEVICE) {
      return violation(INVALID_VALUE, "%s: memory type %u, expected HOST (1) or DEVICE (2)", __func__, type);
    }
  }
  bool from_device = c->from_type == MEMORY_DEVICE, to_device = c->to_type == MEMORY_DEVICE;
  uint64_t from = (from_device ? c->from_device : uint64_t(c->from_host)) + c->from_y * c->from_pitch + c->from_x;
  uint64_t to = (to_device ? c->to_device : uint64_t(c->to_host)) + c->to_y * c->to_pitch + c->to_x;
  return copy({__func__, to, from, to_device, from_device, c->to_pitch, c->from_pitch, c->width, c->height}, *stream);
}

API Result cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void* handle) {
  READY();
  Stream* stream = stream_of(handle);
  if (!stream) return violation(INVALID_HANDLE, "%s: no such stream: %p", __func__, handle);
  if (Result refused = side(__func__, to, bytes, true)) return refused;
  begin(*stream);
  if (!touch(__func__, *stream, to, bytes, true)) return INVALID_VALUE;
  std::memset(reinterpret_cast<void*>(to), value, bytes);
  return SUCCESS;
}
