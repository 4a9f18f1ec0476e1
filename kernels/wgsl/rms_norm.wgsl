// y[r, c] = x[r, c] / sqrt(mean over c of x[r, c]² + eps) * weight[c] (Zhang & Sennrich 2019)
// x, y: [rows, channels]; weight: [channels]; in vectors of WIDTH elements; the sum in f32
// tile: LANES threads a row, THREADS / LANES rows a workgroup; the row is read twice, from cache the second time
// parts: rows.wgsl, this file
// constants: elem f32 or f16, WIDTH 1, 2 or 4
// limits: elements below 1e19 / sqrt(channels), whose squares f32 can add up
// reference: ops::reference::rms_norm; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

// channels: in vectors
struct Params { rows: u32, channels: u32, eps: f32 }

@group(0) @binding(0) var<storage, read_write> x: array<elems>;
@group(0) @binding(1) var<storage, read_write> weight: array<elems>;
@group(0) @binding(2) var<storage, read_write> y: array<elems>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(THREADS)
fn rms_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
            @builtin(local_invocation_index) thread: u32) {
    let row = (group.y * groups.x + group.x) * (THREADS / LANES) + thread / LANES;
    let lane = thread % LANES;
    // Rows beyond the last read nothing and meet the barriers.
    let end = select(0u, params.channels, row < params.rows);
    let start = row * params.channels;

    var squares = floats(0.0);
    for (var c = lane; c < end; c += LANES) {
        let v = floats(x[start + c]);
        squares += v * v;
    }
    let mean = row_sums(squares, floats(0.0), thread).x / f32(params.channels * WIDTH);
    let scale = 1.0 / sqrt(mean + params.eps);

    for (var c = lane; c < end; c += LANES) {
        y[start + c] = elems(floats(x[start + c]) * scale * floats(weight[c]));
    }
}
