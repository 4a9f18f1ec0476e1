//! The launches for Hopper, against f64: all variants, at sizes that the models' choice would leave to others. They run
//! on a device of compute capability 9.0 or on the software driver of `kernels/host/driver`, where they are asked for
//! (`kernels/README.md` has the command).

use burn::tensor::{DType, Device, DeviceType, Tensor, TensorData};

use super::Buffer;
use super::activation::unary_plan;
use super::attention::Attention;
use super::conv2d::{Added, Convolution};
use super::hopper::{Hopper, LARGE, MIDDLE, Ring, STATIC};
use super::matmul::Product;
use super::plan::{Language, Plan, Target};
use crate::ops::{Conv2d, Mask, Nonlinearity};

const RINGS: [Ring; 3] = [STATIC, MIDDLE, LARGE];

/// One multiprocessor, so that a block has more than one tile.
const HOPPER: Hopper = Hopper { multiprocessors: 1, own_stream: true };

struct On {
    device: Device,
    target: Target,
}

/// The first CUDA device, for f16 and for bf16.
fn on_hopper() -> [On; 2] {
    let device = Device::enumerate(DeviceType::Cuda).into_vec().into_iter().next().expect("a CUDA device");
    [DType::F16, DType::BF16].map(|elem| {
        let target = Target { language: Language::Cuda, elem, hopper: Some(HOPPER) };
        let on = On { device: device.clone(), target };
        let (one, _) = on.tensor([1], 0);
        let Buffer(one) = Buffer::of(one, target).expect("the CUDA kernels");
        assert!(super::hopper(one.client.properties()).is_some(), "compute capability 9.0");
        on
    })
}

impl On {
    /// Values of -1 to 1, the first and the last 50 times as large; and as they are stored.
    fn tensor<const D: usize>(&self, shape: [usize; D], seed: u64) -> (Tensor<D>, Vec<f64>) {
        let mut values = uniform(shape.iter().product(), seed);
        values[0] *= 50.0;
        *values.last_mut().unwrap() *= -50.0;
        self.stored(values, shape)
    }

    fn stored<const D: usize>(&self, values: Vec<f64>, shape: [usize; D]) -> (Tensor<D>, Vec<f64>) {
        let data = TensorData::new(values, shape).convert_dtype(self.target.elem);
        let stored = data.clone().convert::<f64>().try_to_vec().unwrap();
        (Tensor::from_data(data, (&self.device, self.target.elem)), stored)
    }

    fn buffer<const D: usize>(&self, shape: [usize; D], seed: u64) -> (Buffer, Vec<f64>) {
        let (tensor, stored) = self.tensor(shape, seed);
        (Buffer::of(tensor, self.target).unwrap(), stored)
    }

    fn launch<const D: usize>(&self, plan: &Plan, inputs: &[&Buffer], shape: [usize; D]) -> Buffer {
        let y = inputs[0].empty(shape, self.target.elem);
        plan.launch(inputs, &[&y]).expect("a launch");
        y
    }

    /// Of one rounding and of sums in f32.
    #[track_caller]
    fn assert_close(&self, found: &[f64], expected: &[Sum], what: &str) {
        let unit = if self.target.elem == DType::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
        assert_eq!(found.len(), expected.len(), "{what}");
        for (at, (found, sum)) in found.iter().zip(expected).enumerate() {
            let limit =
                1.01 * unit * sum.value.abs() + sum.rounded * unit + 2f64.powi(-20) * sum.terms + 1e-6;
            let error = (found - sum.value).abs();
            assert!(error <= limit, "{what} {at}: {found} for {}, {error} of {limit}", sum.value);
        }
    }
}

/// Values of -1 to 1.
fn uniform(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let draw = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..count).map(draw).collect()
}

fn read(buffer: Buffer) -> Vec<f64> {
    buffer.tensor::<1>().unwrap().into_data().convert::<f64>().try_to_vec().unwrap()
}

/// A sum, the magnitudes of its terms, and of those that were rounded to the dtype before.
#[derive(Clone, Copy, Default)]
struct Sum {
    value: f64,
    terms: f64,
    rounded: f64,
}

impl Sum {
    fn of(terms: impl IntoIterator<Item = f64>) -> Self {
        terms.into_iter().fold(Self::default(), |sum, term| Self {
            value: sum.value + term,
            terms: sum.terms + term.abs(),
            ..sum
        })
    }
}

/// * `sizes`: batch, tokens, inputs, outputs
fn product(sizes: [usize; 4], bias: bool, residual: bool) -> Product {
    let [batch, tokens, inputs, outputs] = sizes;
    Product { batch, tokens, inputs, outputs, bias, activation: None, gate: false, residual }
}

