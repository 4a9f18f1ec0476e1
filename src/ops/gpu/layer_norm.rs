//! Layer normalisation.

use burn::tensor::Tensor;

use super::plan::{LANES, Language, Plan, Source, THREADS, Target, source, word};
use super::{Buffer, in_parts, joined};

const WGSL: Source = source!("wgsl/rows.wgsl", "wgsl/layer_norm.wgsl");
const CUDA: Source = source!("cuda/common.cuh", "cuda/rows.cuh", "cuda/layer_norm.cu");

/// `None` for rows that CUDA's registers cannot hold.
pub(crate) fn plan(target: Target, rows: usize, channels: usize, eps: f32) -> Option<Plan> {
    rows_plan(target, [WGSL, CUDA], "layer_norm", rows, channels, eps)
}

/// The launch of a kernel that reduces rows: LANES threads a row in WGSL, in CUDA a warp that holds it in registers;
/// `None` where it cannot.
pub(super) fn rows_plan(
    target: Target,
    [wgsl, cuda]: [Source; 2],
    entry: &'static str,
    rows: usize,
    channels: usize,
    eps: f32,
) -> Option<Plan> {
    let width = target.width(&[channels]);
    let mut constants = vec![("WIDTH", word(width)?)];
    let (source, columns, grid) = match target.language {
        Language::Wgsl => {
            word(rows * channels / width)?;
            (wgsl, channels / width, target.spread(rows.div_ceil(THREADS / LANES), THREADS)?)
        }
        Language::Cuda => {
            let packs = channels.div_ceil(32 * width);
            // Elements that a thread can hold in registers.
            let most = if width == 1 { 64 } else { 128 };
            if packs * width > most {
                return None;
            }
            constants.push(("PACKS", word(packs)?));
            // A warp a row.
            (cuda, channels, target.spread(rows.div_ceil(4), 128)?)
        }
    };
    let params = vec![word(rows)?, word(columns)?, eps.to_bits()];
    Some(Plan { target, source, entry, constants, maps: Vec::new(), params, grid })
}

pub(crate) fn layer_norm(x: Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f32) -> Option<Tensor<3>> {
    let [batch, tokens, channels] = x.dims();
    let target = Target::of(&x)?;
    let plan = |batch| plan(target, batch * tokens, channels, eps);
    joined(in_parts(batch, plan, |plan, part| {
        let x = Buffer::of(part.of(&x), target)?;
        let (weight, bias) = (Buffer::of(weight.clone(), target)?, Buffer::of(bias.clone(), target)?);
        let y = x.empty([part.pictures, tokens, channels], target.elem);
        plan.launch(&[&x, &weight, &bias], &[&y])?;
        y.tensor()
    })?)
}
