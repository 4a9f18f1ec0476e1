//! When what was learnt is doubted, since it alone refuses submissions and nothing runs that could correct it.
//!
//! After a stall a shape may seem so slow, or a class so late, that no deadline can be met, or so dear that one
//! job of it is more than may wait at all. Where every submission has a deadline, or is of that shape, nothing of
//! it would run, nothing be measured, and all be refused for ever. So after a while one is let in all the same, a
//! probe: what it measures takes the place of what was learnt. A device that is as slow as it seemed costs a
//! probe its deadline, and the next one waits for twice as long.

use std::collections::HashMap;
use std::time::Duration;

use super::admission::{Candidate, nanos};
use super::cost::{BatchKey, OUTLIER};
use super::queue::TenantIndex;
use super::scheduler::{Scheduler, Work};

/// What is doubted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Doubt {
    /// The times of a key's launches.
    Cost(BatchKey),
    /// By how much a class's predictions are corrected.
    Bias(usize),
}

#[derive(Clone, Copy, Debug, Default)]
struct Doubted {
    /// The first refusal since anything of it was measured.
    since: Option<Duration>,
    /// Probes in a row that were not finished.
    failed: u32,
}

/// Everything that is doubted.
#[derive(Debug, Default)]
pub(super) struct Doubts(HashMap<Doubt, Doubted>);

/// A probe is let in once submissions were refused for so many times as long as it has time.
const PAUSE: u32 = 10;
/// How often that is doubled.
const MAX_DOUBLED: u32 = 6;
const MAX_DOUBTS: usize = 4_096;

impl Doubts {
    /// A submission that had `wanted` was refused; whether the next one may go as a probe, after `most` at the latest.
    fn refused(&mut self, doubt: Doubt, now: Duration, wanted: Duration, most: Duration) -> bool {
        if self.0.len() >= MAX_DOUBTS && !self.0.contains_key(&doubt) {
            self.0.clear();
        }
        let doubted = self.0.entry(doubt).or_default();
        let since = *doubted.since.get_or_insert(now);
        let pause = wanted.saturating_mul(PAUSE << doubted.failed.min(MAX_DOUBLED)).min(most);
        now.saturating_sub(since) >= pause
    }

    /// A probe was let in; it has failed unless it finishes.
    pub(super) fn probed(&mut self, doubt: Doubt) {
        let doubted = self.0.entry(doubt).or_default();
        *doubted = Doubted { since: None, failed: doubted.failed + 1 };
    }

    /// Something of it was measured.
    pub(super) fn measured(&mut self, doubt: Doubt) {
        if let Some(doubted) = self.0.get_mut(&doubt) {
            doubted.since = None;
        }
    }

    /// A job of it was finished.
    pub(super) fn finished(&mut self, doubt: Doubt) {
        self.0.remove(&doubt);
    }
}

impl Scheduler {
    /// What is to be doubted of a candidate that seems to be late for a deadline `wanted` from now, if it is time
    /// to let it in as a probe.
    pub(super) fn doubt(
        &mut self,
        class: usize,
        tenant: TenantIndex,
        candidate: &Candidate<'_>,
        wanted: Duration,
    ) -> Option<Doubt> {
        // No error of the hints explains it, or there is no time left behind what waits: it is refused rightly.
        let least = candidate.price.alone().div_f64(OUTLIER);
        if self.wait(class, tenant, 0).saturating_add(least) > wanted {
            return None;
        }
        let (doubt, live) = if candidate.predicted > wanted {
            (Doubt::Cost(candidate.price.key), self.queue.live_of(candidate.price.key))
        } else {
            (Doubt::Bias(class), self.queue.live(class))
        };
        let most = self.limits.retry_horizon;
        (self.doubts.refused(doubt, self.now, wanted, most) && live == 0).then_some(doubt)
    }

    /// Makes a candidate that alone seems to be more than may ever wait a probe at its hinted price, if that fits
    /// and it is time for one.
    pub(super) fn doubt_work(&mut self, class: usize, candidate: &mut Candidate<'_>) {
        let Some(limits) = self.limits.classes.get(class) else {
            return;
        };
        let most = nanos(limits.queue.time.min(self.limits.queue.time));
        let price = candidate.price;
        let hinted = Work {
            start: nanos(price.start),
            step: nanos(price.step),
            steps: u64::from(price.steps),
            finish: nanos(price.finish),
        };
        if candidate.work.total() <= most || hinted.total() > most {
            return;
        }
        let doubt = Doubt::Cost(price.key);
        let most = self.limits.retry_horizon;
        if self.doubts.refused(doubt, self.now, price.alone(), most) && self.queue.live_of(price.key) == 0 {
            (candidate.work, candidate.probe) = (hinted, Some(doubt));
        }
    }
}
