// Sums over a row that LANES threads share, THREADS / LANES rows a workgroup, in a fixed order: for layer_norm.wgsl,
// rms_norm.wgsl and qk_norm_rope.wgsl.

const LANES: u32 = 32u;

var<workgroup> sums: array<vec2<f32>, THREADS>;

// Two sums over the lanes of a row, the same in each of them.
fn row_sums(first: floats, second: floats, thread: u32) -> vec2<f32> {
    sums[thread] = vec2(across(first), across(second));
    workgroupBarrier();
    for (var step = LANES / 2u; step > 0u; step /= 2u) {
        if thread % LANES < step { sums[thread] += sums[thread + step]; }
        workgroupBarrier();
    }
    let sum = sums[thread / LANES * LANES];
    workgroupBarrier();
    return sum;
}
