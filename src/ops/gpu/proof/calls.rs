//! The calls whose plans are proven.

use super::*;

fn pointwise(chunk: usize) -> Vec<Call<'static>> {
    let mut calls = Vec::new();
    for (kind, activation) in NONLINEARITIES {
        for (batch, row) in [(1, 1), (1, 1031), (2, 259 * chunk)] {
            let arguments = json!({ "row": row, "kind": kind });
            calls.push(call("activation", batch, arguments, move |target, batch| {
                activation::unary_plan(target, batch, row, activation)
            }));
        }
    }
    for (batch, tokens, channels) in [(1, 1, 1), (3, 1, 37), (1, 1, chunk), (2, 4, 41 * chunk)] {
        let arguments = json!({ "tokens": tokens, "channels": channels });
        calls.push(call("geglu", batch, arguments, move |target, batch| {
            activation::gated_plan(target, batch * tokens, channels, Gate::Gelu)
        }));
    }
    for (batch, [height, width, channels]) in [(1, [1, 1, 1]), (2, [3, 5, 7]), (3, [4, 3, 3 * chunk])] {
        let arguments = json!({ "height": height, "width": width, "channels": channels });
        calls.push(call("upsample_nearest_2x", batch, arguments, move |target, batch| {
            upsample::plan(target, [batch, height, width, channels])
        }));
    }
    calls
}

fn norms(chunk: usize) -> Vec<Call<'static>> {
    let mut calls = Vec::new();
    let rows = [(1, 1), (5, 31), (2, 1277), (3, chunk), (1, 96), (1, 128), (5, 320), (1, 640), (1, 768)];
    for (batch, channels) in rows.into_iter().chain([(1, 1280), (1, 2047), (2, 4096)]) {
        calls.push(call("layer_norm", batch, json!({ "channels": channels }), move |target, batch| {
            layer_norm::plan(target, batch, channels, EPS)
        }));
    }
    let maps =
        [(1, 1, 1, 1), (2, 35, 6, 3), (1, 1100, 6, 2), (1, 1, 32, 32), (2, 63, 320, 32), (1, 9, 2560, 32)];
    for (batch, pixels, channels, groups) in maps {
        for (silu, activation) in [(true, Activation::Silu), (false, Activation::None)] {
            let arguments = json!({ "pixels": pixels, "channels": channels, "groups": groups, "silu": silu });
            let plans = move |target, batch| {
                let norm = GroupNorm { batch, pixels, channels, groups, eps: EPS, activation };
                let launches = norm.launches(target).unwrap();
                assert!(launches.combine.is_none());
                vec![launches.statistics, launches.apply]
            };
            calls.push(Call { operation: "group_norm", arguments, batch, plans: Box::new(plans) });
        }
    }
    calls
}

/// What diffusion transformers need besides.
fn transformer(chunk: usize) -> Vec<Call<'static>> {
    let mut calls = Vec::new();
    for (batch, channels) in [(1, 1), (5, 31), (2, 1277), (3, chunk), (5, 320), (1, 3072), (2, 4096)] {
        calls.push(call("rms_norm", batch, json!({ "channels": channels }), move |target, batch| {
            rms_norm::plan(target, batch, channels, EPS)
        }));
    }
    let shapes = [(1, 1, 1), (3, 2, 31), (2, 3, chunk), (5, 3, 320), (16, 1, 9 * chunk)];
    for (batch, tokens, channels) in shapes {
        let arguments = json!({ "tokens": tokens, "channels": channels });
        calls.push(call("layer_norm", batch, arguments.clone(), move |target, batch| {
            modulate::layer_norm_modulate_plan(target, [batch, tokens, channels], EPS)
        }));
        calls.push(call("gate_residual", batch, arguments, move |target, batch| {
            modulate::gate_residual_plan(target, [batch, tokens, channels])
        }));
    }
    for (batch, tokens, channels) in [(1, 1, 1), (3, 1, 37), (1, 1, chunk), (2, 4, 41 * chunk)] {
        let arguments = json!({ "tokens": tokens, "channels": channels });
        calls.push(call("swiglu", batch, arguments.clone(), move |target, batch| {
            activation::gated_plan(target, batch * tokens, channels, Gate::Silu)
        }));
        for form in [Gelu::Exact, Gelu::Tanh] {
            calls.push(call("bias_gelu", batch, arguments.clone(), move |target, batch| {
                activation::bias_gelu_plan(target, batch * tokens, channels, form)
            }));
        }
    }
    let heads = [
        // batch, tokens, heads of q, heads of k, channels of a head
        (1, 1, 1, 1, 2),
        (3, 2, 2, 1, 70),
        (2, 3, 3, 3, 64),
        (5, 3, 2, 2, 128),
        (2, 2, 4, 1, 72),
        (1, 3, 1, 2, 256),
    ];
    for (batch, tokens, q_heads, k_heads, head_dim) in heads {
        let arguments =
            json!({ "tokens": tokens, "q_heads": q_heads, "k_heads": k_heads, "head_dim": head_dim });
        calls.push(call("qk_norm_rope", batch, arguments, move |target, batch| {
            QkNormRope { batch, tokens, q_heads, k_heads, head_dim, eps: EPS }.plan(target)
        }));
    }
    calls
}

