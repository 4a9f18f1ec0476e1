// The end of a denoising step for rows that differ in everything: guidance, the clean estimate, the sampler's sums.
//   guided   = n + scale * (p - n); rescaled: guided * rescale * deviation(p) / deviation(guided) + guided * (1 - rescale)
//              (Ho & Salimans 2022; Lin et al. 2023, equations 15 and 16), p and n the row's two predictions
//   denoised = clamp(a * sample + b * guided)
//   after[w] = sum of factor * {guided, denoised, noise, any value from before}
// predictions: [predictions, elements] in elem; state: values from before, [slots, elements]; noise: [draws, elements];
// after: [writes of all rows, elements]; counts: NaN and infinite values of a row's first write, [rows, blocks]; f32 all
// table: 12 words a row, floats by their bits:
//   0 p  1 n, p again without guidance  2 scale  3 rescale  4 the sample's slot  5 its draw  6 a  7 b  8 clamp, negative
//   without  9 its first write  10 its writes  11 where they are described: for each, the number of terms, then source
//   (0 guided, 1 denoised, 2 noise, from 3 on slots) and factor of each. A term that is not there is not read, so what it
//   would have been cannot matter.
// Three entries:
//   denoise_deviations  a workgroup a row: deviation(p) / deviation(guided), where the row is rescaled; first the means,
//               then the squares around them
//   denoise_step  (block of THREADS * ITEMS elements, row)
//   denoise_input  y[e] = state[slot] * factor, what the network sees; table: slot and factor of each entry of the batch
// tile: four elements a thread, THREADS apart; a table is read by all threads of a workgroup alike
// constants: elem f32 or f16, of predictions and y
// reference: ops::reference::denoise_step; test: tests/kernels.rs
// Has run on software Vulkan (Mesa 25.0.7) alone, never on a GPU.

const ITEMS: u32 = 4u;
const HEAD: u32 = 12u;
const GUIDED: u32 = 0u;
const DENOISED: u32 = 1u;
const NOISE: u32 = 2u;
const SLOTS: u32 = 3u;

struct Params { elements: u32, blocks: u32 }

@group(0) @binding(0) var<storage, read_write> predictions: array<elem>;
@group(0) @binding(1) var<storage, read_write> table: array<u32>;
@group(0) @binding(2) var<storage, read_write> state: array<f32>;
@group(0) @binding(3) var<storage, read_write> noise: array<f32>;
@group(0) @binding(4) var<storage, read_write> known: array<f32>;
@group(0) @binding(5) var<storage, read_write> after: array<f32>;
@group(0) @binding(6) var<storage, read_write> counts: array<f32>;
@group(0) @binding(7) var<uniform> params: Params;

var<workgroup> sums: array<f32, THREADS>;

fn total(value: f32, thread: u32) -> f32 {
    sums[thread] = value;
    workgroupBarrier();
    for (var step = THREADS / 2u; step > 0u; step /= 2u) {
        if thread < step { sums[thread] += sums[thread + step]; }
        workgroupBarrier();
    }
    let sum = sums[0];
    workgroupBarrier();
    return sum;
}

fn number(at: u32) -> f32 { return bitcast<f32>(table[at]); }

fn guide(positive: f32, negative: f32, scale: f32) -> f32 { return negative + (positive - negative) * scale; }

@group(0) @binding(2) var<storage, read_write> ratios: array<f32>;
@group(0) @binding(3) var<uniform> sizes: Params;

@compute @workgroup_size(THREADS)
fn denoise_deviations(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let head = group.x * HEAD;
    let p = table[head] * sizes.elements;
    let n = table[head + 1u] * sizes.elements;
    let scale = number(head + 2u);
    // A row that is not rescaled has nothing to add up.
    let stop = select(0u, sizes.elements, number(head + 3u) != 0.0);
    let count = f32(sizes.elements);

    var one = 0.0;
    var other = 0.0;
    for (var i = thread; i < stop; i += THREADS) {
        let positive = f32(predictions[p + i]);
        one += positive;
        other += guide(positive, f32(predictions[n + i]), scale);
    }
    let mean = total(one, thread) / count;
    let guided_mean = total(other, thread) / count;
    one = 0.0;
    other = 0.0;
    for (var i = thread; i < stop; i += THREADS) {
        let positive = f32(predictions[p + i]);
        let a = positive - mean;
        let b = guide(positive, f32(predictions[n + i]), scale) - guided_mean;
        one += a * a;
        other += b * b;
    }
    // The number of elements is in both and cancels.
    let deviation = sqrt(total(one, thread));
    let guided_deviation = sqrt(total(other, thread));
    if thread == 0u { ratios[group.x] = deviation / guided_deviation; }
}

