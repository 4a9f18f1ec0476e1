//! CPU kernels for tensors of burn's flex backend.

use burn::backend::DispatchDevice;
use burn::tensor::Tensor;

/// Whether `x` lives on the flex backend (and outside autodiff, whose graph must see every operation).
pub(crate) fn holds<const D: usize>(x: &Tensor<D>) -> bool {
    matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}
