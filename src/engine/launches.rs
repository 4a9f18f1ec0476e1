//! What follows from a launch that came back: progress, outcomes, and new tries.

use std::time::Duration;

use super::admission::nanos;
use super::cost::Phase;
use super::doubts::Doubt;
use super::lifecycle::{Ending, Fault, Trigger};
use super::queue::JobId;
use super::scheduler::{Action, Flight, Report, Scheduler};

impl Scheduler {
    /// Takes the reports of the launch in flight; those of any other launch are ignored.
    pub(super) fn returned(
        &mut self,
        number: u64,
        reports: &[Report],
        elapsed: Duration,
        actions: &mut Vec<Action>,
    ) {
        let Some(flight) = self.flight.take_if(|flight| flight.launch.number == number) else {
            return;
        };
        if reports.iter().any(|report| report.fault == Some(Fault::DeviceLost)) {
            self.lose(actions);
            return;
        }
        let phase = flight.launch.phase;
        self.owed = match phase {
            Phase::Step => self.owed.saturating_sub(elapsed),
            Phase::Start | Phase::Finish => self.owed.saturating_add(elapsed),
        };
        if reports.iter().all(|report| report.fault.is_none()) {
            let seconds = elapsed.as_secs_f64();
            self.costs.observe(phase, &flight.price, flight.rows, seconds);
            self.caps.observe(phase, &flight.price, flight.rows, seconds);
            self.doubts.measured(Doubt::Cost(flight.launch.key));
        }
        self.charge(&flight, elapsed);
        let mut again = Vec::new();
        for id in &flight.launch.jobs {
            // A backend that says nothing about a job has failed it like a launch that fails.
            let report = reports.iter().find(|report| report.id == *id);
            let fault = report.map_or(Some(Fault::Launch), |report| report.fault);
            let told = report.filter(|report| fault.is_none() || report.total > 0);
            if let (Some(report), Some(job)) = (told, self.jobs.get_mut(id)) {
                (job.done, job.total) = (report.done, report.total);
            }
            self.account(*id, phase, fault.is_none());
            match fault {
                None => self.succeeded(*id, phase, actions),
                Some(Fault::Job | Fault::DeviceLost) => self.settle(*id, Ending::Failed, actions),
                Some(fault) => again.push((*id, fault)),
            }
        }
        self.ledger.rate(self.now);
        self.try_again(&flight, &again, actions);
    }

    /// Charges classes, lanes and tenants with a launch that took `elapsed`, whatever came of it.
    fn charge(&mut self, flight: &Flight, elapsed: Duration) {
        let per_row = nanos(elapsed) / u64::from(flight.rows.max(1));
        let mut classes = vec![0u64; self.limits.classes.len()];
        for id in &flight.launch.jobs {
            let Some(job) = self.jobs.get(id) else {
                continue;
            };
            let share = per_row.saturating_mul(u64::from(job.price.rows));
            self.queue.charge_use(&job.place, share);
            if let Some(class) = classes.get_mut(job.place.class) {
                *class = class.saturating_add(share);
            }
        }
        for (class, share) in classes.into_iter().enumerate().filter(|(_, share)| *share > 0) {
            self.queue.charge_launch(class, flight.launch.key, share);
        }
    }

    /// Takes what a job used from what it was expected to use; it has got on, so older failures are over.
    fn account(&mut self, id: JobId, phase: Phase, succeeded: bool) {
        let Some(job) = self.jobs.get_mut(&id).filter(|_| succeeded) else {
            return;
        };
        job.attempts = 0;
        let before = job.work.total();
        let used = match phase {
            Phase::Start => std::mem::take(&mut job.work.start),
            Phase::Step => job.work.step.min(before),
            Phase::Finish => std::mem::take(&mut job.work.finish),
        };
        // A sampler may take more or fewer steps than its request names.
        job.work.steps = u64::from(job.total.saturating_sub(job.done));
        let after = job.work.total();
        self.ledger.repriced(job, before, after.saturating_add(used));
        self.ledger.used(job, used);
        let place = job.place;
        self.queue.work_changed(&place, before, after);
        self.queue.charge_start(&place, before, after);
    }

    fn succeeded(&mut self, id: JobId, phase: Phase, actions: &mut Vec<Action>) {
        if phase == Phase::Finish {
            return self.settle(id, Ending::Finished, actions);
        }
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if let Some(ending) = self.overdue(id) {
            return self.end(id, ending, actions);
        }
        let (place, key, left) = (job.place, job.price.key, job.done < job.total);
        self.move_on(id, if left { Trigger::Advanced } else { Trigger::StepsDone });
        if left {
            self.queue.make_ready(id, &place);
        } else {
            self.decodable.entry(key).or_default().insert(id);
        }
    }

    /// How a job ends that was called back, or whose deadline passed, while it was in a launch.
    fn overdue(&self, id: JobId) -> Option<Ending> {
        let job = self.jobs.get(&id)?;
        let expired = job.deadline.is_some_and(|deadline| deadline <= self.now);
        job.recalled.or(expired.then_some(Ending::Expired))
    }

    /// Ends a job as its launch says, unless it was called back.
    fn settle(&mut self, id: JobId, ending: Ending, actions: &mut Vec<Action>) {
        let recalled = self.jobs.get(&id).and_then(|job| job.recalled);
        self.end(id, recalled.unwrap_or(ending), actions);
    }

    /// Brings jobs of a failed launch back: smaller batches where memory ran out, halves where any of
    /// them may be the cause, alone where there is no doubt.
    fn try_again(&mut self, flight: &Flight, failed: &[(JobId, Fault)], actions: &mut Vec<Action>) {
        let alone = flight.launch.jobs.len() == 1;
        // A failure of every job may be the doing of one.
        let all = failed.len() == flight.launch.jobs.len();
        if failed.iter().any(|(_, fault)| *fault == Fault::OutOfMemory) {
            self.caps.shrink(flight.launch.phase, &flight.price, flight.rows);
        }
        let mut group = Vec::new();
        for (id, fault) in failed {
            let blamed = alone || (*fault == Fault::Transient && !all);
            let Some(job) = self.jobs.get_mut(id) else {
                continue;
            };
            job.attempts += u32::from(blamed);
            let given_up = job.attempts >= self.limits.max_attempts;
            let class = job.place.class;
            if let Some(ending) = self.overdue(*id).or(given_up.then_some(Ending::Failed)) {
                self.end(*id, ending, actions);
                continue;
            }
            if let Some(ledger) = self.ledger.classes.get_mut(class) {
                ledger.counters.retried += 1;
            }
            self.move_on(*id, Trigger::Retried);
            group.push(*id);
        }
        let (phase, key) = (flight.launch.phase, flight.launch.key);
        let whole = group.len();
        let parts = if alone { 1 } else { 2 };
        for part in group.chunks(whole.div_ceil(parts).max(1)) {
            self.suspects.push_back((phase, key, part.to_vec()));
        }
    }
}
