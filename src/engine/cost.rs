//! Predicts device time, from hints at first and from measured launches after.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// Which of a backend's models carries a request out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Model {
    /// The one that requests ask for.
    #[default]
    Main,
    /// The quicker one that submitters may agree to.
    Distilled,
}

/// Jobs whose rows may share a launch have equal keys: one key a model and shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey {
    /// The model that the launch runs.
    pub model: Model,
    /// Equal for rows of that model that may share a launch.
    pub shape: u64,
}

/// What a launch does for its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Encode prompts and pictures, draw noise.
    Start,
    /// One denoising step.
    Step,
    /// Decode latents.
    Finish,
}

/// What a request is expected to need; the engine corrects the times by what it measures.
#[derive(Clone, Debug, PartialEq)]
pub struct Price {
    /// Which jobs it may share a launch with.
    pub key: BatchKey,
    /// Rows that it takes in a launch: pictures, twice that with classifier-free guidance. At least 1.
    pub rows: u32,
    /// The most rows of this key that one launch takes; memory that runs out lowers it. At least 1.
    pub max_rows: u32,
    /// Denoising steps.
    pub steps: u32,
    /// Bytes on the device from its start to its end, its share of the activations included.
    pub memory: u64,
    /// Bytes on the host while it is queued.
    pub bytes: u64,
    /// Device time of its start, alone.
    pub start: Duration,
    /// Device time of one step, alone.
    pub step: Duration,
    /// Device time of its decoding, alone.
    pub finish: Duration,
}

impl Price {
    /// Device time from start to end, alone.
    pub(super) fn alone(&self) -> Duration {
        let steps = self.step.saturating_mul(self.steps);
        self.start.saturating_add(steps).saturating_add(self.finish)
    }

    fn hint(&self, phase: Phase) -> f64 {
        match phase {
            Phase::Start => self.start.as_secs_f64(),
            Phase::Step => self.step.as_secs_f64(),
            Phase::Finish => self.finish.as_secs_f64(),
        }
    }
}

/// How much an older launch counts beside the next one.
const MEMORY: f64 = 0.95;
/// The most keys that are remembered; the least recently measured goes first.
const MAX_FITS: usize = 4_096;
/// A launch counts as at most this many times slower or faster than predicted, so that one stall does
/// not undo what was learnt.
pub(super) const OUTLIER: f64 = 8.0;
/// What a doubted line counts beside the next launch.
const FAINT: f64 = 1e-7;

/// `seconds = fixed + rows * slope`, by least squares over launches that are forgotten exponentially.
#[derive(Clone, Debug, Default)]
struct Fit {
    weight: f64,
    rows: f64,
    rows_squared: f64,
    seconds: f64,
    rows_seconds: f64,
    measured: u64,
}

impl Fit {
    /// Makes what was observed count `share` of what it did; the line stays the same.
    fn fade(&mut self, share: f64) {
        for sum in [
            &mut self.weight,
            &mut self.rows,
            &mut self.rows_squared,
            &mut self.seconds,
            &mut self.rows_seconds,
        ] {
            *sum *= share;
        }
    }

    /// Whether it rests on a launch that is not in doubt.
    fn is_sure(&self) -> bool {
        self.weight > 0.5
    }

    fn observe(&mut self, rows: f64, seconds: f64) {
        self.fade(MEMORY);
        self.weight += 1.0;
        self.rows += rows;
        self.rows_squared += rows * rows;
        self.seconds += seconds;
        self.rows_seconds += rows * seconds;
    }

    /// Launches of one size say nothing about the slope: they are taken as proportional to their rows.
    fn predict(&self, rows: f64) -> f64 {
        let (mean_rows, mean_seconds) = (self.rows / self.weight, self.seconds / self.weight);
        let variance = self.rows_squared / self.weight - mean_rows * mean_rows;
        let proportional = mean_seconds / mean_rows;
        let slope = if variance > 1e-3 * mean_rows * mean_rows {
            let covariance = self.rows_seconds / self.weight - mean_rows * mean_seconds;
            (covariance / variance).clamp(0.0, proportional)
        } else {
            proportional
        };
        mean_seconds + slope * (rows - mean_rows)
    }
}

/// The cost model: one line a phase and key.
#[derive(Clone, Debug)]
pub(crate) struct CostModel {
    fits: HashMap<(Phase, BatchKey), Fit>,
    /// Whose first launch took far longer than hinted, as one does that compiles its kernels.
    doubted: HashSet<(Phase, BatchKey)>,
    /// Measured over hinted time, for keys that were never measured.
    ratio: f64,
    clock: u64,
}

impl Default for CostModel {
    fn default() -> Self {
        Self { fits: HashMap::new(), doubted: HashSet::new(), ratio: 1.0, clock: 0 }
    }
}

impl CostModel {
    /// Seconds of a launch of `rows` rows of `price`'s key.
    pub(crate) fn launch(&self, phase: Phase, price: &Price, rows: u32) -> f64 {
        let rows = f64::from(rows.max(1));
        match self.fits.get(&(phase, price.key)) {
            Some(fit) => fit.predict(rows),
            None => price.hint(phase) * self.ratio * rows / f64::from(price.rows.max(1)),
        }
    }

