// y = softmax(q · kᵀ · scale + mask) · v for each head, the scores never in device memory
//
// q, y: [batch, queries, heads · D]; k, v: [batch, keys, heads · D]; contiguous, f32 or f16; scores, softmax and
// sums in f32. The softmax is the online one (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022): keys in
// ascending order, a running maximum and sum for each query, so that scores of any finite size do not overflow.
// An output row's bits depend on its query, its head's keys and values, and the shapes of one picture alone.
// tile: one workgroup makes QUERIES rows of one head against KEYS keys at a time, QUERIES · KEYS = 2048. First the
// scores, 4×4 a thread, q and k read from device memory along D; then the maxima, one row a thread, the exponentials,
// four at a time, and their sums, one row a thread; then scores · v, 8 queries × 8 of the head's dims a thread, in
// registers from the first key to the last.
// Workgroup memory: the scores, 8 KiB, and three numbers a query; at most 8.8 KiB
// launch: (ceil(queries / QUERIES), heads, batch)
// limits: D a multiple of 8, at most 512; queries, keys, heads and batch at least 1, heads and batch at
// most 65535; every tensor below 2^31 elements
//
// constants:
//   WIDTH    4
//   D        the head dim
//   QUERIES  64, or 32 for D above 256
// bindings: q, k, v, y, params
// reference: ops::reference::attention; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

struct Params {
    queries: u32,
    keys: u32,
    heads: u32,
    scale: f32,
    // 1 when a query sees the keys at or before its own position (queries == keys), 0 when it sees all.
    causal: u32,
}

@group(0) @binding(0) var<storage, read_write> q: array<elems>;
@group(0) @binding(1) var<storage, read_write> k: array<elems>;
@group(0) @binding(2) var<storage, read_write> v: array<elems>;
@group(0) @binding(3) var<storage, read_write> y: array<elems>;
@group(0) @binding(4) var<uniform> params: Params;

const KEYS: u32 = 2048u / QUERIES;
const WORKERS: u32 = QUERIES / 8u * (D / 8u);
// Vectors of four queries in a key's line of the scores.
const LINE: u32 = QUERIES / 4u;
// Below every score that finite f16, bf16 or reasonable f32 inputs give, and finite, so that no difference is NaN.
const LOWEST: f32 = -3.0e38;

var<workgroup> scores: array<vec4<f32>, 512>;
// Of each query: the running maximum, the running sum, and what this tile multiplies the sums so far by.
var<workgroup> maximum: array<f32, QUERIES>;
var<workgroup> total: array<f32, QUERIES>;
var<workgroup> rescale: array<f32, QUERIES>;

fn dot4(a: vec4<f32>, b: vec4<f32>, sum: f32) -> f32 {
    return fma(a.w, b.w, fma(a.z, b.z, fma(a.y, b.y, fma(a.x, b.x, sum))));
}

// The scores of four queries and one key; lines past the last repeat it.
fn score(c: vec4<f32>, q0: vec4<f32>, q1: vec4<f32>, q2: vec4<f32>, q3: vec4<f32>, key: vec4<f32>) -> vec4<f32> {
    return vec4(dot4(q0, key, c.x), dot4(q1, key, c.y), dot4(q2, key, c.z), dot4(q3, key, c.w));
}

// The keys of a tile that a query sees: the first so many.
fn seen(query: u32, key0: u32, count: u32) -> u32 {
    if params.causal == 1u {
        return min(count, max(query + 1u, key0) - key0);
    }
    return count;
}

// Takes a row's maximum on from the tiles so far to this one's keys.
fn lift(row: u32, query: u32, key0: u32, count: u32) {
    let before = maximum[row];
    var top = before;
    let end = seen(query, key0, count);
    for (var i = 0u; i < end; i += 1u) {
        top = max(top, scores[i * LINE + row / 4u][row % 4u] * params.scale);
    }
    maximum[row] = top;
    rescale[row] = exp(before - top);
}

// Raw scores of four queries and one key become exp(score - maximum), or zero where a query does not see the key.
// A vector whole: writes of single components by several threads may undo one another (WGSL lets each write all four).
fn soften(slot: u32, query0: u32, key0: u32, count: u32) {
    let row = slot % LINE * 4u;
    let top = vec4(maximum[row], maximum[row + 1u], maximum[row + 2u], maximum[row + 3u]);
    let query = query0 + row;
    let end = vec4(seen(query, key0, count), seen(query + 1u, key0, count),
                   seen(query + 2u, key0, count), seen(query + 3u, key0, count));
    scores[slot] = select(vec4<f32>(), exp(scores[slot] * params.scale - top), vec4(slot / LINE) < end);
}

