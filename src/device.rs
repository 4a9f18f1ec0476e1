//! Which device computes: found without a panic, and checked before it is trusted.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::{DType, Device as BurnDevice, ExecutionError};
use thiserror::Error;

use crate::error::Stage;

/// The device that a pipeline should run on.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// CUDA if there is one, else a wgpu adapter that is real hardware, else the CPU.
    #[default]
    Auto,
    /// The CPU, through burn's flex backend and this crate's own kernels.
    Cpu,
    /// wgpu: a hardware adapter if there is one, else a software one (checked for wrong sums).
    Wgpu,
    /// The CUDA device with this index.
    Cuda(usize),
    /// A device that the application already has, such as one that shares its wgpu handles
    /// (`burn::tensor::Device::wgpu_options().setup(..).init()`). On Mesa's software adapter it needs wgpu's feature
    /// `SUBGROUP` where it has more than the 16 KiB of workgroup memory that wgpu asks for by default.
    Existing(BurnDevice),
}

/// The arithmetic of the networks. Latents, samplers and sums stay in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// f32 on the CPU and on software adapters, f16 elsewhere where the device has it.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// The kind of device that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// burn's flex backend.
    Cpu,
    /// wgpu on hardware.
    Wgpu,
    /// wgpu on a software adapter: correct, slow, for tests.
    WgpuSoftware,
    /// CUDA.
    Cuda,
}

/// What went wrong with a device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The crate was built without the feature that this device needs.
    #[error("{device} needs the cargo feature `{feature}`, which this build does not have")]
    NotBuilt {
        /// The device that was asked for.
        device: &'static str,
        /// The missing feature.
        feature: &'static str,
    },
    /// No such device on this machine.
    #[error("no {device} on this machine (found {found}): {reason}")]
    NotFound {
        /// The device that was asked for.
        device: String,
        /// How many devices of its kind there are.
        found: usize,
        /// What the driver said, if anything.
        reason: String,
    },
    /// A driver that computes wrongly; using it would give wrong pictures in silence.
    #[error("{device} is refused, it computes wrongly: {check} gave {found}, expected {expected}{hint}")]
    WrongResults {
        /// The adapter's own name.
        device: String,
        /// The computation that was tried.
        check: &'static str,
        /// What it should give.
        expected: f32,
        /// What it gave.
        found: f32,
        /// What may help.
        hint: &'static str,
    },
    /// A precision that the device cannot compute in.
    #[error("{device} does not compute in {precision}")]
    Precision {
        /// The device.
        device: String,
        /// The precision that was asked for.
        precision: Precision,
    },
    /// The device reported a failure, such as memory that ran out or a launch that was refused.
    #[error("while {stage}: {reason}")]
    Failed {
        /// What was being computed.
        stage: Stage,
        /// What the device said.
        reason: String,
    },
    /// The device failed in a way that it cannot recover from within this process.
    #[error("lost while {stage}, restart the process to use it again: {reason}")]
    Lost {
        /// What was being computed.
        stage: Stage,
        /// What the device said.
        reason: String,
    },
}

impl DeviceError {
    pub(crate) fn execution(stage: Stage, error: &ExecutionError) -> Self {
        match error {
            ExecutionError::DevicePoisoned { reason } => Self::Lost { stage, reason: reason.clone() },
            other => Self::Failed { stage, reason: other.to_string() },
        }
    }
}

/// A device that was found, and what it computes in.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) device: BurnDevice,
    pub(crate) kind: DeviceKind,
    pub(crate) name: String,
    pub(crate) dtype: DType,
    /// Devices that were there and were not taken, with the reason.
    pub(crate) passed_over: Vec<String>,
}

impl Target {
    /// Finds the device, checks it, and settles the precision.
    pub(crate) fn open(choice: &DeviceChoice, precision: Precision) -> Result<Self, DeviceError> {
        let mut passed_over = Vec::new();
        let (device, kind, name) = match choice {
            DeviceChoice::Auto => auto(&mut passed_over)?,
            DeviceChoice::Cpu => cpu()?,
            DeviceChoice::Wgpu => wgpu(true)?,
            DeviceChoice::Cuda(index) => cuda(*index)?,
            DeviceChoice::Existing(device) => existing(device)?,
        };
        let dtype = dtype(&device, kind, &name, precision)?;
        Ok(Self { device, kind, name, dtype, passed_over })
    }

