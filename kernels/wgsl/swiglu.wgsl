// y[r, c] = x[r, c] * silu(x[r, half + c]), silu(v) = v * sigmoid(v), in f32 (Shazeer 2020)
// parts: gelu.wgsl, gated.wgsl, this file
// shapes, tile, constants: those of gated.wgsl
// reference: ops::reference::swiglu; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

fn gate_of(v: floats) -> floats { return silu_of(v); }

@compute @workgroup_size(THREADS)
fn swiglu(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) thread: u32) {
    multiply_halves(group.y * groups.x + group.x, thread);
}
