// y[b, t, c] = residual[b, t, c] + gate[b, c] * x[b, t, c], in f32
// x, residual, y: [batch, tokens, channels]; gate: [batch, channels]; in vectors of WIDTH elements
// tile: ITEMS vectors a thread, neighbours read by neighbours
// constants: elem f32 or f16, WIDTH 1, 2 or 4
// reference: ops::reference::gate_residual; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

const ITEMS: u32 = 4u;

// count: of y; picture: of one row of the batch; channels; all in vectors
struct Params { count: u32, picture: u32, channels: u32 }

@group(0) @binding(0) var<storage, read_write> residual: array<elems>;
@group(0) @binding(1) var<storage, read_write> x: array<elems>;
@group(0) @binding(2) var<storage, read_write> gate: array<elems>;
@group(0) @binding(3) var<storage, read_write> y: array<elems>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(THREADS)
fn gate_residual(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                 @builtin(local_invocation_index) thread: u32) {
    let start = (group.y * groups.x + group.x) * THREADS * ITEMS + thread;
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count {
            let of_gate = i / params.picture * params.channels + i % params.channels;
            y[i] = elems(floats(residual[i]) + floats(gate[of_gate]) * floats(x[i]));
        }
    }
}
