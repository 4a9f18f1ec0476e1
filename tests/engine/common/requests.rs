//! Requests to the embedded model, mixed in everything that a launch may mix.

use aquatint::{Guidance, Input, Request, Sampler};
use image::RgbImage;

use super::Rng;

pub fn picture(side: u32) -> RgbImage {
    RgbImage::from_fn(side, side, |x, y| image::Rgb([(x * 3) as u8, (y * 3) as u8, 90]))
}

/// Of any size, input, guidance, step count, sampler and number of pictures; a few cannot be carried out, such
/// as a weak image to image in few steps.
pub fn mixed(rng: &mut Rng) -> Request {
    let side = [64, 48, 32][rng.below(3) as usize];
    let picked = rng.below(Sampler::ALL.len() as u64) as usize;
    let input = match rng.below(3) {
        0 => Input::Image { image: picture(40 + rng.below(40) as u32), strength: 0.7 },
        _ => Input::Text,
    };
    let guidance = match rng.below(3) {
        0 => Guidance::None,
        _ => Guidance::classifier_free(4.0).negative("a dog"),
    };
    Request {
        input,
        width: Some(side),
        height: Some(side),
        steps: Some(2 + rng.below(7) as usize),
        guidance: Some(guidance),
        sampler: Sampler::ALL.into_iter().nth(picked),
        seed: rng.next(),
        count: Some(1 + rng.below(2) as u32),
        keep_raw: true,
        ..Request::new("a red apple on a blue background")
    }
}
