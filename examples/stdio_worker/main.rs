//! A worker process that draws pictures for whoever holds its standard input and output: a process
//! manager or a job system in any language can start it, feed it, kill it, and go on elsewhere.
//!
//! ```text
//! cargo run --release --example stdio_worker -- --model path/to/checkpoint
//! ```
//!
//! # Frames
//!
//! Both directions carry frames; all integers are unsigned, 32 bits, little-endian:
//!
//! ```text
//! length of all that follows | length of the header | header | payload
//! ```
//!
//! The header is one JSON object with a `type`, the payload is bytes, often none. A frame from the client has
//! at most `--max-frame` bytes. Diagnostics go to standard error, nothing else goes to standard output.
//!
//! # From the client
//!
//! | type | fields | payload |
//! |---|---|---|
//! | `submit` | `id`, `request`, `options` | the input picture (PNG, JPEG, WebP) where `strength` is given |
//! | `resume` | `id`, `allow_inexact`, `options` | a checkpoint |
//! | `cancel` | `id` | |
//! | `checkpoint` | `id` | |
//! | `drain` | `timeout_ms` | |
//!
//! `id` is the client's name for the job, at most 256 bytes; it is free again after the job's end. All but
//! `id` may be left out.
//!
//! `request`: `prompt`, `negative`, `guidance` (scale), `rescale`, `interval` (two numbers), `width`, `height`,
//! `steps`, `sampler`, `sigmas`, `seed`, `count`, `clip_skip`, `strength` (0 to 1, for image to image), `raw`
//! (also send latents and floats). What is left out is the checkpoint's default.
//!
//! `options`: `tenant`, `class` (the first, if left out), `deadline_ms` (from submission); `min_steps` and
//! `min_side` agree to fewer steps or a smaller picture under load; `preview_every` and `checkpoint_every`, in
//! steps.
//!
//! # To the client
//!
//! | type | fields | payload |
//! |---|---|---|
//! | `ready` | `protocol` (1), `family`, `device`, `precision`, `weights`, `classes`, `max_frame`, `notes` | |
//! | `accepted` | `id` | |
//! | `rejected` | `id`, `reason`, `detail`, `message`, `retry` (may it help), `retry_after_ms` or null | |
//! | `queued` | `id`, `position`, `finish_ms` (predicted, from submission) | |
//! | `started` | `id` | |
//! | `step` | `id`, `done`, `total` | |
//! | `preview` | `id`, `pictures` (bytes of each) | PNG files, one after the other |
//! | `checkpoint` | `id`, `done` (steps; null where it was asked for by `checkpoint`) | the checkpoint |
//! | `finished` | `id`, `pictures` (`seed`, `width`, `height`, `bytes` of each), `raw`, `applied`, `notes`, `queued_ms`, `latency_ms` | PNG files; then, where `raw` is not null, its `latents` and `images` (`shape` and `bytes` of each), 32-bit floats |
//! | `failed` | `id`, `reason`, `message` | |
//! | `suspended` | `id` | a checkpoint for `resume`, here or elsewhere |
//! | `error` | `code`, `message`, `id` or null | |
//! | `drained` | | |
//!
//! `ready` is the first frame. Every `submit` and `resume` that can be read is answered by `accepted` or `rejected`,
//! but for the two errors on ids below; every accepted job ends with exactly one of `finished`, `failed` and
//! `suspended`. `step`, `preview` and `checkpoint` frames that a slow client does not read are left out but for the
//! latest; a checkpoint comes after its `step`. `applied` is null, or says `requested`, `actual` and `reason` (`load`,
//! `deadline`, `memory`).
//!
//! * reasons of `rejected`: `queue_full` and `quota` (`detail.bound`: `count`, `bytes`, `time`),
//!   `deadline_unreachable` (`detail.earliest_ms`, `detail.alone_ms`), `memory_budget` (`detail.needed`,
//!   `detail.budget`), `class_paused`, `draining`, `device_lost`, `invalid`, `other`. Whoever comes back after
//!   `retry_after_ms` with the same `id` finds a place kept.
//! * reasons of `failed`: `cancelled`, `deadline_exceeded`, `shed`, `failed`, `panicked`, `no_result`, `device_lost`
//!   (start another process), `shut_down`, `oversized`
//! * codes of `error`: `oversized`, `malformed`, `truncated` (the frame is skipped, the others are not touched);
//!   `duplicate_id` (the job that has it goes on), `bad_id`, `unknown_id`, `no_checkpoint`
//!
//! # The end
//!
//! `drain` accepts no more, lets jobs finish for `timeout_ms`, and suspends or ends what is left; a second one may
//! shorten that. The end of the input is a drain of `--grace-ms`. Then `drained` comes last, and the process ends with
//! status 0. Where its output is closed it ends with status 1; where it cannot begin, with 2. A process that was
//! killed loses nothing that a `checkpoint` frame has carried out of it.

mod frames;
mod messages;
mod pump;

