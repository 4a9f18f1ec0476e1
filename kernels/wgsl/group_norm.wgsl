// y = act((x - mean[g]) / sqrt(var[g] + eps) * weight[c] + bias[c]) over each picture's channel groups, var biased
// (Wu & He 2018); act is nothing or v * sigmoid(v)
// x, y: [batch, pixels, channels]; weight, bias: [channels]; in vectors of WIDTH elements; sums in f32
// Three launches:
//   group_norm_statistics  (slice, block of BLOCK groups, picture) -> mean and squared deviations of that slice, [batch, slices,
//               groups]; the deviations are summed around the slice's own mean, and the mean's own rounding is taken
//               out, so that a map far from zero, or with outliers, loses nothing. Where there is one slice, mean and
//               1 / sqrt(var + eps).
//   group_norm_combine  (picture and group) -> mean and 1 / sqrt(var + eps), [batch, groups]; not needed for one slice
//   group_norm_apply  element by element
// tile: a thread of the first owns one vector column and every rows-th pixel; a block is wide enough for whole
// cache lines
// parts: gelu.wgsl, this file
// constants: elem f32 or f16; WIDTH 1, 2 or 4, a divisor of the channels of a group; BLOCK; SILU 0 or 1
// limits: BLOCK * columns of a group at most THREADS; slices at most THREADS
// reference: ops::reference::group_norm; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

// columns: vectors of one group; span: pixels of a slice
struct Params { pixels: u32, groups: u32, columns: u32, slices: u32, span: u32, count: u32, eps: f32 }

struct Statistics { mean: f32, spread: f32 }

@group(0) @binding(0) var<storage, read_write> x: array<elems>;

@group(0) @binding(1) var<storage, read_write> partial: array<Statistics>;
@group(0) @binding(2) var<uniform> params: Params;

var<workgroup> sums: array<vec2<f32>, THREADS>;

// Two sums over a thread's group: over the rows of threads first, then over the group's columns, in a fixed order.
fn group_sums(first: floats, second: floats, row: u32, rows: u32, column: u32, live: bool) -> vec2<f32> {
    let width = BLOCK * params.columns;
    let slot = row * width + column;
    if live { sums[slot] = vec2(across(first), across(second)); }
    workgroupBarrier();
    for (var left = rows; left > 1u; left = (left + 1u) / 2u) {
        let kept = (left + 1u) / 2u;
        if live && row < left - kept { sums[slot] += sums[slot + kept * width]; }
        workgroupBarrier();
    }
    let inner = column % params.columns;
    for (var left = params.columns; left > 1u; left = (left + 1u) / 2u) {
        let kept = (left + 1u) / 2u;
        if live && row == 0u && inner < left - kept { sums[column] += sums[column + kept]; }
        workgroupBarrier();
    }
    // An idle thread's column may lie beyond the block.
    let sum = sums[select(0u, column - inner, live)];
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(THREADS)
fn group_norm_statistics(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let width = BLOCK * params.columns;
    let rows = THREADS / width;
    let row = thread / width;
    let column = thread % width;
    let index = group.y * BLOCK + column / params.columns;
    let live = row < rows && index < params.groups;

    let stride = params.groups * params.columns;
    let start = group.x * params.span;
    let end = min(start + params.span, params.pixels);
    let base = group.z * params.pixels * stride + group.y * width + column;
    let stop = select(start, end, live);
    let count = f32((end - start) * params.columns * WIDTH);

    var part = floats(0.0);
    for (var p = start + row; p < stop; p += rows) { part += floats(x[base + p * stride]); }
    let mean = group_sums(part, floats(0.0), row, rows, column, live).x / count;

    part = floats(0.0);
    var squares = floats(0.0);
    for (var p = start + row; p < stop; p += rows) {
        let centred = floats(x[base + p * stride]) - mean;
        part += centred;
        squares += centred * centred;
    }
    let moments = group_sums(part, squares, row, rows, column, live);
    // What rounding has left of the mean.
    let rest = moments.x / count;
    var spread = max(moments.y - rest * moments.x, 0.0);
    if params.slices == 1u { spread = 1.0 / sqrt(spread / count + params.eps); }
    if live && row == 0u && column % params.columns == 0u {
        partial[(group.z * params.slices + group.x) * params.groups + index] = Statistics(mean + rest, spread);
    }
}

@group(0) @binding(0) var<storage, read_write> slices: array<Statistics>;
@group(0) @binding(1) var<storage, read_write> combined: array<Statistics>;

var<workgroup> parts: array<f32, THREADS>;

fn total(value: f32, thread: u32) -> f32 {
    parts[thread] = value;
    workgroupBarrier();
    for (var step = THREADS / 2u; step > 0u; step /= 2u) {
        if thread < step { parts[thread] += parts[thread + step]; }
        workgroupBarrier();
    }
    let sum = parts[0];
    workgroupBarrier();
    return sum;
}

@compute @workgroup_size(THREADS)
fn group_norm_combine(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    var slice = Statistics(0.0, 0.0);
    var share = 0.0;
    if thread < params.slices {
        slice = slices[(group.y * params.slices + thread) * params.groups + group.x];
        share = f32(min(params.span, params.pixels - thread * params.span)) / f32(params.pixels);
    }
    let mean = total(slice.mean * share, thread);
    let offset = slice.mean - mean;
    let count = f32(params.pixels * params.columns * WIDTH);
    let variance = total(slice.spread / count + offset * offset * share, thread);
    if thread == 0u {
        combined[group.y * params.groups + group.x] = Statistics(mean, 1.0 / sqrt(variance + params.eps));
    }
}

@group(0) @binding(1) var<storage, read_write> known: array<Statistics>;
@group(0) @binding(2) var<storage, read_write> weight: array<elems>;
@group(0) @binding(3) var<storage, read_write> bias: array<elems>;
@group(0) @binding(4) var<storage, read_write> y: array<elems>;
@group(0) @binding(5) var<uniform> sizes: Params;

const ITEMS: u32 = 4u;

@compute @workgroup_size(THREADS)
fn group_norm_apply(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
         @builtin(local_invocation_index) thread: u32) {
    let start = (group.y * groups.x + group.x) * THREADS * ITEMS + thread;
    let stride = sizes.groups * sizes.columns;
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < sizes.count {
            let pixel = i / stride;
            let column = i - pixel * stride;
            let at = known[pixel / sizes.pixels * sizes.groups + column / sizes.columns];
            var v = (floats(x[i]) - at.mean) * at.spread * floats(weight[column]) + floats(bias[column]);
            if SILU == 1u { v = silu_of(v); }
            y[i] = elems(v);
        }
    }
}
