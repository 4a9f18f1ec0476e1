//! A discrete-event simulation of the production scheduler under a virtual clock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquatint::engine::{
    Accepted, Action, Bounds, ClassLimits, Codel, Ending, Event, JobId, Launch, Limits, Offer, Phase, Report,
    Scheduler,
};

use super::Rng;
use super::device::{self, Device, OnDevice, Rates, SHAPES};
use super::outcome::{Outcome, Stretch};

/// The crowd and the weather.
#[derive(Clone, Debug)]
pub struct Config {
    pub seed: u64,
    /// Mean load over the device's capacity in full launches.
    pub load: f64,
    /// First attempts.
    pub requests: usize,
    /// How many times the crowd swells and ebbs within the run.
    pub days: f64,
    pub rates: Rates,
    /// Share of refused callers that come back when they are told; the others come back every second.
    pub patient: f64,
    pub cancels: f64,
    pub deadlines: f64,
    /// Share of the arrivals' time after which the engine is drained, if it is.
    pub drain: Option<f64>,
    /// Into how many stretches the arrivals' time is cut for [`Outcome::stretches`].
    pub stretches: usize,
}

impl Config {
    pub fn surge(seed: u64, load: f64, requests: usize) -> Self {
        let rates =
            Rates { nan: 1e-4, transient: 1e-4, poison: 1e-4, out_of_memory: 1e-4, slow: 1e-3, lost: 0.0 };
        Self {
            seed,
            load,
            requests,
            days: 2.0,
            rates,
            patient: 0.7,
            cancels: 0.02,
            deadlines: 0.02,
            drain: None,
            stretches: 0,
        }
    }

    /// A short run in which much goes wrong.
    pub fn disaster(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let mut rate = |most: f64| if rng.chance(0.5) { most * rng.unit() } else { 0.0 };
        let rates = Rates {
            nan: rate(0.02),
            transient: rate(0.05),
            poison: rate(0.02),
            out_of_memory: rate(0.2),
            slow: rate(0.05),
            lost: rate(0.002),
        };
        let (cancels, deadlines) = (rate(0.5), rate(0.5));
        let (load, patient) = (0.3 + 4.0 * rng.unit(), rng.unit());
        let drain = rng.chance(0.3).then(|| rng.unit());
        let (requests, days, stretches) = (400, 1.0, 0);
        Self { seed, load, requests, days, rates, patient, cancels, deadlines, drain, stretches }
    }
}

pub const CLASSES: [&str; 2] = ["paid", "free"];
const FREE: f64 = 0.9;
/// The day's peak over its trough, 2.5: (1 + a) / (1 - a).
const SWING: f64 = 1.5 / 3.5;
const ATTEMPTS: u32 = 5;

pub fn limits() -> Limits {
    let bounds = |count| Bounds { count, bytes: 1 << 40, time: Duration::from_secs(60) };
    let objective = Duration::from_secs(1);
    let paid = ClassLimits { objective, ..ClassLimits::new(CLASSES[0], 8, bounds(2_000)) };
    let codel = Some(Codel { target: Duration::from_secs(5), interval: Duration::from_secs(5) });
    let free =
        ClassLimits { codel, objective: 10 * objective, ..ClassLimits::new(CLASSES[1], 2, bounds(4_000)) };
    Limits {
        classes: vec![paid, free],
        queue: bounds(6_000),
        memory: 1_000_000_000,
        start_rows: device::START_ROWS,
        finish_rows: device::FINISH_ROWS,
        retry_horizon: Duration::from_secs(30),
        retry_grace: Duration::from_secs(1),
        ..Limits::default()
    }
}

#[derive(Clone, Debug)]
struct Request {
    class: usize,
    tenant: Arc<str>,
    key: Arc<str>,
    shape: usize,
    steps: u32,
    attempts: u32,
    patient: bool,
    told: bool,
    poison: bool,
    deadline: Option<Duration>,
    cancel: Option<Duration>,
}

struct Running {
    request: Request,
    arrived: Duration,
    deadline: Option<Duration>,
}

enum What {
    Arrive(Box<Request>),
    Next,
    Returned(u64, Vec<Report>, Duration),
    Cancel(JobId),
    Wake,
    Drain,
}

pub struct Sim {
    config: Config,
    rng: Rng,
    scheduler: Scheduler,
    device: Device,
    heap: BinaryHeap<Reverse<(Duration, u64)>>,
    events: HashMap<u64, What>,
    sequence: u64,
    now: Duration,
    running: HashMap<JobId, Running>,
    made: usize,
    mean_rate: f64,
    length: f64,
    useful: f64,
    measured_from: Duration,
    measured_to: Duration,
    limits: Limits,
    out: Outcome,
}

