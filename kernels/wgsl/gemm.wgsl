// What matmul.wgsl and conv2d.wgsl share: inputs, the tile in workgroup memory, and how rows of w are read.

@group(0) @binding(0) var<storage, read_write> x: array<elems>;
@group(0) @binding(1) var<storage, read_write> w: array<elems>;
@group(0) @binding(2) var<storage, read_write> bias: array<elem>;
@group(0) @binding(3) var<storage, read_write> residual: array<elem>;

const TILE: u32 = 64u;
const SLAB: u32 = 16u;
// Vectors of four rows in a line of the slab, and one more against bank conflicts.
const LINE: u32 = 17u;

// Lines of x, then lines of w; in the end half of the output tile.
var<workgroup> slab: array<vec4<f32>, 544>;
const W: u32 = 272u;

// WIDTH elements from element `e`, a multiple of WIDTH; a single one is in `x`.
fn take_x(e: u32) -> vec4<f32> {
    return vec4<f32>(floats(x[e / WIDTH]));
}

fn take_w(e: u32) -> vec4<f32> {
    return vec4<f32>(floats(w[e / WIDTH]));
}

// Four elements of a row of w, `[rows, columns]`, from column `k`; rows past the last repeat it, columns past
// the last are zero.
fn load_w(row: u32, rows: u32, k: u32, columns: u32) -> vec4<f32> {
    let start = min(row, rows - 1u) * columns;
    if WIDTH == 4u {
        if k < columns {
            return take_w(start + k);
        }
        return vec4<f32>();
    }
    var v = vec4<f32>();
    for (var i = 0u; i < 4u; i += 1u) {
        if k + i < columns {
            v[i] = take_w(start + k + i).x;
        }
    }
    return v;
}
