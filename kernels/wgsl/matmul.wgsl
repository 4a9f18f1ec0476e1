// y = residual + gate * f(x · wᵀ + bias); f is nothing or an activation
//
// x: [m, k], every row of the call (batch · tokens); w: [n, k]; bias: [n]; residual, y: [m, n]; gate: [batch, n], one row
// for all rows of a picture; all contiguous, f32 or f16, sums in f32, each over k in ascending order from zero, and all that
// follows in f32, rounded once: a row's bits depend on that row alone.
// tile: one workgroup of 64 threads an output tile of 64×64, 8×8 a thread; k goes through workgroup memory in
// slabs of 16, transposed there so that a thread reads four rows at once; 8.5 KiB
// launch: (ceil(n / 64), gy, gz), with gy · gz at least ceil(m / 64)
// limits: m, n, k at least 1; every tensor below 2^31 elements
//
// parts: gelu.wgsl, epilogue.wgsl, gemm.wgsl, this file
// constants:
//   WIDTH  4 when k % 4 == 0, else 1: elements of one load
// bindings: x, w, bias, residual, gate, y, params; an input that params turns off is bound and never read
// reference: ops::reference::linear; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    // 1 to add them.
    bias: u32,
    residual: u32,
    // 0 none, 1 gelu, 2 quick_gelu, 3 silu, 4 gelu_tanh
    activation: u32,
    // Of a picture; 0 for no gate.
    gate_rows: u32,
}

@group(0) @binding(4) var<storage, read_write> gate: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<elem>;
@group(0) @binding(6) var<uniform> params: Params;

// Four elements of a row of x from column `k`; rows past the last repeat it, columns past the last are zero.
fn load_x(row: u32, k: u32) -> vec4<f32> {
    let start = min(row, params.m - 1u) * params.k;
    if WIDTH == 4u {
        if k < params.k {
            return take_x(start + k);
        }
        return vec4<f32>();
    }
    var v = vec4<f32>();
    for (var i = 0u; i < 4u; i += 1u) {
        if k + i < params.k {
            v[i] = take_x(start + k + i).x;
        }
    }
    return v;
}

// Writes the 64 rows × 32 columns that lie in `slab`, side by side.
fn flush(row0: u32, col0: u32, thread: u32) {
    for (var i = thread; i < TILE * TILE / 2u; i += 64u) {
        let row = row0 + i / 32u;
        let col = col0 + i % 32u;
        if row < params.m && col < params.n {
            y[row * params.n + col] = elem(finished(slab[i / 4u][i % 4u], row, col));
        }
    }
}

@compute @workgroup_size(64)
fn matmul(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = (group.z * groups.y + group.y) * TILE;
    let col0 = group.x * TILE;
    if row0 >= params.m {
        return;
    }
    // The 4×4 block that this thread carries into workgroup memory.
    let block_k = (thread % 4u) * 4u;
    let block = thread / 4u;
    let slot = block_k * LINE + block;
    // Its outputs: rows ty · 4 + 0..4 and 32 more, columns tx · 4 + 0..4 and 32 more.
    let tx = thread % 8u;
    let ty = thread / 8u;

    var a0 = vec4<f32>(); var b0 = vec4<f32>();
    var a1 = vec4<f32>(); var b1 = vec4<f32>();
    var a2 = vec4<f32>(); var b2 = vec4<f32>();
    var a3 = vec4<f32>(); var b3 = vec4<f32>();
    var a4 = vec4<f32>(); var b4 = vec4<f32>();
    var a5 = vec4<f32>(); var b5 = vec4<f32>();
    var a6 = vec4<f32>(); var b6 = vec4<f32>();
    var a7 = vec4<f32>(); var b7 = vec4<f32>();

    for (var k0 = 0u; k0 < params.k; k0 += SLAB) {
        let row = row0 + block * 4u;
        let x0 = load_x(row, k0 + block_k);
        let x1 = load_x(row + 1u, k0 + block_k);
        let x2 = load_x(row + 2u, k0 + block_k);
        let x3 = load_x(row + 3u, k0 + block_k);
        let col = col0 + block * 4u;
        let w0 = load_w(col, params.n, k0 + block_k, params.k);
        let w1 = load_w(col + 1u, params.n, k0 + block_k, params.k);
        let w2 = load_w(col + 2u, params.n, k0 + block_k, params.k);
        let w3 = load_w(col + 3u, params.n, k0 + block_k, params.k);
        slab[slot] = vec4(x0.x, x1.x, x2.x, x3.x);
        slab[slot + LINE] = vec4(x0.y, x1.y, x2.y, x3.y);
        slab[slot + 2u * LINE] = vec4(x0.z, x1.z, x2.z, x3.z);
        slab[slot + 3u * LINE] = vec4(x0.w, x1.w, x2.w, x3.w);
        slab[W + slot] = vec4(w0.x, w1.x, w2.x, w3.x);
        slab[W + slot + LINE] = vec4(w0.y, w1.y, w2.y, w3.y);
        slab[W + slot + 2u * LINE] = vec4(w0.z, w1.z, w2.z, w3.z);
        slab[W + slot + 3u * LINE] = vec4(w0.w, w1.w, w2.w, w3.w);
        workgroupBarrier();
        let depth = min(SLAB, params.k - k0);
        for (var k = 0u; k < depth; k += 1u) {
            let p = slab[k * LINE + ty];
            let q = slab[k * LINE + ty + 8u];
            let r = slab[W + k * LINE + tx];
            let s = slab[W + k * LINE + tx + 8u];
            a0 = fma(vec4(p.x), r, a0); b0 = fma(vec4(p.x), s, b0);
            a1 = fma(vec4(p.y), r, a1); b1 = fma(vec4(p.y), s, b1);
            a2 = fma(vec4(p.z), r, a2); b2 = fma(vec4(p.z), s, b2);
            a3 = fma(vec4(p.w), r, a3); b3 = fma(vec4(p.w), s, b3);
            a4 = fma(vec4(q.x), r, a4); b4 = fma(vec4(q.x), s, b4);
            a5 = fma(vec4(q.y), r, a5); b5 = fma(vec4(q.y), s, b5);
            a6 = fma(vec4(q.z), r, a6); b6 = fma(vec4(q.z), s, b6);
            a7 = fma(vec4(q.w), r, a7); b7 = fma(vec4(q.w), s, b7);
        }
        workgroupBarrier();
    }

    let line = ty * 32u + tx;
    slab[line] = a0;
    slab[line + 8u] = a1;
    slab[line + 16u] = a2;
    slab[line + 24u] = a3;
    slab[line + 256u] = a4;
    slab[line + 264u] = a5;
    slab[line + 272u] = a6;
    slab[line + 280u] = a7;
    workgroupBarrier();
    flush(row0, col0, thread);
    workgroupBarrier();
    slab[line] = b0;
    slab[line + 8u] = b1;
    slab[line + 16u] = b2;
    slab[line + 24u] = b3;
    slab[line + 256u] = b4;
    slab[line + 264u] = b5;
    slab[line + 272u] = b6;
    slab[line + 280u] = b7;
    workgroupBarrier();
    flush(row0, col0 + 32u, thread);
}
