//! Locks, those of loom where it explores a test's interleavings.

#[cfg(not(aquatint_loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(aquatint_loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};

/// The lock, also after a holder panicked: whoever locks here leaves its data whole at every point.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
