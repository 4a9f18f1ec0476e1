// y[r, c] = (x[r, c] - mean[r]) / sqrt(var[r] + eps) * slope + bias, var biased (Ba et al. 2016); one entry a form:
//   layer_norm           slope = weight[c], bias = bias[c]
//   layer_norm_modulate  slope = 1 + weight[p, c], bias = bias[p, c], p the row's picture (AdaLN, Peebles & Xie 2023)
// x, y: [rows, channels]; weight, bias: [channels] or [pictures, channels]; in vectors of WIDTH elements; sums in f32
// tile: LANES threads a row, THREADS / LANES rows a workgroup; the row is read three times, from cache after the first
// parts: rows.wgsl, this file
// constants: elem f32 or f16, WIDTH 1, 2 or 4
// the variance is summed around the mean, and the mean's own rounding is taken out, so that a row far from zero, or with
// outliers, loses nothing
// reference: ops::reference::layer_norm, layer_norm_modulate; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

// channels: in vectors; picture: rows of one, for layer_norm_modulate alone
struct Params { rows: u32, channels: u32, eps: f32, picture: u32 }

@group(0) @binding(0) var<storage, read_write> x: array<elems>;
@group(0) @binding(1) var<storage, read_write> weight: array<elems>;
@group(0) @binding(2) var<storage, read_write> bias: array<elems>;
@group(0) @binding(3) var<storage, read_write> y: array<elems>;
@group(0) @binding(4) var<uniform> params: Params;

// picture: rows of the same weights; lift: added to each of them
fn normalise(index: u32, thread: u32, picture: u32, lift: f32) {
    let row = index * (THREADS / LANES) + thread / LANES;
    let lane = thread % LANES;
    // Rows beyond the last read nothing and meet the barriers.
    let end = select(0u, params.channels, row < params.rows);
    let start = row * params.channels;
    let count = f32(params.channels * WIDTH);

    var part = floats(0.0);
    for (var c = lane; c < end; c += LANES) { part += floats(x[start + c]); }
    let mean = row_sums(part, floats(0.0), thread).x / count;

    part = floats(0.0);
    var squares = floats(0.0);
    for (var c = lane; c < end; c += LANES) {
        let centred = floats(x[start + c]) - mean;
        part += centred;
        squares += centred * centred;
    }
    let moments = row_sums(part, squares, thread) / count;
    // What rounding has left of the mean.
    let rest = moments.x;
    let scale = 1.0 / sqrt(max(moments.y - rest * rest, 0.0) + params.eps);

    let affine = row / picture * params.channels;
    for (var c = lane; c < end; c += LANES) {
        let normalised = (floats(x[start + c]) - mean - rest) * scale;
        y[start + c] = elems(normalised * (floats(weight[affine + c]) + lift) + floats(bias[affine + c]));
    }
}

@compute @workgroup_size(THREADS)
fn layer_norm(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
              @builtin(local_invocation_index) thread: u32) {
    normalise(group.y * groups.x + group.x, thread, params.rows, 0.0);
}

@compute @workgroup_size(THREADS)
fn layer_norm_modulate(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                       @builtin(local_invocation_index) thread: u32) {
    normalise(group.y * groups.x + group.x, thread, params.picture, 1.0);
}
