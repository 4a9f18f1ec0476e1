//! Noise against what torch drew (`fixtures/make_noise.py`).

#![allow(clippy::expect_used)]

use std::fmt::Write as _;

use aquatint::samplers::noise::{Generator, GeneratorState, GeneratorStateError};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Fixture {
    draws: Vec<Draws>,
    zero_radius: Vec<Sixteen>,
}

#[derive(Deserialize)]
struct Sixteen {
    seed: u64,
    bits: Vec<u32>,
}

#[derive(Deserialize)]
struct Draws {
    seed: String,
    large: Vec<Large>,
    fresh: String,
    sequence: String,
    small: Vec<u32>,
}

#[derive(Deserialize)]
struct Large {
    n: usize,
    sha256: String,
    first: Vec<u32>,
    last: Vec<u32>,
}

impl Draws {
    fn generator(&self) -> Generator {
        Generator::new(self.seed.parse().expect("a seed is a u64"))
    }
}

fn fixture() -> Fixture {
    let fixture: Fixture =
        serde_json::from_str(include_str!("fixtures/noise.json")).expect("the fixture parses");
    assert!(fixture.draws.len() >= 7, "the sweep is not empty");
    fixture
}

fn digest<'a>(draws: impl IntoIterator<Item = &'a Vec<f32>>) -> String {
    let mut sha = Sha256::new();
    for draw in draws {
        let bytes: Vec<u8> = draw.iter().flat_map(|v| v.to_le_bytes()).collect();
        sha.update(&bytes);
    }
    sha.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn a_short_draw_has_torchs_bits() {
    for draws in fixture().draws {
        assert_eq!(bits(&draws.generator().randn(7)), draws.small, "seed {}", draws.seed);
    }
}

#[test]
fn a_long_draw_has_torchs_bits() {
    for draws in fixture().draws {
        assert!(draws.large.len() >= 5, "the sweep is not empty");
        for large in &draws.large {
            let values = draws.generator().randn(large.n);
            assert_eq!(values.len(), large.n);
            assert_eq!(bits(&values[..4]), large.first, "seed {} n {}", draws.seed, large.n);
            assert_eq!(bits(&values[large.n - 4..]), large.last, "seed {} n {}", draws.seed, large.n);
            assert_eq!(digest([&values]), large.sha256, "seed {} n {}", draws.seed, large.n);
        }
    }
}

#[test]
fn a_radius_of_zero_has_torchs_signs() {
    let cases = fixture().zero_radius;
    assert_eq!(cases.len(), 3, "the sweep is not empty");
    for case in cases {
        assert_eq!(bits(&Generator::new(case.seed).randn(16)), case.bits, "seed {}", case.seed);
    }
}

#[test]
fn every_size_up_to_300_has_torchs_bits() {
    for draws in fixture().draws {
        let values: Vec<_> = (1..=300).map(|n| draws.generator().randn(n)).collect();
        assert_eq!(digest(&values), draws.fresh, "seed {}", draws.seed);
    }
}

#[test]
fn the_spare_normal_survives_between_draws_as_in_torch() {
    for draws in fixture().draws {
        let mut one = draws.generator();
        let values: Vec<_> = (1..=300).map(|n| one.randn(n)).collect();
        assert_eq!(digest(&values), draws.sequence, "seed {}", draws.seed);
    }
}

#[test]
fn an_empty_draw_changes_nothing() {
    let mut generator = Generator::new(3);
    let before = generator.state();
    assert!(generator.randn(0).is_empty());
    assert_eq!(generator.state(), before);
}

#[test]
fn a_saved_generator_goes_on_where_it_stopped() {
    for n in [1, 5, 16, 100, 625] {
        let mut generator = Generator::new(99);
        generator.randn(n);
        let text = serde_json::to_string(&generator.state()).expect("a state is plain data");
        let state: GeneratorState = serde_json::from_str(&text).expect("and comes back");
        let mut restored = Generator::from_state(&state).expect("and is valid");
        for m in [3, 20, 1000] {
            assert_eq!(bits(&restored.randn(m)), bits(&generator.randn(m)), "after {n}");
        }
    }
}

#[test]
fn a_state_that_no_seed_leads_to_is_refused() {
    let good = Generator::new(1).state();
    let refuse = |change: fn(&mut GeneratorState)| {
        let mut state = good.clone();
        change(&mut state);
        Generator::from_state(&state).expect_err("refused")
    };
    assert_eq!(refuse(|s| s.words.truncate(623)), GeneratorStateError::Words { found: 623 });
    assert_eq!(refuse(|s| s.words.fill(0)), GeneratorStateError::Zeros);
    assert_eq!(refuse(|s| s.position = 625), GeneratorStateError::Position { found: 625 });
    let bits = f64::NAN.to_bits();
    assert_eq!(refuse(|s| s.spare = Some(f64::NAN.to_bits())), GeneratorStateError::Spare { bits });
}
