//! A backend whose jobs are numbers: every step hashes a job's own value, so that its bits say whether
//! anything else touched it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use aquatint::engine::{
    Alternative, Applied, Backend, BatchKey, Bounds, ClassLimits, Degrade, Engine, EngineOptions, Fault,
    Handle, Limits, Model, Phase, Price, Steps, Submission,
};
use xxhash_rust::xxh3::xxh3_64;

#[derive(Clone, Debug)]
pub struct Ask {
    pub name: u32,
    pub steps: u32,
    pub key: u64,
    pub rows: u32,
    pub trouble: Trouble,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Trouble {
    None,
    /// Not a request at all.
    Invalid,
    /// `price` panics.
    PricePanics,
    /// Every launch of this phase panics in which it is; steps from this one on.
    Panics(Phase, u32),
    /// Its step gives NaN.
    NanAt(u32),
    /// Its step fails this many times, then works.
    TransientAt(u32, u32),
    /// Launches of more than this many jobs run out of memory.
    MemoryFor(usize),
    /// The device is lost at this step.
    LostAt(u32),
    /// `checkpoint` takes this many milliseconds.
    SavesFor(u64),
    /// `preview` panics.
    PreviewPanics,
}

pub fn ask(name: u32, steps: u32) -> Ask {
    Ask { name, steps, key: 1, rows: 1, trouble: Trouble::None }
}

pub fn troubled(name: u32, steps: u32, trouble: Trouble) -> Ask {
    Ask { trouble, ..ask(name, steps) }
}

/// What an undisturbed job of that name and length gives.
pub fn bits(name: u32, steps: u32) -> u64 {
    (0..steps).fold(u64::from(name), stepped)
}

fn stepped(value: u64, step: u32) -> u64 {
    (value ^ u64::from(step)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
}

#[derive(Debug, Clone)]
pub struct MockJob {
    pub ask: Ask,
    pub done: u32,
    pub value: u64,
    failed: u32,
    alive: Arc<()>,
}

#[derive(Debug, PartialEq, thiserror::Error)]
pub enum MockError {
    #[error("not a request")]
    Invalid,
    #[error("not finite at step {0}")]
    Nan(u32),
    #[error("a hiccup")]
    Transient,
    #[error("out of memory")]
    Memory,
    #[error("the device is lost")]
    Lost,
    #[error("checkpoint: {0}")]
    Checkpoint(String),
}

#[derive(Default)]
struct Board {
    held: bool,
    waiting: bool,
    lost: bool,
    /// What this device is, for checkpoints.
    fingerprint: String,
    /// One count a job on the device, and one here.
    alive: Arc<()>,
    launches: Vec<(Phase, Vec<u32>)>,
}

/// What a test does to the device while the engine runs.
#[derive(Clone, Default)]
pub struct Control {
    board: Arc<(Mutex<Board>, Condvar)>,
}

impl Control {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.0.lock().unwrap()
    }

    /// The next launch stops before it does anything, until `release`.
    pub fn hold(&self) {
        self.board().held = true;
    }

    pub fn release(&self) {
        self.board().held = false;
        self.board.1.notify_all();
    }

    /// Blocks until a launch stands still.
    pub fn wait_held(&self) {
        let minute = Duration::from_secs(60);
        let (board, waited) =
            self.board.1.wait_timeout_while(self.board(), minute, |board| !board.waiting).unwrap();
        drop(board);
        assert!(!waited.timed_out(), "no launch came");
    }

    /// Makes this another device than the others of a test.
    pub fn call_it(&self, fingerprint: &str) {
        self.board().fingerprint = fingerprint.to_owned();
    }

    /// Every launch so far: phase, and names of its jobs.
    pub fn launches(&self) -> Vec<(Phase, Vec<u32>)> {
        self.board().launches.clone()
    }

    pub fn on_device(&self) -> usize {
        Arc::strong_count(&self.board().alive) - 1
    }

    fn begin(&self, phase: Phase, names: Vec<u32>) {
        let mut board = self.board();
        board.launches.push((phase, names));
        while board.held {
            board.waiting = true;
            self.board.1.notify_all();
            board = self.board.1.wait(board).unwrap();
        }
        board.waiting = false;
    }
}

pub struct Mock {
    pub control: Control,
    pub step_time: Duration,
}

impl Mock {
    fn trouble(&self, phase: Phase, asks: &[(Ask, u32)]) -> Option<MockError> {
        self.control.begin(phase, asks.iter().map(|(ask, _)| ask.name).collect());
        let mut board = self.control.board();
        for (ask, done) in asks {
            match ask.trouble {
                Trouble::MemoryFor(most) if phase == Phase::Step && asks.len() > most => {
                    return Some(MockError::Memory);
                }
                Trouble::LostAt(step) if phase == Phase::Step && *done == step => board.lost = true,
                _ => {}
            }
        }
        let lost = board.lost;
        drop(board);
        for (ask, done) in asks {
            if let Trouble::Panics(at, from) = ask.trouble
                && at == phase
                && *done >= from
            {
                std::panic::resume_unwind(Box::new(format!("job {} panics", ask.name)));
            }
        }
        lost.then_some(MockError::Lost)
    }
}

fn again(error: &MockError) -> MockError {
    match error {
        MockError::Memory => MockError::Memory,
        _ => MockError::Lost,
    }
}

impl Backend for Mock {
    type Request = Ask;
    type Job = MockJob;
    type Output = u64;
    type Preview = u64;
    type Error = MockError;

