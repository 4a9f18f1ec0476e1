// matmul.wgsl on a software adapter: the same sums in the same order, so the same bits
//
// There a subgroup is the lanes of a SIMD register and each lane's load an instruction of its own, so that loads cost
// what a GPU's registers would: a tile of 64×128, 8×16 a thread, and of four neighbours, which share their columns,
// each reads a quarter of them and hands it to the others.
// tile: one workgroup of 64 threads; slabs as in matmul.wgsl; 16.8 KiB of workgroup memory
// launch: (ceil(n / 128), gy, gz), with gy · gz at least ceil(m / 64)
//
// parts: those of matmul.wgsl, this file; constants, bindings, limits, reference and test: see there
// Needs quads of a subgroup. Has run on software Vulkan (Mesa 25.0.7) alone.

// Vectors of four columns in a line, and one more.
const WIDE_LINE: u32 = 33u;

// Lines of w; those of x are in `slab`.
var<workgroup> wide: array<vec4<f32>, 528>;

// Four columns of w from column `col` of y, at place `vector` in the lines of the slab from `k`.
fn stage_w(col: u32, vector: u32, k: u32, line: u32) {
    let w0 = load_w(col, params.n, k, params.k);
    let w1 = load_w(col + 1u, params.n, k, params.k);
    let w2 = load_w(col + 2u, params.n, k, params.k);
    let w3 = load_w(col + 3u, params.n, k, params.k);
    let slot = line * WIDE_LINE + vector;
    wide[slot] = vec4(w0.x, w1.x, w2.x, w3.x);
    wide[slot + WIDE_LINE] = vec4(w0.y, w1.y, w2.y, w3.y);
    wide[slot + 2u * WIDE_LINE] = vec4(w0.z, w1.z, w2.z, w3.z);
    wide[slot + 3u * WIDE_LINE] = vec4(w0.w, w1.w, w2.w, w3.w);
}