fn products(chunk: usize) -> Vec<Call<'static>> {
    let mut calls = Vec::new();
    let products = [
        // batch, tokens, inputs, outputs, bias, gate, residual
        (1, 1, 1, 1, false, false, false),
        (5, 1, 13, 3, true, true, true),
        (2, 35, 37, 67, true, false, false),
        (5, 13, 5 * chunk, 136, true, false, true),
        (2, 131, 20 * chunk, 137, true, false, true),
        (2, 133, 4 * chunk, 136, false, true, true),
        (1, 128, 4 * chunk, 128, true, true, false),
        (1, 1100, chunk, 8, false, false, true),
        (1, 1100, chunk, 136, false, false, true),
    ];
    calls.extend(products.map(|sizes| product("matmul", None, sizes, None)));
    // Each activation before a gate and a residual, in vectors and in single outputs.
    for activation in NONLINEARITIES {
        let sizes = [(3, 7, 2 * chunk, 136, true, true, true), (2, 5, 3, 9, true, false, false)];
        calls.extend(sizes.map(|sizes| product("matmul", None, sizes, Some(activation))));
    }
    let even = [1; 4];
    let convolutions = [
        // batch, [height, width, inputs], outputs, kernel, stride, padding, bias, residual
        (1, [1, 1, 1], 1, [1, 1], 1, [0; 4], false, Added::Nothing),
        (2, [5, 7, 3], 10, [3, 3], 1, even, true, Added::Vector),
        (2, [6, 5, chunk], 9, [3, 3], 1, even, true, Added::Map),
        (1, [7, 8, 3 * chunk], 2 * chunk, [3, 2], 2, [2, 1, 0, 1], true, Added::Nothing),
        (2, [9, 4, 5 * chunk], 130, [1, 1], 1, [0; 4], false, Added::Vector),
        (2, [11, 13, 5 * chunk], 136, [3, 3], 1, even, true, Added::Map),
        (1, [12, 23, 2 * chunk], 4, [3, 3], 1, even, true, Added::Vector),
    ];
    calls.extend(convolutions.map(|sizes| convolution("conv2d", None, sizes)));
    calls
}

/// batch, tokens, inputs, outputs, bias, gate, residual
type ProductSizes = (usize, usize, usize, usize, bool, bool, bool);

/// As a variant for Hopper, or as it is chosen.
fn product(
    operation: &'static str,
    ring: Option<Ring>,
    sizes: ProductSizes,
    activation: Option<(&'static str, Nonlinearity)>,
) -> Call<'static> {
    let (batch, tokens, inputs, outputs, bias, gate, residual) = sizes;
    let arguments = json!({
        "tokens": tokens, "inputs": inputs, "outputs": outputs, "bias": bias, "gate": gate,
        "residual": residual, "activation": activation.map(|(name, _)| name),
    });
    let activation = activation.map(|(_, activation)| activation);
    call(operation, batch, arguments, move |target, batch| {
        let product = Product { batch, tokens, inputs, outputs, bias, activation, gate, residual };
        match ring {
            Some(ring) => product.on_hopper(target, target.hopper.unwrap(), ring),
            None => product.plan(target),
        }
    })
}

/// batch, [height, width, inputs], outputs, kernel, stride, padding, bias, residual
type ConvolutionSizes = (usize, [usize; 3], usize, [usize; 2], usize, [usize; 4], bool, Added);

