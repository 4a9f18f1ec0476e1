//! The queue against a model of itself that keeps one list and searches it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::engine::cost::Model;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Where {
    Queued,
    Ready,
    InLaunch,
}

#[derive(Clone, Copy, Debug)]
struct NaiveJob {
    id: JobId,
    class: usize,
    tenant: u8,
    place: Place,
    at: Where,
}

#[derive(Debug, Default)]
struct NaiveClass {
    weight: u32,
    paused: bool,
    time: u128,
    lanes: BTreeMap<BatchKey, u128>,
    lane_now: u128,
    /// What they used, what their started jobs are to use, and when they last came back.
    tenants: BTreeMap<u8, (u128, u64, u64)>,
    tenant_now: u128,
    tenant_latest: u128,
    entered: u64,
}

#[derive(Debug, Default)]
struct Naive {
    classes: Vec<NaiveClass>,
    jobs: Vec<NaiveJob>,
    now: u128,
}

fn of_shape(shape: u64) -> BatchKey {
    BatchKey { model: Model::Main, shape }
}

fn over(nanos: u64, weight: usize) -> u128 {
    u128::from(nanos) * SCALE / (weight.max(1) as u128)
}

impl Naive {
    fn of(&self, class: usize) -> impl Iterator<Item = &NaiveJob> {
        self.jobs.iter().filter(move |job| job.class == class)
    }

    fn queued(&self, class: usize) -> impl Iterator<Item = &NaiveJob> {
        self.of(class).filter(|job| job.at == Where::Queued)
    }

    fn waiting(&self, class: usize, key: BatchKey) -> usize {
        let here = self.queued(class).filter(|job| job.place.key == key);
        here.map(|job| job.tenant).collect::<BTreeSet<_>>().len()
    }

    fn accept(&mut self, job: NaiveJob) {
        if self.of(job.class).next().is_none() {
            let class = &mut self.classes[job.class];
            class.time = class.time.max(self.now);
        }
        let new_lane = self.of(job.class).all(|other| other.place.key != job.place.key);
        let joins = self.of(job.class).all(|other| other.tenant != job.tenant);
        let waits_again = self.queued(job.class).all(|other| other.tenant != job.tenant);
        let class = &mut self.classes[job.class];
        if new_lane {
            class.lanes.insert(job.place.key, class.lane_now);
        }
        let tenant = class.tenants.entry(job.tenant).or_default();
        if joins {
            tenant.0 = tenant.0.max(class.tenant_now);
        }
        if waits_again {
            class.entered += 1;
            tenant.2 = class.entered;
        }
        self.jobs.push(job);
    }

    fn tenant(&mut self, id: JobId) -> (&mut NaiveClass, u8) {
        let job = *self.jobs.iter().find(|job| job.id == id).unwrap();
        (&mut self.classes[job.class], job.tenant)
    }

    fn next_queued(&self, class: usize, key: BatchKey) -> Option<JobId> {
        let here = self.queued(class).filter(|job| job.place.key == key);
        let state = &self.classes[class];
        here.filter(|_| !state.paused)
            .min_by_key(|job| {
                let (used, running, entered) = state.tenants[&job.tenant];
                (used + over(running, 1), entered, job.place.due, job.id)
            })
            .map(|job| job.id)
    }

    fn ready(&self, class: usize, key: BatchKey) -> Vec<JobId> {
        let ready = self.of(class).filter(|job| job.at == Where::Ready && job.place.key == key);
        let mut ready: Vec<_> = ready.map(|job| (job.place.due, job.id)).collect();
        ready.sort_unstable();
        ready.into_iter().map(|(_, id)| id).collect()
    }

    fn turn(&mut self, may_start: bool) -> Option<BatchKey> {
        let mut best = None;
        for (index, class) in self.classes.iter().enumerate() {
            for (key, time) in &class.lanes {
                let starts = may_start && self.next_queued(index, *key).is_some();
                if starts || !self.ready(index, *key).is_empty() {
                    let candidate = (class.time, index, *time, *key);
                    best = Some(
                        best.map_or(candidate, |best: (u128, usize, u128, BatchKey)| best.min(candidate)),
                    );
                }
            }
        }
        let (time, index, lane_time, key) = best?;
        self.now = self.now.max(time);
        let class = &mut self.classes[index];
        class.lane_now = class.lane_now.max(lane_time);
        Some(key)
    }

    fn start(&mut self, id: JobId, nanos: u64) {
        self.jobs.iter_mut().find(|job| job.id == id).unwrap().at = Where::InLaunch;
        self.correct(id, 0, nanos);
    }

    fn correct(&mut self, id: JobId, before: u64, after: u64) {
        let (class, tenant) = self.tenant(id);
        let running = &mut class.tenants.get_mut(&tenant).unwrap().1;
        *running = (*running + after).saturating_sub(before);
        class.tenant_latest = class.tenant_latest.max(class.tenants[&tenant].0);
    }

