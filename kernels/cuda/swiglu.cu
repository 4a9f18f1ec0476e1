// y = a * silu(b), silu(v) = v * sigmoid(v), where a and b are the two halves of a token's channels (Shazeer 2020)
//
// parts: common.cuh, gated.cuh, this file
// shapes, constants, launch, limits, parameters: those of gated.cuh
// reference: ops::activation::swiglu_reference; proof: ../host/cases/transformer.py; test: tests/kernels.rs
// Has never run on a GPU; launched where the environment has AQUATINT_CUDA_KERNELS=1 alone.

INLINE float silu(float x) { return swish(x, 1.0f); }

extern "C" __global__ void __launch_bounds__(THREADS)
    swiglu(const elem* __restrict__ x, elem* __restrict__ y, const __grid_constant__ Params params) {
  multiply_halves<silu>(x, y, params);
}
