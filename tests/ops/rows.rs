//! What a row's bits may not depend on: where its elements lie, and the rows beside it.

use aquatint::ops::{self, Activation, Conv2d, Mask};
use burn::tensor::{DType, Tensor};

use crate::definitions::{On, assert_rows_independent, bits};

pub(crate) fn a_view_gives_the_bits_of_its_copy(on: &On) {
    let (x, _) = on.random([3, 10, 12, 24], DType::F32, 25, 1.0);
    let (weight, _) = on.random([40, 3, 3, 16], DType::F32, 26, 1.0);
    let view = x.narrow(0, 1, 2).narrow(3, 5, 16).permute([0, 2, 1, 3]);
    let copy = Tensor::<4>::from_data(view.clone().into_data(), &on.device);
    let walk = Conv2d { stride: 1, padding: [1; 4] };
    let conv = |x| bits(ops::conv2d(x, &weight, None, &walk));
    assert_eq!(conv(view.clone()), conv(copy.clone()));
    let norm = |x| {
        let ones = on.ones(16, DType::F32);
        bits(ops::group_norm(x, 4, &ones, &ones, 1e-5, Activation::Silu))
    };
    assert_eq!(norm(view.clone()), norm(copy.clone()));
    assert_eq!(bits(ops::upsample_nearest_2x(view.clone())), bits(ops::upsample_nearest_2x(copy.clone())));
    let tokens = |x: Tensor<4>| x.reshape([2, 120, 16]).narrow(1, 3, 100);
    let linear = |x| {
        let weight = weight.clone().reshape([360, 16]).narrow(0, 7, 300).narrow(1, 1, 15);
        bits(ops::linear(x, &weight, None))
    };
    let fifteen = |x: Tensor<4>| tokens(x).narrow(2, 1, 15);
    let solid = |x: Tensor<3>| Tensor::<3>::from_data(x.into_data(), &on.device);
    assert_eq!(linear(fifteen(view.clone())), linear(solid(fifteen(copy.clone()))));
    let attention = |x: Tensor<3>| bits(ops::attention(x.clone(), x.clone(), x, 2, Mask::Causal));
    assert_eq!(attention(tokens(view)), attention(solid(tokens(copy))));
}

pub(crate) fn a_row_has_the_same_bits_in_any_batch(on: &On) {
    for &dtype in on.dtypes {
        let all = [(1, 320, 1280), (5, 33, 70), (16, 700, 96), (77, 128, 33), (6, 68, 132)];
        for &(tokens, k, n) in on.cases(&all, &[(1, 64, 130), (5, 33, 70)]) {
            let (x, _) = on.random([16, tokens, k], dtype, 27, 100.0);
            let (weight, _) = on.random([n, k], dtype, 28, 1.0);
            let (bias, _) = on.random([n], dtype, 29, 1.0);
            assert_rows_independent(on, x, |x| ops::linear(x, &weight, Some(&bias)), "linear");
        }
        let all = [(4, 128, 64, 1), (7, 20, 33, 1), (16, 4, 32, 2), (8, 64, 16, 1), (9, 36, 3, 1)];
        for &(size, channels, n, stride) in on.cases(&all, &[(4, 16, 64, 1), (7, 20, 33, 2)]) {
            let (x, _) = on.random([16, size, size, channels], dtype, 30, 100.0);
            let (weight, _) = on.random([n, 3, 3, channels], dtype, 31, 1.0);
            let walk = Conv2d { stride, padding: [1; 4] };
            assert_rows_independent(on, x.clone(), |x| ops::conv2d(x, &weight, None, &walk), "conv2d");
            let height = 2 * size - usize::from(on.generated);
            let upsampled = |x| ops::upsample_conv2d(x, [height, 2 * size], &weight, None, &walk);
            assert_rows_independent(on, x, upsampled, "upsample_conv2d");
        }
        let (x, _) = on.random([16, 9, 9, 48], dtype, 32, 100.0);
        let (affine, _) = on.random([48], dtype, 33, 1.0);
        let norm = |x| ops::group_norm(x, 16, &affine, &affine, 1e-5, Activation::Silu);
        assert_rows_independent(on, x.clone(), norm, "group_norm");
        assert_rows_independent(on, x, ops::upsample_nearest_2x, "upsample");
        let (x, _) = on.random([16, 70, 48], dtype, 34, 10.0);
        assert_rows_independent(on, x.clone(), |x| ops::layer_norm(x, &affine, &affine, 1e-5), "layer_norm");
        assert_rows_independent(on, x.clone(), ops::geglu, "geglu");
        assert_rows_independent(on, x.clone(), ops::silu, "silu");
        assert_rows_independent(on, x.clone(), ops::gelu, "gelu");
        for mask in [Mask::None, Mask::Causal] {
            let attention = |x: Tensor<3>| {
                let keys = on.map(&x, |x| x * 0.5);
                ops::attention(x.clone(), keys, x, 3, mask)
            };
            assert_rows_independent(on, x.clone(), attention, "attention");
        }
    }
}
