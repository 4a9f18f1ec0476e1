//! The convolution, a matrix product over the pixels under the kernel.

use burn::tensor::Tensor;

use super::hopper::{Hopper, Pixels, Ring, TILE_ROWS, TensorMap};
use super::matmul::tiles;
use super::plan::{Language, Plan, Source, THREADS, Target, source, word};
use super::{Buffer, in_parts, joined};
use crate::ops::Conv2d;

const WGSL: Source = source!("wgsl/gemm.wgsl", "wgsl/conv2d.wgsl");
const CUDA: Source = source!("cuda/common.cuh", "cuda/mma.cuh", "cuda/gemm.cuh", "cuda/conv2d.cu");
const SM90: Source =
    source!("cuda/common.cuh", "cuda/wgmma.cuh", "cuda/gemm_sm90.cuh", "cuda/conv2d_sm90.cu");

const FEW_WGSL: Source = source!("wgsl/gemm.wgsl", "wgsl/conv2d.wgsl", "wgsl/conv2d_few.wgsl");

/// Fewer outputs than this leave half of a WGSL tile of 64 idle.
const LEAST_OUTPUTS: usize = 33;

/// What is added to a convolution's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    Nothing = 0,
    /// A tensor of the output's shape.
    Map = 1,
    /// One vector a picture.
    Vector = 2,
}

/// One call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Convolution {
    /// Of the input: batch, height, width, channels.
    pub(crate) x: [usize; 4],
    /// outputs, kernel height, kernel width, channels.
    pub(crate) weight: [usize; 4],
    pub(crate) conv: Conv2d,
    pub(crate) bias: bool,
    pub(crate) added: Added,
}

impl Convolution {
    /// Of the output.
    pub(crate) fn shape(&self) -> [usize; 4] {
        let [batch, height, width, _] = self.x;
        let [outputs, kernel_height, kernel_width, _] = self.weight;
        let [height, width] = self.conv.output_size([height, width], [kernel_height, kernel_width]);
        [batch, height, width, outputs]
    }

    /// `None` for empty sizes.
    pub(crate) fn plan(&self, target: Target) -> Option<Plan> {
        let [batch, height, width, inputs] = self.x;
        let [outputs, kernel_height, kernel_width, _] = self.weight;
        let [_, out_height, out_width, _] = self.shape();
        let [top, _, left, _] = self.conv.padding;
        let stride = self.conv.stride;
        let pixels = out_height * out_width;
        let (rows, inner) = (batch * pixels, kernel_height * kernel_width * inputs);
        if rows * inner * outputs == 0 {
            return None;
        }
        let (bias, added) = (usize::from(self.bias), self.added as usize);
        if let Some((hopper, ring)) = Ring::choose(target, pixels, outputs, inputs, inner)
            && self.pixels(ring).is_some()
        {
            return self.on_hopper(target, hopper, ring);
        }
        let (constants, grid) = tiles(target, rows, pixels, outputs, inputs)?;
        let (source, sizes) = match target.language {
            Language::Wgsl => {
                let counts = [batch * height * width * inputs, outputs * inner, rows * outputs];
                counts.into_iter().try_for_each(|count| word(count).map(drop))?;
                let sizes = [rows, height, width, inputs, out_height, out_width, outputs];
                (WGSL, sizes.into_iter().chain([top, left, kernel_height, kernel_width, stride, bias, added]))
            }
            Language::Cuda => {
                let reach = [stride * out_height + kernel_height, stride * out_width + kernel_width];
                [rows, inner, reach[0], reach[1]].into_iter().try_for_each(|size| word(size).map(drop))?;
                let sizes = [batch, height, width, inputs, out_height, out_width, outputs];
                (CUDA, sizes.into_iter().chain([kernel_height, kernel_width, stride, top, left, bias, added]))
            }
        };
        let params = sizes.map(word).collect::<Option<_>>()?;
        let plan = Plan { target, source, entry: "conv2d", constants, maps: Vec::new(), params, grid };
        match target.language {
            Language::Wgsl => self.on_wgsl(plan),
            Language::Cuda => Some(plan),
        }
    }

    /// `plan` by the kernel for so many outputs.
    fn on_wgsl(&self, mut plan: Plan) -> Option<Plan> {
        // Not upsampled.
        plan.params.push(0);
        let [outputs, ..] = self.weight;
        let [_, y, z] = plan.grid.blocks;
        if outputs >= LEAST_OUTPUTS {
            return Some(plan);
        }
        let grid = plan.target.grid([outputs.div_ceil(4), y as usize, z as usize], THREADS)?;
        Some(Plan { source: FEW_WGSL, entry: "conv2d_few", grid, ..plan })
    }

    /// Over a map of `x`'s shape of which only what [`upsample`](super::upsample) makes it of is there. `None` on CUDA.
    fn plan_upsampled(&self, target: Target) -> Option<Plan> {
        let mut plan = self.plan(target).filter(|_| target.language == Language::Wgsl)?;
        *plan.params.last_mut()? = 1;
        Some(plan)
    }

