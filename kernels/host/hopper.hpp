// What Hopper adds to the device of device.hpp: TMA's loads, barriers in shared memory, products of a warpgroup. The
// wrappers of ../cuda/wgmma.cuh are here and, for the products, in wgmma.hpp, over what the PTX ISA lays down.
//
// A load happens when it is issued, or when nothing else can go on; a product when it is issued, or when it is waited
// for. Meanwhile a product's sums are poison. Stopped with a message: a load over a box that a product under way
// reads; a product over a box that is under way; a product without a fence since the last wait, or whose sums were
// written while they are under way; warps of a group whose products differ; a barrier that more threads arrive at than
// it counts, or that TMA cannot see yet.
// Taken as one: a box arrives whole; of a product, each warp's 16 rows are its own, and warps drift apart freely.
#pragma once

#include <map>

namespace device {

// Shared memory does not begin at 0 on a device either.
constexpr u32 SHARED_BASE = 1024;

struct Barrier {
  u32 count, missing, turn;
  long bytes;
  bool shown;
};

// What a CUtensorMap tells, innermost first: the sizes and pitches of a tensor of 16-bit elements, sizes 1 beyond its
// rank; the box, or for im2col the channels and the pixels of a column, the corners of the bounding box and the steps,
// of x and y.
struct alignas(64) TensorMap {
  const unsigned char* base;
  uint64_t sizes[4];
  uint64_t strides[3];
  u32 box[4];
  u32 swizzle;
  u32 rank;
  int lower[2], upper[2], step[2];
  u32 unused[4];
};
static_assert(sizeof(TensorMap) == 128, "the size of a CUtensorMap");

struct Load {
  u32 to, barrier, bytes;
  TensorMap map;
  // The first element or pixel, innermost first.
  int at[4];
  bool im2col;
  u32 offset[2];
};

// Of one warp: 16 rows of the group's 64.
struct Product {
  uint64_t a, b;
  u32 columns, add;
  // The first factor in registers, the second by rows.
  bool by_rows;
  const u32* factors[32];
  float* sums[32];
};

struct WarpProducts {
  bool fenced;
  std::vector<Product> open;
  std::deque<std::vector<Product>> groups;
  // Every product so far, for the comparison with the group's other warps.
  std::vector<Product> issued;
  // What sums are while registers hold poison, by the first lane's address.
  std::map<float*, std::vector<float>> hidden;
};

struct Hopper {
  std::map<u32, Barrier> barriers;
  std::deque<Load> loads;
  std::vector<WarpProducts> warps;
};

MODEL_STATE Hopper hopper;

MODEL u32 shared_offset(const void* at) {
  const unsigned char* byte = static_cast<const unsigned char*>(at);
  if (byte < __start_device_shared || byte >= __stop_device_shared) fail("an address outside of shared memory");
  return u32(byte - __start_device_shared) + SHARED_BASE;
}

MODEL unsigned char* shared_byte(u32 address, u32 bytes) {
  u32 size = u32(__stop_device_shared - __start_device_shared);
  if (address < SHARED_BASE || address - SHARED_BASE + bytes > size) fail("an access outside of shared memory");
  return __start_device_shared + (address - SHARED_BASE);
}

// The swizzle of TMA and wgmma, of an address: bits 4 and up xored with bits 7 and up.
MODEL u32 swizzled(u32 address, u32 width) {
  switch (width) {
    case 128:
      return address ^ ((address >> 7 & 7) << 4);
    case 64:
      return address ^ ((address >> 7 & 3) << 4);
    case 32:
      return address ^ ((address >> 7 & 1) << 4);
  }
  fail("a swizzle of no such width");
}

MODEL Barrier& barrier_at(u32 address) {
  auto found = hopper.barriers.find(address);
  if (found == hopper.barriers.end()) fail("a barrier that was never opened");
  return found->second;
}

MODEL void settle_barrier(Barrier& barrier) {
  if (barrier.missing == 0 && barrier.bytes == 0) {
    barrier.missing = barrier.count;
    ++barrier.turn;
  }
}

MODEL void arrive(u32 address, long bytes) {
  Barrier& barrier = barrier_at(address);
  if (barrier.missing == 0) fail("more threads arrive at a barrier than it counts");
  barrier.bytes += bytes;
  --barrier.missing;
  settle_barrier(barrier);
}

// One row of a box, zeros outside of the tensor.
MODEL void deliver_row(const TensorMap& map, u32 to, const long long (&at)[4]) {
  bool inside = true;
  const unsigned char* row = map.base;
  for (u32 i = 1; i < 4; ++i) {
    inside = inside && at[i] >= 0 && at[i] < (long long)map.sizes[i];
    if (inside) row += at[i] * map.strides[i - 1];
  }
  for (u32 column = 0; column < map.box[0]; ++column) {
    long long inner = at[0] + (long long)column;
    u16 value = 0;
    if (inside && inner >= 0 && inner < (long long)map.sizes[0]) std::memcpy(&value, row + 2 * inner, 2);
    std::memcpy(shared_byte(swizzled(to + 2 * column, map.swizzle), 2), &value, 2);
  }
}

// Im2col (PTX ISA, "Tensor im2col mode"): pixels in the order x, y, picture, within the bounding box.
MODEL void deliver_pixels(const Load& load) {
  const TensorMap& map = load.map;
  int at[2] = {load.at[1], load.at[2]}, picture = load.at[3];
  for (u32 pixel = 0; pixel < map.box[1]; ++pixel) {
    deliver_row(map, load.to + pixel * 2 * map.box[0],
                {load.at[0], at[0] + (long long)load.offset[0], at[1] + (long long)load.offset[1], picture});
    at[0] += map.step[0];
    if (at[0] <= int(map.sizes[1]) - 1 + map.upper[0]) continue;
    at[0] = map.lower[0];
    at[1] += map.step[1];
    if (at[1] <= int(map.sizes[2]) - 1 + map.upper[1]) continue;
    at[1] = map.lower[1];
    ++picture;
  }
}

MODEL void deliver(const Load& load) {
  const TensorMap& map = load.map;
  if (load.im2col) {
    deliver_pixels(load);
  } else {
    for (u32 i = 0; i < map.box[1] * map.box[2] * map.box[3]; ++i) {
      long long place[3] = {i % map.box[1], i / map.box[1] % map.box[2], i / map.box[1] / map.box[2]};
      deliver_row(map, load.to + i * 2 * map.box[0],
                  {load.at[0], load.at[1] + place[0], load.at[2] + place[1], load.at[3] + place[2]});
    }
  }
  Barrier& barrier = barrier_at(load.barrier);
  barrier.bytes -= load.bytes;
  settle_barrier(barrier);
}

// Lets one of the loads under way happen; false if there is none.
MODEL bool deliver_one() {
  if (hopper.loads.empty()) return false;
  size_t chosen = machine.order == 1 ? hopper.loads.size() - 1 : 0;
  if (machine.order == 2) chosen = (machine.random >> 33) % hopper.loads.size();
  Load load = hopper.loads[chosen];
  hopper.loads.erase(hopper.loads.begin() + long(chosen));
  deliver(load);
  return true;
}

MODEL bool overlaps(std::pair<u32, u32> a, std::pair<u32, u32> b) { return a.first < b.second && b.first < a.second; }

// Whether a product that is under way reads of these bytes: in wgmma.hpp.
MODEL bool being_read(const WarpProducts& warp, std::pair<u32, u32> range);

MODEL void begin_hopper() {
  hopper.barriers.clear();
  hopper.loads.clear();
  hopper.warps.assign(machine.warps.size(), WarpProducts{});
}

MODEL void end_hopper() {
  if (!hopper.loads.empty()) fail("a block ended before its loads");
  for (const WarpProducts& warp : hopper.warps) {
    if (!warp.open.empty() || !warp.groups.empty()) fail("a warp ended before its products");
  }
  for (const auto& [address, barrier] : hopper.barriers) {
    if (barrier.bytes != 0) fail("a barrier still expects bytes");
  }
}

}  // namespace device