    fn charge_use(&mut self, id: JobId, nanos: u64) {
        let index = self.jobs.iter().find(|job| job.id == id).unwrap().class;
        let busy = self.of(index).map(|job| job.tenant).collect::<BTreeSet<_>>().len();
        let (class, tenant) = self.tenant(id);
        class.tenant_now += over(nanos, busy);
        let used = &mut class.tenants.get_mut(&tenant).unwrap().0;
        *used += over(nanos, 1);
        class.tenant_latest = class.tenant_latest.max(*used);
    }

    fn charge_launch(&mut self, index: usize, key: BatchKey, nanos: u64) {
        let started = self.of(index).filter(|job| job.place.key == key && job.at != Where::Queued).count();
        let claims = self.waiting(index, key) + started;
        let class = &mut self.classes[index];
        class.time += over(nanos, class.weight as usize);
        if let Some(time) = class.lanes.get_mut(&key) {
            *time += over(nanos, claims);
        }
    }

    fn release(&mut self, id: JobId) {
        let index = self.jobs.iter().position(|job| job.id == id).unwrap();
        let job = self.jobs.remove(index);
        if self.of(job.class).all(|other| other.tenant != job.tenant) {
            self.classes[job.class].tenants.get_mut(&job.tenant).unwrap().1 = 0;
        }
        if self.of(job.class).all(|other| other.place.key != job.place.key) {
            self.classes[job.class].lanes.remove(&job.place.key);
        }
        if self.of(job.class).next().is_none() {
            let class = &mut self.classes[job.class];
            class.tenant_now = class.tenant_now.max(class.tenant_latest);
        }
    }

