// y = residual + gate * f(w · x + bias) for each row of x: matmul.wgsl where a picture has one row, as a timestep's embedding has
// x: [rows, k]; w: [n, k]; bias: [n]; residual, gate, y: [rows, n]; x and w in vectors of WIDTH elements; sums in f32
// tile: LANES threads an output, THREADS / LANES outputs of one row a workgroup; w is read side by side
// launch: (ceil(n / (THREADS / LANES)), rows)
// parts: gelu.wgsl, epilogue.wgsl, this file
// constants: elem f32 or f16; WIDTH 1, 2 or 4, a divisor of k
// limits: rows at most 65535; an input that its parameter turns off is bound and never read
// reference: ops::reference::linear; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

const LANES: u32 = 32u;

// k: in vectors; the rest as in matmul.wgsl
struct Params { n: u32, k: u32, bias: u32, residual: u32, activation: u32, gate_rows: u32 }

@group(0) @binding(0) var<storage, read_write> x: array<elems>;
@group(0) @binding(1) var<storage, read_write> w: array<elems>;
@group(0) @binding(2) var<storage, read_write> bias: array<elem>;
@group(0) @binding(3) var<storage, read_write> residual: array<elem>;
@group(0) @binding(4) var<storage, read_write> gate: array<elem>;
@group(0) @binding(5) var<storage, read_write> y: array<elem>;
@group(0) @binding(6) var<uniform> params: Params;

var<workgroup> sums: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn matvec(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let column = group.x * (THREADS / LANES) + thread / LANES;
    let lane = thread % LANES;
    // Columns beyond the last read nothing and meet the barriers.
    let end = select(0u, params.k, column < params.n);
    var part = floats(0.0);
    for (var i = lane; i < end; i += LANES) {
        part += floats(x[group.y * params.k + i]) * floats(w[column * params.k + i]);
    }
    sums[thread] = across(part);
    workgroupBarrier();
    // 32 lanes to 8, and those to one: a barrier costs more than the sums.
    if lane < 8u {
        sums[thread] = (sums[thread] + sums[thread + 8u]) + (sums[thread + 16u] + sums[thread + 24u]);
    }
    workgroupBarrier();
    if lane == 0u {
        let first = (sums[thread] + sums[thread + 1u]) + (sums[thread + 2u] + sums[thread + 3u]);
        let second = (sums[thread + 4u] + sums[thread + 5u]) + (sums[thread + 6u] + sums[thread + 7u]);
        sums[thread] = first + second;
    }
    if lane == 0u && column < params.n {
        y[group.y * params.n + column] = elem(finished(sums[thread], group.y, column));
    }
}
