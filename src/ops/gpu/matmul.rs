//! The matrix product, and the convolution that is one over patches.

use burn::tensor::{DType, Tensor};

use super::{Buffer, LANES, Launch, THREADS, vector_width, word};
use crate::ops::Conv2d;

const MATMUL: &[&str] =
    &[include_str!("../../../kernels/wgsl/gemm.wgsl"), include_str!("../../../kernels/wgsl/matmul.wgsl")];
const MATVEC: &[&str] = &[include_str!("../../../kernels/wgsl/matvec.wgsl")];
const CONV2D: &[&str] =
    &[include_str!("../../../kernels/wgsl/gemm.wgsl"), include_str!("../../../kernels/wgsl/conv2d.wgsl")];

/// Rows and columns of the output that a workgroup makes.
const TILE: usize = 64;

/// Fewer outputs than this leave most of a convolution's tile idle. In f32 burn's own is then as exact and faster; in
/// f16 it rounds before bias and residual.
const LEAST_OUTPUTS: usize = 24;

/// The grid of `rows` × `columns` outputs.
fn tiles(rows: usize, columns: usize) -> Option<[usize; 3]> {
    let [y, z, _] = super::spread(rows.div_ceil(TILE))?;
    Some([columns.div_ceil(TILE), y, z])
}

/// 4 where rows of `inputs` elements are whole vectors of four, else 1.
fn load_width(inputs: usize) -> Option<u32> {
    word(if vector_width(&[inputs]) == 4 { 4 } else { 1 })
}

pub(crate) fn linear(
    x: Tensor<3>,
    weight: &Tensor<2>,
    bias: Option<&Tensor<1>>,
    residual: Option<Tensor<3>>,
) -> Option<Tensor<3>> {
    let [batch, tokens, k] = x.dims();
    let [n, _] = weight.dims();
    let m = batch * tokens;
    if m * n * k == 0 {
        return None;
    }
    let epilogue = [u32::from(bias.is_some()), u32::from(residual.is_some())];
    let (x, weight) = (Buffer::of(x)?, Buffer::of(weight.clone())?);
    // What params turn off is bound and never read.
    let bias = bias.map_or_else(|| Some(x.clone()), |bias| Buffer::of(bias.clone()))?;
    let residual = residual.map_or_else(|| Some(x.clone()), Buffer::of)?;
    let y = x.empty([batch, tokens, n], x.dtype());
    [m * k, n * k, m * n].into_iter().try_for_each(|count| word(count).map(drop))?;
    let (source, entry, width, sizes, cubes) = if tokens == 1 {
        let width = vector_width(&[k]);
        let cubes = [n.div_ceil(THREADS as usize / LANES), batch, 1];
        (MATVEC, "matvec", word(width)?, vec![word(n)?, word(k / width)?], cubes)
    } else {
        (MATMUL, "matmul", load_width(k)?, vec![word(m)?, word(n)?, word(k)?], tiles(m, n)?)
    };
    Launch {
        source,
        entry,
        elem: x.dtype(),
        constants: &[("WIDTH", width)],
        inputs: &[&x, &weight, &bias, &residual],
        outputs: &[&y],
        params: &[sizes, epilogue.to_vec()].concat(),
        cubes,
    }
    .run()?;
    y.tensor()
}

/// `None` for empty sizes, and for few outputs in f32.
pub(crate) fn conv2d(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    conv: &Conv2d,
    residual: Option<Tensor<4>>,
) -> Option<Tensor<4>> {
    let [batch, height, width, inputs] = x.dims();
    let [outputs, kh, kw, _] = weight.dims();
    let [out_height, out_width] = conv.output_size([height, width], [kh, kw]);
    let [top, _, left, _] = conv.padding;
    let rows = batch * out_height * out_width;
    if rows * inputs * kh * kw == 0 || (outputs < LEAST_OUTPUTS && x.dtype() == DType::F32) {
        return None;
    }
    let shape = [batch, out_height, out_width, outputs];
    let added = match residual.as_ref().map(Tensor::dims) {
        None => 0,
        Some(dims) if dims == shape => 1,
        Some(_) => 2,
    };
    let has_bias = usize::from(bias.is_some());
    let (x, weight) = (Buffer::of(x)?, Buffer::of(weight.clone())?);
    let bias = bias.map_or_else(|| Some(x.clone()), |bias| Buffer::of(bias.clone()))?;
    let residual = residual.map_or_else(|| Some(x.clone()), Buffer::of)?;
    let y = x.empty(shape, x.dtype());
    let counts = [batch * height * width * inputs, outputs * kh * kw * inputs, rows * outputs];
    counts.into_iter().try_for_each(|count| word(count).map(drop))?;
    let sizes = [rows, height, width, inputs, out_height, out_width, outputs];
    let sizes = sizes.into_iter().chain([top, left, kh, kw, conv.stride, has_bias, added]);
    let params: Vec<u32> = sizes.map(word).collect::<Option<_>>()?;
    Launch {
        source: CONV2D,
        entry: "conv2d",
        elem: x.dtype(),
        constants: &[("WIDTH", load_width(inputs)?)],
        inputs: &[&x, &weight, &bias, &residual],
        outputs: &[&y],
        params: &params,
        cubes: tiles(rows, outputs)?,
    }
    .run()?;
    y.tensor()
}
