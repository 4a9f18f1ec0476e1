// What a compiled kernel and the driver that launches it both know.
#pragma once

namespace driver {

enum Kind : unsigned { VALUE, READ, WRITTEN, MAP };

struct Parameter {
  unsigned kind, bytes;
};

// What a module tells of a kernel.
struct Kernel {
  void (*launch)(void** pointers, const void* params, unsigned blocks, unsigned threads, unsigned order, unsigned late);
  const Parameter* parameters;
  unsigned count;
};

}  // namespace driver