impl Sim {
    pub fn new(config: Config) -> Self {
        let mean_cost =
            SHARES.iter().zip(SHAPES).map(|(share, shape)| share * device::ideal(shape, STEPS)).sum::<f64>();
        let mean_rate = config.load / mean_cost;
        let length = config.requests as f64 / mean_rate;
        let limits = limits();
        Self {
            rng: Rng(config.seed),
            scheduler: Scheduler::new(limits.clone()).unwrap(),
            device: Device { rng: Rng(config.seed ^ 0xdead), rates: config.rates, jobs: HashMap::new() },
            heap: BinaryHeap::new(),
            events: HashMap::new(),
            sequence: 0,
            now: Duration::ZERO,
            running: HashMap::new(),
            made: 0,
            mean_rate,
            length,
            useful: 0.0,
            measured_from: Duration::from_secs_f64(length * 0.1),
            measured_to: Duration::from_secs_f64(length),
            limits,
            out: Outcome {
                classes: Default::default(),
                stretches: vec![Stretch::default(); config.stretches],
                stretch_seconds: length / config.stretches.max(1) as f64,
                goodput: 0.0,
                told: 0,
                told_accepted: 0,
                endings: HashMap::new(),
                virtual_seconds: 0.0,
                launches: 0,
                peak_queued: 0,
                refusals: Vec::new(),
            },
            config,
        }
    }

    fn at(&mut self, time: Duration, what: What) {
        self.sequence += 1;
        self.heap.push(Reverse((time, self.sequence)));
        self.events.insert(self.sequence, what);
    }

    /// Runs until everything has its outcome, and checks on the way.
    pub fn run(mut self) -> Outcome {
        self.at(Duration::ZERO, What::Next);
        if let Some(share) = self.config.drain {
            self.at(Duration::from_secs_f64(share * self.length), What::Drain);
        }
        let mut processed = 0u64;
        while let Some(Reverse((time, sequence))) = self.heap.pop() {
            let what = self.events.remove(&sequence).unwrap();
            self.now = time;
            match what {
                What::Next => self.next_arrival(),
                What::Arrive(request) => self.submit(*request),
                What::Returned(launch, reports, elapsed) => {
                    self.tick([Event::Returned { launch, reports, elapsed }]);
                }
                What::Cancel(id) => self.tick([Event::Cancel(id)]),
                What::Wake => self.tick([]),
                What::Drain => {
                    let until = self.now + Duration::from_millis(20);
                    self.at(until, What::Wake);
                    self.tick([Event::Drain(until)]);
                }
            }
            processed += 1;
            if processed.is_multiple_of(256) {
                self.check();
            }
        }
        self.check();
        assert_eq!(self.running.len(), 0, "jobs without an outcome");
        assert_eq!(self.scheduler.reserved_memory(), 0, "memory reserved on an idle engine");
        assert_eq!(self.scheduler.live(), 0);
        for class in CLASSES {
            let queued = self.scheduler.queued(class).unwrap();
            assert_eq!((queued.count, queued.bytes, queued.time), (0, 0, Duration::ZERO), "{class}");
        }
        let measured = (self.measured_to - self.measured_from).as_secs_f64();
        self.out.goodput = self.useful / measured;
        self.out.virtual_seconds = self.now.as_secs_f64();
        self.out
    }

    fn stretch(&mut self) -> Option<&mut Stretch> {
        self.out.stretches.get_mut((self.now.as_secs_f64() / self.out.stretch_seconds) as usize)
    }

    fn check(&mut self) {
        let mut queued_in_all = 0;
        for (class, limits) in CLASSES.iter().zip(self.limits.classes.clone()) {
            let counters = self.scheduler.counters(class).unwrap();
            let index = CLASSES.iter().position(|name| name == class).unwrap();
            let live = self.running.values().filter(|job| job.request.class == index).count() as u64;
            assert!(counters.balance(live), "{class}: {counters:?} with {live} live");
            let queued = self.scheduler.queued(class).unwrap();
            assert!(
                queued.count <= limits.queue.count && queued.time <= limits.queue.time,
                "{class}: {queued:?}"
            );
            queued_in_all += queued.count;
            if let Some(stretch) = self.stretch() {
                stretch.queued[index] = queued.count;
            }
        }
        self.out.peak_queued = self.out.peak_queued.max(queued_in_all);
        assert!(queued_in_all <= self.limits.queue.count);
        assert!(self.scheduler.reserved_memory() <= self.limits.memory, "memory over the budget");
    }

    fn next_arrival(&mut self) {
        if self.made == self.config.requests {
            return;
        }
        self.made += 1;
        let phase = self.now.as_secs_f64() / self.length * self.config.days * std::f64::consts::TAU;
        let rate = self.mean_rate * (1.0 - SWING * phase.cos());
        let gap = Duration::from_secs_f64(self.rng.exponential() / rate);
        let request = self.request();
        self.submit(request);
        self.at(self.now + gap, What::Next);
    }