    /// Runs work that computes: on the CPU within the thread pool, where the kernels' parallel parts start
    /// without waking anyone; elsewhere on the calling thread, which owns a stream of the device.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        if self.kind == DeviceKind::Cpu { rayon::scope(|_| work()) } else { work() }
    }

    pub(crate) fn precision(&self) -> Precision {
        match self.dtype {
            DType::F16 => Precision::F16,
            DType::BF16 => Precision::Bf16,
            _ => Precision::F32,
        }
    }
}

type Found = (BurnDevice, DeviceKind, String);

fn dtype(
    device: &BurnDevice,
    kind: DeviceKind,
    name: &str,
    precision: Precision,
) -> Result<DType, DeviceError> {
    let wanted = match precision {
        Precision::Auto if matches!(kind, DeviceKind::Cpu | DeviceKind::WgpuSoftware) => {
            return Ok(DType::F32);
        }
        Precision::Auto if device.supports_dtype(DType::F16) => return Ok(DType::F16),
        Precision::Auto | Precision::F32 => return Ok(DType::F32),
        Precision::F16 => DType::F16,
        Precision::Bf16 => DType::BF16,
    };
    // The CPU's kernels store f16 and bf16 and compute in f32.
    if kind == DeviceKind::Cpu || device.supports_dtype(wanted) {
        return Ok(wanted);
    }
    Err(DeviceError::Precision { device: name.to_owned(), precision })
}

fn auto(passed_over: &mut Vec<String>) -> Result<Found, DeviceError> {
    for open in [cuda_first, wgpu_hardware] {
        match open() {
            Ok(found) => return Ok(found),
            Err(DeviceError::NotBuilt { .. } | DeviceError::NotFound { .. }) => {}
            Err(error) => passed_over.push(error.to_string()),
        }
    }
    cpu()
}

fn cuda_first() -> Result<Found, DeviceError> {
    cuda(0)
}

fn wgpu_hardware() -> Result<Found, DeviceError> {
    wgpu(false)
}

#[cfg(feature = "cpu")]
fn cpu() -> Result<Found, DeviceError> {
    Ok((BurnDevice::flex(), DeviceKind::Cpu, "CPU".to_owned()))
}

#[cfg(not(feature = "cpu"))]
fn cpu() -> Result<Found, DeviceError> {
    Err(DeviceError::NotBuilt { device: "the CPU", feature: "cpu" })
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_software: bool) -> Result<Found, DeviceError> {
    Err(DeviceError::NotBuilt { device: "wgpu", feature: "wgpu" })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<Found, DeviceError> {
    Err(DeviceError::NotBuilt { device: "CUDA", feature: "cuda" })
}

/// Hardware adapters first; a software adapter only where `software` allows it.
#[cfg(feature = "wgpu")]
fn wgpu(software: bool) -> Result<Found, DeviceError> {
    use burn::tensor::DeviceType;

    let devices = guard_init("wgpu adapter", || Ok(BurnDevice::enumerate(DeviceType::Wgpu).into_vec()))?;
    let found = devices.len();
    let mut reason = "no driver was found".to_owned();
    let mut fallback = None;
    for device in devices {
        let named = guard_init("wgpu adapter", || Ok(cube_found(device.clone(), DeviceKind::Wgpu)));
        match named {
            Ok((device, DeviceKind::Wgpu, name)) => return self_check((device, DeviceKind::Wgpu, name)),
            Ok(other) if fallback.is_none() => fallback = Some(other),
            Ok(_) => {}
            Err(error) => reason = error.to_string(),
        }
    }
    match fallback {
        Some(found) if software => self_check(found),
        Some(_) => Err(DeviceError::NotFound {
            device: "hardware wgpu adapter".to_owned(),
            found,
            reason: "only software adapters".to_owned(),
        }),
        None => Err(DeviceError::NotFound { device: "wgpu adapter".to_owned(), found, reason }),
    }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Found, DeviceError> {
    use burn::tensor::DeviceType;

    let devices = guard_init("CUDA device", || Ok(BurnDevice::enumerate(DeviceType::Cuda).into_vec()))?;
    let found = devices.len();
    let Some(device) = devices.into_iter().nth(index) else {
        let reason = "no such index, or no NVIDIA driver".to_owned();
        return Err(DeviceError::NotFound { device: format!("CUDA device {index}"), found, reason });
    };
    let found = guard_init("CUDA device", || Ok(cube_found(device, DeviceKind::Cuda)))?;
    self_check((found.0, DeviceKind::Cuda, found.2))
}

fn existing(device: &BurnDevice) -> Result<Found, DeviceError> {
    let debug = format!("{device:?}");
    if debug.contains("Flex") {
        return Ok((device.clone(), DeviceKind::Cpu, "CPU".to_owned()));
    }
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    {
        let kind = if debug.contains("Cuda") { DeviceKind::Cuda } else { DeviceKind::Wgpu };
        let found = guard_init("device", || Ok(cube_found(device.clone(), kind)))?;
        self_check(found)
    }
    #[cfg(not(any(feature = "wgpu", feature = "cuda")))]
    Err(DeviceError::NotFound { device: debug, found: 0, reason: "not a device of this build".to_owned() })
}

/// A software rasteriser has no card behind it.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn cube_found(device: BurnDevice, kind: DeviceKind) -> Found {
    let identity = device.identity();
    let name = identity.as_ref().map_or_else(|| format!("{device:?}"), |identity| identity.name.clone());
    let software = identity.is_some_and(|identity| identity.physical.is_none());
    let kind = if kind == DeviceKind::Wgpu && software { DeviceKind::WgpuSoftware } else { kind };
    (device, kind, name)
}

/// Runtime initialisation can panic where a library is missing; this is the one place that catches it.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn guard_init<T>(device: &str, init: impl FnOnce() -> Result<T, DeviceError>) -> Result<T, DeviceError> {
    catch_unwind(AssertUnwindSafe(init)).unwrap_or_else(|panic| {
        Err(DeviceError::NotFound { device: device.to_owned(), found: 0, reason: panic_message(&*panic) })
    })
}