@compute @workgroup_size(64)
fn matmul_wide(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = (group.z * groups.y + group.y) * TILE;
    let col0 = group.x * 2u * TILE;
    if row0 >= params.m {
        return;
    }
    // The 4×4 block of x that this thread carries into workgroup memory, and two of w.
    let block_k = (thread % 4u) * 4u;
    let block = thread / 4u;
    let slot = block_k * LINE + block;
    // Its outputs: rows ty · 4 + 0..4 and 32 more, columns tx · 4 + 0..4, and 32, 64 and 96 more.
    let tx = thread / 8u;
    let ty = thread % 8u;

    var a0 = vec4<f32>(); var b0 = vec4<f32>(); var c0 = vec4<f32>(); var d0 = vec4<f32>();
    var a1 = vec4<f32>(); var b1 = vec4<f32>(); var c1 = vec4<f32>(); var d1 = vec4<f32>();
    var a2 = vec4<f32>(); var b2 = vec4<f32>(); var c2 = vec4<f32>(); var d2 = vec4<f32>();
    var a3 = vec4<f32>(); var b3 = vec4<f32>(); var c3 = vec4<f32>(); var d3 = vec4<f32>();
    var a4 = vec4<f32>(); var b4 = vec4<f32>(); var c4 = vec4<f32>(); var d4 = vec4<f32>();
    var a5 = vec4<f32>(); var b5 = vec4<f32>(); var c5 = vec4<f32>(); var d5 = vec4<f32>();
    var a6 = vec4<f32>(); var b6 = vec4<f32>(); var c6 = vec4<f32>(); var d6 = vec4<f32>();
    var a7 = vec4<f32>(); var b7 = vec4<f32>(); var c7 = vec4<f32>(); var d7 = vec4<f32>();

    for (var k0 = 0u; k0 < params.k; k0 += SLAB) {
        let row = row0 + block * 4u;
        let x0 = load_x(row, k0 + block_k);
        let x1 = load_x(row + 1u, k0 + block_k);
        let x2 = load_x(row + 2u, k0 + block_k);
        let x3 = load_x(row + 3u, k0 + block_k);
        slab[slot] = vec4(x0.x, x1.x, x2.x, x3.x);
        slab[slot + LINE] = vec4(x0.y, x1.y, x2.y, x3.y);
        slab[slot + 2u * LINE] = vec4(x0.z, x1.z, x2.z, x3.z);
        slab[slot + 3u * LINE] = vec4(x0.w, x1.w, x2.w, x3.w);
        stage_w(col0 + block * 4u, block, k0 + block_k, block_k);
        stage_w(col0 + TILE + block * 4u, block + 16u, k0 + block_k, block_k);
        workgroupBarrier();
        let depth = min(SLAB, params.k - k0);
        for (var k = 0u; k < depth; k += 1u) {
            let p = slab[k * LINE + ty];
            let q = slab[k * LINE + ty + 8u];
            let mine = wide[k * WIDE_LINE + tx + 8u * (thread % 4u)];
            let r = quadBroadcast(mine, 0u);
            let s = quadBroadcast(mine, 1u);
            let t = quadBroadcast(mine, 2u);
            let u = quadBroadcast(mine, 3u);
            a0 = fma(vec4(p.x), r, a0); b0 = fma(vec4(p.x), s, b0);
            c0 = fma(vec4(p.x), t, c0); d0 = fma(vec4(p.x), u, d0);
            a1 = fma(vec4(p.y), r, a1); b1 = fma(vec4(p.y), s, b1);
            c1 = fma(vec4(p.y), t, c1); d1 = fma(vec4(p.y), u, d1);
            a2 = fma(vec4(p.z), r, a2); b2 = fma(vec4(p.z), s, b2);
            c2 = fma(vec4(p.z), t, c2); d2 = fma(vec4(p.z), u, d2);
            a3 = fma(vec4(p.w), r, a3); b3 = fma(vec4(p.w), s, b3);
            c3 = fma(vec4(p.w), t, c3); d3 = fma(vec4(p.w), u, d3);
            a4 = fma(vec4(q.x), r, a4); b4 = fma(vec4(q.x), s, b4);
            c4 = fma(vec4(q.x), t, c4); d4 = fma(vec4(q.x), u, d4);
            a5 = fma(vec4(q.y), r, a5); b5 = fma(vec4(q.y), s, b5);
            c5 = fma(vec4(q.y), t, c5); d5 = fma(vec4(q.y), u, d5);
            a6 = fma(vec4(q.z), r, a6); b6 = fma(vec4(q.z), s, b6);
            c6 = fma(vec4(q.z), t, c6); d6 = fma(vec4(q.z), u, d6);
            a7 = fma(vec4(q.w), r, a7); b7 = fma(vec4(q.w), s, b7);
            c7 = fma(vec4(q.w), t, c7); d7 = fma(vec4(q.w), u, d7);
        }
        workgroupBarrier();
    }

    // A quarter of the tile at a time.
    let line = ty * 32u + tx;
    for (var quarter = 0u; quarter < 4u; quarter += 1u) {
        slab[line] = pick(quarter, a0, b0, c0, d0);
        slab[line + 8u] = pick(quarter, a1, b1, c1, d1);
        slab[line + 16u] = pick(quarter, a2, b2, c2, d2);
        slab[line + 24u] = pick(quarter, a3, b3, c3, d3);
        slab[line + 256u] = pick(quarter, a4, b4, c4, d4);
        slab[line + 264u] = pick(quarter, a5, b5, c5, d5);
        slab[line + 272u] = pick(quarter, a6, b6, c6, d6);
        slab[line + 280u] = pick(quarter, a7, b7, c7, d7);
        workgroupBarrier();
        flush(row0, col0 + quarter * 32u, thread);
        workgroupBarrier();
    }
}

fn pick(quarter: u32, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> vec4<f32> {
    return select(select(a, b, quarter == 1u), select(c, d, quarter == 3u), quarter >= 2u);
}
