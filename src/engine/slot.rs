//! Where a job's outcome and its news are left for whoever holds a handle.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::sync::{Condvar, Mutex, lock};

/// News of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress<P> {
    /// Accepted.
    Queued {
        /// Jobs of its class before it.
        position: usize,
        /// When it is expected to be finished, from its submission.
        finish: Duration,
    },
    /// On the device.
    Started,
    /// A step is done. Those that nobody fetched are replaced by later ones.
    Step {
        /// Steps that are done.
        done: u32,
        /// Steps of the whole job.
        total: u32,
    },
    /// A look at it. One that nobody fetched is replaced by the next.
    Preview(P),
    /// The job as bytes, as it is after so many steps. One that nobody fetched is replaced by the next.
    Checkpoint {
        /// Steps that are done.
        done: u32,
        /// For [`Engine::resume`](super::Engine::resume).
        bytes: Arc<[u8]>,
    },
    /// Its outcome is there; the last news of every job.
    Ended,
}

/// One job's outcome, set once, and news, bounded by replacing what nobody fetched.
pub(crate) struct Slot<T, P> {
    inner: Mutex<Inner<T, P>>,
    changed: Condvar,
}

struct Inner<T, P> {
    outcome: Option<T>,
    news: VecDeque<Progress<P>>,
    end_told: bool,
    wakers: Vec<(u64, Waker)>,
    next_waiter: u64,
    listeners: usize,
    /// Handles whose going counts as calling the job back.
    attached: usize,
    detached: bool,
    /// Called back by its submitter.
    recalled: bool,
}