    /// Seconds that one job adds to launches that are shared by `rows` rows in all.
    pub(crate) fn share(&self, phase: Phase, price: &Price, rows: u32) -> f64 {
        let rows = rows.max(price.rows).max(1);
        self.launch(phase, price, rows) * f64::from(price.rows.max(1)) / f64::from(rows)
    }

    /// What was learnt of a key is in doubt: the next launch of each phase takes its place.
    pub(crate) fn doubt(&mut self, key: BatchKey) {
        for phase in [Phase::Start, Phase::Step, Phase::Finish] {
            if let Some(fit) = self.fits.get_mut(&(phase, key)) {
                fit.fade(FAINT);
            }
        }
    }

    /// Learns from a launch of `rows` rows that took `seconds`.
    pub(crate) fn observe(&mut self, phase: Phase, price: &Price, rows: u32, seconds: f64) {
        let predicted = self.launch(phase, price, rows);
        let known = self.fits.get(&(phase, price.key)).is_some_and(Fit::is_sure);
        // Believed at once, it would have every later deadline refused, and nothing would be measured again.
        if !known && predicted > 0.0 && seconds > predicted * OUTLIER {
            if self.doubted.len() >= MAX_FITS {
                self.doubted.clear();
            }
            if self.doubted.insert((phase, price.key)) {
                return;
            }
        }
        let seconds = if known && predicted > 0.0 {
            seconds.clamp(predicted / OUTLIER, predicted * OUTLIER)
        } else {
            seconds
        };
        let hinted = price.hint(phase) * f64::from(rows.max(1)) / f64::from(price.rows.max(1));
        if hinted > 0.0 && seconds > 0.0 {
            self.ratio += (seconds / hinted - self.ratio) * (1.0 - MEMORY);
        }
        if self.fits.len() >= MAX_FITS && !self.fits.contains_key(&(phase, price.key)) {
            let oldest = self.fits.iter().min_by_key(|(key, fit)| (fit.measured, **key)).map(|(key, _)| *key);
            oldest.and_then(|key| self.fits.remove(&key));
        }
        self.clock += 1;
        let fit = self.fits.entry((phase, price.key)).or_default();
        fit.measured = self.clock;
        fit.observe(f64::from(rows.max(1)), seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn price() -> Price {
        Price {
            key: BatchKey { model: Model::Main, shape: 1 },
            rows: 2,
            max_rows: 16,
            steps: 4,
            memory: 1,
            bytes: 1,
            start: Duration::from_millis(1),
            step: Duration::from_millis(10),
            finish: Duration::from_millis(5),
        }
    }

    #[test]
    fn an_unmeasured_key_costs_its_hint_in_proportion_to_rows() {
        let model = CostModel::default();
        assert!((model.launch(Phase::Step, &price(), 2) - 0.010).abs() < 1e-12);
        assert!((model.launch(Phase::Step, &price(), 4) - 0.020).abs() < 1e-12);
    }

    #[test]
    fn measured_launches_give_back_their_line() {
        let mut model = CostModel::default();
        for round in 0..200u32 {
            let rows = 1 + round % 16;
            model.observe(Phase::Step, &price(), rows, 0.003 + 0.002 * f64::from(rows));
        }
        for rows in [1, 8, 16] {
            let expected = 0.003 + 0.002 * f64::from(rows);
            let found = model.launch(Phase::Step, &price(), rows);
            assert!((found / expected - 1.0).abs() < 1e-6, "{rows} rows: {found} for {expected}");
        }
    }

    #[test]
    fn one_stall_moves_the_prediction_by_less_than_half() {
        let mut model = CostModel::default();
        (0..100).for_each(|_| model.observe(Phase::Step, &price(), 4, 0.02));
        model.observe(Phase::Step, &price(), 4, 100.0);
        let found = model.launch(Phase::Step, &price(), 4);
        assert!(found < 0.03, "{found}");
    }

    #[test]
    fn a_doubted_line_stays_until_the_next_launch_takes_its_place() {
        let mut model = CostModel::default();
        for rows in 1..16u32 {
            model.observe(Phase::Step, &price(), rows, 3.0 + 2.0 * f64::from(rows));
        }
        let slow = model.launch(Phase::Step, &price(), 4);
        model.doubt(price().key);
        assert!((model.launch(Phase::Step, &price(), 4) / slow - 1.0).abs() < 1e-6);
        model.observe(Phase::Step, &price(), 4, 0.02);
        let found = model.launch(Phase::Step, &price(), 4);
        assert!((found / 0.02 - 1.0).abs() < 0.01, "{found} s, {slow} s before");
    }

    #[test]
    fn forgotten_keys_make_room_for_fresh_ones() {
        let mut model = CostModel::default();
        for key in 0..MAX_FITS as u64 + 10 {
            model.observe(
                Phase::Step,
                &Price { key: BatchKey { model: Model::Main, shape: key }, ..price() },
                4,
                0.02,
            );
        }
        assert_eq!(model.fits.len(), MAX_FITS);
        assert!(!model.fits.contains_key(&(Phase::Step, BatchKey { model: Model::Main, shape: 0 })));
    }
}
