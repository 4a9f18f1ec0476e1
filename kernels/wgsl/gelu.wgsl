// The exact gelu of vectors of f32, for activation.wgsl and geglu.wgsl, whose headers say how exact it is.

// x times the probability that a standard normal variable lies below x, by the tail beyond |x|.
fn gelu_of(v: floats) -> floats {
    let a = abs(v);
    let t = floats(1.0) / (floats(1.0) + a * 0.23164188769);
    let p = t * (t * (t * (t * (t * 1.061405429 - 1.453152027) + 1.421413741) - 0.284496736) + 0.254829592);
    let tail = a * 0.5 * p * exp(-0.5 * a * a);
    return max(v, floats(0.0)) - tail;
}
