//! Pixels in and out: resizing as Pillow does it, PNG files with the request in their metadata.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use ::image::RgbImage;
use thiserror::Error;

/// What went wrong with a picture.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not a picture that can be read.
    #[error("{path}: {source}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: ::image::ImageError,
    },
    /// A picture could not be encoded.
    #[error("{path}: {source}")]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the encoder said.
        source: png::EncodingError,
    },
    /// A picture could not be encoded to where the caller wanted it.
    #[error("PNG: {source}")]
    Write {
        /// What the encoder or the writer said.
        source: png::EncodingError,
    },
}

/// One finished picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The pixels, 8 bits a channel.
    pub pixels: RgbImage,
    /// The seed that gives this picture again, with `count: None`.
    pub seed: u64,
    /// The request as JSON, with every default filled in; written into PNG files.
    pub parameters: String,
}

impl Picture {
    /// Writes a PNG with `parameters` and the seed as text chunks. The file appears whole or not at all.
    ///
    /// # Errors
    /// [`ImageError::Io`] or [`ImageError::Encode`], naming the file.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), ImageError> {
        let path = path.as_ref();
        write_whole(path, |file| self.encode(file))
    }

    /// Writes to `to` what [`save`](Self::save) writes to a file.
    ///
    /// # Errors
    /// [`ImageError::Write`].
    pub fn write_png(&self, to: &mut dyn Write) -> Result<(), ImageError> {
        self.encode(to).map_err(|source| ImageError::Write { source })
    }

    fn encode(&self, file: &mut dyn Write) -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(file, self.pixels.width(), self.pixels.height());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.add_text_chunk("Software".to_owned(), format!("aquatint {}", env!("CARGO_PKG_VERSION")))?;
        encoder.add_text_chunk("seed".to_owned(), self.seed.to_string())?;
        // iTXt, since prompts are Unicode and tEXt is Latin-1.
        encoder.add_itxt_chunk("parameters".to_owned(), self.parameters.clone())?;
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.pixels.as_raw())?;
        writer.finish()
    }
}

/// Writes through a temporary file beside `path`, renamed at the end.
fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), png::EncodingError>,
) -> Result<(), ImageError> {
    let io = |source| ImageError::Io { path: path.to_owned(), source };
    // A name of its own for every call, so that threads may save to one path.
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.part", std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed)));
    let part = path.with_file_name(name);
    let mut file = BufWriter::new(fs::File::create_new(&part).map_err(io)?);
    let written = write(&mut file)
        .map_err(|source| ImageError::Encode { path: path.to_owned(), source })
        .and_then(|()| file.flush().map_err(io));
    drop(file);
    written.and_then(|()| fs::rename(&part, path).map_err(io)).inspect_err(|_| {
        // The error that matters is the one above; a leftover part file is all that could remain.
        fs::remove_file(&part).unwrap_or_default();
    })
}

/// Reads a picture file as 8-bit RGB; transparency is dropped as Pillow's `convert("RGB")` drops it.
///
/// # Errors
/// [`ImageError::Decode`] or [`ImageError::Io`], naming the file.
pub fn open(path: impl AsRef<Path>) -> Result<RgbImage, ImageError> {
    let path = path.as_ref();
    let reader = ::image::ImageReader::open(path)
        .and_then(::image::ImageReader::with_guessed_format)
        .map_err(|source| ImageError::Io { path: path.to_owned(), source })?;
    let picture = reader.decode().map_err(|source| ImageError::Decode { path: path.to_owned(), source })?;
    Ok(picture.to_rgb8())
}

/// Resizes with a Lanczos window of three lobes, in Pillow's arithmetic: two passes, weights in
/// 22-bit fixed point, rounded to 8 bits after each pass.
pub(crate) fn resize_lanczos(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    let columns = Windows::new(image.width(), width);
    let rows = Windows::new(image.height(), height);
    let (source_width, source_height) = (image.width() as usize, image.height() as usize);
    let mut wide = image.as_raw().clone();
    if width != image.width() {
        wide = (0..source_height)
            .flat_map(|y| image.as_raw().get(y * source_width * 3..(y + 1) * source_width * 3))
            .flat_map(|row| columns.apply(row, 3))
            .collect();
    }
    if height == image.height() {
        return RgbImage::from_raw(width, height, wide).unwrap_or_default();
    }
    let stride = width as usize * 3;
    let tall = rows.apply(&wide, stride);
    RgbImage::from_raw(width, height, tall).unwrap_or_default()
}

/// For each output position: the first input position and its fixed-point weights.
struct Windows(Vec<(usize, Vec<i32>)>);

const PRECISION_BITS: u32 = 32 - 8 - 2;