impl<T: Clone, P: Clone> Slot<T, P> {
    pub(crate) fn new() -> Self {
        let inner = Inner {
            outcome: None,
            news: VecDeque::new(),
            end_told: false,
            wakers: Vec::new(),
            next_waiter: 0,
            listeners: 0,
            attached: 0,
            detached: false,
            recalled: false,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Sets the outcome; whether it was the first.
    pub(crate) fn resolve(&self, outcome: T) -> bool {
        let mut inner = lock(&self.inner);
        if inner.outcome.is_some() {
            return false;
        }
        inner.outcome = Some(outcome);
        self.announce(inner);
        true
    }

    /// Leaves news: at most one step, one preview and one checkpoint are kept that nobody fetched.
    pub(crate) fn tell(&self, news: Progress<P>) {
        // Goes after the lock: a preview is a backend's code.
        let mut replaced = None;
        let mut inner = lock(&self.inner);
        if matches!(news, Progress::Step { .. } | Progress::Preview(_) | Progress::Checkpoint { .. }) {
            let kind = std::mem::discriminant(&news);
            let old = inner.news.iter().position(|kept| std::mem::discriminant(kept) == kind);
            replaced = old.and_then(|old| inner.news.remove(old));
        }
        inner.news.push_back(news);
        self.announce(inner);
        drop(replaced);
    }

    fn announce(&self, mut inner: super::sync::MutexGuard<'_, Inner<T, P>>) {
        let wakers = std::mem::take(&mut inner.wakers);
        drop(inner);
        self.changed.notify_all();
        for (_, waker) in wakers {
            // A waker is a caller's code: its panic is not the engine's.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }

    pub(crate) fn outcome(&self) -> Option<T> {
        lock(&self.inner).outcome.clone()
    }

    pub(crate) fn wait(&self) -> T {
        let mut inner = lock(&self.inner);
        loop {
            if let Some(outcome) = &inner.outcome {
                return outcome.clone();
            }
            inner = self.changed.wait(inner).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    pub(crate) fn wait_until(&self, until: Instant) -> Option<T> {
        let mut inner = lock(&self.inner);
        loop {
            if let Some(outcome) = &inner.outcome {
                return Some(outcome.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            inner =
                self.changed.wait_timeout(inner, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// A number by which a waiter's waker is known.
    pub(crate) fn waiter(&self) -> u64 {
        let mut inner = lock(&self.inner);
        inner.next_waiter += 1;
        inner.next_waiter
    }

    // A waker is a caller's code, and may own a handle of this very job: it is cloned before the lock is taken,
    // and the one that it replaces goes after.
    pub(crate) fn poll(&self, waiter: u64, context: &Context<'_>) -> Poll<T> {
        let waker = context.waker().clone();
        let mut inner = lock(&self.inner);
        if let Some(outcome) = &inner.outcome {
            return Poll::Ready(outcome.clone());
        }
        let replaced = inner.wake_later(waiter, waker);
        drop(inner);
        drop(replaced);
        Poll::Pending
    }

    /// The next news; `Ready(None)` after the end was told.
    pub(crate) fn poll_news(&self, waiter: u64, context: &Context<'_>) -> Poll<Option<Progress<P>>> {
        let waker = context.waker().clone();
        let mut inner = lock(&self.inner);
        let news = inner.next_news();
        if news.is_pending() {
            let replaced = inner.wake_later(waiter, waker);
            drop(inner);
            drop(replaced);
        }
        news
    }

    pub(crate) fn try_news(&self) -> Option<Progress<P>> {
        match lock(&self.inner).next_news() {
            Poll::Ready(news) => news,
            Poll::Pending => None,
        }
    }

    pub(crate) fn wait_news(&self) -> Option<Progress<P>> {
        let mut inner = lock(&self.inner);
        loop {
            if let Poll::Ready(news) = inner.next_news() {
                return news;
            }
            inner = self.changed.wait(inner).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    pub(crate) fn listen(&self, more: bool) {
        let mut inner = lock(&self.inner);
        inner.listeners = if more { inner.listeners + 1 } else { inner.listeners.saturating_sub(1) };
    }

    /// Whether anyone would see a preview or a checkpoint.
    pub(crate) fn is_heard(&self) -> bool {
        lock(&self.inner).listeners > 0
    }

    /// One more handle; whether there can be one: a job that was called back has only its end before it.
    pub(crate) fn attach(&self) -> bool {
        let mut inner = lock(&self.inner);
        let stays = !inner.recalled || inner.outcome.is_some();
        inner.attached += usize::from(stays);
        stays
    }

    pub(crate) fn recall(&self) {
        lock(&self.inner).recalled = true;
    }

    pub(crate) fn detach(&self) {
        lock(&self.inner).detached = true;
    }

    /// A handle goes; whether the job goes with it.
    pub(crate) fn let_go(&self) -> bool {
        let mut inner = lock(&self.inner);
        inner.attached = inner.attached.saturating_sub(1);
        let goes = inner.attached == 0 && !inner.detached && inner.outcome.is_none();
        inner.recalled |= goes;
        goes
    }
}

impl<T, P> Inner<T, P> {
    /// Keeps a waiter's waker; the one that it had before, if any.
    fn wake_later(&mut self, waiter: u64, waker: Waker) -> Option<Waker> {
        match self.wakers.iter_mut().find(|(known, _)| *known == waiter) {
            Some((_, known)) => Some(std::mem::replace(known, waker)),
            None => {
                self.wakers.push((waiter, waker));
                None
            }
        }
    }

    fn next_news(&mut self) -> Poll<Option<Progress<P>>> {
        if let Some(news) = self.news.pop_front() {
            return Poll::Ready(Some(news));
        }
        if self.outcome.is_none() {
            return Poll::Pending;
        }
        let told = std::mem::replace(&mut self.end_told, true);
        Poll::Ready((!told).then_some(Progress::Ended))
    }
}

#[cfg(all(test, aquatint_loom))]
mod tests {
    use std::future::poll_fn;
    use std::task::Wake;

    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    type Plain = Slot<u32, ()>;

    #[test]
    fn a_waiter_sees_the_outcome_however_the_threads_interleave() {
        loom::model(|| {
            let slot = Arc::new(Plain::new());
            let other = slot.clone();
            let worker = thread::spawn(move || other.resolve(7));
            assert_eq!(slot.wait(), 7);
            assert!(worker.join().unwrap());
        });
    }

    #[test]
    fn a_future_is_woken_however_the_threads_interleave() {
        loom::model(|| {
            let slot = Arc::new(Plain::new());
            let other = slot.clone();
            let worker = thread::spawn(move || {
                other.tell(Progress::Started);
                other.resolve(7)
            });
            let waiter = slot.waiter();
            let found = loom::future::block_on(poll_fn(|context| slot.poll(waiter, context)));
            assert_eq!(found, 7);
            worker.join().unwrap();
        });
    }

    /// A waker that holds a handle, as a task does that waits for several jobs.
    struct Holder(Arc<Plain>);

    impl Wake for Holder {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    impl Drop for Holder {
        fn drop(&mut self) {
            self.0.let_go();
        }
    }

    #[test]
    fn wakers_that_hold_a_handle_of_their_job_come_and_go_however_the_threads_interleave() {
        loom::model(|| {
            let slot = Arc::new(Plain::new());
            let other = slot.clone();
            let worker = thread::spawn(move || other.resolve(7));
            let waiter = slot.waiter();
            for _ in 0..2 {
                slot.attach();
                let waker = Waker::from(std::sync::Arc::new(Holder(slot.clone())));
                let _ = slot.poll(waiter, &Context::from_waker(&waker));
            }
            assert_eq!(slot.wait(), 7);
            worker.join().unwrap();
        });
    }

    #[test]
    fn one_of_two_outcomes_wins_and_both_waiters_see_it() {
        loom::model(|| {
            let slot = Arc::new(Plain::new());
            let other = slot.clone();
            let worker = thread::spawn(move || other.resolve(1));
            let mine = slot.resolve(2);
            let theirs = worker.join().unwrap();
            assert!(mine != theirs);
            assert_eq!(slot.wait(), if mine { 2 } else { 1 });
        });
    }

    #[test]
    fn the_last_of_two_handles_to_go_takes_the_job_with_it() {
        loom::model(|| {
            let slot = Arc::new(Plain::new());
            slot.attach();
            slot.attach();
            let other = slot.clone();
            let worker = thread::spawn(move || other.let_go());
            let mine = slot.let_go();
            assert!(mine != worker.join().unwrap());
        });
    }
}
