//! Who is let in: bounds, quotas, deadlines by predicted finish, and what is told to the others.

use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cost::{Phase, Price};
use super::doubts::Doubt;
use super::lifecycle::State;
use super::queue::{Place, TenantIndex};
use super::rejected::{Bound, Reason, Rejected};
use super::retry::{Caller, spread};
use super::scheduler::{Accepted, Job, Mode, Offer, Scheduler, Work};
use crate::job::DegradeReason;

/// Submissions of one tenant without a retry key that are told apart.
const ANONYMOUS: u64 = 4;

/// Places are kept for those who were told to come back within the time in which this part of the queue
/// is worked off.
const RESERVE: u64 = 4;

/// One of an offer's prices, worked out.
pub(super) struct Candidate<'a> {
    variant: usize,
    pub(super) price: &'a Price,
    pub(super) work: Work,
    /// On an idle device.
    alone: Duration,
    /// From now, behind what is already there; before calibration.
    pub(super) predicted: Duration,
    /// From now, calibrated.
    finish: Duration,
    /// What it is let in to find out about, although it seems to be late or too dear.
    pub(super) probe: Option<Doubt>,
}

impl Scheduler {
    /// Accepts a submission or says why not; in constant time but for logarithms.
    ///
    /// # Errors
    /// [`Rejected`], with the bound that it met and when to come back.
    pub fn admit(&mut self, now: Duration, offer: &Offer) -> Result<Accepted, Rejected> {
        self.now = self.now.max(now);
        let Some(class) = self.class_index(&offer.class) else {
            let message = format!("class: expected one of the engine's, found {}", offer.class);
            return Err(Rejected::never(Reason::Invalid { message }));
        };
        let result = self.admit_to(class, offer);
        if let Some(ledger) = self.ledger.classes.get_mut(class) {
            ledger.counters.submitted += 1;
            ledger.counters.rejected += u64::from(result.is_err());
            ledger.counters.degraded += u64::from(result.as_ref().is_ok_and(|accepted| accepted.variant > 0));
        }
        result
    }

    /// Expected device time and peak memory of a request on its own, from what was measured so far.
    pub fn plan(&self, price: &Price) -> Plan {
        Plan { peak_memory: price.memory, time: self.alone(price) }
    }

    fn admit_to(&mut self, class: usize, offer: &Offer) -> Result<Accepted, Rejected> {
        match self.mode {
            Mode::Open => {}
            Mode::Draining(_) => return Err(Rejected::never(Reason::Draining)),
            Mode::Lost => return Err(Rejected::never(Reason::DeviceLost)),
        }
        if self.queue.is_paused(class) {
            return Err(Rejected::never(Reason::ClassPaused { class: offer.class.clone() }));
        }
        if offer.prices.is_empty() || offer.prices.iter().any(|price| price.rows == 0 || price.max_rows == 0)
        {
            let message = "price: expected at least one row, found none".to_owned();
            return Err(Rejected::never(Reason::Invalid { message }));
        }
        let window = self.limits.classes.get(class).and_then(|limits| limits.quota).map(|quota| quota.window);
        let quota_start = self.now.checked_sub(window.unwrap_or_default());
        let tenant = self.queue.tenant(class, &offer.tenant, quota_start);
        let (mut candidate, reason) = self.choose_variant(class, tenant, offer)?;
        self.check_quota(class, tenant, offer, &candidate)?;
        self.doubt_work(class, &mut candidate);
        self.check_bounds(class, offer, &candidate)?;
        Ok(self.accept(class, tenant, offer, &candidate, reason))
    }

