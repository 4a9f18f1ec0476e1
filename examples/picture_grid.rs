//! A sheet of pictures by the embedded model, one a prompt, drawn as one batch.
//!
//! ```text
//! cargo run --release --example picture_grid -- --out grid.png
//! ```

use std::error::Error;
use std::path::PathBuf;

use aquatint::{LoadOptions, Pipeline, Request};
use clap::Parser;
use image::imageops::{FilterType, replace, resize};
use image::{Rgb, RgbImage};

/// What the sheet in the README shows.
const PROMPTS: &[&str] = &[
    "a red apple on a blue background",
    "a panda on a yellow background",
    "a rocket on a navy background",
    "an octopus on a teal background",
    "a castle on a sky blue background",
    "a guitar on an orange background",
    "a sunflower on a green background",
    "a ghost on a purple background",
    "a large pizza on a beige background",
    "a small snail on a lime background",
    "a tiny crown on a red background",
    "a huge robot, pink background",
    "a fox and an owl on a brown background",
    "a cactus next to a snowman, pink background",
    "a cat to the left of a fire engine on a gray background",
    "a butterfly to the right of a rose on a white background",
    "a helicopter above a ship on a blue background",
    "a crown over a frog on a lime background",
    "a tent under a moon on a navy background",
    "a small chick and a large dinosaur on a beige background",
    "a cute zorblax unicorn on a sky blue background",
    "teal background, an unbelievably happy pumpkin",
    "a trophy",
    "",
];
/// Pixels between pictures.
const GAP: u32 = 4;

/// Draws a sheet of pictures.
#[derive(Parser)]
struct Arguments {
    /// What to draw; without any, the README's prompts.
    prompts: Vec<String>,
    /// The sheet.
    #[arg(long, default_value = "grid.png")]
    out: PathBuf,
    /// Pictures a row.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    columns: u32,
    /// Screen pixels a pixel.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=16))]
    scale: u32,
    /// Seed of the first picture; the following ones count up from it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let prompts = match arguments.prompts.as_slice() {
        [] => PROMPTS.iter().map(|prompt| (*prompt).to_owned()).collect(),
        given => given.to_vec(),
    };
    let pipeline = Pipeline::embedded(LoadOptions::default())?;
    let seeds = (0..).map(|index| arguments.seed.wrapping_add(index));
    let requests: Vec<Request> = prompts
        .into_iter()
        .zip(seeds)
        .map(|(prompt, seed)| Request { seed, ..Request::new(prompt) })
        .collect();
    let pictures = pipeline
        .generate_batch(&requests)
        .into_iter()
        .map(|generation| Ok(generation?.images.remove(0).pixels))
        .collect::<aquatint::Result<Vec<RgbImage>>>()?;
    sheet(&pictures, arguments.columns, arguments.scale).save(&arguments.out)?;
    println!("{}", arguments.out.display());
    Ok(())
}

fn sheet(pictures: &[RgbImage], columns: u32, scale: u32) -> RgbImage {
    let (width, height) = pictures.first().map_or((0, 0), RgbImage::dimensions);
    let (width, height) = (width * scale, height * scale);
    let count = pictures.len() as u32;
    let columns = columns.min(count.max(1));
    let rows = count.div_ceil(columns);
    let mut sheet = RgbImage::from_pixel(
        columns * (width + GAP) + GAP,
        rows * (height + GAP) + GAP,
        Rgb([255, 255, 255]),
    );
    for (picture, index) in pictures.iter().zip(0..) {
        let large = resize(picture, width, height, FilterType::Nearest);
        let (left, top) = (GAP + index % columns * (width + GAP), GAP + index / columns * (height + GAP));
        replace(&mut sheet, &large, i64::from(left), i64::from(top));
    }
    sheet
}