typedef device::TensorMap TensorMap;

#define SHARED_MEMORY(name, bytes) __shared__ __align__(1024) unsigned char name[bytes]

inline unsigned shared_address(const void* at) { return device::shared_offset(at); }

inline void barrier_open(unsigned long long* barrier, unsigned arrivals) {
  unsigned address = shared_address(barrier);
  if (address % 8 != 0) device::fail("a barrier not aligned to 8");
  device::hopper.barriers[address] = device::Barrier{arrivals, arrivals, 0, 0, false};
}

inline void barriers_opened() {
  for (auto& [address, barrier] : device::hopper.barriers) barrier.shown = true;
}

inline void barrier_arrive(unsigned long long* barrier) { device::arrive(shared_address(barrier), 0); }

inline void barrier_arrive_expecting(unsigned long long* barrier, unsigned bytes) {
  device::arrive(shared_address(barrier), bytes);
}

inline void barrier_wait(unsigned long long* barrier, unsigned parity) {
  device::Barrier& state = device::barrier_at(shared_address(barrier));
  while (state.turn % 2 == parity) device::wait(&state.turn, state.turn);
}

inline void prefetch_map(const TensorMap*) {}

namespace device {

// Checks a load, and issues it.
MODEL void issue(const Load& load) {
  const TensorMap& map = load.map;
  if (load.to % 128 != 0) fail("a box not aligned to 128");
  if (2 * map.box[0] != map.swizzle) fail("a box whose rows are not as wide as the swizzle");
  bool aligned = uintptr_t(map.base) % 16 == 0 && (map.strides[0] | map.strides[1] | map.strides[2]) % 16 == 0;
  if (std::max({map.box[1], map.box[2], map.box[3]}) > 256 || !aligned) fail("a bad tensor map");
  if (!barrier_at(load.barrier).shown) fail("a barrier that TMA cannot see");
  shared_byte(load.to, load.bytes);
  for (const WarpProducts& warp : hopper.warps) {
    if (being_read(warp, {load.to, load.to + load.bytes})) fail("a load over a box that a product reads");
  }
  for (const Load& other : hopper.loads) {
    if (overlaps({other.to, other.to + other.bytes}, {load.to, load.to + load.bytes})) fail("two loads of one place");
  }
  if (machine.late_copies) {
    hopper.loads.push_back(load);
  } else {
    deliver(load);
  }
}

// The instruction's dimensions are the map's.
inline void issue_box(void* to, const TensorMap* map, void* barrier, u32 rank, const int (&at)[4]) {
  if (map->rank != rank) fail("a box of another rank than its map's");
  u32 bytes = 2 * map->box[0] * map->box[1] * map->box[2] * map->box[3];
  issue({shared_offset(to), shared_offset(barrier), bytes, *map, {at[0], at[1], at[2], at[3]}, false, {}});
}

}  // namespace device

