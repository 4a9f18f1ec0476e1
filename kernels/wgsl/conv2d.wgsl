// y = cross-correlation(x, w) + bias + residual, channels last
//
// x: [batch, height, width, inputs], or that before upsampling; w: [outputs, kh, kw, inputs]; bias: [outputs];
// y: [batch, out_height, out_width, outputs]; residual: y's shape or [batch, outputs]; all contiguous, f32 or f16;
// sums in f32, each over ky, kx, input in ascending order from zero, a pixel of the padding adding +0: an output
// pixel's bits depend on the pixels under its kernel alone
// tile: the product of a matrix of patches with wᵀ; one workgroup of 64 threads makes 64 pixels × 64 outputs, 8×8 a
// thread; the patches (never materialised) and w go through workgroup memory in slabs of 16, transposed there so
// that a thread reads four pixels at once; 8.5 KiB. The pixels of all pictures are one list of rows, so that small
// maps fill a tile.
// launch: (ceil(outputs / 64), gy, gz), with gy · gz at least ceil(batch · out_height · out_width / 64)
// limits: every size at least 1; every tensor below 2^31 elements
//
// parts: gemm.wgsl, this file
// constants:
//   WIDTH  4 when inputs % 4 == 0, else 1: elements of one load
// bindings: x, w, bias, residual, y, params; an input that params turns off is bound and never read
// reference: ops::reference::conv2d; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

struct Params {
    // batch · out_height · out_width
    rows: u32,
    height: u32,
    width: u32,
    inputs: u32,
    out_height: u32,
    out_width: u32,
    outputs: u32,
    // Zero pixels above and to the left; those below and to the right follow from the sizes.
    top: u32,
    left: u32,
    kh: u32,
    kw: u32,
    // The step between outputs, in both directions.
    stride: u32,
    // 1 to add it.
    bias: u32,
    // 0 none, 1 of y's shape, 2 one vector a picture.
    residual: u32,
    // 1 where x is a map before it is upsampled by two, nearest neighbour: height and width, which may be one less than
    // twice x's, are of the upsampled map, whose pixel (i, j) is (i / 2, j / 2) of x.
    doubled: u32,
}

@group(0) @binding(4) var<storage, read_write> y: array<elem>;
@group(0) @binding(5) var<uniform> params: Params;

// `size` of the map that is walked over, in x.
fn stored(size: u32) -> u32 {
    return (size + params.doubled) >> params.doubled;
}

// The upper left corner of an output pixel's patch.
struct Corner {
    // The first element of its picture.
    picture: u32,
    // Its corner in the picture with the padding around it.
    y: u32,
    x: u32,
}

// Rows past the last repeat it.
fn corner(row: u32) -> Corner {
    let r = min(row, params.rows - 1u);
    let line = r / params.out_width;
    let picture = line / params.out_height;
    return Corner(
        picture * stored(params.height) * stored(params.width) * params.inputs,
        (line - picture * params.out_height) * params.stride,
        (r - line * params.out_width) * params.stride,
    );
}

// The first element of the pixel under tap (ky, kx), and whether the picture has it.
struct Pixel {
    start: u32,
    inside: bool,
}

fn pixel(p: Corner, ky: u32, kx: u32) -> Pixel {
    // Above or left of the picture the difference wraps around to a large number.
    let iy = p.y + ky - params.top;
    let ix = p.x + kx - params.left;
    return Pixel(
        p.picture + ((iy >> params.doubled) * stored(params.width) + (ix >> params.doubled)) * params.inputs,
        iy < params.height && ix < params.width,
    );
}

// A position among a row's kh · kw · inputs columns.
struct Column {
    ky: u32,
    kx: u32,
    channel: u32,
}

fn column(k: u32) -> Column {
    let tap = k / params.inputs;
    return Column(tap / params.kw, tap % params.kw, k - tap * params.inputs);
}

