// Activations of vectors of f32; the header of activation.wgsl says how exact they are.

// x times the probability that a standard normal variable lies below x, by the tail beyond |x|.
fn gelu_of(v: floats) -> floats {
    let a = abs(v);
    let t = floats(1.0) / (floats(1.0) + a * 0.23164188769);
    let p = t * (t * (t * (t * (t * 1.061405429 - 1.453152027) + 1.421413741) - 0.284496736) + 0.254829592);
    let tail = a * 0.5 * p * exp(-0.5 * a * a);
    return max(v, floats(0.0)) - tail;
}

// v / 2 * (1 + tanh(sqrt(2 / pi) * (v + 0.044715 v³))), as v * sigmoid of twice tanh's argument.
fn gelu_tanh_of(v: floats) -> floats {
    return v * sigmoid(v * (floats(1.5957691216) + v * v * 0.0713548163));
}

fn sigmoid(v: floats) -> floats {
    // Beyond 88 the exponential leaves f32.
    return floats(1.0) / (floats(1.0) + exp(min(-v, floats(88.0))));
}
