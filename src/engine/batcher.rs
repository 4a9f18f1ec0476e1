//! What the device does next: which jobs share a launch, and how many.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cost::{BatchKey, Phase, Price};
use super::lifecycle::{Ending, Trigger};
use super::queue::{JobId, ahead, virtual_charge};
use super::scheduler::{Action, Flight, Last, Launch, Scheduler};

/// Launches of any phase for which a key rests after one that was half full, twice that after less.
const REST: u64 = 6;
/// The most keys whose rest is remembered.
const MAX_RESTING: usize = 4_096;

/// Jobs chosen for a launch of one key.
#[derive(Debug, Default)]
struct Chosen {
    starts: Vec<JobId>,
    ready: Vec<JobId>,
}

impl Scheduler {
    /// Chooses the next launch. There is one at a time: a second beside it would only make both slower by
    /// an amount that nobody can predict. Between two steps there is at most one launch that decodes and
    /// one that encodes, and after these come steps for as long as they took.
    pub(super) fn decide(&mut self, actions: &mut Vec<Action>) {
        let last = self.last;
        let paid = self.owed == Duration::ZERO;
        let paid_or_decoded = paid || last.phase == Some(Phase::Finish);
        let launched = (!last.suspects && self.launch_suspects(paid))
            || (paid && last.phase != Some(Phase::Finish) && self.launch_finish())
            || last.started.is_some_and(|key| self.launch_step_of(key, false, actions))
            || self.launch_step(paid_or_decoded && last.phase != Some(Phase::Start), actions)
            || (last.phase != Some(Phase::Finish) && self.launch_finish())
            || self.launch_step(true, actions)
            || self.launch_finish()
            || self.launch_suspects(true);
        if let Some(flight) = self.flight.as_ref().filter(|_| launched) {
            actions.push(Action::Launch(flight.launch.clone()));
        }
    }

    /// A group of a failed launch, tried again apart; only steps unless `any` phase may go.
    fn launch_suspects(&mut self, any: bool) -> bool {
        let jobs = &self.jobs;
        self.suspects.retain_mut(|(_, _, group)| {
            group.retain(|id| jobs.contains_key(id));
            !group.is_empty()
        });
        let next = self.suspects.iter().position(|(phase, ..)| any || *phase == Phase::Step);
        let Some((phase, key, group)) = next.and_then(|index| self.suspects.remove(index)) else {
            return false;
        };
        self.launch(phase, key, group, true);
        true
    }

    /// The most rows that a launch of `price`'s key has at present.
    fn most_rows(&self, phase: Phase, price: &Price) -> u32 {
        let limit = match phase {
            Phase::Start => self.limits.start_rows,
            Phase::Step => u32::MAX,
            Phase::Finish => self.limits.finish_rows,
        };
        self.caps.rows(phase, price).min(limit)
    }

    /// Rows of the launch in flight over the most that it may have at present; 0 where there is none.
    pub(super) fn occupancy(&self) -> f64 {
        self.flight.as_ref().map_or(0.0, |Flight { launch, rows, price }| {
            // One job may have more rows than fit together.
            let most = self.most_rows(launch.phase, price).max(*rows).max(1);
            f64::from(*rows) / f64::from(most)
        })
    }

    /// Whether one more job may join a launch of `rows` rows that encodes or decodes.
    fn has_room(&self, phase: Phase, price: &Price, rows: u32) -> bool {
        let all = rows.saturating_add(price.rows);
        let time = self.costs.launch(phase, price, all);
        rows == 0 || (all <= self.most_rows(phase, price) && time <= self.limits.stall.as_secs_f64())
    }

    /// The jobs that have waited longest for decoding, and others of their key.
    fn launch_finish(&mut self) -> bool {
        let oldest = self.decodable.iter().filter_map(|(key, jobs)| jobs.first().map(|id| (*id, *key))).min();
        let Some((_, key)) = oldest else {
            return false;
        };
        let mut rows = 0u32;
        let mut chosen = Vec::new();
        for id in self.decodable.get(&key).into_iter().flatten() {
            let Some(job) = self.jobs.get(id) else {
                continue;
            };
            if !self.has_room(Phase::Finish, &job.price, rows) {
                break;
            }
            rows = rows.saturating_add(job.price.rows);
            chosen.push(*id);
        }
        if let Some(jobs) = self.decodable.get_mut(&key) {
            chosen.iter().for_each(|id| {
                jobs.remove(id);
            });
            if jobs.is_empty() {
                self.decodable.remove(&key);
            }
        }
        self.launch(Phase::Finish, key, chosen, false);
        true
    }

