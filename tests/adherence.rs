//! The embedded model draws what its prompts ask for, checked against the font's own glyphs.
//!
//! Prompts, colours and glyphs are from `fixtures/make_glyphs.py`: combinations kept from training. A picture's
//! background is the median of its outermost pixels; an object is the glyph that leaves the least squared
//! error when it is drawn over that background, among all glyphs and places.
#![cfg(all(feature = "embedded", feature = "cpu"))]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use aquatint::{DeviceChoice, LoadOptions, Pipeline, Request};
use image::RgbImage;
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    prompt: String,
    layout: String,
    background: String,
    objects: Vec<String>,
}

#[derive(Deserialize)]
struct Expected {
    columns: u32,
    sizes: BTreeMap<String, u32>,
    names: Vec<String>,
    colours: BTreeMap<String, [f32; 3]>,
    cases: Vec<Case>,
}

type Colour = [f32; 3];

/// A glyph at half its size: colours times coverage, and coverage, in 0..=1.
struct Glyph {
    side: usize,
    pixels: Vec<[f32; 4]>,
}

/// A picture at half its size, in 0..=1.
struct Halved {
    side: usize,
    pixels: Vec<Colour>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/glyphs").join(name)
}

static EXPECTED: LazyLock<Expected> =
    LazyLock::new(|| serde_json::from_str(&fs::read_to_string(fixture("glyphs.json")).unwrap()).unwrap());

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| {
    Pipeline::embedded(LoadOptions { device: DeviceChoice::Cpu, ..LoadOptions::default() }).unwrap()
});

/// The glyphs of a sheet, in the order of the names.
fn glyphs(kind: &str) -> Vec<Glyph> {
    let sheet = image::open(fixture(&format!("{kind}.png"))).unwrap().into_rgba8();
    let size = EXPECTED.sizes[kind];
    let cell = |index: u32| {
        let (left, top) = (index % EXPECTED.columns * size, index / EXPECTED.columns * size);
        let side = size / 2;
        let pixel = |at: u32| {
            let mut sum = [0.0; 4];
            for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
                let [r, g, b, a] =
                    sheet.get_pixel(left + at % side * 2 + dx, top + at / side * 2 + dy).0.map(f32::from);
                let coverage = a / 255.0;
                for (sum, value) in sum.iter_mut().zip([r / 255.0, g / 255.0, b / 255.0, 1.0]) {
                    *sum += value * coverage / 4.0;
                }
            }
            sum
        };
        Glyph { side: side as usize, pixels: (0..side * side).map(pixel).collect() }
    };
    (0..EXPECTED.names.len() as u32).map(cell).collect()
}

fn halved(picture: &RgbImage) -> Halved {
    let side = picture.width() / 2;
    let pixel = |at: u32| {
        let mut sum = [0.0; 3];
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            let pixel = picture.get_pixel(at % side * 2 + dx, at / side * 2 + dy);
            for (sum, value) in sum.iter_mut().zip(pixel.0) {
                *sum += f32::from(value) / 255.0 / 4.0;
            }
        }
        sum
    };
    Halved { side: side as usize, pixels: (0..side * side).map(pixel).collect() }
}

/// The median of the outermost two pixels all around, and the name of the nearest colour.
fn background(picture: &RgbImage) -> (Colour, &'static str) {
    let (width, height) = picture.dimensions();
    let outer = |x: u32, y: u32| x.min(y).min(width - 1 - x).min(height - 1 - y) < 2;
    let colour = [0, 1, 2].map(|channel| {
        let frame = picture.enumerate_pixels().filter(|(x, y, _)| outer(*x, *y));
        let mut values: Vec<u8> = frame.map(|(_, _, pixel)| pixel.0[channel]).collect();
        values.sort_unstable();
        f32::from(values[values.len() / 2]) / 255.0
    });
    let distance = |named: &Colour| -> f32 {
        colour.iter().zip(named).map(|(found, named)| (found - named / 255.0).powi(2)).sum()
    };
    let nearest = EXPECTED.colours.iter().min_by(|a, b| distance(a.1).total_cmp(&distance(b.1))).unwrap();
    (colour, nearest.0)
}

