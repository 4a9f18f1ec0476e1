// What passes for PTX between the software NVRTC and the software driver: a line with the architecture, and the source.
#pragma once

#include <algorithm>

#include "driver.hpp"

namespace cuda {

inline std::string heading() { return "// source for " + architecture() + "\n"; }

inline std::string image(const std::string& source) { return heading() + source; }

// The names of the kernels of a source, each `extern "C" __global__ void ... name(`.
inline std::vector<std::string> entries(const std::string& source) {
  std::vector<std::string> names;
  const std::string mark = "extern \"C\" __global__ void", bounds = "__launch_bounds__";
  for (size_t at = source.find(mark); at != std::string::npos; at = source.find(mark, at)) {
    at += mark.size();
    size_t after_bounds = source.find(bounds, at), open = source.find('(', at);
    if (after_bounds != std::string::npos && after_bounds < open) {
      open = source.find('(', source.find(')', open));
      at = source.find(')', after_bounds) + 1;
    }
    if (open == std::string::npos) break;
    size_t first = source.find_first_not_of(" \t\n", at), last = source.find_last_not_of(" \t\n", open - 1);
    std::string name = source.substr(first, last + 1 - first);
    // One for each element type stands between #if and #else.
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
    at = open;
  }
  return names;
}

}  // namespace cuda
