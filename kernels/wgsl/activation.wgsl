// y = act(x), element by element, in f32: one entry an activation.
//   gelu        x / 2 * (1 + erf(x / sqrt(2)))
//   gelu_tanh   x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x³)))
//   quick_gelu  x * sigmoid(1.702 x)
//   silu        x * sigmoid(x)
// x, y: `count` vectors of WIDTH elements
// tile: ITEMS vectors a thread, neighbours read by neighbours
// parts: gelu.wgsl, this file
// constants: elem f32 or f16, WIDTH 1, 2 or 4
// limits: erf by Abramowitz & Stegun 7.1.26, at most 1.5e-7 off; of gelu(-4) that is a relative 5e-4, of gelu(-6) 4e-3, of
// gelu(-12) 3e-2
// reference: ops::reference; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

const ITEMS: u32 = 4u;

struct Params { count: u32 }

@group(0) @binding(0) var<storage, read_write> x: array<elems>;
@group(0) @binding(1) var<storage, read_write> y: array<elems>;
@group(0) @binding(2) var<uniform> params: Params;

fn first(group: vec3<u32>, groups: vec3<u32>, thread: u32) -> u32 {
    return (group.y * groups.x + group.x) * THREADS * ITEMS + thread;
}

@compute @workgroup_size(THREADS)
fn gelu(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let start = first(group, groups, thread);
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count { y[i] = elems(gelu_of(floats(x[i]))); }
    }
}

@compute @workgroup_size(THREADS)
fn gelu_tanh(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
             @builtin(local_invocation_index) thread: u32) {
    let start = first(group, groups, thread);
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count { y[i] = elems(gelu_tanh_of(floats(x[i]))); }
    }
}

@compute @workgroup_size(THREADS)
fn quick_gelu(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
    let start = first(group, groups, thread);
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count { y[i] = elems(quick_gelu_of(floats(x[i]))); }
    }
}

@compute @workgroup_size(THREADS)
fn silu(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
        @builtin(local_invocation_index) thread: u32) {
    let start = first(group, groups, thread);
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count { y[i] = elems(silu_of(floats(x[i]))); }
    }
}
