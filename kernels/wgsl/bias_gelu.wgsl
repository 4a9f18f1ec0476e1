// y[r, c] = gelu(x[r, c] + bias[c]), in f32 (Hendrycks & Gimpel 2016): one entry a form.
//   bias_gelu       v / 2 * (1 + erf(v / sqrt(2)))
//   bias_gelu_tanh  v / 2 * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 v³))), as v * sigmoid of twice tanh's argument
// x, y: [rows, channels]; bias: [channels]; in vectors of WIDTH elements
// tile: ITEMS vectors a thread, neighbours read by neighbours
// parts: gelu.wgsl, this file
// constants: elem f32 or f16, WIDTH 1, 2 or 4
// limits: the first form has the accuracy of activation.wgsl
// reference: ops::reference::bias_gelu; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

const ITEMS: u32 = 4u;

// count: of y; channels; both in vectors
struct Params { count: u32, channels: u32 }

@group(0) @binding(0) var<storage, read_write> x: array<elems>;
@group(0) @binding(1) var<storage, read_write> bias: array<elems>;
@group(0) @binding(2) var<storage, read_write> y: array<elems>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(THREADS)
fn bias_gelu(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) thread: u32) {
    let start = (group.y * groups.x + group.x) * THREADS * ITEMS + thread;
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count { y[i] = elems(gelu_of(floats(x[i]) + floats(bias[i % params.channels]))); }
    }
}

@compute @workgroup_size(THREADS)
fn bias_gelu_tanh(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                  @builtin(local_invocation_index) thread: u32) {
    let start = (group.y * groups.x + group.x) * THREADS * ITEMS + thread;
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count { y[i] = elems(gelu_tanh_of(floats(x[i]) + floats(bias[i % params.channels]))); }
    }
}
