//! CPU kernels for tensors of burn's flex backend.
//!
//! Everything is computed in f32. f16 and bf16 activations are converted on the way in and out, weights block by
//! block as they are packed.

pub(crate) mod attention;
pub(crate) mod denoise;
pub(crate) mod elementwise;
pub(crate) mod gemm;
pub(crate) mod im2col;
mod isa;
mod kernel;
mod math;
pub(crate) mod norm;
pub(crate) mod pack;
mod parallel;
pub(crate) mod rope;

use std::borrow::Cow;

use burn::backend::{BackendTensor, DispatchDevice, DispatchTensorKind};
use burn::tensor::{Bytes, DType, Shape, Tensor, bf16, f16};
use burn_flex::{Flex, FlexTensor, Layout};
use half::slice::HalfFloatSliceExt;
use half::vec::HalfFloatVecExt;

pub(crate) use pack::Elements;
pub(crate) use parallel::output;

/// The instruction set that was found.
pub(crate) fn instruction_set() -> String {
    format!("{:?}", isa::Isa::detect())
}

/// Whether `x` lives on the flex backend (outside autodiff, whose graph must see every operation) in a dtype that
/// the kernels know.
pub(crate) fn holds<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
        && matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16)
}

/// A tensor's elements in row-major order.
#[derive(Debug)]
pub(crate) struct Host(FlexTensor);

impl Host {
    pub(crate) fn new<const D: usize>(x: Tensor<D>) -> Self {
        let tensor = match x.into_dispatch() {
            tensor if matches!(&tensor.kind, DispatchTensorKind::Flex(BackendTensor::Float(_))) => {
                match tensor.kind {
                    DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => tensor,
                    #[allow(unreachable_patterns, reason = "the guard has looked")]
                    _ => FlexTensor::empty(Shape::new([0]), DType::F32),
                }
            }
            // A weight left on another device: copied, every time.
            tensor => FlexTensor::from_data(Tensor::<D>::from_dispatch(tensor).into_data()),
        };
        Self(if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() })
    }

    fn slice<E: burn::tensor::Element + bytemuck::Pod>(&self) -> &[E] {
        self.0.as_slice().unwrap_or(&[])
    }

    /// As stored.
    pub(crate) fn elements(&self) -> Elements<'_> {
        match self.0.dtype() {
            DType::F16 => Elements::F16(self.slice::<f16>()),
            DType::BF16 => Elements::Bf16(self.slice::<bf16>()),
            _ => Elements::F32(self.slice::<f32>()),
        }
    }

    /// As f32.
    pub(crate) fn f32(&self) -> Cow<'_, [f32]> {
        match self.elements() {
            Elements::F32(values) => Cow::Borrowed(values),
            Elements::F16(values) => Cow::Owned(values.to_f32_vec()),
            Elements::Bf16(values) => Cow::Owned(values.to_f32_vec()),
        }
    }
}

/// A flex tensor of `dtype` with these values in row-major order.
pub(crate) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], dtype: DType) -> Tensor<D> {
    match dtype {
        DType::F16 => stored(Vec::<f16>::from_f32_slice(&values), shape, dtype),
        DType::BF16 => stored(Vec::<bf16>::from_f32_slice(&values), shape, dtype),
        _ => stored(values, shape, dtype),
    }
}

/// [`tensor`] of values already in `dtype`.
pub(crate) fn stored<E: bytemuck::Pod + Send + Sync, const D: usize>(
    values: Vec<E>,
    shape: [usize; D],
    dtype: DType,
) -> Tensor<D> {
    let layout = Layout::contiguous(Shape::new(shape));
    Tensor::from_primitive::<Flex>(FlexTensor::new(Bytes::from_elems(values), layout, dtype))
}
