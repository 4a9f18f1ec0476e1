//! What the engine may hold and whom it prefers; can be changed while it runs.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

/// All limits of an engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// The classes, most important first. Their names and order stay for the engine's life.
    pub classes: Vec<ClassLimits>,
    /// Bounds on what is queued, over all classes.
    pub queue: Bounds,
    /// Bytes on the device that running jobs may reserve together. `u64::MAX`, the default, stands for what
    /// the backend says there is: for a pipeline on a Linux host's processor nine tenths of what was
    /// available when the engine was made, the control group's limit included; elsewhere no limit.
    pub memory: u64,
    /// How often in a row a job may fail before it is given up; at least 1.
    pub max_attempts: u32,
    /// A job without a deadline is ordered among its tenant's as if it were due this long after its
    /// arrival, so that later jobs with deadlines overtake it only until then.
    pub patience: Duration,
    /// The most rows that one launch encodes.
    pub start_rows: u32,
    /// The most rows that one launch decodes.
    pub finish_rows: u32,
    /// The longest launch that encodes or decodes, as predicted: jobs join one until then. Steps wait for
    /// at most one of each, unless a single job takes longer.
    pub stall: Duration,
    /// Predicted device time in the engine from which the lowest class gets what it agreed to; each
    /// class above waits for one more of these.
    pub degrade_after: Duration,
    /// The longest `retry_after` that is promised; where room is further off, none is.
    pub retry_horizon: Duration,
    /// How long after `retry_after` a place is kept for the one who was told to come back.
    pub retry_grace: Duration,
}

impl Default for Limits {
    /// Two classes, `paid` over `free` at 8 to 2, a thousand queued requests each, ten minutes of
    /// predicted device time.
    fn default() -> Self {
        let bounds = Bounds { count: 1_000, bytes: 1 << 30, time: Duration::from_secs(600) };
        let free = ClassLimits {
            codel: Some(Codel { target: Duration::from_secs(30), interval: Duration::from_secs(60) }),
            ..ClassLimits::new("free", 2, bounds)
        };
        Self {
            classes: vec![ClassLimits::new("paid", 8, bounds), free],
            queue: Bounds { count: 2_000, bytes: 2 << 30, time: Duration::from_secs(1_200) },
            memory: u64::MAX,
            max_attempts: 3,
            patience: Duration::from_secs(60),
            start_rows: 16,
            finish_rows: 8,
            stall: Duration::from_millis(100),
            degrade_after: Duration::from_secs(60),
            retry_horizon: Duration::from_secs(600),
            retry_grace: Duration::from_secs(2),
        }
    }
}

/// Limits of one class.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassLimits {
    /// Its name, by which submissions choose it.
    pub name: Arc<str>,
    /// Its share of the device while every class has work, against the other weights; at least 1.
    pub weight: u32,
    /// Bounds on what is queued in this class.
    pub queue: Bounds,
    /// What one tenant may submit.
    pub quota: Option<Quota>,
    /// Sheds jobs that have waited too long; meant for the lowest class.
    pub codel: Option<Codel>,
    /// The time from submission to outcome that is promised, for the count of those that kept it.
    pub objective: Duration,
}

impl ClassLimits {
    /// A class without quota or shedding, with an objective of 30 s.
    pub fn new(name: impl Into<Arc<str>>, weight: u32, queue: Bounds) -> Self {
        let objective = Duration::from_secs(30);
        Self { name: name.into(), weight, queue, quota: None, codel: None, objective }
    }
}

/// The most that may be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Requests.
    pub count: usize,
    /// Bytes on the host.
    pub bytes: u64,
    /// Predicted device time.
    pub time: Duration,
}

/// What one tenant may submit within a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The window's length.
    pub window: Duration,
    /// Accepted requests.
    pub count: u32,
    /// Predicted device time of accepted requests.
    pub cost: Duration,
}

/// Controlled delay (Nichols & Jacobson 2012): once every start in an interval has waited longer than
/// the target, jobs are shed from the head of the queue, ever faster, until the wait is back under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codel {
    /// The wait that is acceptable for long.
    pub target: Duration,
    /// How long it may be exceeded before the first job is shed.
    pub interval: Duration,
}

/// Limits that no engine can run under.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitsError {
    /// No class at all.
    #[error("limits: expected at least one class, found none")]
    NoClass,
    /// Two classes of one name.
    #[error("limits: class {name} is listed twice")]
    TwiceNamed {
        /// The name.
        name: Arc<str>,
    },
    /// A number that must be at least 1.
    #[error("limits: {field}: expected at least 1, found 0")]
    Zero {
        /// The field.
        field: &'static str,
    },
    /// Other classes than the engine was made with.
    #[error("limits: the classes stay while the engine runs: expected {expected:?}, found {found:?}")]
    Classes {
        /// The engine's classes.
        expected: Vec<Arc<str>>,
        /// Those of the refused limits.
        found: Vec<Arc<str>>,
    },
}

impl Limits {
    /// Checks that an engine can run under these limits.
    ///
    /// # Errors
    /// [`LimitsError`] naming what is missing, twice there or 0.
    pub fn validate(&self) -> Result<(), LimitsError> {
        if self.classes.is_empty() {
            return Err(LimitsError::NoClass);
        }
        for (index, class) in self.classes.iter().enumerate() {
            if self.classes.iter().take(index).any(|other| other.name == class.name) {
                return Err(LimitsError::TwiceNamed { name: class.name.clone() });
            }
        }
        let weight = self.classes.iter().map(|class| class.weight).min().unwrap_or(0);
        for (field, value) in [
            ("weight", weight),
            ("max_attempts", self.max_attempts),
            ("start_rows", self.start_rows),
            ("finish_rows", self.finish_rows),
        ] {
            if value == 0 {
                return Err(LimitsError::Zero { field });
            }
        }
        Ok(())
    }

    /// These limits with a budget that is the backend's where none is named.
    pub(crate) fn within(self, memory: Option<u64>) -> Self {
        let memory = if self.memory == u64::MAX { memory.unwrap_or(u64::MAX) } else { self.memory };
        Self { memory, ..self }
    }

    /// Checks that these limits may replace `current`.
    ///
    /// # Errors
    /// As [`validate`](Self::validate), and [`LimitsError::Classes`].
    pub(crate) fn validate_after(&self, current: &Limits) -> Result<(), LimitsError> {
        self.validate()?;
        let names = |limits: &Limits| -> Vec<Arc<str>> {
            limits.classes.iter().map(|class| class.name.clone()).collect()
        };
        let (expected, found) = (names(current), names(self));
        if expected != found {
            return Err(LimitsError::Classes { expected, found });
        }
        Ok(())
    }
}
