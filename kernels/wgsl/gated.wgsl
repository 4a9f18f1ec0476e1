// y[r, c] = x[r, c] * gate_of(x[r, half + c]), in f32 (Shazeer 2020): for geglu.wgsl and swiglu.wgsl, which have `gate_of`.
// x: [rows, 2 * half]; y: [rows, half]; all in vectors of WIDTH elements
// tile: ITEMS vectors a thread, neighbours read by neighbours
// constants: elem f32 or f16, WIDTH 1, 2 or 4

const ITEMS: u32 = 4u;

// half: of one row, in vectors; count: of y, in vectors
struct Params { count: u32, half: u32 }

@group(0) @binding(0) var<storage, read_write> x: array<elems>;
@group(0) @binding(1) var<storage, read_write> y: array<elems>;
@group(0) @binding(2) var<uniform> params: Params;

fn multiply_halves(group: u32, thread: u32) {
    let start = group * THREADS * ITEMS + thread;
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < params.count {
            let value = i + i / params.half * params.half;
            y[i] = elems(floats(x[value]) * gate_of(floats(x[value + params.half])));
        }
    }
}
