//! A job's life, and every way from one state to the next.

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Accepted, nothing computed.
    Queued,
    /// In a launch that encodes its prompt.
    Starting,
    /// On the device, between two launches.
    Ready,
    /// In a launch that takes a denoising step.
    Stepping,
    /// Every step done, not decoded.
    Decodable,
    /// In a launch that decodes it.
    Finishing,
    /// Called back while in a launch; ends when the launch returns.
    Leaving,
    /// Its one outcome is out.
    Ended,
}

/// What moves a job from one state to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// A launch that holds it begins.
    Launched,
    /// The launch succeeded; steps are left.
    Advanced,
    /// The launch succeeded; no step is left.
    StepsDone,
    /// The launch failed and will be tried again.
    Retried,
    /// The job is to go: cancelled, expired, shed, suspended.
    Recalled,
    /// The launch in which it is gave its outcome, or ended with it.
    Settled,
}

use State::{Decodable, Ended, Finishing, Leaving, Queued, Ready, Starting, Stepping};
use Trigger::{Advanced, Launched, Recalled, Retried, Settled, StepsDone};

/// Every transition there is; what is not listed does not happen.
pub const TRANSITIONS: [(State, Trigger, State); 24] = [
    (Queued, Launched, Starting),
    (Queued, Recalled, Ended),
    (Queued, Settled, Ended),
    (Starting, Advanced, Ready),
    (Starting, StepsDone, Decodable),
    (Starting, Retried, Queued),
    (Starting, Recalled, Leaving),
    (Starting, Settled, Ended),
    (Ready, Launched, Stepping),
    (Ready, Recalled, Ended),
    (Ready, Settled, Ended),
    (Stepping, Advanced, Ready),
    (Stepping, StepsDone, Decodable),
    (Stepping, Retried, Ready),
    (Stepping, Recalled, Leaving),
    (Stepping, Settled, Ended),
    (Decodable, Launched, Finishing),
    (Decodable, Recalled, Ended),
    (Decodable, Settled, Ended),
    (Finishing, Retried, Decodable),
    (Finishing, Recalled, Leaving),
    (Finishing, Settled, Ended),
    (Leaving, Recalled, Leaving),
    (Leaving, Settled, Ended),
];

impl State {
    /// The state after `trigger`, or `None` where the table has no such row.
    pub fn after(self, trigger: Trigger) -> Option<State> {
        TRANSITIONS.iter().find(|(from, by, _)| *from == self && *by == trigger).map(|(_, _, to)| *to)
    }

    /// Whether a launch holds the job.
    pub fn in_launch(self) -> bool {
        matches!(self, Starting | Stepping | Finishing | Leaving)
    }
}

/// How an accepted job ended; each has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// Its pictures are there.
    Finished,
    /// Its submitter called it back.
    Cancelled,
    /// Its deadline passed, or could no longer be met.
    Expired,
    /// Dropped from a queue that stood too long.
    Shed,
    /// It failed, as often as is allowed where a new try could help.
    Failed,
    /// The device is gone for this process.
    DeviceLost,
    /// Stopped by a drain while it ran; its checkpoint is its outcome.
    Suspended,
    /// The engine stopped before it ran.
    ShutDown,
}

/// What went wrong with one job in a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// This job cannot succeed, such as one whose latents are not finite: it ends.
    Job,
    /// A new try may succeed.
    Transient,
    /// The launch failed as a whole, by a panic for instance, and any of its jobs may be the cause:
    /// it is tried again by halves.
    Launch,
    /// The device had not enough memory: the batch is made smaller and tried again.
    OutOfMemory,
    /// The device will not compute again in this process: every job ends.
    DeviceLost,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_state_and_trigger_are_listed_twice() {
        for (index, (from, by, _)) in TRANSITIONS.iter().enumerate() {
            assert!(!TRANSITIONS[..index].iter().any(|(f, b, _)| f == from && b == by), "{from:?} {by:?}");
        }
    }

    #[test]
    fn every_state_but_the_end_can_reach_the_end_and_none_leaves_it() {
        for state in [Queued, Starting, Ready, Stepping, Decodable, Finishing, Leaving] {
            assert_eq!(state.after(Settled), Some(Ended), "{state:?}");
        }
        assert!(!TRANSITIONS.iter().any(|(from, ..)| *from == Ended));
    }

    #[test]
    fn a_job_that_no_launch_holds_ends_at_once_when_recalled() {
        for state in [Queued, Starting, Ready, Stepping, Decodable, Finishing, Leaving] {
            let expected = if state.in_launch() { Leaving } else { Ended };
            assert_eq!(state.after(Recalled), Some(expected), "{state:?}");
        }
    }
}
