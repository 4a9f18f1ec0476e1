//! The matrix product.

use burn::tensor::Tensor;

use super::hopper::{Hopper, Ring, TILE_ROWS, TensorMap};
use super::plan::{Grid, LANES, Language, Plan, Source, THREADS, Target, source, word};
use super::{Buffer, activation, in_parts, joined};
use crate::ops::{Epilogue, Nonlinearity};

const MATMUL_WGSL: Source =
    source!("wgsl/gelu.wgsl", "wgsl/epilogue.wgsl", "wgsl/gemm.wgsl", "wgsl/matmul.wgsl");
const MATMUL_WIDE_WGSL: Source = source!(
    "wgsl/gelu.wgsl",
    "wgsl/epilogue.wgsl",
    "wgsl/gemm.wgsl",
    "wgsl/matmul.wgsl",
    "wgsl/matmul_wide.wgsl"
);
/// Workgroup memory of `matmul_wide`.
const WIDE_BYTES: usize = 17_152;
const MATVEC_WGSL: Source = source!("wgsl/gelu.wgsl", "wgsl/epilogue.wgsl", "wgsl/matvec.wgsl");
const MATMUL_SM90: Source =
    source!("cuda/common.cuh", "cuda/wgmma.cuh", "cuda/gemm_sm90.cuh", "cuda/matmul_sm90.cu");
const MATMUL_CUDA: Source = source!("cuda/common.cuh", "cuda/mma.cuh", "cuda/gemm.cuh", "cuda/matmul.cu");

/// The constants and the grid of a product's tiles: `rows` in all, `of_picture` of them a picture, by `outputs`, with
/// sums over `inputs` side by side in memory.
pub(crate) fn tiles(
    target: Target,
    rows: usize,
    of_picture: usize,
    outputs: usize,
    inputs: usize,
) -> Option<(Vec<(&'static str, u32)>, Grid)> {
    match target.language {
        Language::Wgsl => {
            const TILE: usize = 64;
            let width = if target.width(&[inputs]) == 4 { 4 } else { 1 };
            let [y, z, _] = target.spread(rows.div_ceil(TILE), THREADS)?.blocks;
            let grid = target.grid([outputs.div_ceil(TILE), y as usize, z as usize], THREADS)?;
            Some((vec![("WIDTH", width)], grid))
        }
        Language::Cuda => {
            let aligned = inputs.is_multiple_of(target.chunk());
            let (tile, threads) =
                if aligned && of_picture >= 128 && outputs >= 128 { (128, 256) } else { (64, 128) };
            let grid = target.spread(rows.div_ceil(tile) * outputs.div_ceil(tile), threads)?;
            Some((vec![("TILE", word(tile)?), ("ALIGNED", u32::from(aligned))], grid))
        }
    }
}

/// One call: `x · weightᵀ` for `batch` pictures of `tokens` rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) batch: usize,
    pub(crate) tokens: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) bias: bool,
    pub(crate) activation: Option<Nonlinearity>,
    pub(crate) gate: bool,
    pub(crate) residual: bool,
}

impl Product {
    /// `None` for empty sizes.
    pub(crate) fn plan(&self, target: Target) -> Option<Plan> {
        let &Self { batch, tokens, inputs, outputs, .. } = self;
        let rows = batch * tokens;
        if rows * inputs * outputs == 0 {
            return None;
        }
        if target.language == Language::Wgsl {
            [rows * inputs, outputs * inputs, rows * outputs]
                .into_iter()
                .try_for_each(|count| word(count).map(drop))?;
            if tokens == 1 {
                return self.matvec(target);
            }
        }
        if let Some((hopper, ring)) = Ring::choose(target, tokens, outputs, inputs, inputs) {
            return self.on_hopper(target, hopper, ring);
        }
        let (constants, grid) = tiles(target, rows, tokens, outputs, inputs)?;
        let sizes = [word(rows)?, word(outputs)?, word(inputs)?];
        let source = match target.language {
            Language::Wgsl => MATMUL_WGSL,
            Language::Cuda => MATMUL_CUDA,
        };
        let params = [&sizes[..], &self.epilogue()?].concat();
        Some(Plan { target, source, entry: "matmul", constants, maps: Vec::new(), params, grid })
    }