use std::error::Error;
use std::io::{self, BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use aquatint::engine::{
    ClassLimits, EngineOptions, Handle, Limits, PipelineBackend, PipelineEngine, Rejected,
};
use aquatint::{DeviceChoice, LoadOptions, Pipeline};
use clap::{Parser, ValueEnum};
use serde_json::json;

use self::frames::{Frame, Incoming, Output};
use self::messages::{Command, Options};
use self::pump::{Jobs, Note, Pump};

#[derive(Clone, Copy, ValueEnum)]
enum DeviceName {
    Auto,
    Cpu,
    Wgpu,
    Cuda,
}

/// Draws pictures for whoever holds its standard input and output.
#[derive(Parser)]
struct Arguments {
    /// A checkpoint folder in diffusers' layout; without it, the embedded model.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceName,
    /// A class and its weight, most important first; several times.
    #[arg(long = "class", value_name = "NAME=WEIGHT", value_parser = class, default_values = ["paid=8", "free=2"])]
    classes: Vec<(String, u32)>,
    /// The most requests that wait.
    #[arg(long, default_value_t = 1_000)]
    queue: usize,
    /// Bytes on the device that running jobs may need together; without it, nine tenths of what is free where that
    /// is known (the processor of a Linux host), elsewhere no bound.
    #[arg(long)]
    memory: Option<u64>,
    /// How long jobs may go on after the end of the input, in milliseconds.
    #[arg(long, default_value_t = 60_000)]
    grace_ms: u64,
    /// The longest frame that is read, in bytes.
    #[arg(long, default_value_t = 64 << 20)]
    max_frame: u32,
}

fn class(text: &str) -> Result<(String, u32), String> {
    let (name, weight) = text.split_once('=').ok_or("expected NAME=WEIGHT")?;
    Ok((name.to_owned(), weight.parse().map_err(|error| format!("weight: {error}"))?))
}

/// Why the process ends.
pub(crate) enum Stop {
    /// It was told to, with so much time for what runs.
    Drain(Duration),
    /// Nobody reads its output.
    Unheard,
}

const MAX_ID: usize = 256;

fn main() -> ExitCode {
    run(&Arguments::parse()).unwrap_or_else(|error| {
        // Standard error may be closed, and then nobody is to be told.
        let _ = writeln!(io::stderr(), "error: {error}");
        ExitCode::from(2)
    })
}

fn engine(arguments: &Arguments, pipeline: Pipeline) -> Result<PipelineEngine, Box<dyn Error>> {
    let mut limits = Limits::default();
    limits.queue.count = arguments.queue;
    let class = |(name, weight): &(String, u32)| ClassLimits::new(name.as_str(), *weight, limits.queue);
    limits.classes = arguments.classes.iter().map(class).collect();
    limits.memory = arguments.memory.unwrap_or(limits.memory);
    // An id that comes again after its job's end is another job.
    let options = EngineOptions { limits, remembered: 0, ..EngineOptions::default() };
    Ok(PipelineEngine::over(pipeline, options)?)
}

fn run(arguments: &Arguments) -> Result<ExitCode, Box<dyn Error>> {
    let device = match arguments.device {
        DeviceName::Auto => DeviceChoice::Auto,
        DeviceName::Cpu => DeviceChoice::Cpu,
        DeviceName::Wgpu => DeviceChoice::Wgpu,
        DeviceName::Cuda => DeviceChoice::Cuda(0),
    };
    let options = LoadOptions { device, ..LoadOptions::default() };
    let pipeline = match &arguments.model {
        Some(folder) => Pipeline::load(folder, options)?,
        None => Pipeline::embedded(options)?,
    };
    let engine = Arc::new(engine(arguments, pipeline.clone())?);
    let (stop, stopped) = mpsc::channel();
    let (notes, inbox) = mpsc::channel();
    let (jobs, output) = (Arc::new(Jobs::default()), Arc::new(Output::new(stop.clone())));
    let classes: Vec<&str> = arguments.classes.iter().map(|(name, _)| name.as_str()).collect();
    let ready = json!({
        "type": "ready",
        "protocol": 1,
        "family": pipeline.family(),
        "device": pipeline.device_name(),
        "precision": pipeline.precision().to_string(),
        "weights": pipeline.weights_digest(),
        "classes": classes,
        "max_frame": arguments.max_frame,
        "notes": pipeline.notes(),
    });
    output.send(&ready, &[]);

    let pump = Pump { jobs: jobs.clone(), output: output.clone(), notes: notes.clone(), inbox };
    let pump = thread::Builder::new().spawn(move || pump.run())?;
    let reader = Reader {
        class: classes.first().copied().unwrap_or_default().into(),
        engine: engine.clone(),
        jobs,
        output: output.clone(),
        notes: notes.clone(),
        stop,
        pipeline,
        draining: false,
    };
    let (grace, max_frame) = (Duration::from_millis(arguments.grace_ms), arguments.max_frame);
    // It may stay in a read for ever, and goes with the process.
    thread::Builder::new().spawn(move || reader.run(grace, max_frame))?;

    let Ok(Stop::Drain(timeout)) = stopped.recv() else {
        engine.drain(Duration::ZERO);
        return Ok(ExitCode::FAILURE);
    };
    engine.drain(timeout);
    // The receiver is gone only where the thread is.
    let _ = notes.send(Note::Last);
    let carried = pump.join().is_ok();
    output.send(&json!({"type": "drained"}), &[]);
    let heard = carried && !matches!(stopped.try_recv(), Ok(Stop::Unheard));
    Ok(if heard { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The thread that does what the client says.
struct Reader {
    engine: Arc<PipelineEngine>,
    pipeline: Pipeline,
    jobs: Arc<Jobs>,
    output: Arc<Output>,
    notes: mpsc::Sender<Note>,
    stop: mpsc::Sender<Stop>,
    /// Where a submission names none.
    class: Arc<str>,
    draining: bool,
}

impl Reader {
    fn run(mut self, grace: Duration, max_frame: u32) {
        let mut input = BufReader::new(io::stdin());
        loop {
            match frames::read(&mut input, max_frame) {
                Ok(Incoming::Frame(frame)) => self.obey(frame),
                Ok(Incoming::Refused { code, message }) => self.output.error(None, code, &message),
                Ok(Incoming::End) => break,
                Err(error) => {
                    self.output.error(None, "truncated", &format!("input: {error}"));
                    break;
                }
            }
        }
        if !self.draining {
            self.drain(grace);
        }
    }

    fn obey(&mut self, Frame { header, payload }: Frame) {
        let command = match messages::parse(&header) {
            Ok(command) => command,
            Err((id, message)) => {
                let id = id.filter(|id| id.len() <= MAX_ID);
                return self.output.error(id.as_deref(), "malformed", &message);
            }
        };
        match command {
            Command::Submit { id, request, options } => {
                let Some(id) = self.free(id) else {
                    return;
                };
                match request.request(&payload, self.pipeline.default_guidance()) {
                    Ok(request) => {
                        let submission = options.submission(request, &id, &self.class);
                        self.answer(id, self.engine.submit(submission));
                    }
                    Err(message) => self.output.send(&messages::invalid(&id, message), &[]),
                }
            }
            Command::Resume { id, allow_inexact, options } => {
                self.resume(id, allow_inexact, options, payload)
            }
            Command::Cancel { id } => match self.jobs.get(&id) {
                Some(job) => job.cancel(),
                None => {
                    self.output.error(Some(&id), "unknown_id", "no job of that id is without its outcome")
                }
            },
            Command::Checkpoint { id } => self.checkpoint(&id),
            Command::Drain { timeout_ms } => {
                self.drain(timeout_ms.map_or(Duration::ZERO, Duration::from_millis))
            }
        }
    }

    /// The id, if no job has it and jobs are taken on.
    fn free(&self, id: String) -> Option<Arc<str>> {
        if id.len() > MAX_ID {
            let message = format!("id: at most {MAX_ID} bytes, found {}", id.len());
            self.output.error(None, "bad_id", &message);
            return None;
        }
        if self.jobs.get(&id).is_some() {
            self.output.error(Some(&id), "duplicate_id", "a job of that id is without its outcome");
            return None;
        }
        if self.draining {
            let rejected = Rejected { reason: aquatint::engine::Reason::Draining, retry_after: None };
            self.output.send(&messages::rejected(&id, &rejected), &[]);
            return None;
        }
        Some(id.into())
    }

    fn resume(&self, id: String, allow_inexact: bool, options: Options, payload: Vec<u8>) {
        if let Some(id) = self.free(id) {
            let submission = options.submission((), &id, &self.class);
            self.answer(id, self.engine.resume(payload, allow_inexact, submission));
        }
    }

    fn answer(&self, id: Arc<str>, result: Result<Handle<PipelineBackend>, Rejected>) {
        match result {
            Ok(handle) => {
                let handle = Arc::new(handle);
                self.jobs.insert(id.clone(), handle.clone());
                self.output.send(&json!({"type": "accepted", "id": &*id}), &[]);
                // The receiver is gone only where the process is ending.
                let _ = self.notes.send(Note::Accepted(id, handle));
            }
            Err(rejected) => self.output.send(&messages::rejected(&id, &rejected), &[]),
        }
    }

    fn checkpoint(&self, id: &str) {
        let Some(job) = self.jobs.get(id) else {
            return self.output.error(Some(id), "unknown_id", "no job of that id is without its outcome");
        };
        match job.checkpoint() {
            Ok(bytes) => {
                let (header, payload) = messages::checkpoint(id, None, bytes);
                self.output.send(&header, &payload);
            }
            Err(error) => self.output.error(Some(id), "no_checkpoint", &error.to_string()),
        }
    }

    fn drain(&mut self, timeout: Duration) {
        if std::mem::replace(&mut self.draining, true) {
            // The earlier of two ends counts.
            self.engine.drain(timeout);
        } else {
            // The receiver is the main thread: without it, the process is ending already.
            let _ = self.stop.send(Stop::Drain(timeout));
        }
    }
}
