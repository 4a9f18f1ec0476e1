// For every head of q and of k, of 2 * pairs channels: n = x / sqrt(mean(x²) + eps) * weight (Zhang & Sennrich 2019), then
// each pair of neighbours turned by its token's angle (Su et al. 2021):
//   y[2i] = n[2i] * cos[t, i] - n[2i + 1] * sin[t, i];  y[2i + 1] = n[2i + 1] * cos[t, i] + n[2i] * sin[t, i]
// q, q_out: [rows, q_heads, 2 * pairs]; k, k_out: [rows, k_heads, 2 * pairs]; q_weight, k_weight: [2 * pairs]; cosines, sines:
// [tokens, pairs] in f32, row r is token r % tokens; the sum in f32
// tile: LANES threads a head, THREADS / LANES heads a workgroup; q's heads before k's in each row; a head is read
// twice, from cache the second time
// parts: rows.wgsl, this file
// constants: elem f32 or f16, WIDTH 2: a vector is a pair
// reference: ops::reference::qk_norm_rope; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

struct Params { rows: u32, tokens: u32, q_heads: u32, k_heads: u32, pairs: u32, eps: f32 }

@group(0) @binding(0) var<storage, read_write> q: array<elems>;
@group(0) @binding(1) var<storage, read_write> k: array<elems>;
@group(0) @binding(2) var<storage, read_write> q_weight: array<elems>;
@group(0) @binding(3) var<storage, read_write> k_weight: array<elems>;
@group(0) @binding(4) var<storage, read_write> cosines: array<f32>;
@group(0) @binding(5) var<storage, read_write> sines: array<f32>;
@group(0) @binding(6) var<storage, read_write> q_out: array<elems>;
@group(0) @binding(7) var<storage, read_write> k_out: array<elems>;
@group(0) @binding(8) var<uniform> params: Params;

fn pair_of(of_q: bool, at: u32) -> floats {
    if of_q { return floats(q[at]); }
    return floats(k[at]);
}

fn weights_of(of_q: bool, pair: u32) -> floats {
    if of_q { return floats(q_weight[pair]); }
    return floats(k_weight[pair]);
}

@compute @workgroup_size(THREADS)
fn qk_norm_rope(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                @builtin(local_invocation_index) thread: u32) {
    let index = (group.y * groups.x + group.x) * (THREADS / LANES) + thread / LANES;
    let lane = thread % LANES;
    let heads = params.q_heads + params.k_heads;
    let row = index / heads;
    let head = index % heads;
    let of_q = head < params.q_heads;
    // Rows beyond the last read nothing and meet the barriers.
    let end = select(0u, params.pairs, row < params.rows);
    let place = select(row * params.k_heads + head - params.q_heads, row * params.q_heads + head, of_q);
    let start = place * params.pairs;
    let angles = row % params.tokens * params.pairs;

    var squares = floats(0.0);
    for (var i = lane; i < end; i += LANES) {
        let v = pair_of(of_q, start + i);
        squares += v * v;
    }
    let mean = row_sums(squares, floats(0.0), thread).x / f32(params.pairs * WIDTH);
    let scale = 1.0 / sqrt(mean + params.eps);

    for (var i = lane; i < end; i += LANES) {
        let n = pair_of(of_q, start + i) * scale * weights_of(of_q, i);
        let cosine = cosines[angles + i];
        let sine = sines[angles + i];
        let turned = elems(floats(n.x * cosine - n.y * sine, n.y * cosine + n.x * sine));
        if of_q { q_out[start + i] = turned; } else { k_out[start + i] = turned; }
    }
}
