// conv2d.wgsl for few outputs, of which its tile would be half empty or more
//
// sums in f32, each of four partial ones: the first over the columns (ky, kx, input) with column / 4 % 4 = 0 in ascending
// order, and so on, then added in that order. A pixel's bits depend on the pixels under its kernel alone.
// tile: one workgroup of 64 threads makes 64 pixels × 4 outputs; four neighbours share 4 pixels × 4 outputs and read four
// columns each, side by side; 4 KiB of workgroup memory for their sums, of the 8.5 that gemm.wgsl has
// launch: (ceil(outputs / 4), gy, gz), with gy · gz at least ceil(batch · out_height · out_width / 64)
//
// parts: those of conv2d.wgsl, this file; constants, bindings, limits, reference and test: see there
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

@compute @workgroup_size(64)
fn conv2d_few(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = (group.z * groups.y + group.y) * TILE;
    let col0 = group.x * 4u;
    if row0 >= params.rows {
        return;
    }
    // Its pixels: this one and those 16, 32 and 48 after it.
    let first = row0 + thread / 4u;
    let p0 = corner(first);
    let p1 = corner(first + 16u);
    let p2 = corner(first + 32u);
    let p3 = corner(first + 48u);
    var a0 = vec4<f32>();
    var a1 = vec4<f32>();
    var a2 = vec4<f32>();
    var a3 = vec4<f32>();
    let columns = params.kh * params.kw * params.inputs;
    let start = (thread % 4u) * 4u;
    var at = column(start);
    for (var k = start; k < columns; k += SLAB) {
        let x0 = load_x(p0, at, k);
        let x1 = load_x(p1, at, k);
        let x2 = load_x(p2, at, k);
        let x3 = load_x(p3, at, k);
        let w0 = load_w(col0, params.outputs, k, columns);
        let w1 = load_w(col0 + 1u, params.outputs, k, columns);
        let w2 = load_w(col0 + 2u, params.outputs, k, columns);
        let w3 = load_w(col0 + 3u, params.outputs, k, columns);
        at = next(at, k);
        let r = vec4(w0.x, w1.x, w2.x, w3.x);
        let s = vec4(w0.y, w1.y, w2.y, w3.y);
        let t = vec4(w0.z, w1.z, w2.z, w3.z);
        let u = vec4(w0.w, w1.w, w2.w, w3.w);
        a0 = fma(vec4(x0.w), u, fma(vec4(x0.z), t, fma(vec4(x0.y), s, fma(vec4(x0.x), r, a0))));
        a1 = fma(vec4(x1.w), u, fma(vec4(x1.z), t, fma(vec4(x1.y), s, fma(vec4(x1.x), r, a1))));
        a2 = fma(vec4(x2.w), u, fma(vec4(x2.z), t, fma(vec4(x2.y), s, fma(vec4(x2.x), r, a2))));
        a3 = fma(vec4(x3.w), u, fma(vec4(x3.z), t, fma(vec4(x3.y), s, fma(vec4(x3.x), r, a3))));
    }

    // In the order of pixels, four threads' sums side by side.
    slab[thread] = a0;
    slab[64u + thread] = a1;
    slab[128u + thread] = a2;
    slab[192u + thread] = a3;
    workgroupBarrier();
    let row = row0 + thread;
    if row < params.rows {
        let sums = slab[4u * thread] + slab[4u * thread + 1u] + slab[4u * thread + 2u] + slab[4u * thread + 3u];
        for (var i = 0u; i < min(4u, params.outputs - col0); i += 1u) {
            finish(row, col0 + i, sums[i]);
        }
    }
}