impl Windows {
    fn new(from: u32, to: u32) -> Self {
        let scale = f64::from(from) / f64::from(to);
        let stretch = scale.max(1.0);
        let support = 3.0 * stretch;
        let window = |position: u32| {
            let center = (f64::from(position) + 0.5) * scale;
            let first = ((center - support + 0.5) as i64).max(0);
            let last = ((center + support + 0.5) as i64).min(i64::from(from));
            let weights: Vec<f64> =
                (first..last).map(|x| lanczos3((x as f64 - center + 0.5) / stretch)).collect();
            let sum: f64 = weights.iter().sum();
            let one = f64::from(1u32 << PRECISION_BITS);
            let fixed = weights.iter().map(|weight| (weight / sum * one).round() as i32).collect();
            (first as usize, fixed)
        };
        Self((0..to).map(window).collect())
    }

    /// Weighted sums over units of `stride` bytes: pixels of a row, or rows of a picture.
    fn apply(&self, source: &[u8], stride: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.0.len() * stride);
        let mut sums = vec![0i32; stride];
        for (first, weights) in &self.0 {
            sums.fill(1 << (PRECISION_BITS - 1));
            for (unit, weight) in source.chunks_exact(stride).skip(*first).zip(weights) {
                for (sum, byte) in sums.iter_mut().zip(unit) {
                    *sum += i32::from(*byte) * weight;
                }
            }
            out.extend(sums.iter().map(|sum| (sum >> PRECISION_BITS).clamp(0, 255) as u8));
        }
        out
    }
}

fn lanczos3(x: f64) -> f64 {
    let sinc = |x: f64| {
        let x = x * std::f64::consts::PI;
        if x == 0.0 { 1.0 } else { x.sin() / x }
    };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

/// `[3, height, width]` in `-1..=1`, as the autoencoder reads it.
pub(crate) fn to_signed(image: &RgbImage) -> Vec<f32> {
    (0..3)
        .flat_map(|channel| image.pixels().map(move |pixel| f32::from(pixel.0[channel]) / 255.0 * 2.0 - 1.0))
        .collect()
}

/// From interleaved `[height, width, 3]` floats in `0..=1`.
pub(crate) fn from_unit(width: u32, height: u32, unit: &[f32]) -> RgbImage {
    let bytes = unit.iter().map(|value| (value * 255.0).round_ties_even() as u8).collect();
    RgbImage::from_raw(width, height, bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_picture_stays_flat_when_resized() {
        let flat = RgbImage::from_pixel(37, 21, ::image::Rgb([17, 130, 255]));
        for (width, height) in [(64, 64), (8, 16), (37, 8), (1, 1)] {
            let resized = resize_lanczos(&flat, width, height);
            assert_eq!(resized.dimensions(), (width, height));
            assert!(resized.pixels().all(|pixel| pixel.0 == [17, 130, 255]));
        }
    }

    #[test]
    fn resizing_gives_pillows_pixels() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let mut compared = 0;
        for (name, key, file) in [
            ("odd", "image_to_image.default", "input-wide.png"),
            ("odd", "image_to_image.ddim", "input.png"),
            ("sd15", "image_to_image.resized", "input-wide.png"),
            ("sd15", "image_to_image.own_size", "input-wide.png"),
        ] {
            let bytes = fs::read(fixtures.join(format!("expected/{name}.safetensors"))).unwrap();
            let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let tensor = tensors.tensor(&format!("{key}.image")).unwrap();
            let [_, _, height, width] = tensor.shape() else { panic!("{key}") };
            let expected = tensor.data().as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
            let resized = resize_lanczos(&open(fixtures.join(file)).unwrap(), *width as u32, *height as u32);
            let levels = |signed: f32| ((signed * 0.5 + 0.5) * 255.0).round() as i32;
            for (index, (found, expected)) in to_signed(&resized).into_iter().zip(expected).enumerate() {
                assert_eq!(levels(found), levels(expected), "{key}: value {index}");
                compared += 1;
            }
        }
        assert!(compared > 10_000);
    }

    #[test]
    fn threads_that_save_to_one_path_leave_one_whole_picture() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shared.png");
        let picture = |shade| Picture {
            pixels: RgbImage::from_pixel(65, 33, ::image::Rgb([shade, 1, 2])),
            seed: u64::from(shade),
            parameters: String::new(),
        };
        std::thread::scope(|scope| {
            for shade in 0..8 {
                let (path, picture) = (&path, picture(shade));
                scope.spawn(move || (0..20).for_each(|_| picture.save(path).unwrap()));
            }
        });
        let left = open(&path).unwrap();
        assert!((0..8).any(|shade| left == picture(shade).pixels));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no part file is left");
    }

    #[test]
    fn the_lanczos_window_is_one_in_the_middle_and_zero_at_whole_steps() {
        assert_eq!(lanczos3(0.0), 1.0);
        for x in [1.0, 2.0, 3.0, -1.0, -2.5e9] {
            assert!(lanczos3(x).abs() < 1e-12);
        }
    }
}
