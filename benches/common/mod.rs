//! What the benches share: the devices that are here, what the command line asks for, and how a figure is taken.
//!
//! `AQUATINT_BENCH_SECONDS`: what the samples of a figure take together, 1 unless it is set.

#[path = "../../tests/common/warnings.rs"]
mod warnings;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use burn::tensor::{DType, Device};
use criterion::{Criterion, SamplingMode, Throughput};

/// Runs that are not measured; the first of them compiles what there is to compile.
const WARM_UPS: u64 = 5;

/// A device and a precision to measure on.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    /// `cpu`, `wgpu` or `cuda`.
    pub(crate) kind: &'static str,
    /// A GPU, where full-size work takes milliseconds; elsewhere it takes minutes.
    pub(crate) hardware: bool,
}

impl Place {
    /// `work` with what it runs on, as criterion's report names it.
    pub(crate) fn name(&self, work: &str) -> String {
        format!("{work} {} {:?}", self.kind, self.dtype)
    }

    /// Measures `run`, which does its work as often as it is told, waits for the device, and says how long that took:
    /// warm-ups, then 30 samples, or 10 where they would take long. Work that fails is reported as skipped.
    pub(crate) fn measure(
        &self,
        criterion: &mut Criterion,
        name: &str,
        throughput: u64,
        mut run: impl FnMut(u64) -> Result<Duration, String>,
    ) {
        if !asked_for(name) {
            return;
        }
        let warm = catch_unwind(AssertUnwindSafe(|| {
            run(WARM_UPS - 1)?;
            run(1)
        }));
        let once = match warm.unwrap_or_else(|panic| Err(reason(&*panic))) {
            Ok(once) => once,
            Err(reason) => return skip(name, &reason),
        };
        let slow = Duration::from_millis(if self.hardware { 1000 } else { 100 });
        let mut group = criterion.benchmark_group(group(name));
        group
            .sampling_mode(SamplingMode::Flat)
            .sample_size(if once > slow { 10 } else { 30 })
            .warm_up_time(Duration::from_millis(1))
            .measurement_time(seconds())
            .nresamples(10_000)
            .throughput(Throughput::Elements(throughput));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| run(rounds).expect("it worked in the warm-ups"));
        });
        group.finish();
    }
}

/// What the samples of a figure take together, where a run is short enough.
fn seconds() -> Duration {
    let named = std::env::var("AQUATINT_BENCH_SECONDS").ok().and_then(|text| text.parse().ok());
    let named = named.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    named.filter(|time| !time.is_zero()).unwrap_or(Duration::from_secs(1))
}

/// The heading under which criterion reports `name`.
fn group(name: &str) -> &str {
    name.split(' ').next().unwrap_or(name)
}

/// Whether the filter, the first argument, may select `name`: it is a part of it, or several with `|` between. Criterion
/// has the last word; this spares the work of preparing what it will pass over.
pub(crate) fn asked_for(name: &str) -> bool {
    let name = format!("{}/{name}", group(name));
    match std::env::args().nth(1).filter(|filter| !filter.starts_with('-')) {
        Some(filter) => filter.split('|').any(|part| name.contains(part)),
        None => true,
    }
}

/// Says that `name` was asked for and does not run here.
pub(crate) fn skip(name: &str, reason: &str) {
    if asked_for(name) {
        eprintln!("skipped: {name}: {reason}");
    }
}

fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

/// Every device that is here, in every precision that it has; the others are named.
pub(crate) fn places() -> Vec<Place> {
    warnings::show();
    let found = [
        #[cfg(feature = "cpu")]
        PRECISIONS
            .map(|dtype| Place { device: Device::flex(), dtype, kind: "cpu", hardware: false })
            .to_vec(),
        #[cfg(feature = "wgpu")]
        gpu(burn::tensor::DeviceType::Wgpu, "wgpu"),
        #[cfg(feature = "cuda")]
        gpu(burn::tensor::DeviceType::Cuda, "cuda"),
    ];
    let built =
        [("cpu", cfg!(feature = "cpu")), ("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))];
    for (kind, _) in built.iter().filter(|(_, built)| !built) {
        eprintln!("skipped: {kind}: built without the feature {kind}");
    }
    found.concat()
}

#[cfg(any(feature = "cpu", feature = "wgpu", feature = "cuda"))]
const PRECISIONS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The first device of a kind, hardware before software.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn gpu(kind: burn::tensor::DeviceType, name: &'static str) -> Vec<Place> {
    let found = catch_unwind(|| Device::enumerate(kind).into_vec()).unwrap_or_default();
    let cards = found.into_iter().map(|device| {
        let identity = device.identity();
        let card = identity.as_ref().is_some_and(|identity| identity.physical.is_some());
        (device, card, identity.map(|identity| identity.name).unwrap_or_default())
    });
    let Some((device, hardware, title)) = cards.max_by_key(|(_, hardware, _)| *hardware) else {
        eprintln!("skipped: {name}: no such device here");
        return Vec::new();
    };
    eprintln!("{name}: {title}{}", if hardware { "" } else { " (software)" });
    let (here, absent): (Vec<_>, Vec<_>) =
        PRECISIONS.into_iter().partition(|dtype| device.supports_dtype(*dtype));
    absent.iter().for_each(|dtype| eprintln!("skipped: {name} {dtype:?}: {title} does not have it"));
    here.into_iter().map(|dtype| Place { device: device.clone(), dtype, kind: name, hardware }).collect()
}
