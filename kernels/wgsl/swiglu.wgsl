// y[r, c] = x[r, c] * silu(x[r, half + c]), silu(v) = v * sigmoid(v), in f32 (Shazeer 2020)
// x: [rows, 2 * half]; y: [rows, half]; all in vectors of WIDTH elements
// tile: ITEMS vectors a thread, neighbours read by neighbours
// constants: elem f32 or f16, WIDTH 1, 2 or 4
// reference: ops::reference::swiglu; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

const ITEMS: u32 = 4u;

// half: of one row, in vectors; count: of y, in vectors
struct Params { count: u32, half: u32 }

@group(0) @binding(0) var<storage, read_write> x: array<elems>;
@group(0) @binding(1) var<storage, read_write> y: array<elems>;
@group(0) @binding(2) var<uniform> params: Params;

@compute @workgroup_size(THREADS)
fn swiglu(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
          @builtin(local_invocation_index) thread: u32) {
    let start = (group.y * groups.x + group.x) * THREADS * ITEMS + thread;
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count {
            let value = i + i / params.half * params.half;
            let gate = floats(x[value + params.half]);
            // Beyond 88 the exponential leaves f32.
            y[i] = elems(floats(x[value]) * gate / (floats(1.0) + exp(min(-gate, floats(88.0)))));
        }
    }
}