@compute @workgroup_size(WORKERS)
fn attention(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    // In vectors of 4: from a token to the next, this head's part of a token, this picture's first token.
    let stride = params.heads * (D / 4u);
    let head = group.y * (D / 4u);
    let of_queries = group.z * params.queries * stride + head;
    let of_keys = group.z * params.keys * stride + head;
    let query0 = group.x * QUERIES;
    // This thread's part of the output: queries ty · 8 + 0..8, dims tx · 8 + 0..8.
    let tx = thread % (D / 8u);
    let ty = thread / (D / 8u);

    for (var row = thread; row < QUERIES; row += WORKERS) {
        maximum[row] = LOWEST;
        total[row] = 0.0;
    }
    var a0 = vec4<f32>(); var b0 = vec4<f32>();
    var a1 = vec4<f32>(); var b1 = vec4<f32>();
    var a2 = vec4<f32>(); var b2 = vec4<f32>();
    var a3 = vec4<f32>(); var b3 = vec4<f32>();
    var a4 = vec4<f32>(); var b4 = vec4<f32>();
    var a5 = vec4<f32>(); var b5 = vec4<f32>();
    var a6 = vec4<f32>(); var b6 = vec4<f32>();
    var a7 = vec4<f32>(); var b7 = vec4<f32>();

    var end = params.keys;
    if params.causal == 1u {
        end = min(end, query0 + QUERIES);
    }
    for (var key0 = 0u; key0 < end; key0 += KEYS) {
        for (var block = thread; block < 128u; block += WORKERS) {
            let line = block % LINE;
            let key = block / LINE * 4u;
            let query = query0 + line * 4u;
            let last_query = params.queries - 1u;
            let q0 = of_queries + min(query, last_query) * stride;
            let q1 = of_queries + min(query + 1u, last_query) * stride;
            let q2 = of_queries + min(query + 2u, last_query) * stride;
            let q3 = of_queries + min(query + 3u, last_query) * stride;
            let last_key = params.keys - 1u;
            let k0 = of_keys + min(key0 + key, last_key) * stride;
            let k1 = of_keys + min(key0 + key + 1u, last_key) * stride;
            let k2 = of_keys + min(key0 + key + 2u, last_key) * stride;
            let k3 = of_keys + min(key0 + key + 3u, last_key) * stride;
            var s0 = vec4<f32>();
            var s1 = vec4<f32>();
            var s2 = vec4<f32>();
            var s3 = vec4<f32>();
            for (var i = 0u; i < D / 4u; i += 1u) {
                let r0 = vec4<f32>(q[q0 + i]);
                let r1 = vec4<f32>(q[q1 + i]);
                let r2 = vec4<f32>(q[q2 + i]);
                let r3 = vec4<f32>(q[q3 + i]);
                s0 = score(s0, r0, r1, r2, r3, vec4<f32>(k[k0 + i]));
                s1 = score(s1, r0, r1, r2, r3, vec4<f32>(k[k1 + i]));
                s2 = score(s2, r0, r1, r2, r3, vec4<f32>(k[k2 + i]));
                s3 = score(s3, r0, r1, r2, r3, vec4<f32>(k[k3 + i]));
            }
            scores[key * LINE + line] = s0;
            scores[(key + 1u) * LINE + line] = s1;
            scores[(key + 2u) * LINE + line] = s2;
            scores[(key + 3u) * LINE + line] = s3;
        }
        workgroupBarrier();
        let count = min(params.keys - key0, KEYS);
        for (var row = thread; row < QUERIES; row += WORKERS) {
            lift(row, query0 + row, key0, count);
        }
        workgroupBarrier();
        for (var slot = thread; slot < 512u; slot += WORKERS) {
            soften(slot, query0, key0, count);
        }
        workgroupBarrier();
        for (var row = thread; row < QUERIES; row += WORKERS) {
            var sum = 0.0;
            for (var i = 0u; i < count; i += 1u) {
                sum += scores[i * LINE + row / 4u][row % 4u];
            }
            total[row] = fma(total[row], rescale[row], sum);
        }
        let first = ty * 8u;
        a0 *= rescale[first]; b0 *= rescale[first];
        a1 *= rescale[first + 1u]; b1 *= rescale[first + 1u];
        a2 *= rescale[first + 2u]; b2 *= rescale[first + 2u];
        a3 *= rescale[first + 3u]; b3 *= rescale[first + 3u];
        a4 *= rescale[first + 4u]; b4 *= rescale[first + 4u];
        a5 *= rescale[first + 5u]; b5 *= rescale[first + 5u];
        a6 *= rescale[first + 6u]; b6 *= rescale[first + 6u];
        a7 *= rescale[first + 7u]; b7 *= rescale[first + 7u];
        for (var i = 0u; i < count; i += 1u) {
            let at = of_keys + (key0 + i) * stride + tx * 2u;
            let c = vec4<f32>(v[at]);
            let d = vec4<f32>(v[at + 1u]);
            let p = scores[i * LINE + ty * 2u];
            let r = scores[i * LINE + ty * 2u + 1u];
            a0 = fma(vec4(p.x), c, a0); b0 = fma(vec4(p.x), d, b0);
            a1 = fma(vec4(p.y), c, a1); b1 = fma(vec4(p.y), d, b1);
            a2 = fma(vec4(p.z), c, a2); b2 = fma(vec4(p.z), d, b2);
            a3 = fma(vec4(p.w), c, a3); b3 = fma(vec4(p.w), d, b3);
            a4 = fma(vec4(r.x), c, a4); b4 = fma(vec4(r.x), d, b4);
            a5 = fma(vec4(r.y), c, a5); b5 = fma(vec4(r.y), d, b5);
            a6 = fma(vec4(r.z), c, a6); b6 = fma(vec4(r.z), d, b6);
            a7 = fma(vec4(r.w), c, a7); b7 = fma(vec4(r.w), d, b7);
        }
        workgroupBarrier();
    }

    for (var row = 0u; row < 8u; row += 1u) {
        let query = query0 + ty * 8u + row;
        var a = a0; var b = b0;
        switch row {
            case 1u: { a = a1; b = b1; }
            case 2u: { a = a2; b = b2; }
            case 3u: { a = a3; b = b3; }
            case 4u: { a = a4; b = b4; }
            case 5u: { a = a5; b = b5; }
            case 6u: { a = a6; b = b6; }
            case 7u: { a = a7; b = b7; }
            default: {}
        }
        if query < params.queries {
            // The greatest score adds exp(0), so the total is at least 1 up to rounding.
            let inverse = 1.0 / total[ty * 8u + row];
            let at = of_queries + query * stride + tx * 2u;
            y[at] = elems(a * inverse);
            y[at + 1u] = elems(b * inverse);
        }
    }
}
