//! Ties the launches to the proof of the CUDA kernels on the host: `kernels/host/plans.json` has the plans of the calls
//! that `kernels/host/prove.py` runs, and is out of date where it differs from what is planned here.

mod calls;

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

use calls::{calls, large, on_hopper};

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
