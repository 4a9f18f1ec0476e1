// The activations of vectors of f32; activation.wgsl's header says how exact they are. They end as PyTorch's.

// For a function y of v that is v far to the right and nothing far to the left: y, but nothing below -reach, +infinity for
// itself, and no number for -infinity, which meets a factor of zero, and for what is none.
fn with_ends(v: floats, y: floats, reach: f32) -> floats {
    // By the exponent's bits: compilers may take numbers for finite.
    let bits = bitcast<words>(v);
    let lost = (bits & words(0x7f800000u)) == words(0x7f800000u);
    // The sign of -infinity goes where a NaN has its first digit.
    let end = bitcast<floats>(bits | ((bits >> words(31u)) << words(22u)));
    return select(select(y, floats(0.0), v < floats(-reach)), end, lost);
}

// x times the probability that a standard normal variable lies below x, by the tail beyond |x|.
fn gelu_of(v: floats) -> floats {
    let a = abs(v);
    let t = floats(1.0) / (floats(1.0) + a * 0.23164188769);
    let p = t * (t * (t * (t * (t * 1.061405429 - 1.453152027) + 1.421413741) - 0.284496736) + 0.254829592);
    let tail = a * 0.5 * p * exp(-0.5 * a * a);
    // From 15 on the tail is nothing in f32.
    return with_ends(v, max(v, floats(0.0)) - tail, 20.0);
}

// v * sigmoid(slope); v is nothing beside others below -reach, where the exponential leaves f32.
fn by_sigmoid(v: floats, slope: floats, reach: f32) -> floats {
    return with_ends(v, v / (floats(1.0) + exp(min(-slope, floats(88.0)))), reach);
}

fn gelu_tanh_of(v: floats) -> floats {
    return by_sigmoid(v, v * (floats(1.5957691216) + v * v * 0.0713548163), 20.0);
}

fn quick_gelu_of(v: floats) -> floats {
    return by_sigmoid(v, v * 1.702, 51.7);
}

fn silu_of(v: floats) -> floats {
    return by_sigmoid(v, v, 88.0);
}
