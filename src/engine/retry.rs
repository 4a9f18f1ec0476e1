//! Who was told to come back when, and the places that are kept for them.
//!
//! A `retry_after` that everybody gets alike only moves the storm. Here each rejected submission is
//! given the moment at which the queue, drained at its measured rate past all who were told before,
//! has room for it; and around that moment its place is kept from newcomers.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Who a submission is: what a retry has in common with its first attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Caller(pub(crate) u64);

#[derive(Clone, Copy, Debug)]
struct Promise {
    due: Duration,
    work: u64,
}

/// The promises of one class.
#[derive(Debug)]
pub(crate) struct RetryBook {
    promises: HashMap<Caller, Promise>,
    /// Promises whose place is not kept yet, by due time.
    ahead: BTreeSet<(Duration, Caller)>,
    /// Promises whose place is kept, by due time.
    kept: BTreeSet<(Duration, Caller)>,
    kept_work: u64,
    next_free: Duration,
    /// How far ahead places are kept.
    reserve: Duration,
    /// Stretches the distance between promises while they are broken, shrinks it back while they hold.
    stretch: f64,
}

/// A place is kept at least this long before its due time.
const AHEAD: Duration = Duration::from_millis(500);
/// The shortest time that anyone is told.
const SHORTEST: Duration = Duration::from_millis(100);
const BROKEN: f64 = 1.25;
const HELD: f64 = 0.998;
/// Newcomers keep a part of the room for themselves: promises are paced at this share of the rate.
const PACE: f64 = 0.9;

/// By how much later than the others' a caller's time is, so that they do not come together.
pub(crate) fn spread(grace: Duration, jitter: f64) -> Duration {
    grace.mul_f64(0.5 * jitter.clamp(0.0, 1.0))
}

impl Default for RetryBook {
    fn default() -> Self {
        Self {
            promises: HashMap::new(),
            ahead: BTreeSet::new(),
            kept: BTreeSet::new(),
            kept_work: 0,
            next_free: Duration::ZERO,
            reserve: AHEAD,
            stretch: 1.0,
        }
    }
}

impl RetryBook {
    /// Keeps places that are due within `ahead`, and forgets those that were not taken.
    pub(crate) fn advance(&mut self, now: Duration, ahead: Duration, grace: Duration) {
        self.reserve = ahead.max(AHEAD);
        let until = now.saturating_add(self.reserve);
        while let Some(entry) = self.ahead.first().copied().filter(|(due, _)| *due <= until) {
            self.ahead.pop_first();
            self.kept.insert(entry);
            self.kept_work += self.promises.get(&entry.1).map_or(0, |promise| promise.work);
        }
        while let Some((_, caller)) =
            self.kept.first().copied().filter(|(due, _)| due.saturating_add(grace) < now)
        {
            self.remove(caller);
        }
    }

    /// Places that are kept: how many, and their device time in nanoseconds.
    pub(crate) fn kept(&self) -> (usize, u64) {
        (self.kept.len(), self.kept_work)
    }

    /// Whether `caller` comes at the time it was told.
    pub(crate) fn is_due(&self, now: Duration, caller: Caller) -> bool {
        self.promises.get(&caller).is_some_and(|promise| promise.due <= now)
    }

    /// Whether `caller` was told a time that is not over.
    pub(crate) fn knows(&self, caller: Caller) -> bool {
        self.promises.contains_key(&caller)
    }

    /// The promise was kept, or broken.
    pub(crate) fn redeem(&mut self, caller: Caller, kept: bool) {
        self.remove(caller);
        self.stretch = (self.stretch * if kept { HELD } else { BROKEN }).clamp(1.0, 16.0);
    }

    /// Promises `caller` a time, from now; or repeats what it was told.
    ///
    /// * `work`: device time of its submission in nanoseconds
    /// * `rates`: device time of each second that the class gets at present, and that it is sure of
    ///   by its weight
    /// * `jitter`: in `0.0..1.0`, spreads callers within `grace`
    pub(crate) fn promise(
        &mut self,
        now: Duration,
        caller: Caller,
        work: u64,
        (present, sure): (f64, f64),
        (horizon, grace): (Duration, Duration),
        jitter: f64,
    ) -> Option<Duration> {
        let spread = spread(grace, jitter);
        if let Some(promise) = self.promises.get(&caller) {
            return Some(promise.due.saturating_sub(now) + spread);
        }
        // The places that are kept make up for a rate that falls, but only for as long as they reach; and
        // where none is kept yet they first have to come free.
        let first = if self.promises.is_empty() { self.reserve.min(horizon / 4) } else { SHORTEST };
        let from = self.next_free.max(now.saturating_add(first));
        let off = from.saturating_sub(now).as_secs_f64() / (2.0 * self.reserve.as_secs_f64());
        let rate = present + (sure.min(present) - present) * off.clamp(0.0, 1.0);
        let distance = Duration::from_nanos(work).mul_f64(self.stretch / (rate * PACE).clamp(1e-3, 1.0));
        let due = from.saturating_add(distance);
        if due > now.saturating_add(horizon) {
            return None;
        }
        self.next_free = due;
        self.promises.insert(caller, Promise { due, work });
        self.ahead.insert((due, caller));
        Some(due - now + spread)
    }