    fn set_paused(&mut self, class: usize, paused: bool) {
        let class = &mut self.classes[class];
        class.paused = paused;
        class.time = class.time.max(self.now);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Accept {
        class: usize,
        tenant: u8,
        key: u64,
        due: u64,
    },
    /// The next queued job of the key whose turn it is, or of any.
    Start {
        class: usize,
        key: u64,
        nanos: u64,
    },
    Launch {
        class: usize,
        key: u64,
        nanos: u64,
    },
    /// A job's tenant is charged with what it used, or with less than was expected.
    Use {
        pick: usize,
        nanos: u64,
    },
    Correct {
        pick: usize,
        before: u64,
        after: u64,
    },
    Ready {
        pick: usize,
    },
    Take {
        pick: usize,
    },
    End {
        pick: usize,
    },
    Pause {
        class: usize,
        paused: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (class, key, nanos) = (0..3usize, 0..3u64, 1..1_000_000u64);
    prop_oneof![
        4 => (class.clone(), 0..5u8, key.clone(), 0..20u64)
            .prop_map(|(class, tenant, key, due)| Step::Accept { class, tenant, key, due }),
        3 => (class.clone(), key.clone(), nanos.clone())
            .prop_map(|(class, key, nanos)| Step::Start { class, key, nanos }),
        2 => (class.clone(), key, nanos.clone())
            .prop_map(|(class, key, nanos)| Step::Launch { class, key, nanos }),
        2 => (any::<usize>(), nanos.clone()).prop_map(|(pick, nanos)| Step::Use { pick, nanos }),
        2 => (any::<usize>(), nanos.clone(), nanos)
            .prop_map(|(pick, before, after)| Step::Correct { pick, before, after }),
        2 => any::<usize>().prop_map(|pick| Step::Ready { pick }),
        1 => any::<usize>().prop_map(|pick| Step::Take { pick }),
        2 => any::<usize>().prop_map(|pick| Step::End { pick }),
        1 => (class, any::<bool>()).prop_map(|(class, paused)| Step::Pause { class, paused }),
    ]
}

struct Pair {
    real: FairQueue,
    naive: Naive,
    next: u64,
}

impl Pair {
    fn new() -> Self {
        let weights = [8, 2, 1];
        let classes = weights.iter().map(|weight| NaiveClass { weight: *weight, ..NaiveClass::default() });
        let naive = Naive { classes: classes.collect(), ..Naive::default() };
        Self { real: FairQueue::new(weights), naive, next: 0 }
    }

    fn pick(&self, pick: usize, at: impl Fn(Where) -> bool) -> Option<NaiveJob> {
        let jobs: Vec<_> = self.naive.jobs.iter().filter(|job| at(job.at)).collect();
        (!jobs.is_empty()).then(|| *jobs[pick % jobs.len()])
    }

    fn put(&mut self, id: JobId, at: Where) {
        self.naive.jobs.iter_mut().find(|job| job.id == id).unwrap().at = at;
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Accept { class, tenant, key, due } => {
                let id = JobId(self.next);
                self.next += 1;
                let index = self.real.tenant(class, &tenant.to_string().into(), None);
                let due = Duration::from_secs(due);
                let place = Place { class, tenant: index, key: of_shape(key), due };
                self.real.accept(id, place, 10, None);
                self.naive.accept(NaiveJob { id, class, tenant, place, at: Where::Queued });
            }
            Step::Start { class, key, nanos } => {
                if let Some(id) = self.naive.next_queued(class, of_shape(key)) {
                    let place = self.naive.jobs.iter().find(|job| job.id == id).unwrap().place;
                    assert!(self.real.dequeue(id, &place));
                    self.real.charge_start(&place, 0, nanos);
                    self.naive.start(id, nanos);
                }
            }
            Step::Launch { class, key, nanos } => {
                self.real.charge_launch(class, of_shape(key), nanos);
                self.naive.charge_launch(class, of_shape(key), nanos);
            }
            Step::Use { pick, nanos } => {
                if let Some(job) = self.pick(pick, |_| true) {
                    self.real.charge_use(&job.place, nanos);
                    self.naive.charge_use(job.id, nanos);
                }
            }
            Step::Correct { pick, before, after } => {
                if let Some(job) = self.pick(pick, |_| true) {
                    self.real.charge_start(&job.place, before, after);
                    self.naive.correct(job.id, before, after);
                }
            }
            Step::Ready { pick } => {
                if let Some(job) = self.pick(pick, |at| at == Where::InLaunch) {
                    self.real.make_ready(job.id, &job.place);
                    self.put(job.id, Where::Ready);
                }
            }
            Step::Take { pick } => {
                if let Some(job) = self.pick(pick, |at| at == Where::Ready) {
                    assert!(self.real.take_ready(job.id, &job.place));
                    self.put(job.id, Where::InLaunch);
                }
            }
            Step::End { pick } => {
                if let Some(job) = self.pick(pick, |_| true) {
                    self.real.work_changed(&job.place, 10, 0);
                    self.real.release(job.id, &job.place);
                    self.naive.release(job.id);
                }
            }
            Step::Pause { class, paused } => {
                self.real.set_paused(class, paused);
                self.naive.set_paused(class, paused);
            }
        }
    }

    fn compare(&mut self) -> Result<(), TestCaseError> {
        for class in 0..3 {
            prop_assert_eq!(self.real.live(class), self.naive.of(class).count());
            for key in (0..3).map(of_shape) {
                prop_assert_eq!(self.real.next_queued(class, key), self.naive.next_queued(class, key));
                prop_assert_eq!(
                    self.real.ready(class, key).collect::<Vec<_>>(),
                    self.naive.ready(class, key)
                );
            }
            let mut tenants: BTreeMap<String, (usize, usize)> = BTreeMap::new();
            for job in self.naive.of(class) {
                let used = self.naive.classes[class].tenants[&job.tenant].0;
                prop_assert_eq!(self.real.used(&job.place), used);
                let counts = tenants.entry(job.tenant.to_string()).or_default();
                *counts = (counts.0 + usize::from(job.at == Where::Queued), counts.1 + 1);
            }
            let real =
                self.real.tenants(class).map(|(name, queued, live)| (name.to_string(), (queued, live)));
            prop_assert_eq!(real.collect::<BTreeMap<_, _>>(), tenants);
        }
        for may_start in [true, false] {
            prop_assert_eq!(self.real.turn(may_start, |_| false), self.naive.turn(may_start));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_queue_answers_as_a_list_that_is_searched(steps in prop::collection::vec(step(), 1..150)) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.apply(step);
            pair.compare()?;
        }
        // Emptied, it holds nothing at all.
        while !pair.naive.jobs.is_empty() {
            pair.apply(&Step::End { pick: 0 });
            pair.compare()?;
        }
        for class in &pair.real.classes {
            prop_assert!(class.lanes.is_empty() && class.with_ready.is_empty() && class.with_waiting.is_empty());
            prop_assert_eq!((class.queued, class.busy), (0, 0));
        }
    }
}

#[test]
fn tenants_that_left_are_forgotten_as_others_come() {
    let mut queue = FairQueue::new([1]);
    for number in 0..10_000u64 {
        let tenant = queue.tenant(0, &number.to_string().into(), None);
        let place = Place { class: 0, tenant, key: of_shape(1), due: Duration::ZERO };
        queue.accept(JobId(number), place, 0, None);
        assert!(queue.dequeue(JobId(number), &place));
        queue.charge_start(&place, 0, 1_000);
        queue.charge_use(&place, 1_000);
        queue.charge_start(&place, 1_000, 0);
        queue.release(JobId(number), &place);
    }
    assert!(queue.classes[0].tenants.len() < 10, "{}", queue.classes[0].tenants.len());
}
