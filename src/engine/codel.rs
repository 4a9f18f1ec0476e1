//! Controlled delay: sheds from a queue that stands (Nichols & Jacobson 2012, appendix).

use std::time::Duration;

use super::limits::Codel;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CodelState {
    /// When the wait will have been over the target for an interval.
    over_at: Option<Duration>,
    shedding: bool,
    next: Duration,
    count: u32,
}

impl CodelState {
    /// Whether the job at the head, which has waited for `sojourn`, is shed.
    pub(crate) fn sheds(&mut self, now: Duration, sojourn: Duration, codel: &Codel) -> bool {
        if sojourn < codel.target {
            self.over_at = None;
            self.shedding = false;
            return false;
        }
        let over_at = *self.over_at.get_or_insert(now.saturating_add(codel.interval));
        if now < over_at {
            return false;
        }
        if !self.shedding {
            self.shedding = true;
            // Shedding that was needed a moment ago goes on at about its rate.
            let recent = now.saturating_sub(self.next) < codel.interval.saturating_mul(8);
            self.count = if recent && self.count > 2 { self.count - 2 } else { 1 };
            self.next = now.saturating_add(self.pause(codel));
            return true;
        }
        if now < self.next {
            return false;
        }
        self.count = self.count.saturating_add(1);
        self.next = self.next.saturating_add(self.pause(codel));
        true
    }

    fn pause(&self, codel: &Codel) -> Duration {
        codel.interval.div_f64(f64::from(self.count.max(1)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODEL: Codel = Codel { target: Duration::from_millis(5), interval: Duration::from_millis(100) };

    fn shed_within(seconds: u64, sojourn: Duration) -> usize {
        let mut state = CodelState::default();
        (0..seconds * 1_000).filter(|ms| state.sheds(Duration::from_millis(*ms), sojourn, &CODEL)).count()
    }

    #[test]
    fn a_short_wait_sheds_nothing() {
        assert_eq!(shed_within(10, Duration::from_millis(4)), 0);
    }

    #[test]
    fn a_standing_wait_sheds_with_the_square_of_time() {
        // Drop n comes at the sum of interval / sqrt(i), about 2 * interval * sqrt(n).
        let shed = shed_within(10, Duration::from_millis(6)) as f64;
        let expected = (9.9f64 / (2.0 * 0.1)).powi(2);
        assert!((shed / expected - 1.0).abs() < 0.1, "{shed} for {expected}");
    }

    #[test]
    fn one_short_wait_ends_the_shedding() {
        let mut state = CodelState::default();
        let long = Duration::from_millis(50);
        for ms in 0..1_000 {
            state.sheds(Duration::from_millis(ms), long, &CODEL);
        }
        assert!(!state.sheds(Duration::from_millis(1_000), Duration::ZERO, &CODEL));
        assert!((1_001..1_100).all(|ms| !state.sheds(Duration::from_millis(ms), long, &CODEL)));
    }
}
