// Stands before and after a kernel's source where the software driver compiles it: the model of the device, and what a
// launch must know of the kernel.
#pragma once

#include "../device.hpp"
#include "kernel.hpp"

namespace driver {

template <class T>
constexpr Parameter parameter() {
  if constexpr (std::is_pointer_v<T>) {
    return {std::is_const_v<std::remove_pointer_t<T>> ? READ : WRITTEN, sizeof(T)};
  } else if constexpr (std::is_same_v<T, TensorMap>) {
    return {MAP, sizeof(T)};
  } else {
    return {VALUE, sizeof(T)};
  }
}

template <auto kernel>
struct Described;

template <class... Arguments, void (*kernel)(Arguments...)>
struct Described<kernel> {
  static constexpr Parameter parameters[] = {parameter<Arguments>()...};
  static_assert((0 + ... + (parameter<Arguments>().kind == VALUE)) == 1, "one Params by value");

  static void launch(void** pointers, const void* params, unsigned blocks, unsigned threads, unsigned order,
                     unsigned late) {
    device::launch(kernel, pointers, params, blocks, threads, order, late);
  }
  static Kernel kernel_of() { return {launch, parameters, sizeof...(Arguments)}; }
};

}  // namespace driver

// After the source.
#define DESCRIBE(entry)                                  \
  extern "C" void describe_##entry(driver::Kernel* to) { \
    *to = driver::Described<entry>::kernel_of();         \
  }
