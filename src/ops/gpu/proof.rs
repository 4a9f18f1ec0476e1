//! Ties the launches to the proof of the CUDA kernels on the host: `kernels/host/plans.json` has the plans of the calls
//! that `kernels/host/prove.py` runs, and is out of date where it differs from what is planned here.

use std::path::Path;

use burn::tensor::DType;
use serde_json::{Value, json};

use super::attention::{Attention, CUDA_HEAD_DIMS};
use super::conv2d::{Added, Convolution};
use super::denoise::Entry;
use super::group_norm::GroupNorm;
use super::hopper::{Boxes, Hopper, LARGE, MIDDLE, Ring, STATIC, TensorMap};
use super::matmul::Product;
use super::plan::{Language, Plan, Target, name};
use super::rope::QkNormRope;
use super::{activation, denoise, embedding, layer_norm, modulate, rms_norm, upsample};
use crate::ops::activation::Gate;
use crate::ops::{Activation, Conv2d, Gelu, Mask, Nonlinearity};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Of the kernels for Hopper.
const HALVES: [DType; 2] = [DType::F16, DType::BF16];

const EPS: f32 = 1e-5;

const NONLINEARITIES: [(&str, Nonlinearity); 4] = [
    ("gelu", Nonlinearity::Gelu(Gelu::Exact)),
    ("gelu_tanh", Nonlinearity::Gelu(Gelu::Tanh)),
    ("quick_gelu", Nonlinearity::QuickGelu),
    ("silu", Nonlinearity::Silu),
];

/// An operation's call on a batch, with what `prove.py` needs to make its inputs.
struct Call<'a> {
    /// The file's name in `kernels/cuda`.
    operation: &'static str,
    arguments: Value,
    batch: usize,
    /// For a target and a batch.
    plans: Box<dyn Fn(Target, usize) -> Vec<Plan> + 'a>,
}

impl Call<'_> {
    fn json(&self, target: Target) -> Value {
        let plans = |batch| (self.plans)(target, batch).iter().map(plan_json).collect::<Vec<_>>();
        let mut value = json!({
            "operation": self.operation,
            "elem": name(target.elem),
            "batch": self.batch,
            "plans": plans(self.batch),
        });
        let map = value.as_object_mut().unwrap();
        map.extend(self.arguments.as_object().unwrap().clone());
        if self.batch > 1 {
            map.insert("alone".to_owned(), plans(1).into());
        }
        value
    }
}

fn plan_json(plan: &Plan) -> Value {
    let constants = plan.constants.iter().map(|&(name, value)| (name.to_owned(), value.into()));
    let parts = plan.source.parts.iter().map(|(name, _)| name.trim_start_matches("cuda/"));
    let mut value = json!({
        "entry": plan.entry,
        "prelude": plan.prelude(),
        "parts": parts.collect::<Vec<_>>(),
        "constants": constants.collect::<serde_json::Map<_, _>>(),
        "params": plan.words().iter().flat_map(|&word| [word as u32, (word >> 32) as u32]).collect::<Vec<_>>(),
        "blocks": plan.grid.blocks,
        "threads": plan.grid.threads,
    });
    if !plan.maps.is_empty() {
        let map = value.as_object_mut().unwrap();
        map.insert("maps".to_owned(), plan.maps.iter().map(map_json).collect());
        map.insert("shared_bytes".to_owned(), plan.grid.shared_bytes.into());
    }
    value
}

fn map_json(map: &TensorMap) -> Value {
    let TensorMap { sizes, pitches, boxes, swizzle } = map;
    let mut value = json!({ "sizes": sizes, "pitches": pitches, "swizzle": swizzle });
    let (name, boxes) = match boxes {
        Boxes::Tiled(sizes) => ("box", json!(sizes)),
        Boxes::Pixels(of) => (
            "pixels",
            json!({
                "channels": of.channels, "count": of.pixels, "lower": of.lower, "upper": of.upper,
                "steps": of.steps,
            }),
        ),
    };
    value.as_object_mut().unwrap().insert(name.to_owned(), boxes);
    value
}

fn call<'a>(
    operation: &'static str,
    batch: usize,
    arguments: Value,
    plans: impl Fn(Target, usize) -> Option<Plan> + 'a,
) -> Call<'a> {
    Call {
        operation,
        arguments,
        batch,
        plans: Box::new(move |target, batch| vec![plans(target, batch).unwrap()]),
    }
}

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
fn on_hopper() -> Vec<Call<'static>> {
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
fn large() -> Vec<Call<'static>> {
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

fn calls(target: Target) -> Vec<Call<'static>> {
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

fn cuda(elem: DType) -> Target {
    Target { language: Language::Cuda, elem, hopper: None }
}

fn hopper(elem: DType, multiprocessors: u32, own_stream: bool) -> Target {
    Target { hopper: Some(Hopper { multiprocessors, own_stream }), ..cuda(elem) }
}

