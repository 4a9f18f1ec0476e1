// residual + gate * f(sum + bias) of one element, in f32: what follows the product in matmul.wgsl and matvec.wgsl, whose
// bindings and Params it reads.

fn activated(v: f32) -> f32 {
    switch params.activation {
        case 1u: { return first_of(gelu_of(floats(v))); }
        case 2u: { return first_of(quick_gelu_of(floats(v))); }
        case 3u: { return first_of(silu_of(floats(v))); }
        case 4u: { return first_of(gelu_tanh_of(floats(v))); }
        default: { return v; }
    }
}

fn finished(sum: f32, row: u32, column: u32) -> f32 {
    var v = sum;
    if params.bias == 1u { v += f32(bias[column]); }
    v = activated(v);
    if params.gate_rows != 0u { v *= f32(gate[row / params.gate_rows * params.n + column]); }
    if params.residual == 1u { v += f32(residual[row * params.n + column]); }
    return v;
}