    /// How TMA finds the pixels of one picture under the kernel; `None` where `conv2d_sm90` does not reach them.
    fn pixels(&self, ring: Ring) -> Option<Pixels> {
        let [_, height, width, _] = self.x;
        let [_, kernel_height, kernel_width, _] = self.weight;
        let [_, out_height, out_width, _] = self.shape();
        let [top, _, left, _] = self.conv.padding;
        let stride = self.conv.stride;
        let near =
            [top, left, kernel_height, kernel_width].into_iter().all(|size| size <= 127) && stride <= 8;
        if !near || height.max(width) >= 1 << 16 {
            return None;
        }
        // Of the first tap's last place, from the picture's last pixel.
        let last = |out: usize, before: usize, size: usize| {
            let place = out.checked_sub(1)?.checked_mul(stride)? as i64 - before as i64;
            i32::try_from(place - (size as i64 - 1)).ok()
        };
        let pixels = Pixels {
            channels: ring.inputs,
            pixels: TILE_ROWS,
            lower: [-(left as i32), -(top as i32)],
            upper: [last(out_width, left, width)?, last(out_height, top, height)?],
            steps: [stride as u32; 2],
        };
        pixels.fit().then_some(pixels)
    }

    /// `conv2d_sm90`.
    pub(crate) fn on_hopper(&self, target: Target, hopper: Hopper, ring: Ring) -> Option<Plan> {
        let [batch, height, width, inputs] = self.x;
        let [outputs, kernel_height, kernel_width, _] = self.weight;
        let [_, out_height, out_width, _] = self.shape();
        let [top, _, left, _] = self.conv.padding;
        let taps = kernel_height * kernel_width;
        word((taps * inputs).checked_add(256)?)?;
        let sizes = [batch, out_height, out_width, inputs, outputs, kernel_height, kernel_width];
        let rest = [self.conv.stride, top, left, usize::from(self.bias), self.added as usize];
        Some(Plan {
            target,
            source: SM90,
            entry: "conv2d_sm90",
            constants: ring.constants(),
            maps: vec![
                TensorMap::pixels([inputs, width, height, batch], self.pixels(ring)?)?,
                TensorMap::tiled(&[inputs, taps, outputs], &[ring.inputs, 1, ring.outputs])?,
            ],
            params: sizes.into_iter().chain(rest).map(word).collect::<Option<_>>()?,
            grid: ring.grid(target, hopper, batch * out_height * out_width, outputs)?,
        })
    }
}

pub(crate) fn conv2d(
    x: Tensor<4>,
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    conv: &Conv2d,
    residual: Option<Tensor<4>>,
) -> Option<Tensor<4>> {
    let target = Target::of(&x)?;
    let mut call = Convolution {
        x: x.dims(),
        weight: weight.dims(),
        conv: *conv,
        bias: bias.is_some(),
        added: Added::Nothing,
    };
    let shape = call.shape();
    let [_, out_height, out_width, outputs] = shape;
    if let Some(residual) = &residual {
        call.added = if residual.dims() == shape { Added::Map } else { Added::Vector };
    }
    let [batch, height, width, inputs] = call.x;
    let call = |batch| Convolution { x: [batch, height, width, inputs], ..call };
    let plan = |batch| call(batch).plan(target);
    joined(in_parts(batch, plan, |plan, part| {
        let (x, weight) = (Buffer::of(part.of(&x), target)?, Buffer::of(weight.clone(), target)?);
        // What params turn off is bound and never read.
        let bias = bias.map_or_else(|| Some(x.clone()), |bias| Buffer::of(bias.clone(), target))?;
        let residual = residual.as_ref();
        let residual =
            residual.map_or_else(|| Some(x.clone()), |other| Buffer::of(part.of(other), target))?;
        let y = x.empty([part.pictures, out_height, out_width, outputs], target.elem);
        let other = || call(part.pictures).plan(target.without_hopper());
        plan.launch_or(other, &[&x, &weight, &bias, &residual], &[&y])?;
        y.tensor()
    })?)
}

/// Over `x` upsampled by two and cut to `[height, width]`; `None` where no kernel does that in one launch.
pub(crate) fn upsampled(
    x: Tensor<4>,
    [height, width]: [usize; 2],
    weight: &Tensor<4>,
    bias: Option<&Tensor<1>>,
    conv: &Conv2d,
) -> Option<Tensor<4>> {
    let target = Target::of(&x)?;
    let [batch, _, _, channels] = x.dims();
    let call = Convolution {
        x: [batch, height, width, channels],
        weight: weight.dims(),
        conv: *conv,
        bias: bias.is_some(),
        added: Added::Nothing,
    };
    let call = |batch| Convolution { x: [batch, height, width, channels], ..call };
    let plan = |batch| call(batch).plan_upsampled(target);
    joined(in_parts(batch, plan, |plan, part| {
        let (x, weight) = (Buffer::of(part.of(&x), target)?, Buffer::of(weight.clone(), target)?);
        // What params turn off is bound and never read.
        let bias = bias.map_or_else(|| Some(x.clone()), |bias| Buffer::of(bias.clone(), target))?;
        let y = x.empty(call(part.pictures).shape(), target.elem);
        plan.launch(&[&x, &weight, &bias, &x], &[&y])?;
        y.tensor()
    })?)
}