inline void load_box(void* to, const TensorMap* map, unsigned long long* barrier, unsigned row, unsigned column) {
  device::issue_box(to, map, barrier, 2, {int(column), int(row), 0, 0});
}

inline void load_box(void* to, const TensorMap* map, unsigned long long* barrier, unsigned matrix, unsigned row,
                     unsigned column) {
  device::issue_box(to, map, barrier, 3, {int(column), int(row), int(matrix), 0});
}

inline void load_box(void* to, const TensorMap* map, unsigned long long* barrier, unsigned matrix, unsigned row,
                     unsigned head, unsigned column) {
  device::issue_box(to, map, barrier, 4, {int(column), int(head), int(row), int(matrix)});
}

inline void load_pixels(void* to, const TensorMap* map, unsigned long long* barrier, unsigned picture, int y, int x,
                        unsigned channel, unsigned offset_y, unsigned offset_x) {
  const int at[2] = {x, y};
  for (unsigned i = 0; i < 2; ++i) {
    int last = int(map->sizes[i + 1]) - 1 + map->upper[i];
    if (at[i] < map->lower[i] || at[i] > last) device::fail("a first pixel outside of the bounding box");
    if (std::min(map->lower[i], map->upper[i]) < -128 || std::max(map->lower[i], map->upper[i]) > 127) {
      device::fail("a corner beyond im2col's range");
    }
    if (map->step[i] < 1 || map->step[i] > 8) device::fail("a step beyond im2col's range");
  }
  if (offset_x > 255 || offset_y > 255) device::fail("an offset beyond im2col's range");
  unsigned bytes = 2 * map->box[0] * map->box[1];
  device::issue({shared_address(to), shared_address(barrier), bytes, *map, {int(channel), x, y, int(picture)}, true,
                 {offset_x, offset_y}});
}

template <int COUNT>
inline void give_registers() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "setmaxnreg's range");
}
template <int COUNT>
inline void take_registers() {
  static_assert(COUNT % 8 == 0 && COUNT >= 24 && COUNT <= 256, "setmaxnreg's range");
}

#include "wgmma.hpp"