fn predicted(row: u32, at: vec4<u32>) -> vec4<f32> {
    let i = at + vec4<u32>(row * params.elements);
    return vec4<f32>(f32(predictions[i.x]), f32(predictions[i.y]), f32(predictions[i.z]), f32(predictions[i.w]));
}

fn held(slot: u32, at: vec4<u32>) -> vec4<f32> {
    let i = at + vec4<u32>(slot * params.elements);
    return vec4<f32>(state[i.x], state[i.y], state[i.z], state[i.w]);
}

fn drawn(draw: u32, at: vec4<u32>) -> vec4<f32> {
    let i = at + vec4<u32>(draw * params.elements);
    return vec4<f32>(noise[i.x], noise[i.y], noise[i.z], noise[i.w]);
}

fn cut(v: vec4<f32>, range: f32) -> vec4<f32> {
    // NaN stays NaN.
    return select(select(v, vec4<f32>(-range), v < vec4<f32>(-range)), vec4<f32>(range), v > vec4<f32>(range));
}

@compute @workgroup_size(THREADS)
fn denoise_step(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = group.y;
    let head = row * HEAD;
    let first = group.x * THREADS * ITEMS + thread;
    let wanted = vec4<u32>(first, first + THREADS, first + 2u * THREADS, first + 3u * THREADS);
    let live = wanted < vec4<u32>(params.elements);
    let at = min(wanted, vec4<u32>(params.elements - 1u));

    var guided = predicted(table[head], at);
    if table[head + 1u] != table[head] {
        let negative = predicted(table[head + 1u], at);
        guided = negative + (guided - negative) * number(head + 2u);
        let rescale = number(head + 3u);
        if rescale != 0.0 { guided = guided * known[row] * rescale + guided * (1.0 - rescale); }
    }
    let a = number(head + 6u);
    let b = number(head + 7u);
    var denoised = vec4<f32>(0.0);
    if a != 0.0 { denoised = held(table[head + 4u], at) * a; }
    if b != 0.0 { denoised += guided * b; }
    let range = number(head + 8u);
    if range >= 0.0 { denoised = cut(denoised, range); }

    var count = 0.0;
    var entry = table[head + 11u];
    let writes = table[head + 10u];
    for (var write = 0u; write < writes; write++) {
        let terms = table[entry];
        entry += 1u;
        var sum = vec4<f32>(0.0);
        for (var term = 0u; term < terms; term++) {
            let source = table[entry];
            let factor = number(entry + 1u);
            entry += 2u;
            var value = guided;
            if source == DENOISED {
                value = denoised;
            } else if source == NOISE {
                value = drawn(table[head + 5u], at);
            } else if source >= SLOTS {
                value = held(source - SLOTS, at);
            }
            sum += value * factor;
        }
        let to = vec4<u32>((table[head + 9u] + write) * params.elements) + wanted;
        if live.x { after[to.x] = sum.x; }
        if live.y { after[to.y] = sum.y; }
        if live.z { after[to.z] = sum.z; }
        if live.w { after[to.w] = sum.w; }
        if write == 0u {
            // By the exponent's bits: compilers may take numbers for finite.
            let exponent = bitcast<vec4<u32>>(sum) & vec4<u32>(0x7f800000u);
            let lost = select(vec4<f32>(0.0), vec4<f32>(1.0), live & (exponent == vec4<u32>(0x7f800000u)));
            count = lost.x + lost.y + lost.z + lost.w;
        }
    }
    let all = total(count, thread);
    if thread == 0u { counts[row * params.blocks + group.x] = all; }
}

@group(0) @binding(0) var<storage, read_write> samples: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<elem>;

@compute @workgroup_size(THREADS)
fn denoise_input(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let slot = table[2u * group.y] * sizes.elements;
    let factor = number(2u * group.y + 1u);
    let start = group.x * THREADS * ITEMS + thread;
    for (var item = 0u; item < ITEMS; item++) {
        let i = start + item * THREADS;
        if i < sizes.elements { y[group.y * sizes.elements + i] = elem(samples[slot + i] * factor); }
    }
}
