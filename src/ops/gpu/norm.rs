//! Group and layer normalisation.

use burn::tensor::{DType, Tensor};

use super::{Buffer, LANES, Launch, THREADS, elementwise, spread, vector_width, word};
use crate::ops::Activation;

const LAYER_NORM: &[&str] = &[include_str!("../../../kernels/wgsl/layer_norm.wgsl")];
const GROUP_NORM: &[&str] = &[include_str!("../../../kernels/wgsl/group_norm.wgsl")];

pub(crate) fn layer_norm(x: Tensor<3>, weight: &Tensor<1>, bias: &Tensor<1>, eps: f32) -> Option<Tensor<3>> {
    let shape = x.dims();
    let [batch, tokens, channels] = shape;
    let width = vector_width(&[channels]);
    let rows = batch * tokens;
    let (x, weight, bias) = (Buffer::of(x)?, Buffer::of(weight.clone())?, Buffer::of(bias.clone())?);
    let y = x.empty(shape, x.dtype());
    word(rows * channels / width)?;
    Launch {
        source: LAYER_NORM,
        entry: "layer_norm",
        elem: x.dtype(),
        constants: &[("WIDTH", word(width)?)],
        inputs: &[&x, &weight, &bias],
        outputs: &[&y],
        params: &[word(rows)?, word(channels / width)?, eps.to_bits()],
        cubes: spread(rows.div_ceil(THREADS as usize / LANES))?,
    }
    .run()?;
    y.tensor()
}

/// How `group_norm.wgsl` cuts one picture: by its own shape, never by the batch.
struct Cut {
    width: usize,
    /// Vectors of one group.
    columns: usize,
    /// Groups of a workgroup.
    block: usize,
    slices: usize,
    /// Pixels of a slice.
    span: usize,
}

impl Cut {
    /// `None` where a group has more channels than a workgroup has threads for.
    fn new(pixels: usize, channels: usize, groups: usize) -> Option<Self> {
        // Elements side by side that a block reads: a cache line of f16.
        const LINE: usize = 64;
        // Pixels that one thread sums, where the map is small.
        const PIXELS: usize = 32;
        const MOST_SLICES: usize = 128;
        let threads = THREADS as usize;
        let of_group = channels.checked_div(groups).filter(|&of_group| of_group > 0)?;
        let width = vector_width(&[of_group]);
        let columns = of_group / width;
        let block = LINE.div_ceil(of_group).min(threads / columns).min(groups);
        if block == 0 || pixels == 0 {
            return None;
        }
        let rows = threads / (block * columns);
        let slices = pixels.div_ceil(rows * PIXELS).clamp(1, MOST_SLICES);
        let span = pixels.div_ceil(slices);
        // A longer span may leave the last slices without a pixel.
        Some(Self { width, columns, block, slices: pixels.div_ceil(span), span })
    }
}

pub(crate) fn group_norm(
    x: Tensor<4>,
    groups: usize,
    weight: &Tensor<1>,
    bias: &Tensor<1>,
    eps: f32,
    activation: Activation,
) -> Option<Tensor<4>> {
    let shape = x.dims();
    let [batch, height, map_width, channels] = shape;
    let pixels = height * map_width;
    let cut = Cut::new(pixels, channels, groups)?;
    let (x, weight, bias) = (Buffer::of(x)?, Buffer::of(weight.clone())?, Buffer::of(bias.clone())?);
    let partial = x.empty([batch, cut.slices, groups, 2], DType::F32);
    let y = x.empty(shape, x.dtype());
    let count = batch * pixels * channels / cut.width;
    let constants = [
        ("WIDTH", word(cut.width)?),
        ("BLOCK", word(cut.block)?),
        ("SILU", u32::from(activation == Activation::Silu)),
    ];
    let params = [
        word(pixels)?,
        word(groups)?,
        word(cut.columns)?,
        word(cut.slices)?,
        word(cut.span)?,
        word(count)?,
        eps.to_bits(),
    ];
    let launch = |entry, inputs: &[&Buffer], output: &Buffer, cubes| {
        let (outputs, elem) = (&[output], x.dtype());
        Launch {
            source: GROUP_NORM,
            entry,
            elem,
            constants: &constants,
            inputs,
            outputs,
            params: &params,
            cubes,
        }
        .run()
    };
    let grid = elementwise(count)?;
    launch("group_norm_statistics", &[&x], &partial, [cut.slices, groups.div_ceil(cut.block), batch])?;
    let combined = if cut.slices == 1 {
        partial
    } else {
        let combined = x.empty([batch, groups, 2], DType::F32);
        launch("group_norm_combine", &[&partial], &combined, [groups, batch, 1])?;
        combined
    };
    launch("group_norm_apply", &[&x, &combined, &weight, &bias], &y, grid)?;
    y.tensor()
}
