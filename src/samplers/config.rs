//! A checkpoint's `scheduler_config.json`.

mod reader;

use reader::{FROM_0, FROM_1, MOST_TIMESTEPS, Reader};
use serde_json::Value;

use super::{Sampler, SamplerError, SigmaSchedule};

/// What a `scheduler_config.json` says, read and checked; the defaults of keys that it lacks belong
/// to the sampler.
#[derive(Debug, Clone, PartialEq)]
pub struct SchedulerConfig {
    pub(super) class_name: String,
    pub(super) num_train_timesteps: usize,
    pub(super) beta_start: Option<f64>,
    pub(super) beta_end: Option<f64>,
    pub(super) beta_schedule: Option<BetaSchedule>,
    pub(super) trained_betas: Option<Vec<f32>>,
    pub(super) rescale_betas_zero_snr: Option<bool>,
    pub(super) prediction: Prediction,
    pub(super) spacing: Option<Spacing>,
    pub(super) steps_offset: usize,
    pub(super) clip_sample: Option<bool>,
    pub(super) clip_sample_range: f32,
    pub(super) set_alpha_to_one: Option<bool>,
    pub(super) skip_prk_steps: bool,
    pub(super) variance: Option<Variance>,
    pub(super) sigma_schedule: Option<SigmaSchedule>,
    pub(super) use_lu_lambdas: bool,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    pub(super) final_sigma: FinalSigma,
    pub(super) log_linear: bool,
    pub(super) continuous_timesteps: bool,
    pub(super) algorithm: Algorithm,
    pub(super) solver: Option<Solver>,
    pub(super) solver_order: usize,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    pub(super) lambda_min_clipped: f64,
    pub(super) predict_x0: bool,
    pub(super) disable_corrector: Vec<usize>,
    pub(super) original_inference_steps: usize,
    pub(super) timestep_scaling: f64,
    unsupported: Vec<Unsupported>,
}

/// A setting that only some samplers have, and that none here supports.
#[derive(Debug, Clone, PartialEq)]
struct Unsupported {
    key: &'static str,
    found: String,
    expected: &'static str,
}

/// How the training betas run from first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BetaSchedule {
    Linear,
    /// Even in the square root of beta.
    ScaledLinear,
    /// Nichol & Dhariwal, 2021, arXiv:2102.09672.
    SquaredCosine,
}

/// What the model predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prediction {
    Epsilon,
    Velocity,
    Sample,
}

/// How timesteps are picked: Lin et al., 2023, arXiv:2305.08891, table 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spacing {
    Leading,
    Trailing,
    Linspace,
}

/// The noise level after the last step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FinalSigma {
    Zero,
    SigmaMin,
}

/// The family of a DPM-Solver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Algorithm {
    DpmSolver,
    DpmSolverPlusPlus,
    SdeDpmSolver,
    SdeDpmSolverPlusPlus,
}

/// `solver_type`, which two families of samplers share and read differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Solver {
    Midpoint,
    Heun,
    LogRho,
    Bh1,
    Bh2,
}

/// The noise that DDPM adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variance {
    FixedSmall,
    FixedSmallLog,
    FixedLarge,
    FixedLargeLog,
    Learned,
}

impl SchedulerConfig {
    /// Reads the text of a `scheduler_config.json`.
    ///
    /// # Errors
    /// When the text is not JSON, or as [`Self::from_json`].
    pub fn parse(text: &str) -> Result<Self, SamplerError> {
        let json = serde_json::from_str(&Self::quote_infinities(text))
            .map_err(|error| SamplerError::Json { message: error.to_string() })?;
        Self::from_json(&json)
    }

    /// The text with the bare words `Infinity` and `-Infinity`, which Python writes and JSON lacks, in
    /// quotation marks.
    pub fn quote_infinities(text: &str) -> String {
        reader::quote_infinities(text)
    }

