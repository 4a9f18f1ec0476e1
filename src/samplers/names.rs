//! What a request can choose: samplers and sigma schedules by name.

use std::fmt;
use std::str::FromStr;

use super::SamplerError;

/// A sampler. Its name, for [`FromStr`] and [`Display`](fmt::Display), stands in brackets.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampler {
    /// Denoising diffusion implicit models (`ddim`), Song et al., 2020, arXiv:2010.02502.
    Ddim {
        /// 0 is deterministic, 1 has the noise of DDPM. Written `ddim:0.5`; plain `ddim` is 0.
        eta: f32,
    },
    /// Ancestral sampling (`ddpm`), Ho et al., 2020, arXiv:2006.11239.
    Ddpm,
    /// Euler's method on the probability flow (`euler`), Karras et al., 2022, arXiv:2206.00364.
    Euler,
    /// Euler's method with ancestral noise (`euler_a`), after k-diffusion.
    EulerAncestral,
    /// DPM-Solver++, multistep (`dpmpp_2m`), Lu et al., 2022, arXiv:2211.01095. Second order,
    /// unless the checkpoint's `solver_order` says otherwise.
    DpmPlusPlus2M,
    /// DPM-Solver++ for the diffusion SDE (`dpmpp_2m_sde`), same paper.
    DpmPlusPlus2MSde,
    /// Heun's method (`heun`), Karras et al., 2022: two model evaluations a step.
    Heun,
    /// Pseudo numerical methods (`pndm`), Liu et al., 2022, arXiv:2202.09778.
    Pndm,
    /// The unified predictor-corrector (`unipc`), Zhao et al., 2023, arXiv:2302.04867.
    UniPc,
    /// Latent consistency models (`lcm`), Luo et al., 2023, arXiv:2310.04378.
    Lcm,
}

impl Sampler {
    /// Every sampler, DDIM without noise.
    pub const ALL: [Self; 10] = [
        Self::Ddim { eta: 0.0 },
        Self::Ddpm,
        Self::Euler,
        Self::EulerAncestral,
        Self::DpmPlusPlus2M,
        Self::DpmPlusPlus2MSde,
        Self::Heun,
        Self::Pndm,
        Self::UniPc,
        Self::Lcm,
    ];

    /// The sampler's name, without its settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ddim { .. } => "ddim",
            Self::Ddpm => "ddpm",
            Self::Euler => "euler",
            Self::EulerAncestral => "euler_a",
            Self::DpmPlusPlus2M => "dpmpp_2m",
            Self::DpmPlusPlus2MSde => "dpmpp_2m_sde",
            Self::Heun => "heun",
            Self::Pndm => "pndm",
            Self::UniPc => "unipc",
            Self::Lcm => "lcm",
        }
    }

    /// Whether a request may choose the sampler's sigmas by a [`SigmaSchedule`].
    #[must_use]
    pub const fn takes_sigma_schedule(self) -> bool {
        match self {
            Self::Euler | Self::DpmPlusPlus2M | Self::DpmPlusPlus2MSde | Self::Heun | Self::UniPc => true,
            Self::Ddim { .. } | Self::Ddpm | Self::EulerAncestral | Self::Pndm | Self::Lcm => false,
        }
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ddim { eta } if *eta != 0.0 => write!(f, "ddim:{eta}"),
            _ => f.write_str(self.name()),
        }
    }
}

impl FromStr for Sampler {
    type Err = SamplerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || SamplerError::UnknownSampler { found: text.to_owned() };
        if let Some(eta) = text.strip_prefix("ddim:") {
            return eta.parse().map(|eta| Self::Ddim { eta }).map_err(|_| unknown());
        }
        Self::ALL.into_iter().find(|sampler| sampler.name() == text).ok_or_else(unknown)
    }
}

/// How the noise levels of the steps are spread between the largest and the smallest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigmaSchedule {
    /// Even in the seventh root of sigma: Karras et al., 2022, arXiv:2206.00364, equation 5.
    Karras,
    /// Even in the logarithm of sigma.
    Exponential,
    /// Quantiles of the Beta(0.6, 0.6) distribution: Lee et al., 2024, arXiv:2407.12173.
    Beta,
}

impl SigmaSchedule {
    /// Every sigma schedule.
    pub const ALL: [Self; 3] = [Self::Karras, Self::Exponential, Self::Beta];
}

impl fmt::Display for SigmaSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Karras => "karras",
            Self::Exponential => "exponential",
            Self::Beta => "beta",
        })
    }
}

impl FromStr for SigmaSchedule {
    type Err = SamplerError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|schedule| schedule.to_string() == text);
        found.ok_or_else(|| SamplerError::UnknownSigmaSchedule { found: text.to_owned() })
    }
}