    /// A step of the jobs whose turn it is; or, where there is room beside them, the start of others.
    fn launch_step(&mut self, mut may_start: bool, actions: &mut Vec<Action>) -> bool {
        loop {
            let (resting, launches) = (&self.resting, self.launches);
            let rests = |key| resting.get(&key).is_some_and(|until| *until > launches);
            let Some(key) = self.queue.turn(may_start, rests) else {
                return false;
            };
            let ended = actions.len();
            if self.launch_step_of(key, may_start, actions) {
                return true;
            }
            if actions.len() > ended {
                // Jobs ended instead of starting; another lane has its turn.
                continue;
            }
            if !may_start {
                return false;
            }
            // Queued jobs that may not start yet: only what is running can go on.
            may_start = false;
        }
    }

    fn launch_step_of(&mut self, key: BatchKey, may_start: bool, actions: &mut Vec<Action>) -> bool {
        let chosen = self.choose(key, may_start, actions);
        if !chosen.starts.is_empty() {
            self.launch(Phase::Start, key, chosen.starts, false);
            return true;
        }
        for id in &chosen.ready {
            if let Some(job) = self.jobs.get(id) {
                self.queue.take_ready(*id, &job.place);
            }
        }
        let any = !chosen.ready.is_empty();
        if any {
            self.rest(key, &chosen.ready);
            self.launch(Phase::Step, key, chosen.ready, false);
        }
        any
    }

    /// A launch that is far from full costs almost as much as a full one: others go first while more
    /// jobs of its key come together.
    fn rest(&mut self, key: BatchKey, jobs: &[JobId]) {
        let of = |id: &JobId| self.jobs.get(id).map(|job| &job.price);
        let rows = jobs.iter().filter_map(of).map(|price| price.rows).fold(0, u32::saturating_add);
        let cap = jobs.first().and_then(of).map_or(1, |price| self.caps.rows(Phase::Step, price));
        let rest = match cap / rows.max(1) {
            0 | 1 => 0,
            2 | 3 => REST,
            _ => 2 * REST,
        };
        let launches = self.launches;
        if self.resting.len() > MAX_RESTING {
            self.resting.retain(|_, until| *until > launches);
        }
        self.resting.insert(key, launches + 1 + rest);
    }

    /// Fills a launch of `key` class by class in virtual time. Started jobs come before queued ones of
    /// their class, but for those of tenants that are ahead.
    fn choose(&mut self, key: BatchKey, may_start: bool, actions: &mut Vec<Action>) -> Chosen {
        let classes = self.limits.classes.len();
        let mut ready: Vec<ReadyJobs> = (0..classes).map(|class| self.ready_jobs(class, key)).collect();
        let mut times = self.queue.virtual_times();
        let mut chosen = Chosen::default();
        let (mut rows, mut start_rows, mut open) = (0u32, 0u32, may_start);
        let mut full = vec![false; classes];
        loop {
            let candidates = times.iter().enumerate().filter_map(|(class, time)| {
                let next = !full.get(class).copied().unwrap_or(true)
                    && (ready.get(class).is_some_and(|jobs| !jobs.is_empty())
                        || (open && self.queue.next_queued(class, key).is_some()));
                next.then_some((time.0, class))
            });
            let Some((_, class)) = candidates.min() else {
                return chosen;
            };
            let queued = || self.queue.next_queued(class, key).filter(|_| open);
            let Some((id, started)) = ready.get(class).and_then(|jobs| jobs.next(queued)) else {
                return chosen;
            };
            let Some(job) = self.jobs.get(&id) else {
                return chosen;
            };
            let need = job.price.rows;
            if rows > 0 && rows.saturating_add(need) > self.caps.rows(Phase::Step, &job.price) {
                if let Some(full) = full.get_mut(class) {
                    *full = true;
                }
                continue;
            }
            let step = job.work.step;
            if started {
                ready.get_mut(class).map(ReadyJobs::take);
                chosen.ready.push(id);
            } else {
                if !self.has_room(Phase::Start, &job.price, start_rows) {
                    open = false;
                    continue;
                }
                match self.admit_to_device(id, actions) {
                    Start::Started => chosen.starts.push(id),
                    Start::Gone => continue,
                    Start::NoRoom => {
                        // Others must not take what it waits for.
                        open = false;
                        continue;
                    }
                }
                start_rows = start_rows.saturating_add(need);
            }
            rows = rows.saturating_add(need);
            if let Some(time) = times.get_mut(class) {
                virtual_charge(time, step.max(1));
            }
        }
    }