    fn price(&self, ask: &Ask, model: Model) -> Result<Price, MockError> {
        match ask.trouble {
            Trouble::Invalid => return Err(MockError::Invalid),
            Trouble::PricePanics => std::panic::resume_unwind(Box::new("no price")),
            _ => {}
        }
        Ok(Price {
            key: BatchKey { model, shape: ask.key },
            rows: ask.rows,
            max_rows: 16,
            steps: ask.steps,
            memory: 1_000 * u64::from(ask.rows),
            bytes: 100,
            start: Duration::from_micros(100),
            step: self.step_time.max(Duration::from_micros(100)),
            finish: Duration::from_micros(100),
        })
    }

    fn alternatives(&self, ask: &Ask, consent: &Degrade) -> Vec<Alternative<Ask>> {
        let steps = consent.min_steps.filter(|steps| *steps < ask.steps);
        let fewer = |steps| Alternative {
            model: Model::Main,
            request: Ask { steps, ..ask.clone() },
            requested: format!("{} steps", ask.steps),
            actual: format!("{steps} steps"),
        };
        steps.map(fewer).into_iter().collect()
    }

    fn start(&self, asks: &[&Ask], _: Model) -> Vec<Result<MockJob, MockError>> {
        let all: Vec<(Ask, u32)> = asks.iter().map(|ask| ((*ask).clone(), 0)).collect();
        let failure = self.trouble(Phase::Start, &all);
        let start = |(ask, _): (Ask, u32)| match &failure {
            Some(error) => Err(again(error)),
            None => {
                let (value, alive) = (u64::from(ask.name), self.control.board().alive.clone());
                Ok(MockJob { ask, done: 0, value, failed: 0, alive })
            }
        };
        all.into_iter().map(start).collect()
    }

    fn degraded(&self, _: &mut MockJob, _: &Applied) {}

    fn applied(&self, _: &MockJob) -> Option<Applied> {
        None
    }

    fn step(&self, jobs: &mut [&mut MockJob]) -> Vec<Result<(), MockError>> {
        let asks: Vec<(Ask, u32)> = jobs.iter().map(|job| (job.ask.clone(), job.done)).collect();
        let begun = Instant::now();
        if let Some(error) = self.trouble(Phase::Step, &asks) {
            return asks.iter().map(|_| Err(again(&error))).collect();
        }
        std::thread::sleep(self.step_time.saturating_sub(begun.elapsed()));
        let step = |job: &mut &mut MockJob| {
            match job.ask.trouble {
                Trouble::NanAt(step) if step == job.done => return Err(MockError::Nan(step)),
                Trouble::TransientAt(step, times) if step == job.done && job.failed < times => {
                    job.failed += 1;
                    return Err(MockError::Transient);
                }
                _ => {}
            }
            job.value = stepped(job.value, job.done);
            job.done += 1;
            Ok(())
        };
        jobs.iter_mut().map(step).collect()
    }

    fn steps(&self, job: &MockJob) -> Steps {
        Steps { done: job.done, total: job.ask.steps }
    }

    fn preview(&self, job: &MockJob) -> Result<u64, MockError> {
        if job.ask.trouble == Trouble::PreviewPanics {
            std::panic::resume_unwind(Box::new("no preview"));
        }
        Ok(job.value)
    }

