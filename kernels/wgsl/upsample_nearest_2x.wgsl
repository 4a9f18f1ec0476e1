// y[b, i, j, c] = x[b, i / 2, j / 2, c]
// x: [batch, height, width, channels]; y: [batch, 2 * height, 2 * width, channels]; in vectors of WIDTH elements
// tile: ITEMS vectors of y a thread, neighbours written by neighbours
// constants: elem f32 or f16, WIDTH 1, 2 or 4
// reference: ops::reference::upsample_nearest_2x; test: tests/kernels.rs

const ITEMS: u32 = 4u;

// count: of y, in vectors; width: of x; channels: in vectors
struct Params { count: u32, width: u32, channels: u32 }

@group(0) @binding(0) var<storage, read_write> x: array<elems>;
@group(0) @binding(1) var<storage, read_write> y: array<elems>;
@group(0) @binding(2) var<uniform> params: Params;

@compute @workgroup_size(THREADS)
fn upsample_nearest_2x(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                       @builtin(local_invocation_index) thread: u32) {
    let start = (group.y * groups.x + group.x) * THREADS * ITEMS + thread;
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count {
            let pixel = i / params.channels;
            let channel = i - pixel * params.channels;
            // Two rows of y come from one of x, whatever picture they belong to.
            let row = pixel / (2u * params.width);
            let column = pixel - row * 2u * params.width;
            y[i] = x[((row / 2u) * params.width + column / 2u) * params.channels + channel];
        }
    }
}