    /// A class's ready jobs of a key: apart those of tenants that used a job's worth more than another
    /// that waits for them.
    fn ready_jobs(&self, class: usize, key: BatchKey) -> ReadyJobs {
        let job = |id: JobId| Some((id, self.jobs.get(&id)?));
        let started: Vec<_> = self.queue.ready(class, key).filter_map(job).collect();
        let queued = self.queue.next_queued(class, key).and_then(job);
        let waiting = started.iter().copied().chain(queued);
        let least = waiting.map(|(_, job)| self.queue.used(&job.place)).min().unwrap_or_default();
        let mut jobs = ReadyJobs::default();
        let mut stands_back = BTreeMap::new();
        for (id, job) in started {
            // One answer a tenant, so that its jobs stay in their order.
            let ahead = *stands_back.entry(job.place.tenant).or_insert_with(|| {
                let used = self.queue.used(&job.place);
                used > least && ahead(used, least, self.work(&job.price).total())
            });
            if ahead { &mut jobs.ahead } else { &mut jobs.first }.push(id);
        }
        jobs.first.reverse();
        jobs.ahead.reverse();
        jobs
    }

    /// Takes the head of a queue to the device, unless it has waited too long or there is no room.
    fn admit_to_device(&mut self, id: JobId, actions: &mut Vec<Action>) -> Start {
        let Some(job) = self.jobs.get(&id) else {
            return Start::Gone;
        };
        let class = job.place.class;
        let hopeless = job.deadline.is_some_and(|deadline| self.now + self.alone(&job.price) > deadline);
        if hopeless && job.waits && !job.probe {
            self.end(id, Ending::Expired, actions);
            return Start::Gone;
        }
        let codel = self.limits.classes.get(class).and_then(|class| class.codel);
        if let (Some(codel), Some(state), true) = (codel, self.codel.get_mut(class), job.waits)
            && state.sheds(self.now, self.now.saturating_sub(job.arrived), &codel)
        {
            self.end(id, Ending::Shed, actions);
            return Start::Gone;
        }
        let needed = if job.waits { job.price.memory } else { 0 };
        // One that fits no budget was accepted under a larger one: it has the device to itself.
        if self.ledger.memory > 0 && self.ledger.memory.saturating_add(needed) > self.limits.memory {
            return Start::NoRoom;
        }
        let (place, total) = (job.place, job.work.total());
        self.queue.dequeue(id, &place);
        self.queue.charge_start(&place, 0, total);
        if let Some(job) = self.jobs.get_mut(&id) {
            self.ledger.started(job);
        }
        Start::Started
    }

    /// Sends jobs to the device.
    fn launch(&mut self, phase: Phase, key: BatchKey, jobs: Vec<JobId>, suspects: bool) {
        let rows_of = |id: &JobId| self.jobs.get(id).map_or(0, |job| job.price.rows);
        let rows = jobs.iter().map(rows_of).fold(0, u32::saturating_add);
        let Some(price) = jobs.first().and_then(|id| self.jobs.get(id)).map(|job| job.price.clone()) else {
            return;
        };
        for id in &jobs {
            self.move_on(*id, Trigger::Launched);
        }
        self.launches += 1;
        if phase != Phase::Step && (phase, self.last.phase) != (Phase::Start, Some(Phase::Finish)) {
            // What is not paid off had no steps to wait for.
            self.owed = Duration::ZERO;
        }
        self.last = Last { phase: Some(phase), started: (phase == Phase::Start).then_some(key), suspects };
        let launch = Launch { number: self.launches, phase, key, jobs };
        self.flight = Some(Flight { launch, rows, price });
    }
}

/// Ready jobs of one class and key, the next one last.
#[derive(Debug, Default)]
struct ReadyJobs {
    first: Vec<JobId>,
    /// Those that stand back for the queued ones.
    ahead: Vec<JobId>,
}

impl ReadyJobs {
    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.ahead.is_empty()
    }

    /// The next job, `queued` where it is that, and whether it is a started one.
    fn next(&self, queued: impl FnOnce() -> Option<JobId>) -> Option<(JobId, bool)> {
        let first = self.first.last().map(|id| (*id, true));
        let queued = || queued().map(|id| (id, false));
        first.or_else(queued).or_else(|| self.ahead.last().map(|id| (*id, true)))
    }

    /// Takes the next started job out.
    fn take(&mut self) {
        self.first.pop().or_else(|| self.ahead.pop());
    }
}

/// What became of a queued job whose turn it is.
enum Start {
    Started,
    Gone,
    NoRoom,
}