    fn finish(&self, jobs: &[&MockJob]) -> Vec<Result<u64, MockError>> {
        let asks: Vec<(Ask, u32)> = jobs.iter().map(|job| (job.ask.clone(), job.done)).collect();
        let failure = self.trouble(Phase::Finish, &asks);
        jobs.iter().map(|job| failure.as_ref().map_or(Ok(job.value), |error| Err(again(error)))).collect()
    }

    fn checkpoint(&self, job: &MockJob) -> Result<Vec<u8>, MockError> {
        if let Trouble::SavesFor(millis) = job.ask.trouble {
            std::thread::sleep(Duration::from_millis(millis));
        }
        let words = [job.ask.name.into(), job.ask.key, job.value, job.done.into(), job.ask.steps.into()];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
        bytes.extend(self.control.board().fingerprint.as_bytes());
        let sum = xxh3_64(&bytes);
        bytes.extend(sum.to_le_bytes());
        Ok(bytes)
    }

    fn inspect(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<Price, MockError> {
        let job = self.read(checkpoint, allow_inexact)?;
        let price = self.price(&job.ask, Model::Main)?;
        Ok(Price { steps: job.ask.steps - job.done, ..price })
    }

    fn resume(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<MockJob, MockError> {
        self.read(checkpoint, allow_inexact)
    }

    fn fault(&self, error: &MockError) -> Fault {
        match error {
            MockError::Invalid | MockError::Nan(_) | MockError::Checkpoint(_) => Fault::Job,
            MockError::Transient => Fault::Transient,
            MockError::Memory => Fault::OutOfMemory,
            MockError::Lost => Fault::DeviceLost,
        }
    }
}

impl Mock {
    fn read(&self, checkpoint: &[u8], allow_inexact: bool) -> Result<MockJob, MockError> {
        let wrong = |what: &str| MockError::Checkpoint(what.to_owned());
        let (bytes, sum) = checkpoint.split_last_chunk::<8>().ok_or_else(|| wrong("short"))?;
        if xxh3_64(bytes) != u64::from_le_bytes(*sum) {
            return Err(wrong("damaged"));
        }
        let (words, fingerprint) = bytes.split_at_checked(40).ok_or_else(|| wrong("short"))?;
        let here = self.control.board().fingerprint.clone();
        if fingerprint != here.as_bytes() && !allow_inexact {
            return Err(wrong(&format!("not of {here}")));
        }
        let word = |index: usize| u64::from_le_bytes(words.as_chunks::<8>().0[index]);
        let ask = Ask { key: word(1), ..ask(word(0) as u32, word(4) as u32) };
        let alive = self.control.board().alive.clone();
        Ok(MockJob { ask, done: word(3) as u32, value: word(2), failed: 0, alive })
    }
}

/// Two classes, and room for everything.
pub fn roomy() -> Limits {
    let bounds = Bounds { count: 100_000, bytes: 1 << 40, time: Duration::from_secs(100_000) };
    Limits {
        classes: vec![ClassLimits::new("paid", 8, bounds), ClassLimits::new("free", 2, bounds)],
        queue: bounds,
        start_rows: 16,
        finish_rows: 16,
        degrade_after: Duration::from_secs(100_000),
        ..Limits::default()
    }
}

pub fn engine_with(limits: Limits, step_time: Duration) -> (Engine<Mock>, Control) {
    let control = Control::default();
    let mock = Mock { control: control.clone(), step_time };
    (Engine::new(mock, EngineOptions { limits, seed: 1, ..EngineOptions::default() }).unwrap(), control)
}

pub fn engine() -> (Engine<Mock>, Control) {
    engine_with(roomy(), Duration::from_micros(200))
}

pub fn free(ask: Ask) -> Submission<Ask> {
    Submission::new(ask, "tenant", "free")
}

pub fn submit(engine: &Engine<Mock>, ask: Ask) -> Handle<Mock> {
    engine.submit(free(ask)).unwrap()
}

pub fn output(handle: Handle<Mock>) -> u64 {
    handle.wait().unwrap().output
}

/// Nothing is left, on the device or in the books.
pub fn idle(engine: &Engine<Mock>, control: &Control) {
    let status = engine.status();
    assert_eq!((status.reserved_memory, status.rows, control.on_device()), (0, 0, 0));
    for class in &status.classes {
        assert!(class.counters.balance(0), "{}: {:?}", class.name, class.counters);
    }
}
