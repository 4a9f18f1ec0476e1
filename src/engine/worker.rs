//! The one thread that works the device: does what the scheduler says, and tells it what came of it.

use std::any::Any;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::backend::{Backend, Steps};
use super::cost::{Model, Phase};
use super::handle::{CheckpointError, Failure, Finished, Outcome};
use super::lifecycle::{Ending, Fault};
use super::metrics::{self, Gauges};
use super::queue::JobId;
use super::scheduler::{Action, Event, Launch, Report};
use super::shell::{Origin, Reply, Shell};
use super::slot::Progress;
use crate::job::Applied;

/// What the worker keeps for itself.
pub(crate) struct Worker<B: Backend> {
    shell: Arc<Shell<B>>,
    jobs: HashMap<JobId, B::Job>,
    outputs: HashMap<JobId, B::Output>,
    /// What last went wrong with a job.
    failures: HashMap<JobId, Failure<B::Error>>,
    /// As they were last recorded.
    gauges: Gauges,
}

/// What a launch gave for one job, or what to do about it and why.
type Tried<T, E> = Result<T, (Fault, Failure<E>)>;

/// Calls into the backend; a panic comes back as what it said.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| message(panic.as_ref()))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

impl<B: Backend> Worker<B> {
    pub(crate) fn new(shell: Arc<Shell<B>>) -> Self {
        let (jobs, outputs, failures) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { shell, jobs, outputs, failures, gauges: Gauges::default() }
    }

    /// Works until the engine is drained or the device lost, and nothing is left.
    pub(crate) fn run(mut self) {
        let shell = self.shell.clone();
        shell.adopt();
        loop {
            // Before the decision: what it decides is to begin at once.
            let saves = std::mem::take(&mut shell.desk().saves);
            for (id, reply) in saves {
                self.save(id, &reply);
            }
            let mut desk = shell.desk();
            let events = std::mem::take(&mut desk.events);
            let actions = desk.scheduler.tick(shell.clock.now(), events);
            let gauges = Gauges::of(&desk.scheduler);
            if actions.is_empty() && gauges == self.gauges {
                if !desk.saves.is_empty() {
                    continue;
                }
                if desk.is_over() {
                    break;
                }
                let until = desk.scheduler.next_wake();
                drop(shell.rest(desk, until));
                continue;
            }
            drop(desk);
            if gauges != self.gauges {
                let _ = guarded(|| gauges.record());
                self.gauges = gauges;
            }
            for action in actions {
                match action {
                    Action::End(id, ending) => self.end(id, ending),
                    Action::Launch(launch) => self.launch(&launch),
                }
            }
        }
        shell.report_idle();
    }

    fn launch(&mut self, launch: &Launch) {
        let begun = self.shell.clock.now();
        let results = match launch.phase {
            Phase::Start => self.start(&launch.jobs, launch.key.model, begun),
            Phase::Step => self.step(&launch.jobs),
            Phase::Finish => self.finish(&launch.jobs),
        };
        let elapsed = self.shell.clock.now().saturating_sub(begun);
        let _ = guarded(|| metrics::launched(launch.phase, launch.jobs.len(), elapsed));
        let mut reports = Vec::with_capacity(launch.jobs.len());
        let mut results = results.into_iter();
        for id in &launch.jobs {
            let result = results.next().unwrap_or(Err((Fault::Launch, Failure::NoResult)));
            let steps = self.jobs.get(id).map(|job| guarded(|| self.shell.backend.steps(job))).transpose();
            let result = result.and(steps.map_err(|message| (Fault::Job, Failure::Panicked { message })));
            let Steps { done, total } = match &result {
                Ok(Some(steps)) => *steps,
                _ => Steps { done: 0, total: 0 },
            };
            let fault = result.as_ref().err().map(|(fault, _)| *fault);
            if let Err((fault, failure)) = result {
                self.note(*id, launch.phase, fault, failure);
            }
            reports.push(Report { id: *id, done, total, fault });
            if fault.is_none() {
                self.tell(*id, launch.phase, done, total);
            }
        }
        let event = Event::Returned { launch: launch.number, reports, elapsed };
        self.shell.desk().events.push(event);
    }

    fn note(&mut self, id: JobId, phase: Phase, fault: Fault, failure: Failure<B::Error>) {
        let desk = self.shell.desk();
        let labels = desk.entries.get(&id).map(|entry| entry.labels.clone());
        drop(desk);
        let _ = guarded(|| metrics::faulted(labels.as_ref(), id, phase, fault, &failure.to_string()));
        self.failures.insert(id, failure);
    }