    fn request(&mut self) -> Request {
        let rng = &mut self.rng;
        let class = usize::from(rng.chance(FREE));
        let tenant = if class == 0 { rng.below(2_000) } else { rng.below(100_000) };
        let draw = rng.unit();
        let shape = SHARES
            .iter()
            .scan(0.0, |sum, share| {
                *sum += share;
                Some(*sum)
            })
            .position(|sum| draw < sum)
            .unwrap_or(0);
        let deadline =
            rng.chance(self.config.deadlines).then(|| Duration::from_secs_f64(0.1 + 5.0 * rng.unit()));
        let cancel = rng.chance(self.config.cancels).then(|| Duration::from_secs_f64(rng.unit()));
        Request {
            class,
            tenant: tenant.to_string().into(),
            key: self.made.to_string().into(),
            shape,
            steps: STEPS / 2 + rng.below(u64::from(STEPS) + 1) as u32,
            attempts: 0,
            patient: rng.chance(self.config.patient),
            told: false,
            poison: rng.chance(self.config.rates.poison),
            deadline,
            cancel,
        }
    }

    fn submit(&mut self, mut request: Request) {
        request.attempts += 1;
        let deadline = request.deadline.map(|deadline| self.now + deadline);
        let offer = Offer {
            tenant: request.tenant.clone(),
            class: CLASSES[request.class].into(),
            deadline,
            prices: vec![device::price(SHAPES[request.shape], request.steps, 1.5)],
            retry_key: Some(request.key.clone()),
            jitter: self.rng.unit(),
        };
        let cost = device::ideal(SHAPES[request.shape], request.steps);
        if let Some(stretch) = self.stretch() {
            stretch.asked += cost;
        }
        let tally = &mut self.out.classes[request.class];
        tally.offered += 1;
        let begun = Instant::now();
        let result = self.scheduler.admit(self.now, &offer);
        if result.is_err() {
            self.out.refusals.push(begun.elapsed());
        }
        if request.told {
            self.out.told += 1;
            self.out.told_accepted += u64::from(result.is_ok());
        }
        match result {
            Ok(Accepted { id, .. }) => {
                tally.accepted += 1;
                let on_device = OnDevice { done: 0, total: request.steps, poison: request.poison };
                self.device.jobs.insert(id, on_device);
                if let Some(cancel) = request.cancel {
                    self.at(self.now + cancel, What::Cancel(id));
                }
                if let Some(deadline) = deadline {
                    self.at(deadline, What::Wake);
                }
                let running = Running { request, arrived: self.now, deadline };
                assert!(self.running.insert(id, running).is_none(), "{id} twice");
                self.tick([]);
            }
            Err(rejected) => {
                tally.rejected += 1;
                if request.attempts >= ATTEMPTS || !rejected.retry_makes_sense() {
                    return;
                }
                request.told = request.patient && rejected.retry_after.is_some();
                let pause = match rejected.retry_after {
                    Some(told) if request.patient => told,
                    None if request.patient => return,
                    _ => Duration::from_secs(1),
                };
                self.at(self.now + pause, What::Arrive(Box::new(request)));
            }
        }
    }

    fn tick(&mut self, events: impl IntoIterator<Item = Event>) {
        for action in self.scheduler.tick(self.now, events) {
            match action {
                Action::Launch(launch) => self.launch(launch),
                Action::End(id, ending) => self.end(id, ending),
            }
        }
    }

    fn launch(&mut self, launch: Launch) {
        self.out.launches += 1;
        for id in &launch.jobs {
            let job = self.running.get(id).expect("a launch of a job that has ended");
            let late = job.deadline.is_some_and(|deadline| deadline <= self.now);
            assert!(!late, "{:?} of {id} begins after its deadline", launch.phase);
            assert_eq!(SHAPES[job.request.shape].key, launch.key.shape);
        }
        assert!(launch.phase != Phase::Step || launch.jobs.len() <= device::MAX_ROWS as usize);
        let (reports, elapsed) = self.device.run(&launch);
        self.at(self.now + elapsed, What::Returned(launch.number, reports, elapsed));
    }

    fn end(&mut self, id: JobId, ending: Ending) {
        let job = self.running.remove(&id).expect("an outcome for a job that has one");
        let on_device = self.device.jobs.remove(&id).unwrap();
        let name = match ending {
            Ending::Finished => "finished",
            Ending::Cancelled => "cancelled",
            Ending::Expired => "expired",
            Ending::Shed => "shed",
            Ending::Failed => "failed",
            Ending::DeviceLost => "device lost",
            Ending::Suspended => "suspended",
            Ending::ShutDown => "shut down",
        };
        *self.out.endings.entry(name).or_default() += 1;
        if ending == Ending::Finished {
            assert_eq!(on_device.done, on_device.total, "{id} finished early");
            let (class, latency) = (job.request.class, (self.now - job.arrived).as_secs_f64());
            let cost = device::ideal(SHAPES[job.request.shape], job.request.steps);
            self.out.classes[class].finish(latency);
            if (self.measured_from..self.measured_to).contains(&self.now) {
                self.useful += cost;
            }
            if let Some(stretch) = self.stretch() {
                stretch.useful += cost;
                stretch.tallies[class].finish(latency);
            }
        }
    }
}

const SHARES: [f64; 3] = [0.7, 0.2, 0.1];
/// Steps of the mean request.
const STEPS: u32 = 4;