    /// `matmul_sm90`.
    pub(crate) fn on_hopper(&self, target: Target, hopper: Hopper, ring: Ring) -> Option<Plan> {
        let &Self { batch, tokens, inputs, outputs, .. } = self;
        let rows = batch * tokens;
        word(inputs.checked_add(256)?)?;
        let [bias, residual, activation, gate_rows] = self.epilogue()?;
        Some(Plan {
            target,
            source: MATMUL_SM90,
            entry: "matmul_sm90",
            constants: [ring.constants(), vec![("ACTIVATION", activation)]].concat(),
            maps: vec![
                TensorMap::tiled(&[inputs, rows], &[ring.inputs, TILE_ROWS])?,
                TensorMap::tiled(&[inputs, outputs], &[ring.inputs, ring.outputs])?,
            ],
            params: vec![word(rows)?, word(outputs)?, word(inputs)?, bias, residual, gate_rows],
            grid: ring.grid(target, hopper, rows, outputs)?,
        })
    }

    /// `plan` as a software adapter computes it faster, with the same bits.
    fn on_software(&self, plan: Plan) -> Option<Plan> {
        let [_, y, z] = plan.grid.blocks;
        if plan.source != MATMUL_WGSL || self.outputs <= 64 {
            return Some(plan);
        }
        let grid = plan.target.grid([self.outputs.div_ceil(128), y as usize, z as usize], THREADS)?;
        Some(Plan { source: MATMUL_WIDE_WGSL, entry: "matmul_wide", grid, ..plan })
    }

    /// A row a picture.
    fn matvec(&self, target: Target) -> Option<Plan> {
        let width = target.width(&[self.inputs]);
        let sizes = [word(self.outputs)?, word(self.inputs / width)?];
        Some(Plan {
            target,
            source: MATVEC_WGSL,
            entry: "matvec",
            constants: vec![("WIDTH", word(width)?)],
            maps: Vec::new(),
            params: [&sizes[..], &self.epilogue()?].concat(),
            grid: target.grid([self.outputs.div_ceil(THREADS / LANES), self.batch, 1], THREADS)?,
        })
    }

    /// The parameters that say what follows the product.
    fn epilogue(&self) -> Option<[u32; 4]> {
        let gate_rows = if self.gate { word(self.tokens)? } else { 0 };
        let activation = self.activation.map_or(0, activation::code);
        Some([u32::from(self.bias), u32::from(self.residual), activation, gate_rows])
    }
}

pub(crate) fn linear(x: Tensor<3>, weight: &Tensor<2>, epilogue: Epilogue<'_>) -> Option<Tensor<3>> {
    let Epilogue { bias, activation, gate, residual } = epilogue;
    let [batch, tokens, inputs] = x.dims();
    let [outputs, _] = weight.dims();
    let target = Target::of(&x)?;
    let product = Product {
        batch,
        tokens,
        inputs,
        outputs,
        bias: bias.is_some(),
        activation,
        gate: gate.is_some(),
        residual: residual.is_some(),
    };
    let call = |batch| Product { batch, ..product };
    let plan = |batch| call(batch).plan(target);
    joined(in_parts(batch, plan, |plan, part| {
        let (x, weight) = (Buffer::of(part.of(&x), target)?, Buffer::of(weight.clone(), target)?);
        let wide;
        let plan = if x.on_llvmpipe_with(WIDE_BYTES) {
            wide = call(part.pictures).on_software(plan.clone())?;
            &wide
        } else {
            plan
        };
        // What params turn off is bound and never read.
        let bias = bias.map_or_else(|| Some(x.clone()), |bias| Buffer::of(bias.clone(), target))?;
        let residual = residual.as_ref();
        let residual =
            residual.map_or_else(|| Some(x.clone()), |other| Buffer::of(part.of(other), target))?;
        let gate = gate.map_or_else(|| Some(x.clone()), |gate| Buffer::of(part.of(gate), target))?;
        let y = x.empty([part.pictures, tokens, outputs], target.elem);
        let other = || call(part.pictures).plan(target.without_hopper());
        plan.launch_or(other, &[&x, &weight, &bias, &residual, &gate], &[&y])?;
        y.tensor()
    })?)
}