// `column(k + SLAB)` from `column(k)`, without a division where a slab is no wider than the channels.
fn next(c: Column, k: u32) -> Column {
    if params.inputs < SLAB {
        return column(k + SLAB);
    }
    let channel = c.channel + SLAB;
    let wrap = channel >= params.inputs;
    let kx = c.kx + select(0u, 1u, wrap);
    let down = kx == params.kw;
    return Column(
        c.ky + select(0u, 1u, down),
        select(kx, 0u, down),
        select(channel, channel - params.inputs, wrap),
    );
}

// Four elements of a patch from column `k`, which is at `c`; columns past the last are zero.
fn load_x(p: Corner, c: Column, k: u32) -> vec4<f32> {
    if WIDTH == 4u {
        let at = pixel(p, c.ky, c.kx);
        if at.inside && c.ky < params.kh {
            return take_x(at.start + c.channel);
        }
        return vec4<f32>();
    }
    var v = vec4<f32>();
    for (var i = 0u; i < 4u; i += 1u) {
        let d = column(k + i);
        let at = pixel(p, d.ky, d.kx);
        if at.inside && d.ky < params.kh {
            v[i] = take_x(at.start + d.channel).x;
        }
    }
    return v;
}

// Writes one output with what is added to it.
fn finish(row: u32, col: u32, sum: f32) {
    var v = sum;
    if params.bias == 1u {
        v += f32(bias[col]);
    }
    let e = row * params.outputs + col;
    if params.residual == 1u {
        v += f32(residual[e]);
    }
    if params.residual == 2u {
        let picture = row / (params.out_height * params.out_width);
        v += f32(residual[picture * params.outputs + col]);
    }
    y[e] = elem(v);
}

// Writes the 64 pixels × 32 outputs that lie in `slab`, side by side.
fn flush(row0: u32, col0: u32, thread: u32) {
    for (var i = thread; i < TILE * TILE / 2u; i += 64u) {
        let row = row0 + i / 32u;
        let col = col0 + i % 32u;
        if row < params.rows && col < params.outputs {
            finish(row, col, slab[i / 4u][i % 4u]);
        }
    }
}

@compute @workgroup_size(64)
fn conv2d(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row0 = (group.z * groups.y + group.y) * TILE;
    let col0 = group.x * TILE;
    if row0 >= params.rows {
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

    let p0 = corner(row0 + block * 4u);
    let p1 = corner(row0 + block * 4u + 1u);
    let p2 = corner(row0 + block * 4u + 2u);
    let p3 = corner(row0 + block * 4u + 3u);
    let columns = params.kh * params.kw * params.inputs;
    var at = column(block_k);

    for (var k0 = 0u; k0 < columns; k0 += SLAB) {
        let depth = k0 + block_k;
        let x0 = load_x(p0, at, depth);
        let x1 = load_x(p1, at, depth);
        let x2 = load_x(p2, at, depth);
        let x3 = load_x(p3, at, depth);
        at = next(at, depth);
        let output = col0 + block * 4u;
        let w0 = load_w(output, params.outputs, depth, columns);
        let w1 = load_w(output + 1u, params.outputs, depth, columns);
        let w2 = load_w(output + 2u, params.outputs, depth, columns);
        let w3 = load_w(output + 3u, params.outputs, depth, columns);
        slab[slot] = vec4(x0.x, x1.x, x2.x, x3.x);
        slab[slot + LINE] = vec4(x0.y, x1.y, x2.y, x3.y);
        slab[slot + 2u * LINE] = vec4(x0.z, x1.z, x2.z, x3.z);
        slab[slot + 3u * LINE] = vec4(x0.w, x1.w, x2.w, x3.w);
        slab[W + slot] = vec4(w0.x, w1.x, w2.x, w3.x);
        slab[W + slot + LINE] = vec4(w0.y, w1.y, w2.y, w3.y);
        slab[W + slot + 2u * LINE] = vec4(w0.z, w1.z, w2.z, w3.z);
        slab[W + slot + 3u * LINE] = vec4(w0.w, w1.w, w2.w, w3.w);
        workgroupBarrier();
        for (var k = 0u; k < min(SLAB, columns - k0); k += 1u) {
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
