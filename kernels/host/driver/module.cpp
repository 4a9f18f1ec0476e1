// Modules and launches: a module's source is compiled by g++ against the model of the device in ../device.hpp, and a
// launch runs its blocks one after the other before it returns.

#include <dlfcn.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <sstream>

#include "image.hpp"
#include "kernel.hpp"

using namespace cuda;

namespace {

using namespace driver;

struct Facts {
  unsigned threads, shared, dynamic, element;
};

struct Module;

struct Function {
  Module* module;
  std::string entry;
  Kernel kernel;
  // What cuFuncSetAttribute allows a launch to bring.
  size_t allowed;
};

struct Module {
  void* library;
  Facts facts;
  std::map<std::string, std::unique_ptr<Function>> functions;
};

std::vector<std::unique_ptr<Module>> modules;
// For the signal handler: what runs.
const char* running = "";

std::string read(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// FNV-1a.
uint64_t digest(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char byte : text) hash = (hash ^ byte) * 0x100000001b3;
  return hash;
}

// The element type that a source begins with: ELEM_F32, ELEM_F16 or ELEM_BF16.
std::string element(const std::string& source) {
  const size_t after_define = 8;
  return source.substr(after_define, source.find(' ', after_define) - after_define);
}

// What g++ compiles.
std::string program(const std::string& source) {
  std::string text = "#include \"" + element(source) + ".hpp\"\n" + source;
  for (const std::string& entry : entries(source)) text += "DESCRIBE(" + entry + ")\n";
  uint32_t named = element(source) == "ELEM_BF16" ? ELEMENT_BFLOAT16 : ELEMENT_FLOAT16;
  // Of Facts: threads of a block, shared memory, whether a launch brings it, the element type as a tensor map names it.
  text += "#ifndef DYNAMIC\n#define DYNAMIC 0\n#endif\n"
          "extern \"C\" void facts(unsigned* to) {\n  to[0] = THREADS;\n"
          "  to[1] = unsigned(__stop_device_shared - __start_device_shared);\n"
          "  to[2] = DYNAMIC;\n  to[3] = " + std::to_string(named) + ";\n}\n";
  return text;
}

// Where `build` has put this library and the models.
std::string home() {
  Dl_info info;
  dladdr(reinterpret_cast<void*>(&home), &info);
  std::string path = info.dli_fname;
  return path.substr(0, path.rfind('/'));
}

std::string folder() {
  const char* given = std::getenv("AQUATINT_CUDA_CACHE");
  const char* temporary = std::getenv("TMPDIR");
  std::string path = given && *given ? given
                     : std::string(temporary && *temporary ? temporary : "/tmp") + "/aquatint-cuda-" + std::to_string(getuid());
  mkdir(path.c_str(), 0700);
  return path;
}

// The shared library of a source; empty, with the compiler's words on stderr, if there is none. Other processes may
// compile the same: each writes a file of its own and gives it its name when it is whole.
std::string compiled(const std::string& source) {
  static const std::string model = read(HOST "/device.hpp") + read(HOST "/hopper.hpp") + read(HOST "/wgmma.hpp") +
                                   read(HOST "/driver/launch.hpp") + FLAGS + __VERSION__;
  std::string text = program(source);
  char name[32];
  std::snprintf(name, sizeof name, "/%016lx", digest(model + text));
  std::string path = folder() + name, own = path + "-" + std::to_string(getpid());
  if (access((path + ".so").c_str(), R_OK) == 0) return path + ".so";
  std::ofstream(own + ".cpp") << text;
  std::string model_of = " '-I" + home() + "' '" + home() + "/" + element(source) + ".o' ";
  // Nothing is shared between the libraries of two kernels.
  std::string command = "g++ " FLAGS " -shared -Wl,-Bsymbolic '" + own + ".cpp'" + model_of + "-o '" + own + ".so' >&2";
  int status = std::system(command.c_str());
  if (status != 0) return "";
  unlink((own + ".cpp").c_str());
  rename((own + ".so").c_str(), (path + ".so").c_str());
  return path + ".so";
}

// What cannot be returned from: an access to what is no memory, or a check that the compiler put in.
void fault(int signal, siginfo_t* info, void*) {
  if (signal == SIGILL) {
    std::fprintf(stderr, "software CUDA driver: %s: an array's bounds, a shift, an overflow or an alignment\n", running);
  } else {
    std::fprintf(stderr, "software CUDA driver: %s: an access to %s, which is no memory of the device\n", running,
                 place(uint64_t(info->si_addr)).c_str());
  }
  std::_Exit(1);
}

// Faults are the kernel's for as long as this lives.
struct Watch {
  std::vector<char> stack = std::vector<char>(256 * 1024);
  stack_t before;
  struct sigaction previous[3];
  static constexpr int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGILL};

  explicit Watch(const char* entry) {
    running = entry;
    stack_t own = {};
    own.ss_sp = stack.data();
    own.ss_size = stack.size();
    sigaltstack(&own, &before);
    struct sigaction action = {};
    action.sa_sigaction = fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; ++i) sigaction(SIGNALS[i], &action, &previous[i]);
  }
  ~Watch() {
    for (int i = 0; i < 3; ++i) sigaction(SIGNALS[i], &previous[i], nullptr);
    sigaltstack(&before, nullptr);
  }
};