    fn remove(&mut self, caller: Caller) {
        if let Some(promise) = self.promises.remove(&caller) {
            self.ahead.remove(&(promise.due, caller));
            if self.kept.remove(&(promise.due, caller)) {
                self.kept_work -= promise.work;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TERMS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(2));

    #[test]
    fn callers_are_told_times_that_lie_apart_by_the_work_over_the_rate() {
        let mut book = RetryBook::default();
        let work = SECOND.as_nanos() as u64;
        let told: Vec<Duration> = (0..3)
            .filter_map(|i| book.promise(SECOND, Caller(i), work, (0.5 / PACE, 1.0), TERMS, 0.0))
            .collect();
        assert_eq!(told, [2_500, 4_500, 6_500].map(Duration::from_millis));
    }

    #[test]
    fn the_first_waits_until_the_reserve_is_free_and_far_times_are_paced_at_the_sure_rate() {
        let mut book = RetryBook::default();
        book.advance(SECOND, 4 * SECOND, TERMS.1);
        let rates = (0.5 / PACE, 0.125 / PACE);
        let told: Vec<Duration> = (0..4)
            .filter_map(|i| book.promise(SECOND, Caller(i), 1_000_000_000, rates, TERMS, 0.0))
            .collect();
        assert!(told[0] > 6 * SECOND && told[0] < 9 * SECOND, "{told:?}");
        // Eight seconds off and further: an eighth of a second's device time each second.
        assert_eq!(told[3] - told[2], 8 * SECOND);
    }

    #[test]
    fn a_caller_that_asks_again_early_is_told_the_same_time() {
        let mut book = RetryBook::default();
        let first = book.promise(SECOND, Caller(1), 1_000_000_000, (1.0, 1.0), TERMS, 0.0);
        let again = book.promise(2 * SECOND, Caller(1), 1_000_000_000, (1.0, 1.0), TERMS, 0.0);
        assert_eq!(again, first.map(|told| told - SECOND));
    }

    #[test]
    fn nobody_is_told_a_time_past_the_horizon() {
        let mut book = RetryBook::default();
        let told = (0..1_000)
            .filter_map(|i| book.promise(SECOND, Caller(i), 1_000_000_000, (1.0, 1.0), TERMS, 0.0))
            .max();
        assert!(told <= Some(TERMS.0), "{told:?}");
        assert_eq!(book.promise(SECOND, Caller(5_000), 1_000_000_000, (1.0, 1.0), TERMS, 0.0), None);
    }

    #[test]
    fn places_are_kept_as_far_ahead_as_is_asked_for() {
        let mut book = RetryBook::default();
        for caller in 0..10 {
            book.promise(SECOND, Caller(caller), 1_000_000_000, (1.0 / PACE, 1.0), TERMS, 0.0).unwrap();
        }
        // One a second from the second second on.
        book.advance(SECOND, 4 * SECOND, TERMS.1);
        assert_eq!(book.kept(), (3, 3_000_000_000));
    }

    #[test]
    fn a_place_is_kept_around_its_time_and_then_given_up() {
        let mut book = RetryBook::default();
        let told = book.promise(SECOND, Caller(1), 1_000_000_000, (1.0, 1.0), TERMS, 0.0).unwrap();
        book.advance(SECOND, Duration::ZERO, TERMS.1);
        assert_eq!(book.kept().0, 0);
        book.advance(SECOND + told, Duration::ZERO, TERMS.1);
        assert_eq!(book.kept(), (1, 1_000_000_000));
        assert!(book.is_due(SECOND + told, Caller(1)));
        book.advance(SECOND + told + 2 * TERMS.1, Duration::ZERO, TERMS.1);
        assert_eq!(book.kept(), (0, 0));
        assert!(!book.is_due(SECOND + told + 2 * TERMS.1, Caller(1)));
    }
}
