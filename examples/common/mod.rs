//! What both examples share: the command line, the progress bar, the files.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use aquatint::{
    DeviceChoice, Generation, Guidance, LoadOptions, Pipeline, Precision, Raw, Request, Sampler,
    SigmaSchedule,
};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use safetensors::tensor::{Dtype, TensorView};

#[derive(Clone, Copy, ValueEnum)]
enum DeviceName {
    Auto,
    Cpu,
    Wgpu,
    Cuda,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionName {
    Auto,
    F32,
    F16,
    Bf16,
}

/// Options that both examples have.
#[derive(Args)]
pub(crate) struct Common {
    /// What to draw.
    prompt: String,
    /// A checkpoint folder in diffusers' layout; without it, the embedded model.
    #[arg(long)]
    model: Option<PathBuf>,
    /// What to steer away from.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    negative: String,
    /// Width in pixels.
    #[arg(long)]
    width: Option<u32>,
    /// Height in pixels.
    #[arg(long)]
    height: Option<u32>,
    /// Denoising steps.
    #[arg(long)]
    steps: Option<usize>,
    /// Scale of the classifier-free guidance.
    #[arg(long, allow_negative_numbers = true)]
    guidance: Option<f32>,
    /// ddim, euler, euler_a, dpmpp_2m, dpmpp_2m_sde, heun, pndm, unipc or lcm.
    #[arg(long)]
    sampler: Option<Sampler>,
    /// karras, exponential or beta.
    #[arg(long)]
    sigmas: Option<SigmaSchedule>,
    /// Seed of the first picture; the following ones count up from it.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many pictures.
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceName,
    /// What the networks compute in.
    #[arg(long, value_enum, default_value = "auto")]
    precision: PrecisionName,
    /// The picture; with `--count N` the following ones are FILE-1.png and so on.
    #[arg(long, default_value = "aquatint.png")]
    out: PathBuf,
    /// Also write the latents and the decoded floats.
    #[arg(long)]
    save_latents: Option<PathBuf>,
}

impl Common {
    fn pipeline(&self) -> aquatint::Result<Pipeline> {
        let options = LoadOptions {
            device: match self.device {
                DeviceName::Auto => DeviceChoice::Auto,
                DeviceName::Cpu => DeviceChoice::Cpu,
                DeviceName::Wgpu => DeviceChoice::Wgpu,
                DeviceName::Cuda => DeviceChoice::Cuda(0),
            },
            precision: match self.precision {
                PrecisionName::Auto => Precision::Auto,
                PrecisionName::F32 => Precision::F32,
                PrecisionName::F16 => Precision::F16,
                PrecisionName::Bf16 => Precision::Bf16,
            },
            ..LoadOptions::default()
        };
        match &self.model {
            Some(folder) => Pipeline::load(folder, options),
            None => embedded(options),
        }
    }

    fn request(&self, defaults: &Guidance) -> Request {
        let scale = self.guidance.or(match defaults {
            Guidance::ClassifierFree { scale, .. } => Some(*scale),
            _ => None,
        });
        Request {
            width: self.width,
            height: self.height,
            steps: self.steps,
            guidance: scale.map(|scale| Guidance::classifier_free(scale).negative(&self.negative)),
            sampler: self.sampler,
            sigmas: self.sigmas,
            seed: self.seed,
            count: Some(self.count),
            keep_raw: self.save_latents.is_some(),
            ..Request::new(&self.prompt)
        }
    }
}

#[cfg(feature = "embedded")]
fn embedded(options: LoadOptions) -> aquatint::Result<Pipeline> {
    Pipeline::embedded(options)
}

#[cfg(not(feature = "embedded"))]
fn embedded(_: LoadOptions) -> aquatint::Result<Pipeline> {
    eprintln!("this build has no embedded model: give --model DIR");
    std::process::exit(2)
}

/// Loads, generates with a progress bar, writes the files. `adjust` fills in what one example adds.
pub(crate) fn run(common: &Common, adjust: impl FnOnce(&mut Request)) -> Result<(), Box<dyn Error>> {
    let pipeline = common.pipeline()?;
    let mut request = common.request(pipeline.default_guidance());
    adjust(&mut request);

    let bar = ProgressBar::no_length();
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} steps, {elapsed} ({eta} left)")?);
    let generation = pipeline.generate_with(&request, |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.step as u64);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();

    save(common, &generation)?;
    let report = &generation.report;
    let (device, precision) = (pipeline.device_name(), pipeline.precision());
    println!(
        "{} on {device} in {precision}: encoding {:.2?}, denoising {:.2?}, decoding {:.2?}",
        pipeline.family(),
        report.encoding,
        report.denoising,
        report.decoding,
    );
    for note in pipeline.notes().iter().chain(&report.notes) {
        println!("note: {note}");
    }
    Ok(())
}

fn save(common: &Common, generation: &Generation) -> Result<(), Box<dyn Error>> {
    for (index, picture) in generation.images.iter().enumerate() {
        let path = numbered(&common.out, index);
        picture.save(&path)?;
        println!("{} (seed {})", path.display(), picture.seed);
    }
    if let (Some(path), Some(raw)) = (&common.save_latents, &generation.raw) {
        save_raw(path, raw)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// `apple.png`, `apple-1.png`, `apple-2.png`, ...
fn numbered(out: &Path, index: usize) -> PathBuf {
    if index == 0 {
        return out.to_owned();
    }
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let extension =
        out.extension().map_or(String::new(), |extension| format!(".{}", extension.to_string_lossy()));
    out.with_file_name(format!("{stem}-{index}{extension}"))
}

fn save_raw(path: &Path, raw: &Raw) -> Result<(), Box<dyn Error>> {
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (latents, images) = (bytes(&raw.latents), bytes(&raw.images));
    let tensors = [
        ("latents", TensorView::new(Dtype::F32, raw.latents_shape.to_vec(), &latents)?),
        ("images", TensorView::new(Dtype::F32, raw.images_shape.to_vec(), &images)?),
    ];
    safetensors::serialize_to_file(tensors, None, path)?;
    Ok(())
}