/// By how much the squared error falls when the glyph is drawn at its best place in the region.
fn gain(picture: &Halved, columns: &Range<usize>, rows: &Range<usize>, glyph: &Glyph, colour: Colour) -> f32 {
    let side = glyph.side as isize;
    let signal: Vec<Colour> = (glyph.pixels.iter())
        .map(|pixel| [0, 1, 2].map(|channel| pixel[channel] - pixel[3] * colour[channel]))
        .collect();
    let energy: f32 = signal.iter().flatten().map(|value| value * value).sum();
    let places = |range: &Range<usize>| {
        let margin = side / 4;
        range.start as isize - margin..range.end as isize + margin - side + 1
    };
    let mut best = f32::NEG_INFINITY;
    for top in places(rows) {
        for left in places(columns) {
            let mut overlap = 0.0;
            for y in (top.max(rows.start as isize))..(top + side).min(rows.end as isize) {
                for x in (left.max(columns.start as isize))..(left + side).min(columns.end as isize) {
                    let here = picture.pixels[y as usize * picture.side + x as usize];
                    let there = signal[((y - top) * side + x - left) as usize];
                    for channel in 0..3 {
                        overlap += (here[channel] - colour[channel]) * there[channel];
                    }
                }
            }
            best = best.max(2.0 * overlap - energy);
        }
    }
    best
}

/// The object in a part of the picture.
fn object(picture: &RgbImage, columns: Range<usize>, rows: Range<usize>, glyphs: &[Glyph]) -> &'static str {
    let (colour, _) = background(picture);
    let halved = halved(picture);
    let gains = glyphs.iter().map(|glyph| gain(&halved, &columns, &rows, glyph, colour));
    let best = gains.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    &EXPECTED.names[best.0]
}

fn draw(prompt: &str, seed: u64) -> RgbImage {
    let request = Request { seed, ..Request::new(prompt) };
    PIPELINE.generate(&request).unwrap().images.remove(0).pixels
}

/// Draws the cases of one kind; how many there were, and what was wrong with background and objects.
fn run(single: bool) -> (usize, Vec<String>, Vec<String>) {
    let kind = if single { "single" } else { "pair" };
    let glyphs = glyphs(kind);
    let cases: Vec<&Case> =
        EXPECTED.cases.iter().filter(|case| (case.layout == "single") == single).collect();
    let (mut backgrounds, mut objects) = (Vec::new(), Vec::new());
    for (seed, case) in cases.iter().enumerate() {
        let picture = draw(&case.prompt, seed as u64);
        let side = picture.width() as usize / 2;
        let (whole, first, second) = (0..side, 0..side / 2, side / 2..side);
        let parts = match case.layout.as_str() {
            "single" => vec![(whole.clone(), whole)],
            "row" => vec![(first, whole.clone()), (second, whole)],
            _ => vec![(whole.clone(), first), (whole, second)],
        };
        let (_, named) = background(&picture);
        if named != case.background {
            backgrounds.push(format!("{:?}: {named}", case.prompt));
        }
        let found: Vec<&str> =
            parts.into_iter().map(|(columns, rows)| object(&picture, columns, rows, &glyphs)).collect();
        if found != case.objects {
            objects.push(format!("{:?}: {found:?}", case.prompt));
        }
    }
    (cases.len(), backgrounds, objects)
}

#[test]
fn a_single_object_is_the_one_that_was_asked_for_on_the_background_that_was_asked_for() {
    let (count, backgrounds, objects) = run(true);
    assert!(count >= 20, "the sweep found {count} cases");
    assert!(backgrounds.is_empty(), "{backgrounds:#?}");
    assert!(objects.len() * 25 <= count, "{objects:#?}");
}

#[test]
fn two_objects_are_the_ones_that_were_asked_for_each_in_its_place() {
    let (count, backgrounds, objects) = run(false);
    assert!(count >= 20, "the sweep found {count} cases");
    assert!(backgrounds.is_empty(), "{backgrounds:#?}");
    assert!(objects.len() * 10 <= count, "{objects:#?}");
}
