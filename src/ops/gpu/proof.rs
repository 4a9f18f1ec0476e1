//! Ties the launches to the proof of the CUDA kernels on the host: `kernels/host/plans.json` has the plans of the calls
//! that `kernels/host/prove.py` runs, and is out of date where it differs from what is planned here.

use std::path::Path;

use burn::tensor::DType;
use serde_json::{Value, json};

use super::attention::{Attention, CUDA_HEAD_DIMS};
use super::conv2d::{Added, Convolution};
use super::denoise::Entry;
use super::group_norm::GroupNorm;
use super::matmul::Product;
use super::plan::{Language, Plan, Target, name};
use super::rope::QkNormRope;
use super::{activation, denoise, layer_norm, modulate, rms_norm, upsample};
use crate::ops::activation::{Gate, Unary};
use crate::ops::{Activation, Conv2d, Gelu, Mask};

const DTYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

const EPS: f32 = 1e-5;

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
    json!({
        "entry": plan.entry,
        "prelude": plan.prelude(),
        "parts": parts.collect::<Vec<_>>(),
        "constants": constants.collect::<serde_json::Map<_, _>>(),
        "params": plan.words().iter().flat_map(|&word| [word as u32, (word >> 32) as u32]).collect::<Vec<_>>(),
        "blocks": plan.grid.blocks,
        "threads": plan.grid.threads,
    })
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
    for (kind, unary) in [("gelu", Unary::Gelu), ("quick_gelu", Unary::QuickGelu), ("silu", Unary::Silu)] {
        for (batch, row) in [(1, 1), (1, 1031), (2, 259 * chunk)] {
            let arguments = json!({ "row": row, "kind": kind });
            calls.push(call("activation", batch, arguments, move |target, batch| {
                activation::unary_plan(target, batch, row, unary)
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
        // batch, tokens, inputs, outputs, bias, residual
        (1, 1, 1, 1, false, false),
        (5, 1, 13, 3, true, true),
        (2, 35, 37, 67, true, false),
        (5, 13, 5 * chunk, 136, true, true),
        (2, 131, 20 * chunk, 137, true, true),
        (1, 128, 4 * chunk, 128, true, false),
        (1, 1100, chunk, 8, false, true),
        (1, 1100, chunk, 136, false, true),
    ];
    for (batch, tokens, inputs, outputs, bias, residual) in products {
        let arguments = json!({
            "tokens": tokens, "inputs": inputs, "outputs": outputs, "bias": bias, "residual": residual
        });
        calls.push(call("matmul", batch, arguments, move |target, batch| {
            Product { batch, tokens, inputs, outputs, bias, residual }.plan(target)
        }));
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
    for (batch, [height, width, inputs], outputs, kernel, stride, padding, bias, added) in convolutions {
        let residual = match added {
            Added::Nothing => "none",
            Added::Map => "map",
            Added::Vector => "vector",
        };
        let arguments = json!({
            "x": [height, width, inputs], "outputs": outputs, "kernel": kernel, "stride": stride,
            "padding": padding, "bias": bias, "residual": residual,
        });
        calls.push(call("conv2d", batch, arguments, move |target, batch| {
            let x = [batch, height, width, inputs];
            let weight = [outputs, kernel[0], kernel[1], inputs];
            Convolution { x, weight, conv: Conv2d { stride, padding }, bias, added }.plan(target)
        }));
    }
    calls
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
    let mut calls = Vec::new();
    for (batch, queries, keys, heads, head_dim, mask, outliers) in cases.into_iter().chain(every) {
        let arguments = json!({
            "queries": queries, "keys": keys, "heads": heads, "head_dim": head_dim,
            "causal": mask == Mask::Causal, "outliers": outliers,
        });
        calls.push(call("attention", batch, arguments, move |target, batch| {
            Attention { batch, queries, keys, heads, head_dim, mask }.plan(target)
        }));
    }
    calls
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

fn calls(target: Target) -> Vec<Call<'static>> {
    // Sizes that are whole vectors in every dtype, or in none.
    let chunk = target.chunk();
    [pointwise(chunk), norms(chunk), transformer(chunk), products(chunk), attention(), denoising()]
        .into_iter()
        .flatten()
        .collect()
}

fn cuda(elem: DType) -> Target {
    Target { language: Language::Cuda, elem }
}

/// With AQUATINT_WRITE_PLANS=1 the file is written instead.
#[test]
fn the_cuda_kernels_are_proven_with_the_launches_that_are_made() {
    let lines: Vec<String> = DTYPES
        .into_iter()
        .flat_map(|elem| {
            calls(cuda(elem)).iter().map(|call| call.json(cuda(elem)).to_string()).collect::<Vec<_>>()
        })
        .collect();
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
    let wgsl = |elem| Target { language: Language::Wgsl, elem };
    for target in [cuda(DType::F32), cuda(DType::F16), cuda(DType::BF16), wgsl(DType::F32), wgsl(DType::F16)]
    {
        // burn's own operation serves convolutions to few channels.
        let calls = calls(target).into_iter().filter(|call| {
            target.language == Language::Cuda || !matches!(call.operation, "conv2d" | "group_norm")
        });
        for call in calls {
            let code = |batch| -> Vec<_> {
                let plans = (call.plans)(target, batch).into_iter();
                plans
                    .map(|plan| (plan.entry, plan.prelude(), plan.source.fingerprint, plan.grid.threads))
                    .collect()
            };
            let alone = code(1);
            for batch in [2, 5, 16] {
                assert_eq!(code(batch), alone, "{} {target:?} {}", call.operation, call.arguments);
            }
        }
    }
}