    /// Reads a parsed `scheduler_config.json`.
    ///
    /// Keys that begin with `_` are notes, but for `_class_name` and `_use_default_values` (keys
    /// that the file lists but does not mean). A number may be the text `"Infinity"` or
    /// `"-Infinity"`.
    ///
    /// # Errors
    /// When a key is unknown to every scheduler, or its value is none that it can have. A value
    /// that is known but not supported is refused by [`Plan::new`](super::Plan::new), and only if
    /// the sampler would use it.
    pub fn from_json(json: &Value) -> Result<Self, SamplerError> {
        let r = Reader::new(json)?;
        let num_train_timesteps = r.whole("num_train_timesteps", 1, MOST_TIMESTEPS, FROM_1)?.unwrap_or(1000);
        let offset = r.whole("steps_offset", 0, MOST_TIMESTEPS, FROM_0)?;
        Ok(Self {
            class_name: r.class_name()?,
            num_train_timesteps,
            beta_start: r.number_in("beta_start", 0.0, 1.0, "a number from 0 to 1")?,
            beta_end: r.number_in("beta_end", 0.0, 1.0, "a number from 0 to 1")?,
            beta_schedule: r.choice("beta_schedule", BETA_SCHEDULES, BETA_SCHEDULE_NAMES)?,
            trained_betas: r.betas("trained_betas", num_train_timesteps)?,
            rescale_betas_zero_snr: r.flag("rescale_betas_zero_snr")?,
            prediction: r
                .choice("prediction_type", PREDICTIONS, "epsilon, v_prediction or sample")?
                .unwrap_or(Prediction::Epsilon),
            spacing: r.choice("timestep_spacing", SPACINGS, "leading, trailing or linspace")?,
            steps_offset: offset.unwrap_or(0),
            clip_sample: r.flag("clip_sample")?,
            clip_sample_range: r
                .number_in("clip_sample_range", 0.0, f64::MAX, "a number from 0 up")?
                .unwrap_or(1.0) as f32,
            set_alpha_to_one: r.flag("set_alpha_to_one")?,
            skip_prk_steps: r.flag("skip_prk_steps")?.unwrap_or(false),
            variance: r.choice("variance_type", VARIANCES, "fixed_small, or another of DDPM")?,
            sigma_schedule: r.sigma_schedule()?,
            use_lu_lambdas: r.flag("use_lu_lambdas")?.unwrap_or(false),
            sigma_min: r.number_in("sigma_min", 0.0, f64::MAX, "a number from 0 up, or null")?,
            sigma_max: r.number_in("sigma_max", 0.0, f64::MAX, "a number from 0 up, or null")?,
            final_sigma: r
                .choice("final_sigmas_type", FINAL_SIGMAS, "zero or sigma_min")?
                .unwrap_or(FinalSigma::Zero),
            log_linear: r
                .choice("interpolation_type", INTERPOLATIONS, "linear or log_linear")?
                .unwrap_or(false),
            continuous_timesteps: r
                .choice("timestep_type", TIMESTEP_TYPES, "discrete or continuous")?
                .unwrap_or(false),
            algorithm: r
                .choice("algorithm_type", ALGORITHMS, "dpmsolver++ or sde-dpmsolver++")?
                .unwrap_or(Algorithm::DpmSolverPlusPlus),
            solver: r.choice("solver_type", SOLVERS, "midpoint, heun, bh1 or bh2")?,
            solver_order: r.whole("solver_order", 1, 3, "a whole number from 1 to 3")?.unwrap_or(2),
            lower_order_final: r.flag("lower_order_final")?.unwrap_or(true),
            euler_at_final: r.flag("euler_at_final")?.unwrap_or(false),
            lambda_min_clipped: r.number("lambda_min_clipped")?.unwrap_or(f64::NEG_INFINITY),
            predict_x0: r.flag("predict_x0")?.unwrap_or(true),
            disable_corrector: r.indices("disable_corrector")?,
            original_inference_steps: r
                .whole("original_inference_steps", 1, MOST_TIMESTEPS, FROM_1)?
                .unwrap_or(50),
            timestep_scaling: r.number("timestep_scaling")?.unwrap_or(10.0),
            unsupported: r.unsupported()?,
        })
    }