// Reads memory of this process that may not be there.
bool readable(const void* from, void* to, size_t bytes) {
  iovec local{to, bytes}, remote{const_cast<void*>(from), bytes};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == ssize_t(bytes);
}

// Bytes of a tensor that a map reaches.
size_t extent(const EncodedMap& map) {
  size_t bytes = 2 * map.sizes[0];
  for (int i = 1; i < 4; ++i) bytes += (map.sizes[i] - 1) * map.strides[i - 1];
  return bytes;
}

struct Argument {
  // A buffer's address, or the parameter's own.
  void* pointer;
  uint64_t address;
  size_t bytes;
  bool write;
};

#define REFUSE(result, ...) return violation(result, __VA_ARGS__)

Result argument(const Function& function, unsigned index, void* given, Argument* out) {
  const char* name = function.entry.c_str();
  const Parameter& parameter = function.kernel.parameters[index];
  unsigned char bytes[4096];
  if (parameter.bytes > sizeof bytes || !readable(given, bytes, parameter.bytes)) {
    REFUSE(INVALID_VALUE, "%s: parameter %u, of %u bytes, is at %p, where nothing can be read", name, index,
           parameter.bytes, given);
  }
  *out = {given, 0, 0, false};
  if (parameter.kind == MAP) {
    EncodedMap map;
    std::memcpy(&map, bytes, sizeof map);
    if (map.mark != MAP_MARK) REFUSE(INVALID_VALUE, "%s: parameter %u is no encoded tensor map", name, index);
    if (map.element != function.module->facts.element) {
      REFUSE(INVALID_VALUE, "%s: parameter %u maps element type %u, the kernel has %u", name, index, map.element,
             function.module->facts.element);
    }
    out->address = map.base;
    out->bytes = extent(map);
  } else if (parameter.kind != VALUE) {
    std::memcpy(&out->address, bytes, sizeof out->address);
    out->pointer = reinterpret_cast<void*>(out->address);
    out->bytes = 1;
    out->write = parameter.kind == WRITTEN;
    if (out->address % 16 != 0) {
      REFUSE(INVALID_VALUE, "%s: parameter %u, %s, is no multiple of 16", name, index, place(out->address).c_str());
    }
  } else {
    return SUCCESS;
  }
  if (!region(out->address, out->bytes, true)) {
    REFUSE(INVALID_VALUE, "%s: parameter %u, %s, expected a buffer: no live device memory", name, index,
           place(out->address).c_str());
  }
  return SUCCESS;
}

struct Grid {
  unsigned blocks[3], threads[3], shared;
};

Result grid_holds(const Function& function, const Grid& grid) {
  const char* name = function.entry.c_str();
  const Facts& facts = function.module->facts;
  if (grid.blocks[0] < 1 || grid.blocks[0] > 2147483647u || grid.blocks[1] != 1 || grid.blocks[2] != 1) {
    REFUSE(INVALID_VALUE, "%s: a grid of %ux%ux%u, expected blocks in one direction", name, grid.blocks[0],
           grid.blocks[1], grid.blocks[2]);
  }
  if (grid.threads[0] != facts.threads || grid.threads[1] != 1 || grid.threads[2] != 1) {
    REFUSE(INVALID_VALUE, "%s: blocks of %ux%ux%u threads, expected %ux1x1", name, grid.threads[0], grid.threads[1],
           grid.threads[2], facts.threads);
  }
  // The model's memory is aligned, what a launch brings need not be.
  size_t expected = facts.dynamic ? facts.shared + 1024 : 0;
  if (grid.shared != expected) {
    REFUSE(INVALID_VALUE, "%s: %u bytes of dynamic shared memory, expected %zu", name, grid.shared, expected);
  }
  if (grid.shared > function.allowed) {
    REFUSE(INVALID_VALUE, "%s: %u bytes of dynamic shared memory, cuFuncSetAttribute allowed %zu", name, grid.shared,
           function.allowed);
  }
  return SUCCESS;
}

Result launch(Function& function, const Grid& grid, Stream& stream, void** given) {
  const char* name = function.entry.c_str();
  if (Result refused = grid_holds(function, grid)) return refused;
  if (!given) REFUSE(INVALID_VALUE, "%s: no parameters", name);
  std::vector<Argument> all(function.kernel.count);
  std::vector<void*> pointers(function.kernel.count);
  std::vector<unsigned char> params;
  for (unsigned i = 0; i < function.kernel.count; ++i) {
    if (Result refused = argument(function, i, given[i], &all[i])) return refused;
    pointers[i] = all[i].pointer;
    if (function.kernel.parameters[i].kind == VALUE) {
      const unsigned char* from = static_cast<const unsigned char*>(given[i]);
      params.assign(from, from + function.kernel.parameters[i].bytes);
    }
  }
  for (size_t i = 0; i < all.size(); ++i) {
    for (size_t j = 0; j < all.size(); ++j) {
      if (i != j && all[i].write && all[i].address == all[j].address) {
        REFUSE(INVALID_VALUE, "%s: parameters %zu and %zu are one buffer, which is written", name, i, j);
      }
    }
  }
  begin(stream);
  for (const Argument& one : all) {
    if (one.address && !touch(name, stream, one.address, one.bytes, one.write)) return INVALID_VALUE;
  }
  {
    Watch watch(name);
    function.kernel.launch(pointers.data(), params.data(), grid.blocks[0], grid.threads[0], 0, 0);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].address && !untouched(*region(all[i].address, 1, true))) {
      REFUSE(INVALID_VALUE, "%s: a write beyond the end of parameter %zu, %s", name, i, place(all[i].address).c_str());
    }
  }
  return SUCCESS;
}

