//! What a simulation gives.

use std::collections::HashMap;
use std::time::Duration;

/// What came out, by class.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub offered: u64,
    pub accepted: u64,
    pub rejected: u64,
    pub finished: u64,
    pub latencies: Vec<f64>,
}

impl Tally {
    pub fn finish(&mut self, latency: f64) {
        self.finished += 1;
        self.latencies.push(latency);
    }

    /// Seconds from acceptance to outcome that a share of finished jobs kept.
    pub fn percentile(&mut self, share: f64) -> f64 {
        self.latencies.sort_by(f64::total_cmp);
        let last = self.latencies.len().saturating_sub(1);
        self.latencies.get((last as f64 * share) as usize).copied().unwrap_or(f64::NAN)
    }
}

/// A part of the run.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    /// Device seconds that were asked for, in full launches, retries included.
    pub asked: f64,
    /// Device seconds of the jobs that were finished.
    pub useful: f64,
    /// Queued by class, as last seen.
    pub queued: [usize; 2],
    /// Jobs that were finished, by class.
    pub tallies: [Tally; 2],
}

pub struct Outcome {
    pub classes: [Tally; 2],
    pub stretches: Vec<Stretch>,
    pub stretch_seconds: f64,
    /// Useful device time over elapsed time, from the first tenth of the arrivals to their end.
    pub goodput: f64,
    /// Retries at the time that was told, and those that were accepted.
    pub told: u64,
    pub told_accepted: u64,
    pub endings: HashMap<&'static str, u64>,
    pub virtual_seconds: f64,
    pub launches: u64,
    pub peak_queued: usize,
    /// What each refusal took of real time.
    pub refusals: Vec<Duration>,
}

impl Outcome {
    /// What came of a run at this load, in a line.
    pub fn line(&mut self, load: f64) -> String {
        let [paid, free] = &mut self.classes;
        format!(
            "load {load:>4}: goodput {:.3}; seconds paid p50 {:.3} p99 {:.3}, free p50 {:.3} p99 {:.3}; refused paid \
             {} of {}, free {} of {}; came back as told {}, accepted {}; {:?}; {:.0} virtual s",
            self.goodput,
            paid.percentile(0.5),
            paid.percentile(0.99),
            free.percentile(0.5),
            free.percentile(0.99),
            paid.rejected,
            paid.offered,
            free.rejected,
            free.offered,
            self.told,
            self.told_accepted,
            self.endings,
            self.virtual_seconds,
        )
    }
}