/// As a variant for Hopper, or as it is chosen.
fn convolution(operation: &'static str, ring: Option<Ring>, sizes: ConvolutionSizes) -> Call<'static> {
    let (batch, [height, width, inputs], outputs, kernel, stride, padding, bias, added) = sizes;
    let residual = match added {
        Added::Nothing => "none",
        Added::Map => "map",
        Added::Vector => "vector",
    };
    let arguments = json!({
        "x": [height, width, inputs], "outputs": outputs, "kernel": kernel, "stride": stride,
        "padding": padding, "bias": bias, "residual": residual,
    });
    call(operation, batch, arguments, move |target, batch| {
        let x = [batch, height, width, inputs];
        let weight = [outputs, kernel[0], kernel[1], inputs];
        let convolution = Convolution { x, weight, conv: Conv2d { stride, padding }, bias, added };
        match ring {
            Some(ring) => convolution.on_hopper(target, target.hopper.unwrap(), ring),
            None => convolution.plan(target),
        }
    })
}

fn attention() -> Vec<Call<'static>> {
    let cases = [
        // batch, queries, keys, heads, head_dim, mask, outliers
        (1, 1, 1, 1, 64, Mask::None, false),
        (2, 70, 77, 2, 40, Mask::None, false),
        (1, 65, 130, 2, 40, Mask::None, true),
        (2, 77, 77, 2, 64, Mask::Causal, false),
        (1, 130, 130, 1, 64, Mask::Causal, true),
        (1, 33, 65, 2, 80, Mask::None, true),
        (1, 17, 64, 1, 128, Mask::None, false),
        (1, 5, 129, 2, 160, Mask::None, false),
        (2, 37, 35, 1, 512, Mask::None, true),
    ];
    // Every size of a head, with either mask.
    let every = CUDA_HEAD_DIMS.iter().flat_map(|&head_dim| {
        [(1, 18, 18, 2, head_dim, Mask::Causal, false), (1, 6, 35, 2, head_dim, Mask::None, true)]
    });
    cases.into_iter().chain(every).map(|sizes| attending("attention", sizes)).collect()
}

/// batch, queries, keys, heads, head_dim, mask, outliers
type AttentionSizes = (usize, usize, usize, usize, usize, Mask, bool);

/// `attention_sm90` by that name, else the kernel that is chosen.
fn attending(operation: &'static str, sizes: AttentionSizes) -> Call<'static> {
    let (batch, queries, keys, heads, head_dim, mask, outliers) = sizes;
    let arguments = json!({
        "queries": queries, "keys": keys, "heads": heads, "head_dim": head_dim,
        "causal": mask == Mask::Causal, "outliers": outliers,
    });
    call(operation, batch, arguments, move |target, batch| {
        let attention = Attention { batch, queries, keys, heads, head_dim, mask };
        if operation == "attention_sm90" { attention.on_hopper(target) } else { attention.plan(target) }
    })
}

/// A step of four rows, and what the network sees of them.
fn denoising() -> Vec<Call<'static>> {
    // One element has no deviation.
    let call = |elements: usize| Call {
        operation: "denoise_step",
        arguments: json!({ "elements": elements }),
        batch: 4,
        plans: Box::new(move |target, rows| {
            let plan = |entry| denoise::plan(target, entry, rows, elements).unwrap();
            [Entry::Deviations, Entry::Step, Entry::Input].map(plan).to_vec()
        }),
    };
    [2, 63, 1024, 1029, 2500].map(call).into()
}