#[test]
#[ignore = "needs a CUDA device of compute capability 9.0"]
fn products_are_those_of_f64_on_both_ways_to_the_device() {
    let (batch, tokens, inputs, outputs) = (2, 131, 136, 264);
    for on in on_hopper() {
        let (x, xs) = on.buffer([batch * tokens * inputs], 1);
        let (weight, weights) = on.buffer([outputs * inputs], 2);
        let (bias, biases) = on.buffer([outputs], 3);
        let (residual, residuals) = on.buffer([batch * tokens * outputs], 4);
        let expected: Vec<_> = (0..batch * tokens * outputs)
            .map(|at| {
                let (row, output) = (at / outputs, at % outputs);
                let terms = (0..inputs).map(|i| xs[row * inputs + i] * weights[output * inputs + i]);
                Sum::of(terms.chain([biases[output], residuals[at]]))
            })
            .collect();
        let product = product([batch, tokens, inputs, outputs], true, true);
        let found = RINGS.map(|ring| {
            let plan = product.on_hopper(on.target, HOPPER, ring).unwrap();
            read(on.launch(&plan, &[&x, &weight, &bias, &residual, &x], [expected.len()]))
        });
        on.assert_close(&found[0], &expected, "a product");
        assert!(found.iter().all(|other| *other == found[0]), "the bits depend on the variant");
    }
}

#[test]
#[ignore = "needs a CUDA device of compute capability 9.0"]
fn convolutions_are_those_of_f64_on_both_ways_to_the_device() {
    // An uneven border, and pictures that begin within a tile.
    let ([batch, height, width, inputs], outputs) = ([2, 11, 13, 72], 136);
    let conv = Conv2d { stride: 2, padding: [2, 1, 0, 1] };
    for on in on_hopper() {
        let (x, xs) = on.buffer([batch * height * width * inputs], 1);
        let (weight, weights) = on.buffer([outputs * 9 * inputs], 2);
        let (bias, biases) = on.buffer([outputs], 3);
        let call = Convolution {
            x: [batch, height, width, inputs],
            weight: [outputs, 3, 3, inputs],
            conv,
            bias: true,
            added: Added::Nothing,
        };
        let [_, out_height, out_width, _] = call.shape();
        assert_eq!([out_height, out_width], [6, 6]);
        let pixel = |picture: usize, y: usize, x: usize, channel: usize| {
            // Beyond the upper border the difference wraps to a large number.
            let (y, x) = (y.wrapping_sub(2), x);
            let inside = y < height && x < width;
            if inside { xs[((picture * height + y) * width + x) * inputs + channel] } else { 0.0 }
        };
        let expected: Vec<_> = (0..batch * out_height * out_width * outputs)
            .map(|at| {
                let (place, output) = (at / outputs, at % outputs);
                let (line, column) = (place / out_width, place % out_width);
                let (picture, line) = (line / out_height, line % out_height);
                let terms = (0..9 * inputs).map(|i| {
                    let (tap, channel) = (i / inputs, i % inputs);
                    let value = pixel(picture, 2 * line + tap / 3, 2 * column + tap % 3, channel);
                    value * weights[output * 9 * inputs + i]
                });
                Sum::of(terms.chain([biases[output]]))
            })
            .collect();
        let found = RINGS.map(|ring| {
            let plan = call.on_hopper(on.target, HOPPER, ring).unwrap();
            read(on.launch(&plan, &[&x, &weight, &bias, &x], [expected.len()]))
        });
        on.assert_close(&found[0], &expected, "a convolution");
        assert!(found.iter().all(|other| *other == found[0]), "the bits depend on the variant");
    }
}

/// Each size of a head in a test of its own: their layouts differ.
fn attention_of_f64(head_dim: usize) {
    for on in on_hopper() {
        attention(&on, [2, 70, 131, 2, head_dim], Mask::None);
        attention(&on, [1, 200, 200, 2, head_dim], Mask::Causal);
    }
}

#[test]
#[ignore = "needs a CUDA device of compute capability 9.0"]
fn attention_is_that_of_f64_on_our_own_stream_with_heads_of_64() {
    attention_of_f64(64);
}

#[test]
#[ignore = "needs a CUDA device of compute capability 9.0"]
fn attention_is_that_of_f64_on_our_own_stream_with_heads_of_128() {
    attention_of_f64(128);
}

#[test]
#[ignore = "needs a CUDA device of compute capability 9.0"]
fn attention_is_that_of_f64_on_our_own_stream_with_heads_of_40() {
    attention_of_f64(40);
}

#[test]
#[ignore = "needs a CUDA device of compute capability 9.0"]
fn attention_is_that_of_f64_on_our_own_stream_with_heads_of_80() {
    attention_of_f64(80);
}