    fn start(&mut self, ids: &[JobId], model: Model, now: Duration) -> Vec<Tried<(), B::Error>> {
        let mut desk = self.shell.desk();
        let origins: Vec<Option<Origin<B::Request>>> = ids
            .iter()
            .map(|id| {
                let entry = desk.entries.get_mut(id)?;
                entry.started.get_or_insert(now);
                entry.origin.take()
            })
            .collect();
        drop(desk);
        let requests: Vec<&B::Request> = origins
            .iter()
            .filter_map(|origin| match origin {
                Some(Origin::Request(request)) => Some(request),
                _ => None,
            })
            .collect();
        let backend = &self.shell.backend;
        let started =
            if requests.is_empty() { Ok(Vec::new()) } else { guarded(|| backend.start(&requests, model)) };
        let mut started = started.map(Vec::into_iter);
        let mut results = Vec::with_capacity(ids.len());
        for (id, origin) in ids.iter().zip(&origins) {
            let job = match origin {
                Some(Origin::Request(_)) => match &mut started {
                    Ok(jobs) => self.typed(jobs.next()),
                    Err(message) => Err((Fault::Launch, Failure::Panicked { message: message.clone() })),
                },
                Some(Origin::Checkpoint { bytes, allow_inexact }) => {
                    match guarded(|| backend.resume(bytes, *allow_inexact)) {
                        Ok(job) => self.typed(Some(job)),
                        Err(message) => Err((Fault::Launch, Failure::Panicked { message })),
                    }
                }
                None => Err((Fault::Job, Failure::NoResult)),
            };
            results.push(job.map(|job| {
                self.jobs.insert(*id, job);
            }));
        }
        self.note_degraded(ids);
        // For another try; what those that started began from goes here, outside of the lock.
        let again: Vec<_> = (ids.iter().zip(&results).zip(origins))
            .filter(|((_, result), _)| result.is_err())
            .map(|((id, _), origin)| (id, origin))
            .collect();
        let mut desk = self.shell.desk();
        for (id, origin) in again {
            if let Some(entry) = desk.entries.get_mut(id) {
                entry.origin = origin;
            }
        }
        drop(desk);
        results
    }

    /// Tells jobs that were just started what they do instead of what was asked for, and asks those that were
    /// resumed.
    fn note_degraded(&mut self, ids: &[JobId]) {
        let desk = self.shell.desk();
        let applied: Vec<(JobId, Option<Applied>)> =
            ids.iter().filter_map(|id| Some((*id, desk.entries.get(id)?.applied.clone()))).collect();
        drop(desk);
        let backend = &self.shell.backend;
        for (id, applied) in applied {
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            // What panics here costs the note alone.
            match applied {
                Some(applied) => drop(guarded(|| backend.degraded(job, &applied))),
                None => {
                    let kept = guarded(|| backend.applied(job)).ok().flatten();
                    if kept.is_some()
                        && let Some(entry) = self.shell.desk().entries.get_mut(&id)
                    {
                        entry.applied = kept;
                    }
                }
            }
        }
    }

    fn step(&mut self, ids: &[JobId]) -> Vec<Tried<(), B::Error>> {
        let mut taken: Vec<Option<B::Job>> = ids.iter().map(|id| self.jobs.remove(id)).collect();
        let mut jobs: Vec<&mut B::Job> = taken.iter_mut().flatten().collect();
        let backend = &self.shell.backend;
        let stepped = guarded(|| backend.step(&mut jobs));
        let results = self.each(&taken, stepped);
        for (id, job) in ids.iter().zip(taken) {
            job.and_then(|job| self.jobs.insert(*id, job));
        }
        results
    }

    fn finish(&mut self, ids: &[JobId]) -> Vec<Tried<(), B::Error>> {
        let there: Vec<Option<&B::Job>> = ids.iter().map(|id| self.jobs.get(id)).collect();
        let jobs: Vec<&B::Job> = there.iter().flatten().copied().collect();
        let backend = &self.shell.backend;
        let finished = guarded(|| backend.finish(&jobs));
        let results = self.each(&there, finished);
        ids.iter()
            .zip(results)
            .map(|(id, output)| output.map(|output| drop(self.outputs.insert(*id, output))))
            .collect()
    }

    /// One typed result for each job that was to be there.
    fn each<J, T>(
        &self,
        jobs: &[Option<J>],
        results: Result<Vec<Result<T, B::Error>>, String>,
    ) -> Vec<Tried<T, B::Error>> {
        let mut results = results.map(Vec::into_iter);
        jobs.iter()
            .map(|job| match (&mut results, job) {
                (_, None) => Err((Fault::Job, Failure::NoResult)),
                (Ok(results), Some(_)) => self.typed(results.next()),
                (Err(message), Some(_)) => {
                    Err((Fault::Launch, Failure::Panicked { message: message.clone() }))
                }
            })
            .collect()
    }

    fn typed<T>(&self, result: Option<Result<T, B::Error>>) -> Tried<T, B::Error> {
        match result {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => {
                let fault = guarded(|| self.shell.backend.fault(&error)).unwrap_or(Fault::Job);
                Err((fault, Failure::Job(Arc::new(error))))
            }
            None => Err((Fault::Launch, Failure::NoResult)),
        }
    }

