// y = a * gelu(b), where a and b are the two halves of a token's channels (Shazeer 2020), with the exact gelu
//
// parts: common.cuh, gated.cuh, this file
// shapes, constants, launch, limits, parameters: those of gated.cuh
// reference: ops::activation::geglu_reference; proof: ../host/cases/pointwise.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

extern "C" __global__ void __launch_bounds__(THREADS)
    geglu(const elem* __restrict__ x, elem* __restrict__ y, const __grid_constant__ Params params) {
  multiply_halves<gelu>(x, y, params);
}
