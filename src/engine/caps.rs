//! How many rows share a launch: tried out on the device while it serves.

use std::collections::HashMap;

use super::cost::{BatchKey, Phase, Price};

/// How many rows a launch of each key takes: found by trying, since neither memory nor the size from
/// which larger batches stop paying is known before.
#[derive(Clone, Debug, Default)]
pub(super) struct Caps(HashMap<(Phase, BatchKey), Cap>);

#[derive(Clone, Copy, Debug)]
struct Cap {
    rows: u32,
    max: u32,
    /// Full launches at this cap, and the seconds a row of the best of them.
    tried: u32,
    best: f64,
    /// The cap before, and its seconds a row.
    before: Option<(u32, f64)>,
    settled: bool,
    /// Full launches since memory last ran out.
    clean: u32,
}

/// Full launches before a larger cap is tried.
const TRIES: u32 = 3;
/// A larger cap is kept if a row costs at most this share of what it cost before.
const PAYS: f64 = 0.98;
/// Full launches after which a cap that memory lowered is raised again.
const CLEAN: u32 = 256;
const MAX_CAPS: usize = 4_096;

impl Caps {
    pub(super) fn rows(&self, phase: Phase, price: &Price) -> u32 {
        self.0.get(&(phase, price.key)).map_or_else(|| first(phase, price), |cap| cap.rows)
    }

    /// The caps of steps, for keys of which a launch was seen.
    pub(super) fn steps(&self) -> impl Iterator<Item = (BatchKey, u32)> + '_ {
        let steps = self.0.iter().filter(|((phase, _), _)| *phase == Phase::Step);
        steps.map(|((_, key), cap)| (*key, cap.rows))
    }

    fn cap(&mut self, phase: Phase, price: &Price) -> &mut Cap {
        if self.0.len() >= MAX_CAPS && !self.0.contains_key(&(phase, price.key)) {
            self.0.clear();
        }
        self.0.entry((phase, price.key)).or_insert(Cap {
            rows: first(phase, price),
            max: if phase == Phase::Step { price.max_rows.max(1) } else { u32::MAX },
            tried: 0,
            best: f64::INFINITY,
            before: None,
            settled: phase != Phase::Step,
            clean: 0,
        })
    }

    /// A launch of `rows` rows took `seconds`. Encoding and decoding take as many as the limits allow
    /// until memory runs out.
    pub(super) fn observe(&mut self, phase: Phase, price: &Price, rows: u32, seconds: f64) {
        if phase != Phase::Step && !self.0.contains_key(&(phase, price.key)) {
            return;
        }
        let cap = self.cap(phase, price);
        // Jobs of several rows may leave a few free.
        if rows.saturating_add(price.rows) <= cap.rows {
            return;
        }
        cap.clean += 1;
        if cap.settled {
            if cap.clean >= CLEAN && cap.rows < cap.max {
                (cap.settled, cap.tried, cap.clean, cap.best, cap.before) =
                    (false, 0, 0, f64::INFINITY, None);
            }
            return;
        }
        cap.tried += 1;
        cap.best = cap.best.min(seconds / f64::from(rows.max(1)));
        if cap.tried < TRIES {
            return;
        }
        match cap.before {
            Some((smaller, seconds)) if cap.best > seconds * PAYS => {
                (cap.rows, cap.settled) = (smaller, true);
            }
            _ if cap.rows >= cap.max => cap.settled = true,
            _ => {
                cap.before = Some((cap.rows, cap.best));
                cap.rows = cap.rows.saturating_mul(2).min(cap.max);
            }
        }
        (cap.tried, cap.best, cap.clean) = (0, f64::INFINITY, 0);
    }

    /// Memory ran out in a launch of `rows` rows: half of that from here on.
    pub(super) fn shrink(&mut self, phase: Phase, price: &Price, rows: u32) {
        let cap = self.cap(phase, price);
        cap.rows = (cap.rows.min(rows) / 2).max(1);
        (cap.settled, cap.tried, cap.clean, cap.before) = (true, 0, 0, None);
    }
}

/// The smallest cap that is tried: two jobs, so that the first try already says whether batches pay.
fn first(phase: Phase, price: &Price) -> u32 {
    if phase != Phase::Step {
        return u32::MAX;
    }
    price.rows.saturating_mul(2).clamp(1, price.max_rows.max(1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::cost::Model;

    fn price() -> Price {
        Price {
            key: BatchKey { model: Model::Main, shape: 1 },
            rows: 1,
            max_rows: 64,
            steps: 4,
            memory: 1,
            bytes: 1,
            start: Duration::ZERO,
            step: Duration::from_millis(1),
            finish: Duration::ZERO,
        }
    }

    fn settle(seconds: impl Fn(u32) -> f64) -> u32 {
        let mut caps = Caps::default();
        for _ in 0..100 {
            let rows = caps.rows(Phase::Step, &price());
            caps.observe(Phase::Step, &price(), rows, seconds(rows));
        }
        caps.rows(Phase::Step, &price())
    }

    #[test]
    fn the_cap_grows_to_the_most_while_larger_batches_pay() {
        assert_eq!(settle(|rows| 0.01 + 0.001 * f64::from(rows)), 64);
    }

    #[test]
    fn the_cap_stays_small_where_larger_batches_do_not_pay() {
        assert_eq!(settle(|rows| 0.01 * f64::from(rows)), 2);
    }

    #[test]
    fn the_cap_stops_where_larger_batches_stop_paying() {
        assert_eq!(settle(|rows| f64::from(rows).max(16.0)), 16);
    }

    #[test]
    fn memory_that_runs_out_halves_the_cap_and_it_grows_again_after_clean_launches() {
        let mut caps = Caps::default();
        for _ in 0..100 {
            let rows = caps.rows(Phase::Step, &price());
            caps.observe(Phase::Step, &price(), rows, 0.01);
        }
        caps.shrink(Phase::Step, &price(), 64);
        assert_eq!(caps.rows(Phase::Step, &price()), 32);
        for _ in 0..2 * CLEAN {
            let rows = caps.rows(Phase::Step, &price());
            caps.observe(Phase::Step, &price(), rows, 0.01);
        }
        assert_eq!(caps.rows(Phase::Step, &price()), 64);
    }

    #[test]
    fn decoding_is_capped_only_once_memory_ran_out_and_apart_from_the_steps() {
        let mut caps = Caps::default();
        assert_eq!(caps.rows(Phase::Finish, &price()), u32::MAX);
        caps.shrink(Phase::Finish, &price(), 10);
        assert_eq!(caps.rows(Phase::Finish, &price()), 5);
        assert_eq!(caps.rows(Phase::Step, &price()), 2);
        (0..2 * CLEAN).for_each(|_| caps.observe(Phase::Finish, &price(), 5, 0.01));
        assert!(caps.rows(Phase::Finish, &price()) > 5);
    }
}