/// Sums whose loops are long enough to meet a driver's loop cap (Mesa 22's software Vulkan stops
/// after 65,535 rounds and says nothing).
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn self_check(found: Found) -> Result<Found, DeviceError> {
    use burn::tensor::Tensor;
    use burn::tensor::module::conv2d;
    use burn::tensor::ops::ConvOptions;

    const LENGTH: usize = 1 << 19;
    const CHANNELS: usize = 1 << 15;
    let (device, kind, name) = &found;
    let hint = match kind {
        // cubecl gives up on a kernel without them, and what the kernel should have written is read all the same.
        DeviceKind::Cuda => {
            "; kernels need NVRTC and a CUDA toolkit's folder, /usr/local/cuda or CUDA_PATH's"
        }
        _ => "; Mesa 25 or later computes rightly",
    };
    let check = |check: &'static str, expected: usize, sum: &dyn Fn() -> Tensor<1>| {
        let read = guard_init(name, || {
            sum().try_into_vec_as::<f32>().map_err(|error| DeviceError::NotFound {
                device: name.clone(),
                found: 1,
                reason: format!("its first computation failed: {error}"),
            })
        })?;
        let (expected, found) = (expected as f32, read.first().copied().unwrap_or(f32::NAN));
        if found == expected {
            return Ok(());
        }
        Err(DeviceError::WrongResults { device: name.clone(), check, expected, found, hint })
    };
    let ones = || Tensor::<2>::ones([1, LENGTH], (device, DType::F32));
    check("a sum of ones", LENGTH, &|| ones().sum_dim(1).flatten(0, 1))?;
    check("a dot product of ones", LENGTH, &|| ones().matmul(ones().transpose()).flatten(0, 1))?;
    check("a convolution of ones", CHANNELS * 9, &|| {
        let ones = Tensor::<4>::ones([1, CHANNELS, 3, 3], (device, DType::F32));
        conv2d(ones.clone(), ones, None, ConvOptions::new([1, 1], [0, 0], [1, 1], 1)).flatten(0, 3)
    })?;
    Ok(found)
}

/// Runs a stage; what a dependency panics with becomes an error, and the pipeline stays usable.
pub(crate) fn guard<T>(stage: Stage, work: impl FnOnce() -> crate::Result<T>) -> crate::Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(DeviceError::Failed { stage, reason: panic_message(&*panic) }.into()))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