/// With AQUATINT_WRITE_PLANS=1 the file is written instead.
#[test]
fn the_cuda_kernels_are_proven_with_the_launches_that_are_made() {
    fn lines(target: Target, calls: Vec<Call>) -> Vec<String> {
        calls.iter().map(|call| call.json(target).to_string()).collect()
    }
    let sm_80 = DTYPES.into_iter().flat_map(|elem| lines(cuda(elem), calls(cuda(elem))));
    // One multiprocessor, so that a block has more than one tile.
    let sm_90 = HALVES.into_iter().flat_map(|elem| lines(hopper(elem, 1, true), on_hopper()));
    let lines: Vec<String> = sm_80.chain(sm_90).collect();
    let text = format!("[\n{}\n]\n", lines.join(",\n"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host/plans.json");
    if std::env::var_os("AQUATINT_WRITE_PLANS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    for (line, (found, expected)) in written.lines().zip(text.lines()).enumerate() {
        assert_eq!(found, expected, "kernels/host/plans.json, line {}", line + 1);
    }
    assert_eq!(written.len(), text.len(), "kernels/host/plans.json");
}

/// What changes a row's bits may not depend on its batch: the code, and how one picture is cut.
#[test]
fn no_constant_nor_thread_count_depends_on_the_batch() {
    let wgsl = |elem| Target { language: Language::Wgsl, elem, hopper: None };
    let on_gpus = DTYPES.map(cuda).into_iter().chain([DType::F32, DType::F16].map(wgsl));
    for target in on_gpus {
        let calls = calls(target).into_iter();
        let calls = calls.filter(|call| target.language == Language::Cuda || call.operation != "group_norm");
        calls.for_each(|call| cuts_of_a_picture_are_its_own(&call, target));
    }
    for elem in DTYPES {
        for target in [hopper(elem, 132, true), hopper(elem, 132, false)] {
            let calls = calls(target).into_iter().chain(large());
            calls.for_each(|call| cuts_of_a_picture_are_its_own(&call, target));
        }
    }
    for target in HALVES.map(|elem| hopper(elem, 132, true)) {
        on_hopper().iter().for_each(|call| cuts_of_a_picture_are_its_own(call, target));
    }
}

fn cuts_of_a_picture_are_its_own(call: &Call, target: Target) {
    let code = |batch| -> Vec<_> {
        let plans = (call.plans)(target, batch).into_iter();
        plans
            .map(|plan| {
                let boxes: Vec<_> = plan.maps.iter().map(|map| (map.boxes.clone(), map.swizzle)).collect();
                let grid = (plan.grid.threads, plan.grid.shared_bytes);
                (plan.entry, plan.prelude(), plan.source.fingerprint, grid, boxes)
            })
            .collect()
    };
    let alone = code(1);
    for batch in [2, 5, 16] {
        assert_eq!(code(batch), alone, "{} {target:?} {}", call.operation, call.arguments);
    }
}

/// What the models ask of one picture, and the kernel that it gets: on a device of compute capability 9.0 with and
/// without a stream of our own, and on any other.
#[test]
fn the_models_shapes_get_the_kernels_that_are_meant_for_them() {
    let target = |own_stream| hopper(DType::BF16, 132, own_stream);
    let (own, client, other) = (target(true), target(false), cuda(DType::BF16));
    let expected = [
        // tile, or 0 for a kernel of sm_80: own stream, client
        ("matmul 127", [0, 0]),
        ("matmul 128", [128, 128]),
        ("matmul 1024", [128, 128]),
        ("matmul 4608", [256, 128]),
        ("conv2d 64", [128, 128]),
        ("conv2d 128", [256, 128]),
        ("conv2d 512", [256, 128]),
        ("conv2d 1024", [128, 128]),
        ("attention 4096x10x64", [1, 0]),
        ("attention 1024x20x64", [0, 0]),
        ("attention 4608x24x128", [1, 0]),
        ("attention 4096x8x40", [1, 0]),
    ];
    for (call, (name, tiles)) in large().iter().zip(expected) {
        let plan = |target| (call.plans)(target, 2).remove(0);
        for (target, tile) in [own, client].into_iter().zip(tiles) {
            let plan = plan(target);
            let constant = |name| plan.constants.iter().find(|(at, _)| *at == name).map(|&(_, value)| value);
            let sm90 = plan.entry.ends_with("_sm90");
            let found = if sm90 { constant("TILE_N").unwrap_or(1) } else { 0 };
            assert_eq!(found, tile, "{name} on {target:?}");
            assert_eq!(plan.grid.shared_bytes > 0, constant("DYNAMIC") == Some(1), "{name}");
            assert!(target == own || plan.grid.shared_bytes == 0, "{name} through the client");
        }
        assert!(plan(other).maps.is_empty(), "{name} elsewhere");
    }
}