#[test]
#[ignore = "needs a CUDA device of compute capability 9.0"]
fn attention_is_that_of_f64_on_our_own_stream_with_heads_of_160() {
    attention_of_f64(160);
}

fn attention(on: &On, sizes: [usize; 5], mask: Mask) {
    let [batch, queries, keys, heads, head_dim] = sizes;
    let channels = heads * head_dim;
    let (q, qs) = on.buffer([batch * queries * channels], 1);
    let (k, ks) = on.buffer([batch * keys * channels], 2);
    let (v, vs) = on.buffer([batch * keys * channels], 3);
    let mut expected = vec![Sum::default(); batch * queries * channels];
    for (at, row) in expected.chunks_mut(head_dim).enumerate() {
        let (place, head) = (at / heads, at % heads);
        let (picture, query) = (place / queries, place % queries);
        let seen = if mask == Mask::Causal { query + 1 } else { keys };
        let of =
            |from: &[f64], key: usize, i: usize| from[((picture * keys + key) * heads + head) * head_dim + i];
        let scores: Vec<f64> = (0..seen)
            .map(|key| (0..head_dim).map(|i| qs[at * head_dim + i] * of(&ks, key, i)).sum::<f64>())
            .map(|score| score / (head_dim as f64).sqrt())
            .collect();
        let top = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
        for (i, sum) in row.iter_mut().enumerate() {
            let terms = scores.iter().enumerate();
            *sum = Sum::of(terms.map(|(key, score)| (score - top).exp() / total * of(&vs, key, i)));
            // The exponentials, and their relative errors from scores of up to 50.
            sum.rounded = sum.terms;
            sum.terms *= 64.0;
        }
    }
    let plan = Attention { batch, queries, keys, heads, head_dim, mask }.on_hopper(on.target).unwrap();
    let y = on.launch(&plan, &[&q, &k, &v], [expected.len()]);
    on.assert_close(&read(y), &expected, &format!("attention {sizes:?}"));
}

/// Each product reads what the operation before wrote on the other stream, into memory that others have left.
#[test]
#[ignore = "needs a CUDA device of compute capability 9.0"]
fn work_on_our_own_stream_stands_in_the_order_in_which_it_was_asked_for() {
    // Enough on a device that the next operation could begin too early; the software driver finds that by itself.
    let tokens = if std::env::var_os("AQUATINT_CUDA_CAPABILITY").is_some() { 131 } else { 8192 };
    let channels = 136;
    let product = product([1, tokens, channels, channels], false, true);
    for on in on_hopper() {
        // The rows keep their size.
        let weights = uniform(channels * channels, 2).into_iter().map(|weight| 0.1 * weight).collect();
        let weight = Buffer::of(on.stored(weights, [channels * channels]).0, on.target).unwrap();
        let silu = unary_plan(on.target, 1, tokens * channels, Nonlinearity::Silu).unwrap();
        let walk = |ring: Ring| {
            let plan = product.on_hopper(on.target, HOPPER, ring).unwrap();
            let (mut x, _) = on.buffer([tokens * channels], 1);
            for _ in 0..4 {
                let y = on.launch(&plan, &[&x, &weight, &x, &x, &x], [tokens * channels]);
                x = on.launch(&silu, &[&y], [tokens * channels]);
            }
            read(x)
        };
        let found = walk(LARGE);
        assert!(found.iter().all(|value| value.is_finite()) && found == walk(STATIC));
    }
}

#[test]
#[ignore = "needs a CUDA device of compute capability 9.0, the software driver with AQUATINT_CUDA_ERRORS=return"]
fn a_kernel_that_does_not_compile_leaves_its_place_to_another() {
    let [on, _] = on_hopper();
    let product = product([1, 8, 64, 8], false, false);
    let mut plan = product.on_hopper(on.target, HOPPER, LARGE).unwrap();
    // No product of a warpgroup has as many columns.
    plan.constants.iter_mut().find(|(name, _)| *name == "TILE_N").unwrap().1 = 1024;
    let other = product.plan(on.target.without_hopper()).unwrap();
    assert_eq!(other.entry, "matmul");
    let (x, _) = on.buffer([8 * 64], 1);
    let (weight, _) = on.buffer([8 * 64], 2);
    let inputs = [&x, &weight, &x, &x, &x];
    let expected = read(on.launch(&other, &inputs, [64]));
    for _ in 0..2 {
        let y = x.empty([64], on.target.elem);
        assert_eq!(plan.launch(&inputs, &[&y]), None);
        plan.launch_or(|| Some(other.clone()), &inputs, &[&y]).unwrap();
        assert_eq!(read(y), expected);
    }
}
