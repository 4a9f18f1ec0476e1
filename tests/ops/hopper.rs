//! What a device of compute capability 9.0 runs beside the other CUDA kernels: large operations, which go to a stream of
//! our own unless AQUATINT_CUDA_KERNELS is `client`. Some of their rows against f64.

use aquatint::ops::{self, Conv2d, Mask};
use burn::backend::DispatchDevice;
use burn::tensor::{DType, Tensor};

use crate::definitions::{On, read, rounding};
use crate::host::{self, Exact};

/// Rows are whole multiples of the pitch that burn gives a CUDA tensor: none has gaps to take out.
const TOKENS: usize = 4096;
const CHANNELS: usize = 512;

pub(crate) fn is_hopper(on: &On) -> bool {
    match on.device.as_dispatch() {
        DispatchDevice::Cube(device) => device.client().properties().identity.fingerprint == "ptx_sm90",
        _ => false,
    }
}

/// What cubecl launches for a kernel of its client alone, or for one that our own stream takes unseen.
fn through_cubecl(kernel: &'static str) -> Vec<&'static str> {
    let client = std::env::var_os("AQUATINT_CUDA_KERNELS").is_some_and(|value| value == "client");
    if client { vec![kernel] } else { Vec::new() }
}

fn rows_of(values: &[f64], width: usize, rows: &[usize]) -> Vec<f64> {
    rows.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect()
}

impl On {
    fn assert_rows<const D: usize>(&self, y: Tensor<D>, rows: &[usize], expected: &[Exact], tolerance: f64) {
        let (dtype, width) = (y.dtype(), expected.len() / rows.len());
        let picked = self.tensor(&rows_of(&read(y), width, rows), [expected.len()], dtype);
        self.assert_close(picked, expected, tolerance, &format!("rows {rows:?} of {width}"));
    }
}

/// * `observe`: computes, and tells the kernels that cubecl launches
pub(crate) fn large_operations_match_their_definitions(
    on: &On,
    observe: fn(&mut dyn FnMut()) -> Vec<&'static str>,
) {
    for dtype in [DType::F16, DType::BF16] {
        large_product(on, dtype, observe);
        large_convolution(on, dtype, observe);
        large_attention(on, dtype, observe);
    }
}

fn large_product(on: &On, dtype: DType, observe: fn(&mut dyn FnMut()) -> Vec<&'static str>) {
    let (inputs, outputs) = (3072, 4096);
    let (x, xs) = on.random([1, TOKENS, inputs], dtype, 1, 3.0);
    let (weight, weights) = on.random([outputs, inputs], dtype, 2, 1.0);
    let mut y = None;
    let found = observe(&mut || y = Some(ops::linear(x.clone(), &weight, None)));
    assert_eq!(found, through_cubecl("matmul_sm90"));
    let rows = [0, 127, 128, 2049, TOKENS - 1];
    let expected = host::linear(&rows_of(&xs, inputs, &rows), &weights, None, None, inputs);
    on.assert_rows(y.unwrap(), &rows, &expected, 2e-6);
}

fn large_convolution(on: &On, dtype: DType, observe: fn(&mut dyn FnMut()) -> Vec<&'static str>) {
    let size = 128;
    let (x, xs) = on.random([1, size, size, CHANNELS], dtype, 3, 3.0);
    let (weight, weights) = on.random([CHANNELS, 3, 3, CHANNELS], dtype, 4, 1.0);
    let walk = Conv2d { stride: 1, padding: [1; 4] };
    let mut y = None;
    let found = observe(&mut || y = Some(ops::conv2d(x.clone(), &weight, None, &walk)));
    assert_eq!(found, through_cubecl("conv2d_sm90"));
    // Corners, and the middle.
    let pixels = [0, size - 1, size, size * size / 2 + size / 2, size * size - 1];
    let under: Vec<f64> = pixels
        .iter()
        .flat_map(|pixel| (0..9).map(move |tap| (pixel / size + tap / 3, pixel % size + tap % 3)))
        .flat_map(|(line, column)| {
            // The border is one pixel wide.
            let inside = (1..=size).contains(&line) && (1..=size).contains(&column);
            let pixel = if inside { (line - 1) * size + column - 1 } else { 0 };
            let factor = if inside { 1.0 } else { 0.0 };
            xs[pixel * CHANNELS..(pixel + 1) * CHANNELS].iter().map(move |value| factor * value)
        })
        .collect();
    let expected = host::linear(&under, &weights, None, None, 9 * CHANNELS);
    on.assert_rows(y.unwrap(), &pixels, &expected, 2e-6);
}

fn large_attention(on: &On, dtype: DType, observe: fn(&mut dyn FnMut()) -> Vec<&'static str>) {
    let (heads, head_dim) = (8, 64);
    let [(q, qs), (k, ks), (v, vs)] =
        [5, 6, 7].map(|seed| on.random([1, TOKENS, CHANNELS], dtype, seed, 1.0));
    let mut y = None;
    let found = observe(&mut || y = Some(ops::attention(q.clone(), k.clone(), v.clone(), heads, Mask::None)));
    // The kernel for Hopper has no variant for cubecl's client.
    assert_eq!(found, through_cubecl("attention"));
    let rows = [0, 191, 192, TOKENS - 1];
    let exact =
        host::Attention { batch: 1, queries: rows.len(), keys: TOKENS, heads, head_dim, causal: false };
    let expected = exact.compute(&rows_of(&qs, CHANNELS, &rows), &ks, &vs);
    // The exponentials are rounded before they meet the values.
    on.assert_rows(y.unwrap(), &rows, &expected, 2e-6 + rounding(dtype) / on.slack);
}
