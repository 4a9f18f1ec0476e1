// y[r, c] = sin(t[r] * f[c]) or cos(t[r] * f[c]), the sinusoidal embedding of timesteps (Ho et al. 2020), in f32
// f: [channels / 2], f32; y: [rows of all launches, channels]; the first channels / 2 columns are sines and the next
// cosines, or the other way round; an odd last column is 0
// WGSL's own sine and cosine promise nothing outside of [-pi, pi]. Quarters of a turn are taken off in integers (Payne &
// Hanek 1983), which no driver's reordering of floats can spoil; on what is left, at most pi / 4, Taylor's polynomials of
// degrees 9 and 10 are off by 2e-9.
// tile: one element a thread
// launch: ceil(rows * channels / THREADS) workgroups or more
// constants: elem f32 or f16
// limits: at most 64 rows a launch; |t * f| < 2^23, where the result is at most 1.2e-7 off
// reference: the host's values in src/ops/embedding.rs; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

// first: the row of y that the launch begins with
struct Params { first: u32, rows: u32, channels: u32, cosines_first: u32, timesteps: array<vec4<f32>, 16> }

@group(0) @binding(0) var<storage, read_write> frequencies: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<elem>;
@group(0) @binding(2) var<uniform> params: Params;

// The upper 32 bits of a · b.
fn upper(a: u32, b: u32) -> u32 {
    let low = (a & 0xffffu) * (b & 0xffffu);
    let left = (a >> 16u) * (b & 0xffffu);
    let right = (a & 0xffffu) * (b >> 16u);
    let middle = (low >> 16u) + (left & 0xffffu) + (right & 0xffffu);
    return (a >> 16u) * (b >> 16u) + (left >> 16u) + (right >> 16u) + (middle >> 16u);
}

// sin(angle), or cos(angle) where `first_quarters` is 1.
fn wave(angle: f32, first_quarters: u32) -> f32 {
    let bits = bitcast<u32>(angle) & 0x7fffffffu;
    var r = abs(angle);
    var quarters = first_quarters;
    // Beyond pi / 4: turns are the 24 bits of the mantissa times 1 / (2 pi) (2^64 / (2 pi) is 0x28be60db9391054a), moved by
    // the exponent, 1 to 24 places; whole ones drop out.
    if bits > 0x3f490fdbu {
        let mantissa = (bits & 0x7fffffu) | 0x800000u;
        let product = mantissa * 0x28be60dbu;
        let part = product + upper(mantissa, 0x9391054au);
        let whole = upper(mantissa, 0x28be60dbu) + select(0u, 1u, part < product);
        let places = 150u - min(bits >> 23u, 149u);
        let turn = (whole << (32u - places)) | (part >> places);
        let nearest = (turn + 0x20000000u) >> 30u;
        quarters += nearest;
        // 2 pi / 2^32
        r = f32(bitcast<i32>(turn - (nearest << 30u))) * 1.4629180793e-9;
    }
    let square = r * r;
    var v = 1.0 / 362880.0;
    if (quarters & 1u) == 0u {
        v = v * square - 1.0 / 5040.0;
        v = v * square + 1.0 / 120.0;
        v = v * square - 1.0 / 6.0;
        v = r + r * square * v;
    } else {
        v = 1.0 / 40320.0 - square / 3628800.0;
        v = v * square - 1.0 / 720.0;
        v = v * square + 1.0 / 24.0;
        v = v * square - 0.5;
        v = 1.0 + square * v;
    }
    return select(v, -v, (quarters & 2u) != 0u);
}

@compute @workgroup_size(THREADS)
fn timestep_embedding(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
                      @builtin(local_invocation_index) thread: u32) {
    let index = (group.y * groups.x + group.x) * THREADS + thread;
    if index >= params.rows * params.channels {
        return;
    }
    let row = index / params.channels;
    let column = index % params.channels;
    let half = params.channels / 2u;
    var value = 0.0;
    if column < 2u * half {
        let second = column >= half;
        let cosine = second != (params.cosines_first != 0u);
        let angle = params.timesteps[row / 4u][row % 4u] * frequencies[select(column, column - half, second)];
        value = wave(angle, select(0u, 1u, cosine));
        // The sine of a negative angle is that of its size, negated.
        if !cosine && angle < 0.0 {
            value = -value;
        }
    }
    y[(params.first + row) * params.channels + column] = elem(value);
}
