// y[b, i, j, c] = x[b, i / 2, j / 2, c]
// x: [batch, height, width, channels]; y: [batch, 2 * height, 2 * width, channels]; in vectors of WIDTH elements
// tile: a thread reads ITEMS vectors of x and writes each four times, neighbours by neighbours
// constants: elem f32 or f16, WIDTH 1, 2 or 4
// reference: ops::reference::upsample_nearest_2x; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

const ITEMS: u32 = 4u;

// count: of x, in vectors; width: of x; channels: in vectors
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
            // The rows of all pictures are one list.
            let row = pixel / params.width;
            let line = 2u * params.width * params.channels;
            // A vector's own place in y: its row's line, twice its pixel's way along it.
            let at = 2u * row * line + 2u * (pixel - row * params.width) * params.channels + i - pixel * params.channels;
            let v = x[i];
            y[at] = v;
            y[at + params.channels] = v;
            y[at + line] = v;
            y[at + line + params.channels] = v;
        }
    }
}