    /// The best of the offer's prices that load, memory and deadline allow.
    fn choose_variant<'a>(
        &mut self,
        class: usize,
        tenant: TenantIndex,
        offer: &'a Offer,
    ) -> Result<(Candidate<'a>, Option<DegradeReason>), Rejected> {
        let below = self.limits.classes.len().saturating_sub(class + 1);
        let load = self.ledger.work / nanos(self.limits.degrade_after).max(1);
        let wanted = usize::try_from(load).unwrap_or(usize::MAX).saturating_sub(below);
        let least = wanted.min(offer.prices.len().saturating_sub(1));
        let mut reason = (least > 0).then_some(DegradeReason::Load);
        let (mut rejected, mut probe) = (None, None);
        for (variant, price) in offer.prices.iter().enumerate().skip(least) {
            if price.memory > self.limits.memory {
                let (needed, budget) = (price.memory, self.limits.memory);
                rejected.get_or_insert(Rejected::never(Reason::MemoryBudget { needed, budget }));
                reason.get_or_insert(DegradeReason::Memory);
                continue;
            }
            let mut candidate = self.candidate(class, tenant, variant, price);
            match offer.deadline {
                Some(deadline) if self.now + candidate.finish > deadline => {
                    let wanted = deadline.saturating_sub(self.now);
                    let (earliest, alone) = (candidate.finish, candidate.alone);
                    rejected = Some(Rejected::never(Reason::DeadlineUnreachable { earliest, alone, wanted }));
                    candidate.probe = self.doubt(class, tenant, &candidate, wanted);
                    if probe.is_none() && candidate.probe.is_some() {
                        probe = Some((candidate, reason));
                    }
                    reason.get_or_insert(DegradeReason::Deadline);
                }
                // A probe of what was asked for goes before what would be done instead; of its own key any job is one.
                _ => {
                    return Ok(match probe {
                        Some((probe, reason)) if probe.price.key != price.key => (probe, reason),
                        _ => (candidate, reason),
                    });
                }
            }
        }
        probe.ok_or_else(|| {
            rejected.unwrap_or_else(|| {
                Rejected::never(Reason::Invalid { message: "price: expected one, found none".to_owned() })
            })
        })
    }

    fn candidate<'a>(
        &self,
        class: usize,
        tenant: TenantIndex,
        variant: usize,
        price: &'a Price,
    ) -> Candidate<'a> {
        let cap = self.caps.rows(Phase::Step, price);
        let work = self.work(price);
        let company = u32::try_from(self.ledger.rows).unwrap_or(u32::MAX);
        let shared = company.saturating_add(price.rows).min(cap.max(price.rows));
        let running = self.latency(price, shared);
        let predicted = self.wait(class, tenant, work.total()) + running;
        let bias = self.ledger.classes.get(class).map_or(1.0, |class| class.bias);
        let alone = self.alone(price);
        let finish = duration(predicted.as_secs_f64() * bias).max(alone);
        Candidate { variant, price, work, alone, predicted, finish, probe: None }
    }

    /// A whole job's device time in full launches.
    pub(super) fn work(&self, price: &Price) -> Work {
        let nanos = |phase, rows| nanos(duration(self.costs.share(phase, price, rows)));
        Work {
            start: nanos(Phase::Start, self.limits.start_rows),
            step: nanos(Phase::Step, self.caps.rows(Phase::Step, price)),
            steps: u64::from(price.steps),
            finish: nanos(Phase::Finish, self.limits.finish_rows),
        }
    }

    /// From start to end on an idle device.
    pub(super) fn alone(&self, price: &Price) -> Duration {
        self.latency(price, price.rows)
    }

    fn latency(&self, price: &Price, rows: u32) -> Duration {
        let seconds = self.costs.launch(Phase::Start, price, price.rows)
            + self.costs.launch(Phase::Step, price, rows) * f64::from(price.steps)
            + self.costs.launch(Phase::Finish, price, price.rows);
        duration(seconds)
    }

    /// How long the device is busy with what comes before one more job of this tenant: its tenant's
    /// work at its tenant's share, but never more than its class's work at its class's share, or all
    /// work.
    pub(super) fn wait(&self, class: usize, tenant: TenantIndex, own: u64) -> Duration {
        let weights: u64 = (self.limits.classes.iter().zip(&self.ledger.classes).enumerate())
            .filter(|(index, (_, ledger))| *index == class || ledger.work > 0)
            .map(|(_, (limits, _))| u64::from(limits.weight))
            .sum();
        let weight = self.limits.classes.get(class).map_or(1, |limits| limits.weight);
        let share = f64::from(weight) / weights.max(1) as f64;
        let class_work = self.ledger.classes.get(class).map_or(0, |class| class.work);
        let (tenant_work, tenants) = self.queue.tenant_work(class, tenant);
        // Before this job come its tenant's, and as much of every other tenant's as of its own.
        let others = tenant_work.saturating_add(own).saturating_mul(tenants as u64 - 1);
        let ahead = tenant_work.saturating_add(others);
        let fair = ahead.min(class_work) as f64 / share;
        Duration::from_nanos(fair.min(self.ledger.work as f64) as u64)
    }

    fn check_quota(
        &mut self,
        class: usize,
        tenant: TenantIndex,
        offer: &Offer,
        candidate: &Candidate,
    ) -> Result<(), Rejected> {
        let Some(quota) = self.limits.classes.get(class).and_then(|class| class.quota) else {
            return Ok(());
        };
        match self.queue.quota_wait(class, tenant, &quota, candidate.work.total(), self.now) {
            Some((bound, wait)) => {
                // A tenant's clients all wait for the same moment.
                let spread = spread(self.limits.retry_grace, offer.jitter);
                let retry_after = wait.map(|wait| wait.saturating_add(spread));
                Err(Rejected { reason: Reason::Quota { bound }, retry_after })
            }
            None => Ok(()),
        }
    }

    fn check_bounds(&mut self, class: usize, offer: &Offer, candidate: &Candidate) -> Result<(), Rejected> {
        for class in 0..self.books.len() {
            self.keep_places(class);
        }
        let others = self.kept_for_others(class);
        let (Some(limits), Some(rates)) = (self.limits.classes.get(class), self.rates(class)) else {
            return Ok(());
        };
        let (Some(book), Some(ledger)) = (self.books.get_mut(class), self.ledger.classes.get(class)) else {
            return Ok(());
        };
        let callers = callers(offer);
        let due = callers.clone().find(|caller| book.is_due(self.now, *caller));
        let kept = if due.is_some() { (0, 0) } else { book.kept() };
        let kept_of_all =
            if due.is_some() { (0, 0) } else { (kept.0 + others.0, kept.1.saturating_add(others.1)) };
        let work = candidate.work.total();
        let full =
            [(limits.queue, &ledger.queued, kept), (self.limits.queue, &self.ledger.queued, kept_of_all)]
                .into_iter()
                .find_map(|(bounds, queued, (kept, kept_work))| {
                    let most = nanos(bounds.time);
                    // However many were told to come back, half the room is newcomers'.
                    let (kept, kept_work) = (kept.min(bounds.count / 2), kept_work.min(most / 2));
                    if queued.count + kept + 1 > bounds.count {
                        Some((Bound::Count, bounds.count == 0))
                    } else if queued.bytes.saturating_add(candidate.price.bytes) > bounds.bytes {
                        Some((Bound::Bytes, candidate.price.bytes > bounds.bytes))
                    } else if queued.work.saturating_add(kept_work).saturating_add(work) > most {
                        Some((Bound::Time, work > most))
                    } else {
                        None
                    }
                });
        if let Some(caller) = due {
            book.redeem(caller, full.is_none());
        }
        let Some((bound, hopeless)) = full else {
            return Ok(());
        };
        let terms = (self.limits.retry_horizon, self.limits.retry_grace);
        let caller = callers.clone().find(|caller| !book.knows(*caller)).or_else(|| callers.clone().last());
        let retry_after = caller
            .filter(|_| !hopeless)
            .and_then(|caller| book.promise(self.now, caller, work, rates, terms, offer.jitter));
        Err(Rejected { reason: Reason::QueueFull { bound }, retry_after })
    }

    /// Device time a second that a class gets at present, and that it is sure of by its weight.
    fn rates(&self, class: usize) -> Option<(f64, f64)> {
        let weights: u64 = self.limits.classes.iter().map(|class| u64::from(class.weight)).sum();
        let sure = f64::from(self.limits.classes.get(class)?.weight) / weights.max(1) as f64;
        Some((self.ledger.rate_of(self.ledger.classes.get(class)?).unwrap_or(sure), sure))
    }

    /// Keeps the places of a class that are due soon, and gives up those that nobody came for.
    fn keep_places(&mut self, class: usize) {
        let (Some((present, _)), Some(ledger)) = (self.rates(class), self.ledger.classes.get(class)) else {
            return;
        };
        // A class may come to get less than it did when it promised: a part of its queue's length stays
        // free for those who come all the same.
        let queue = Duration::from_nanos(ledger.queued.work / RESERVE);
        let ahead = duration(queue.as_secs_f64() / present.max(1e-3));
        if let Some(book) = self.books.get_mut(class) {
            book.advance(self.now, ahead, self.limits.retry_grace);
        }
    }

    /// Places that the other classes keep, each within half of its own bounds: how many, and their device time.
    fn kept_for_others(&self, class: usize) -> (usize, u64) {
        let books =
            self.books.iter().zip(&self.limits.classes).enumerate().filter(|(index, _)| *index != class);
        books.fold((0, 0), |(count, work), (_, (book, limits))| {
            let kept = book.kept();
            let most = nanos(limits.queue.time) / 2;
            (count + kept.0.min(limits.queue.count / 2), work.saturating_add(kept.1.min(most)))
        })
    }

    fn accept(
        &mut self,
        class: usize,
        tenant: TenantIndex,
        offer: &Offer,
        candidate: &Candidate,
        reason: Option<DegradeReason>,
    ) -> Accepted {
        if let Some(doubt) = candidate.probe {
            self.doubts.probed(doubt);
            if let Doubt::Cost(key) = doubt {
                self.costs.doubt(key);
            }
        }
        let id = self.next_id();
        let due = offer.deadline.unwrap_or(self.now.saturating_add(self.limits.patience));
        let place = Place { class, tenant, key: candidate.price.key, due };
        let job = Job {
            place,
            price: candidate.price.clone(),
            state: State::Queued,
            waits: true,
            deadline: offer.deadline,
            arrived: self.now,
            done: 0,
            total: candidate.price.steps,
            attempts: 0,
            work: candidate.work,
            predicted: candidate.predicted,
            probe: candidate.probe.is_some(),
            recalled: None,
        };
        let position = self.ledger.classes.get(class).map_or(0, |class| class.queued.count);
        self.ledger.accepted(&job);
        let quota = self.limits.classes.get(class).and_then(|class| class.quota);
        self.queue.accept(id, place, job.work.total(), quota.map(|_| self.now));
        if let Some(deadline) = offer.deadline {
            self.deadlines.insert((deadline, id));
        }
        self.jobs.insert(id, job);
        Accepted { id, variant: candidate.variant, reason, position, finish: self.now + candidate.finish }
    }
}

/// A time in the future that is further off than any that matters.
const FAR: Duration = Duration::from_secs(1 << 32);

/// Seconds as a time that can be added to any other.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(FAR).min(FAR)
}

/// Nanoseconds, with room to add up several.
pub(super) fn nanos(time: Duration) -> u64 {
    time.min(FAR).as_nanos() as u64
}

/// Under which names a submission may have been told to come back.
fn callers(offer: &Offer) -> impl DoubleEndedIterator<Item = Caller> + Clone + use<> {
    let tenant = xxh3_64_with_seed(offer.tenant.as_bytes(), 0);
    let (seed, names) = match &offer.retry_key {
        Some(key) => (xxh3_64_with_seed(key.as_bytes(), tenant), 0..1),
        None => (tenant, 1..1 + ANONYMOUS),
    };
    names.map(move |name| Caller(seed.wrapping_add(name.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
}

/// What a request is expected to need on its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes on the device.
    pub peak_memory: u64,
    /// From start to end on an idle device.
    pub time: Duration,
}
