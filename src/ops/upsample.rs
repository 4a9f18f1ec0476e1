//! Nearest-neighbour upsampling by two.

use burn::tensor::Tensor;

/// Of the output.
pub(super) fn shape([batch, height, width, channels]: [usize; 4]) -> [usize; 4] {
    [batch, 2 * height, 2 * width, channels]
}

/// Plain burn operations.
pub fn reference(x: Tensor<4>) -> Tensor<4> {
    let [batch, height, width, channels] = x.dims();
    x.reshape([batch * height, 1, width, 1, channels])
        .expand([batch * height, 2, width, 2, channels])
        .reshape([batch, 2 * height, 2 * width, channels])
}

/// The first rows and columns of a map, as many as `size` says.
pub(crate) fn cut(x: Tensor<4>, [height, width]: [usize; 2]) -> Tensor<4> {
    let [_, full_height, full_width, _] = x.dims();
    let x = if height == full_height { x } else { x.narrow(1, 0, height) };
    if width == full_width { x } else { x.narrow(2, 0, width) }
}

/// Copies, in the tensor's own dtype.
#[cfg(feature = "cpu")]
pub(crate) fn cpu(x: Tensor<4>) -> Tensor<4> {
    use super::cpu::{self, Elements, Host, elementwise::upsample_2x};

    let dtype = x.dtype();
    let [batch, height, width, channels] = x.dims();
    let shape = [batch, 2 * height, 2 * width, channels];
    match Host::new(x).elements() {
        Elements::F32(values) => {
            let mut out = cpu::output(4 * values.len());
            upsample_2x(values, width, channels, &mut out);
            cpu::stored(out, shape, dtype)
        }
        Elements::F16(values) => {
            let mut out = vec![Default::default(); 4 * values.len()];
            upsample_2x(values, width, channels, &mut out);
            cpu::stored(out, shape, dtype)
        }
        Elements::Bf16(values) => {
            let mut out = vec![Default::default(); 4 * values.len()];
            upsample_2x(values, width, channels, &mut out);
            cpu::stored(out, shape, dtype)
        }
    }
}