Function* function_of(void* handle) {
  for (const auto& module : modules) {
    for (const auto& [entry, function] : module->functions) {
      if (function.get() == handle) return function.get();
    }
  }
  return nullptr;
}

}  // namespace

API Result cuModuleLoadData(void** handle, const void* image) {
  READY();
  std::string text = static_cast<const char*>(image), expected = heading();
  if (text.compare(0, expected.size(), expected) != 0) {
    REFUSE(INVALID_PTX, "%s: an image that is not of the software NVRTC for %s", __func__, architecture().c_str());
  }
  std::string source = text.substr(expected.size()), path = compiled(source);
  std::vector<std::string> names = entries(source);
  if (path.empty()) REFUSE(INVALID_PTX, "%s: g++ does not compile %s", __func__, names.empty() ? "" : names[0].c_str());
  auto module = std::make_unique<Module>();
  module->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!module->library) REFUSE(INVALID_IMAGE, "%s: %s", __func__, dlerror());
  reinterpret_cast<void (*)(Facts*)>(dlsym(module->library, "facts"))(&module->facts);
  size_t most = module->facts.dynamic ? most_shared() : STATIC_SHARED;
  if (module->facts.shared > most) {
    REFUSE(INVALID_PTX, "%s: %s takes %u bytes of shared memory, at most %zu", __func__, names[0].c_str(),
           module->facts.shared, most);
  }
  for (const std::string& name : names) {
    void* describe = dlsym(module->library, ("describe_" + name).c_str());
    auto function = std::make_unique<Function>(Function{module.get(), name, {}, STATIC_SHARED});
    reinterpret_cast<void (*)(Kernel*)>(describe)(&function->kernel);
    module->functions[name] = std::move(function);
  }
  *handle = module.get();
  modules.push_back(std::move(module));
  return SUCCESS;
}

API Result cuModuleGetFunction(void** handle, void* module, const char* name) {
  READY();
  for (const auto& one : modules) {
    if (one.get() != module) continue;
    auto found = one->functions.find(name);
    if (found == one->functions.end()) REFUSE(NOT_FOUND, "%s: no kernel %s", __func__, name);
    *handle = found->second.get();
    return SUCCESS;
  }
  REFUSE(INVALID_HANDLE, "%s: no such module: %p", __func__, module);
}

API Result cuModuleUnload(void* module) {
  READY();
  for (size_t i = 0; i < modules.size(); ++i) {
    if (modules[i].get() != module) continue;
    // Its launches may not be done.
    wait_for_all();
    modules.erase(modules.begin() + long(i));
    return SUCCESS;
  }
  REFUSE(INVALID_HANDLE, "%s: no such module: %p", __func__, module);
}

API Result cuFuncSetAttribute(void* handle, int which, int value) {
  READY();
  Function* function = function_of(handle);
  if (!function) REFUSE(INVALID_HANDLE, "%s: no such function: %p", __func__, handle);
  if (which == PREFERRED_SHARED_MEMORY_CARVEOUT && value >= -1 && value <= 100) return SUCCESS;
  if (which != MAX_DYNAMIC_SHARED_SIZE_BYTES) REFUSE(INVALID_VALUE, "%s: attribute %d", __func__, which);
  size_t fixed = function->module->facts.dynamic ? 0 : function->module->facts.shared;
  if (value < 0 || size_t(value) + fixed > most_shared()) {
    REFUSE(INVALID_VALUE, "%s: %s: %d bytes of dynamic shared memory beside %zu of static, at most %zu", __func__,
           function->entry.c_str(), value, fixed, most_shared());
  }
  function->allowed = size_t(value);
  return SUCCESS;
}

API Result cuLaunchKernel(void* handle, unsigned x, unsigned y, unsigned z, unsigned thread_x, unsigned thread_y,
                          unsigned thread_z, unsigned shared, void* on, void** given, void** extra) {
  READY();
  Function* function = function_of(handle);
  if (!function) REFUSE(INVALID_HANDLE, "%s: no such function: %p", __func__, handle);
  Stream* stream = stream_of(on);
  if (!stream) REFUSE(INVALID_HANDLE, "%s: no such stream: %p", __func__, on);
  if (extra) REFUSE(INVALID_VALUE, "%s: parameters in one buffer", __func__);
  return launch(*function, {{x, y, z}, {thread_x, thread_y, thread_z}, shared}, *stream, given);
}
