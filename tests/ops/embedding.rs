//! Timestep embeddings, as `definitions.rs` does for the other operations.

use aquatint::ops::{self, Sinusoids};
use burn::tensor::{DType, Tensor};

use crate::definitions::{On, bits, read};
use crate::host::Exact;

/// Numbers from `diffusers.models.embeddings.get_timestep_embedding`, torch 2.15.
pub(crate) fn timestep_embeddings_are_those_of_diffusers(on: &On) {
    let timesteps = [0.0, 1.0, 12.5, 981.0];
    let flipped = [
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        [0.540_302_34, 0.998_922_94, 0.999_997_7, 0.841_470_96, 0.046_399_23, 0.002_154_433_2, 0.0],
        [0.997_798_26, 0.836_353_8, 0.999_637_4, -0.066_321_895, 0.548_190_1, 0.026_927_179, 0.0],
        [0.679_957_2, 0.019_103_363, -0.516_453_56, 0.733_251_8, 0.999_817_5, 0.856_315_2, 0.0],
    ];
    let shifted = [
        [0.0, 0.0, 0.0, 1.0, 1.0, 1.0],
        [0.841_470_96, 0.009_999_833, 9.999_999e-5, 0.540_302_34, 0.999_949_95, 1.0],
        [-0.066_321_895, 0.124_674_73, 0.001_249_999_5, 0.997_798_26, 0.992_197_7, 0.999_999_2],
        [0.733_251_8, -0.375_764_43, 0.097_942_725, 0.679_957_2, -0.926_715_2, 0.995_192_05],
    ];
    let close = |actual: Tensor<2>, expected: Vec<f64>| {
        let actual = read(actual);
        assert_eq!(actual.len(), expected.len());
        // 981 radians carry a rounding of 3e-5 from the frequency's last bit.
        actual.iter().zip(expected).for_each(|(a, e)| assert!((a - e).abs() < 7e-5, "{a} for {e}"));
    };
    let embedded = |channels, flip, shift| {
        ops::timestep_embedding(&timesteps, &Sinusoids::new(channels, flip, shift, &on.device), DType::F32)
    };
    close(embedded(7, true, 0.0), flipped.concat());
    close(embedded(6, false, 1.0), shifted.concat());
}

/// Whole steps, parts of them, guidance scales, and sizes where a sine's argument has lost most of its digits.
const TIMESTEPS: [f32; 10] = [0.0, 1.0, 12.5, 981.0, 999.0, 3500.0, 65_504.0, 1e6, -3.25, 8_388_607.0];

pub(crate) fn a_timestep_embedding_matches_its_definition(on: &On) {
    for &dtype in on.dtypes {
        for (channels, flip, shift) in
            [(1, false, 0.0), (2, true, 0.0), (7, true, 0.0), (256, false, 1.0), (320, true, 0.0)]
        {
            let half = channels / 2;
            // The f32 numbers whose sine is asked for; from there on exact.
            let angle = |timestep: f32, i: usize| {
                let exponent = -(10_000f64.ln()) as f32 * i as f32 / (half as f32 - shift);
                f64::from(timestep * exponent.exp())
            };
            let mut expected = Vec::new();
            for timestep in TIMESTEPS {
                for column in 0..channels {
                    let value = if column == 2 * half {
                        0.0
                    } else if (column < half) == flip {
                        angle(timestep, column % half).cos()
                    } else {
                        angle(timestep, column % half).sin()
                    };
                    expected.push(Exact { value, magnitude: 1.0 });
                }
            }
            let sinusoids = Sinusoids::new(channels, flip, shift, &on.device);
            let what = format!("timestep_embedding {channels} {flip} {shift}");
            let y = ops::timestep_embedding(&TIMESTEPS, &sinusoids, dtype);
            // The rounding of a result near one.
            on.assert_close(y, &expected, 6e-8, &what);
            let y = ops::reference::timestep_embedding(&TIMESTEPS, &sinusoids, dtype);
            on.assert_close(y, &expected, 6e-8, &what);
        }
    }
}

/// In batches of one launch and of several.
pub(crate) fn a_timesteps_row_has_the_same_bits_in_any_batch(on: &On) {
    for &dtype in on.dtypes {
        let sinusoids = Sinusoids::new(33, true, 0.0, &on.device);
        let embedded = |timesteps: &[f32]| ops::timestep_embedding(timesteps, &sinusoids, dtype);
        let timesteps: Vec<f32> = (0..150).map(|row| 6.7 * row as f32).collect();
        let alone: Vec<_> = timesteps.iter().map(|&timestep| bits(embedded(&[timestep]))).collect();
        for size in [2, 5, 16, 75, 150] {
            for (some, alone) in timesteps.chunks(size).zip(alone.chunks(size)) {
                assert_eq!(bits(embedded(some)), alone.concat(), "a batch of {size}");
            }
        }
    }
}