    /// News of a launch that went well.
    fn tell(&self, id: JobId, phase: Phase, done: u32, total: u32) {
        let desk = self.shell.desk();
        let Some(entry) = desk.entries.get(&id) else {
            return;
        };
        let (slot, previews, saves) = (entry.slot.clone(), entry.preview_every, entry.checkpoint_every);
        drop(desk);
        match phase {
            Phase::Start => slot.tell(Progress::Started),
            Phase::Step => slot.tell(Progress::Step { done, total }),
            Phase::Finish => {}
        }
        let Some(job) = self.jobs.get(&id).filter(|_| phase == Phase::Step && slot.is_heard()) else {
            return;
        };
        let due = |every: Option<NonZeroU32>| every.is_some_and(|every| done.is_multiple_of(every.get()));
        if due(previews)
            && let Ok(Ok(preview)) = guarded(|| self.shell.backend.preview(job))
        {
            slot.tell(Progress::Preview(preview));
        }
        if due(saves)
            && let Ok(Ok(bytes)) = guarded(|| self.shell.backend.checkpoint(job))
        {
            slot.tell(Progress::Checkpoint { done, bytes: bytes.into() });
        }
    }

    fn save(&self, id: JobId, reply: &Reply<B>) {
        let result = match self.jobs.get(&id) {
            Some(job) => match guarded(|| self.shell.backend.checkpoint(job)) {
                Ok(saved) => saved.map_err(|error| CheckpointError::Backend(Arc::new(error))),
                Err(message) => Err(CheckpointError::Panicked { message }),
            },
            None if self.shell.desk().entries.contains_key(&id) => Err(CheckpointError::NotStarted),
            None => Err(CheckpointError::Ended),
        };
        // Nobody listens any more: then nobody misses it.
        let _ = reply.send(result);
    }

    /// Gives a job its outcome. Its state on the device goes first, so that its memory is free when
    /// its submitter knows.
    fn end(&mut self, id: JobId, ending: Ending) {
        let job = self.jobs.remove(&id);
        let output = self.outputs.remove(&id).filter(|_| ending == Ending::Finished);
        let failure = self.failures.remove(&id);
        let failed = match ending {
            Ending::Finished => Failure::NoResult,
            Ending::Cancelled => Failure::Cancelled,
            Ending::Expired => Failure::DeadlineExceeded,
            Ending::Shed => Failure::Shed,
            Ending::Failed => failure.unwrap_or(Failure::NoResult),
            Ending::DeviceLost => Failure::DeviceLost,
            Ending::Suspended => self.suspend(job.as_ref()),
            Ending::ShutDown => Failure::ShutDown,
        };
        // Its memory is free when its submitter is told, but for what it has in a buffer that neighbours share, which goes
        // with their next step. What it holds may panic as it goes; the job has ended all the same.
        let _ = guarded(|| drop(job));
        let now = self.shell.clock.now();
        let mut desk = self.shell.desk();
        let Some((entry, forgotten)) = desk.close(id, output.is_some()) else {
            return;
        };
        let objective = desk.scheduler.limits().classes.iter().find(|class| class.name == entry.labels.class);
        let objective = objective.map(|class| class.objective);
        drop(desk);
        let _ = guarded(|| drop(forgotten));
        let latency = now.saturating_sub(entry.submitted);
        let in_time = objective.is_some_and(|most| latency <= most);
        let _ = guarded(|| metrics::ended(&entry.labels, id, ending, latency, in_time));
        let queued = entry.started.unwrap_or(now).saturating_sub(entry.submitted);
        let outcome: Outcome<B> = match output {
            Some(output) => {
                let (applied, tags) = (entry.applied, entry.labels.tags);
                Ok(Finished { id, output, applied, queued, latency, tags })
            }
            None => Err(failed),
        };
        entry.slot.resolve(outcome);
        if self.shell.desk().settled(1) {
            self.shell.report_idle();
        }
    }

    fn suspend(&self, job: Option<&B::Job>) -> Failure<B::Error> {
        let Some(job) = job else {
            return Failure::ShutDown;
        };
        match guarded(|| self.shell.backend.checkpoint(job)) {
            Ok(Ok(bytes)) => Failure::Suspended { checkpoint: bytes.into() },
            Ok(Err(error)) => Failure::Job(Arc::new(error)),
            Err(message) => Failure::Panicked { message },
        }
    }
}

impl<B: Backend> Drop for Worker<B> {
    /// Whatever happened, no handle is left waiting.
    fn drop(&mut self) {
        let mut desk = self.shell.desk();
        desk.scheduler.close();
        desk.saves.clear();
        let left: Vec<JobId> = desk.entries.keys().copied().collect();
        let entries: Vec<_> = left.into_iter().filter_map(|id| desk.close(id, false)).collect();
        drop(desk);
        for (entry, _forgotten) in entries {
            entry.slot.resolve(Err(Failure::ShutDown));
        }
        self.shell.desk().settled(usize::MAX);
        self.shell.report_idle();
    }
}