/// The kernels for Hopper, in the variants that are named, or as chosen.
pub(super) fn on_hopper() -> Vec<Call<'static>> {
    let products = [
        (Some(STATIC), (1, 1, 8, 8, false, false, false), Some(0)),
        (None, (2, 131, 168, 136, true, true, true), None),
        (Some(STATIC), (1, 128, 128, 128, true, false, false), Some(3)),
        (Some(STATIC), (2, 550, 72, 136, false, true, true), Some(0)),
        (Some(MIDDLE), (5, 1, 200, 24, true, true, true), Some(2)),
        (Some(MIDDLE), (1, 131, 328, 264, true, false, false), Some(2)),
        (Some(MIDDLE), (2, 67, 72, 136, true, true, true), Some(1)),
        (Some(LARGE), (1, 1, 8, 8, true, false, false), None),
        (Some(LARGE), (3, 43, 392, 264, true, true, true), None),
        (Some(LARGE), (1, 257, 136, 520, false, false, true), None),
        (Some(LARGE), (2, 65, 136, 72, true, true, false), Some(1)),
    ];
    let even = [1; 4];
    let convolutions = [
        (Some(STATIC), (1, [1, 1, 8], 8, [1, 1], 1, [0; 4], false, Added::Nothing)),
        (None, (2, [11, 13, 72], 136, [3, 3], 1, even, true, Added::Map)),
        (Some(STATIC), (2, [9, 12, 24], 24, [3, 3], 2, [0, 1, 0, 1], true, Added::Vector)),
        (Some(MIDDLE), (1, [7, 8, 72], 16, [3, 2], 2, [2, 1, 0, 1], true, Added::Nothing)),
        (Some(MIDDLE), (3, [6, 9, 64], 200, [3, 3], 1, even, false, Added::Vector)),
        (Some(LARGE), (2, [13, 11, 72], 264, [3, 3], 1, even, true, Added::Map)),
    ];
    let attentions = [
        (1, 1, 1, 1, 64, Mask::None, false),
        (2, 70, 77, 2, 64, Mask::None, true),
        (1, 200, 700, 1, 64, Mask::None, false),
        (1, 260, 260, 2, 64, Mask::Causal, true),
        (2, 193, 300, 2, 128, Mask::None, true),
        (1, 64, 128, 1, 128, Mask::None, false),
        (1, 333, 333, 1, 128, Mask::Causal, false),
        (1, 1, 1, 2, 40, Mask::None, false),
        (2, 195, 77, 3, 40, Mask::None, true),
        (1, 200, 700, 1, 40, Mask::None, false),
        (1, 260, 260, 2, 40, Mask::Causal, true),
        (1, 1, 1, 2, 80, Mask::None, false),
        (2, 193, 300, 2, 80, Mask::None, true),
        (1, 333, 333, 2, 80, Mask::Causal, false),
        (1, 1, 1, 2, 160, Mask::None, false),
        (2, 130, 301, 2, 160, Mask::None, true),
        (1, 64, 96, 1, 160, Mask::None, false),
        (1, 275, 275, 2, 160, Mask::Causal, false),
    ];
    let products = products.map(|(ring, sizes, activation)| {
        product("matmul_sm90", ring, sizes, activation.map(|which: usize| NONLINEARITIES[which]))
    });
    let convolutions = convolutions.map(|(ring, sizes)| convolution("conv2d_sm90", ring, sizes));
    let attentions = attentions.map(|sizes| attending("attention_sm90", sizes));
    products.into_iter().chain(convolutions).chain(attentions).collect()
}

/// Of the models: more than the host can prove, around the bounds of every choice.
pub(super) fn large() -> Vec<Call<'static>> {
    let products = [(127, 1280, 1280), (128, 1280, 1280), (1024, 1280, 10240), (4608, 3072, 12288)];
    let even = [1; 4];
    let maps = [(64, 640, 640), (128, 512, 512), (512, 256, 256), (1024, 128, 128)];
    let heads = [(4096, 10, 64), (1024, 20, 64), (4608, 24, 128), (4096, 8, 40)];
    let products = products.map(|(tokens, inputs, outputs)| {
        product("matmul", None, (1, tokens, inputs, outputs, true, false, false), None)
    });
    let convolutions = maps.map(|(size, inputs, outputs)| {
        let sizes = (1, [size, size, inputs], outputs, [3, 3], 1, even, true, Added::Nothing);
        convolution("conv2d", None, sizes)
    });
    let attentions = heads.map(|(rows, heads, head_dim)| {
        attending("attention", (1, rows, rows, heads, head_dim, Mask::None, false))
    });
    products.into_iter().chain(convolutions).chain(attentions).collect()
}

/// Timesteps of every size that an embedding takes, in more rows than a launch takes.
fn embeddings() -> Vec<Call<'static>> {
    let cases = [(1, 1, false), (3, 7, true), (2, 320, true), (5, 6, false), (70, 33, false)];
    let call = |(batch, channels, cosines_first)| Call {
        operation: "timestep_embedding",
        arguments: json!({ "channels": channels, "cosines_first": cosines_first }),
        batch,
        plans: Box::new(move |target, batch| {
            let sizes = [981.0, 0.0, 12.5, 1e6, -3.25, 8_388_607.0, 0.001];
            let timesteps: Vec<f32> =
                (0..batch).map(|row| sizes[row % 7] * (1.0 - row as f32 / 128.0)).collect();
            let chunks = timesteps.chunks(embedding::ROWS).enumerate();
            let plan = |(index, some): (usize, &[f32])| {
                embedding::plan(target, index * embedding::ROWS, some, channels, cosines_first).unwrap()
            };
            chunks.map(plan).collect()
        }),
    };
    cases.map(call).into()
}

pub(super) fn calls(target: Target) -> Vec<Call<'static>> {
    // Sizes that are whole vectors in every dtype, or in none.
    let chunk = target.chunk();
    [
        pointwise(chunk),
        norms(chunk),
        transformer(chunk),
        products(chunk),
        attention(),
        denoising(),
        embeddings(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
