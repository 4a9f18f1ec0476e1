// Products of a warpgroup for hopper.hpp: matrix descriptors and fragments, written down from the PTX ISA.
#pragma once

namespace device {

MODEL double value_of(u16 half) {
#if defined(ELEM_BF16)
  return bf16(half);
#else
  return f16(half);
#endif
}

// A factor of a product, [count, 16] 16-bit elements, where the 16 are summed over. In the swizzled layouts of the PTX
// ISA, 8 rows as wide as the swizzle make an atom.
// "K-major": the 16 lie next to each other in a row, atoms of 8 of the count are the stride's bytes apart.
// "MN-major": the count lies next to each other, 64 in a row of 128 bytes and the next 64 the leading offset further;
// the 16 are rows, atoms of 8 of them are the stride's bytes apart.
struct Matrix {
  u32 start, leading, stride, swizzle;
  bool by_rows;

  explicit Matrix(uint64_t description, bool by_rows = false) : by_rows(by_rows) {
    const u32 widths[4] = {0, 128, 64, 32};
    start = u32(description & 0x3fff) << 4;
    leading = u32(description >> 16 & 0x3fff) << 4;
    stride = u32(description >> 32 & 0x3fff) << 4;
    swizzle = widths[description >> 62];
    if (swizzle == 0) fail("a matrix without a swizzle is not modelled");
    if (description >> 49 & 7) fail("a base offset is not modelled");
    if (by_rows && (swizzle != 128 || start % 1024 != 0)) fail("rows that are not in whole atoms");
    if (start % swizzle + 32 > swizzle) fail("16 columns that leave a row");
    if (stride % (8 * swizzle) != 0) fail("8 rows that do not end where the next begin");
    // The pattern starts where the address says, for which the first row must lie at its start.
    if ((start - start % swizzle) % (8 * swizzle) != 0) fail("a matrix not at the start of a swizzle's pattern");
  }
  // The first byte and the end of the atoms that are touched.
  std::pair<u32, u32> range(u32 count) const {
    u32 first = start - start % swizzle;
    u32 last = by_rows ? (count - 1) / 64 * leading + stride : (count / 8 - 1) * stride;
    return {first, first + last + 8 * swizzle};
  }
  double element(u32 i, u32 k) const {
    u32 place = by_rows ? i / 64 * leading + i % 64 * 2 + k / 8 * stride + k % 8 * 128
                        : i / 8 * stride + i % 8 * swizzle + 2 * k;
    u16 half;
    std::memcpy(&half, shared_byte(swizzled(start + place, swizzle), 2), 2);
    return value_of(half);
  }
};

constexpr u32 POISON = 0x7fc0dead;

MODEL bool reads(const Product& product, std::pair<u32, u32> range) {
  if (!product.by_rows && overlaps(Matrix(product.a).range(64), range)) return true;
  return overlaps(Matrix(product.b, product.by_rows).range(product.columns), range);
}

MODEL bool being_read(const WarpProducts& warp, std::pair<u32, u32> range) {
  for (const Product& product : warp.open) {
    if (reads(product, range)) return true;
  }
  for (const auto& group : warp.groups) {
    for (const Product& product : group) {
      if (reads(product, range)) return true;
    }
  }
  return false;
}

// D of m64nNk16: value i of a lane is row 16 warp + lane / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (lane % 4) + i % 2.
// A in registers: register r of a lane is row 16 warp + lane / 4 + 8 (r % 2), columns 2 (lane % 4) + 8 (r / 2) and the
// next. As for mma.sync, 16 products and the sum before are added up in f64 and rounded once.
MODEL void compute(const Product& product, u32 warp, std::vector<float>& sums) {
  Matrix b(product.b, product.by_rows);
  u32 count = product.columns / 2;
  double left[16][16];
  std::vector<double> right(16 * product.columns);
  for (u32 row = 0; row < 16; ++row) {
    for (u32 k = 0; k < 16; ++k) {
      if (product.by_rows) {
        u32 lane = row % 8 * 4 + k % 8 / 2, word = product.factors[lane][row / 8 + k / 8 * 2];
        left[row][k] = value_of(u16(k % 2 ? word >> 16 : word));
      } else {
        left[row][k] = Matrix(product.a).element(warp % 4 * 16 + row, k);
      }
    }
  }
  for (u32 column = 0; column < product.columns; ++column) {
    for (u32 k = 0; k < 16; ++k) right[column * 16 + k] = b.element(column, k);
  }
  for (u32 lane = 0; lane < 32; ++lane) {
    for (u32 i = 0; i < count; ++i) {
      u32 row = lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      float& value = sums[lane * count + i];
      double sum = product.add ? value : 0.0;
      for (u32 k = 0; k < 16; ++k) sum += left[row][k] * right[column * 16 + k];
      value = float(sum);
    }
  }
}

// Copies a warp's sums from (or to) its lanes' registers.
MODEL void gather(const Product& product, std::vector<float>& sums) {
  u32 count = product.columns / 2;
  sums.resize(32 * count);
  for (u32 lane = 0; lane < 32; ++lane) std::memcpy(&sums[lane * count], product.sums[lane], 4 * count);
}

MODEL void scatter(const Product& product, const std::vector<float>& sums) {
  u32 count = product.columns / 2;
  for (u32 lane = 0; lane < 32; ++lane) std::memcpy(product.sums[lane], &sums[lane * count], 4 * count);
}

MODEL void compare_with_group(u32 warp, const Product& product) {
  size_t turn = hopper.warps[warp].issued.size();
  hopper.warps[warp].issued.push_back(product);
  for (u32 other = warp / 4 * 4; other < warp / 4 * 4 + 4; ++other) {
    if (other >= hopper.warps.size()) fail("a product of less than four warps");
    const auto& issued = hopper.warps[other].issued;
    if (issued.size() <= turn) continue;
    const Product& theirs = issued[turn];
    bool same = theirs.a == product.a && theirs.b == product.b && theirs.columns == product.columns;
    same = same && theirs.add == product.add && theirs.by_rows == product.by_rows;
    if (!same) fail("the warps of a group issue different products");
  }
}

MODEL void issue_product(Fiber* lanes, u32 warp) {
  WarpProducts& state = hopper.warps[warp];
  const Exchange& first = lanes[0].exchange;
  Product product{first.a, first.b, first.in[0], first.in[1] != 0, first.factors != nullptr, {}, {}};
  for (u32 lane = 0; lane < 32; ++lane) {
    const Exchange& e = lanes[lane].exchange;
    bool same = e.a == product.a && e.b == product.b && e.in[0] == product.columns;
    if (!same || (e.in[1] != 0) != product.add) fail("the lanes of a warp describe different products");
    product.factors[lane] = e.factors;
    product.sums[lane] = e.sums;
  }
  compare_with_group(warp, product);
  if (!state.fenced) fail("a product without a fence before");
  for (const Load& load : hopper.loads) {
    if (reads(product, {load.to, load.to + load.bytes})) fail("a product of a box that is under way");
  }
  std::vector<float> found;
  gather(product, found);
  auto hidden = state.hidden.find(product.sums[0]);
  if (hidden == state.hidden.end()) {
    state.hidden[product.sums[0]] = found;
  } else {
    for (float value : found) {
      if (bits(value) != POISON) fail("sums were written while they were under way");
    }
  }
  scatter(product, std::vector<float>(found.size(), real(POISON)));
  if (!machine.late_products) compute(product, warp, state.hidden[product.sums[0]]);
  state.open.push_back(product);
}

MODEL void wait_for_products(WarpProducts& state, u32 warp, size_t pending) {
  std::vector<Product> over;
  while (state.groups.size() > pending) {
    for (const Product& product : state.groups.front()) {
      if (machine.late_products) compute(product, warp, state.hidden[product.sums[0]]);
      over.push_back(product);
    }
    state.groups.pop_front();
  }
  auto under_way = [&](float* sums) {
    for (const auto& group : state.groups) {
      for (const Product& product : group) {
        if (product.sums[0] == sums) return true;
      }
    }
    return false;
  };
  for (const Product& product : over) {
    auto hidden = state.hidden.find(product.sums[0]);
    if (hidden == state.hidden.end() || under_way(product.sums[0])) continue;
    scatter(product, hidden->second);
    state.hidden.erase(hidden);
  }
  state.fenced = false;
}

MODEL void settle_hopper(Fiber* lanes) {
  u32 warp = lanes[0].warp;
  WarpProducts& state = hopper.warps[warp];
  switch (lanes[0].exchange.kind) {
    case Collective::Fence:
      state.fenced = true;
      break;
    case Collective::Product:
      issue_product(lanes, warp);
      break;
    case Collective::Commit:
      state.groups.push_back(std::move(state.open));
      state.open.clear();
      break;
    case Collective::Wait:
      if (!state.open.empty()) fail("a wait for products that were not committed");
      wait_for_products(state, warp, lanes[0].exchange.in[0]);
      break;
    default:
      fail("a collective without a kind");
  }
}

MODEL void meet(Collective kind, u32 first = 0) {
  Exchange& e = machine.current->exchange;
  e.kind = kind;
  e.in[0] = first;
  exchange();
}

}  // namespace device

inline void products_begin() { device::meet(device::Collective::Fence); }
inline void products_commit() { device::meet(device::Collective::Commit); }
template <int PENDING>
inline void products_wait() {
  device::meet(device::Collective::Wait, PENDING);
}
template <int N>
inline void products_finished(float (&)[N]) {}

template <int N>
inline void multiply_matrices(float (&sums)[N], unsigned long long a, unsigned long long b, unsigned add) {
  device::Exchange& e = device::machine.current->exchange;
  e.a = a;
  e.b = b;
  e.sums = sums;
  e.factors = nullptr;
  e.in[1] = add;
  device::meet(device::Collective::Product, 2 * N);
}

template <int N>
inline void multiply_rows(float (&sums)[N], const unsigned (&a)[4], unsigned long long b) {
  device::Exchange& e = device::machine.current->exchange;
  e.a = 0;
  e.b = b;
  e.sums = sums;
  e.factors = a;
  e.in[1] = 1;
  device::meet(device::Collective::Product, 2 * N);
}
