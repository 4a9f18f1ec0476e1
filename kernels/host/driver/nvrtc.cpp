// A stand-in for NVRTC: takes the crate's sources for the architecture of the software driver's device, and hands them
// back as what the driver compiles. See driver.hpp.

#include "driver.hpp"
#include "image.hpp"

namespace {

constexpr int COMPILATION = 6, INVALID_INPUT = 3, NVRTC_SUCCESS = 0;

struct Program {
  std::string source, image, log;
};

// Whether a text is one of the crate's: its prelude begins so.
bool of_this_crate(const std::string& source) { return source.compare(0, 13, "#define ELEM_") == 0; }

// The entry of a source, for messages.
std::string entry_of(const std::string& source) {
  std::vector<std::string> entries = cuda::entries(source);
  return entries.empty() ? "no entry" : entries.front();
}

}  // namespace

API int nvrtcCreateProgram(Program** program, const char* source, const char*, int headers, const char* const*,
                           const char* const*) {
  if (headers != 0) return cuda::violation(cuda::INVALID_VALUE, "nvrtcCreateProgram: %d headers, expected none", headers);
  *program = new Program{source, "", ""};
  return NVRTC_SUCCESS;
}

API int nvrtcCompileProgram(Program* program, int count, const char* const* options) {
  const std::string flag = "--gpu-architecture=";
  std::string found = "no architecture";
  for (int i = 0; i < count; ++i) {
    std::string option = options[i];
    if (option.compare(0, flag.size(), flag) == 0) found = option.substr(flag.size());
  }
  if (found != cuda::architecture()) {
    program->log = "compiled for " + found + ", the device is " + cuda::architecture();
  } else if (!of_this_crate(program->source)) {
    program->log = entry_of(program->source) + " is no kernel of kernels/cuda: the software driver runs no others";
  } else if (cuda::capability() < 90 && program->source.find("wgmma") != std::string::npos) {
    program->log = entry_of(program->source) + " is for Hopper, the device is " + cuda::architecture();
  } else {
    program->image = cuda::image(program->source);
    return NVRTC_SUCCESS;
  }
  cuda::violation(cuda::INVALID_VALUE, "nvrtcCompileProgram: %s", program->log.c_str());
  return COMPILATION;
}

API int nvrtcGetPTXSize(Program* program, size_t* size) {
  *size = program->image.size() + 1;
  return NVRTC_SUCCESS;
}

API int nvrtcGetPTX(Program* program, char* to) {
  std::memcpy(to, program->image.c_str(), program->image.size() + 1);
  return NVRTC_SUCCESS;
}

API int nvrtcGetProgramLogSize(Program* program, size_t* size) {
  *size = program->log.size() + 1;
  return NVRTC_SUCCESS;
}

API int nvrtcGetProgramLog(Program* program, char* to) {
  std::memcpy(to, program->log.c_str(), program->log.size() + 1);
  return NVRTC_SUCCESS;
}

API int nvrtcDestroyProgram(Program** program) {
  if (!program || !*program) return INVALID_INPUT;
  delete *program;
  *program = nullptr;
  return NVRTC_SUCCESS;
}

API int nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return NVRTC_SUCCESS;
}

API const char* nvrtcGetErrorString(int result) {
  return result == NVRTC_SUCCESS ? "NVRTC_SUCCESS" : result == COMPILATION ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR";
}