    /// The sampler that the checkpoint names.
    pub(super) fn sampler(&self) -> Result<Sampler, SamplerError> {
        match self.class_name.as_str() {
            "DDIMScheduler" => Ok(Sampler::Ddim { eta: 0.0 }),
            "DDPMScheduler" => Ok(Sampler::Ddpm),
            "PNDMScheduler" => Ok(Sampler::Pndm),
            "EulerDiscreteScheduler" => Ok(Sampler::Euler),
            "EulerAncestralDiscreteScheduler" => Ok(Sampler::EulerAncestral),
            "HeunDiscreteScheduler" => Ok(Sampler::Heun),
            "UniPCMultistepScheduler" => Ok(Sampler::UniPc),
            "LCMScheduler" => Ok(Sampler::Lcm),
            "DPMSolverMultistepScheduler" => match self.algorithm {
                Algorithm::DpmSolverPlusPlus => Ok(Sampler::DpmPlusPlus2M),
                Algorithm::SdeDpmSolverPlusPlus => Ok(Sampler::DpmPlusPlus2MSde),
                Algorithm::DpmSolver => Err(refuse_algorithm("dpmsolver")),
                Algorithm::SdeDpmSolver => Err(refuse_algorithm("sde-dpmsolver")),
            },
            other => Err(SamplerError::Value {
                key: "_class_name",
                found: format!("{other:?}"),
                expected: "the class of a supported sampler, or a sampler in the request",
            }),
        }
    }

    /// Whether timesteps of evenly respaced noise levels are rounded, not cut, to whole numbers.
    pub(super) fn rounds_timesteps(&self) -> bool {
        self.beta_schedule != Some(BetaSchedule::SquaredCosine)
    }

    /// Refuses the unsupported settings among `keys`, those that the sampler has.
    pub(super) fn refuse(&self, keys: &[&str]) -> Result<(), SamplerError> {
        match self.unsupported.iter().find(|setting| keys.contains(&setting.key)) {
            None => Ok(()),
            Some(Unsupported { key, found, expected }) => {
                Err(SamplerError::Value { key, found: found.clone(), expected })
            }
        }
    }
}

fn refuse_algorithm(name: &str) -> SamplerError {
    SamplerError::Value {
        key: "algorithm_type",
        found: format!("{name:?}"),
        expected: "dpmsolver++ or sde-dpmsolver++",
    }
}

const BETA_SCHEDULE_NAMES: &str = "linear, scaled_linear or squaredcos_cap_v2";
const BETA_SCHEDULES: &[(&str, BetaSchedule)] = &[
    ("linear", BetaSchedule::Linear),
    ("scaled_linear", BetaSchedule::ScaledLinear),
    ("squaredcos_cap_v2", BetaSchedule::SquaredCosine),
];
const PREDICTIONS: &[(&str, Prediction)] = &[
    ("epsilon", Prediction::Epsilon),
    ("v_prediction", Prediction::Velocity),
    ("sample", Prediction::Sample),
];
const SPACINGS: &[(&str, Spacing)] =
    &[("leading", Spacing::Leading), ("trailing", Spacing::Trailing), ("linspace", Spacing::Linspace)];
const VARIANCES: &[(&str, Variance)] = &[
    ("fixed_small", Variance::FixedSmall),
    ("fixed_small_log", Variance::FixedSmallLog),
    ("fixed_large", Variance::FixedLarge),
    ("fixed_large_log", Variance::FixedLargeLog),
    ("learned", Variance::Learned),
    ("learned_range", Variance::Learned),
];
const FINAL_SIGMAS: &[(&str, FinalSigma)] =
    &[("zero", FinalSigma::Zero), ("sigma_min", FinalSigma::SigmaMin)];
const INTERPOLATIONS: &[(&str, bool)] = &[("linear", false), ("log_linear", true)];
const TIMESTEP_TYPES: &[(&str, bool)] = &[("discrete", false), ("continuous", true)];
const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("dpmsolver++", Algorithm::DpmSolverPlusPlus),
    ("sde-dpmsolver++", Algorithm::SdeDpmSolverPlusPlus),
    ("dpmsolver", Algorithm::DpmSolver),
    ("sde-dpmsolver", Algorithm::SdeDpmSolver),
    // DEIS checkpoints: diffusers reads it so
    ("deis", Algorithm::DpmSolverPlusPlus),
];
const SOLVERS: &[(&str, Solver)] = &[
    ("midpoint", Solver::Midpoint),
    ("heun", Solver::Heun),
    ("logrho", Solver::LogRho),
    ("bh1", Solver::Bh1),
    ("bh2", Solver::Bh2),
];
