//! A class's tenants: their queues, what their quotas count, and when they are forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::{Class, FairQueue, JobId, SCALE, TenantIndex, VirtualTime};
use crate::engine::admission::nanos;
use crate::engine::cost::BatchKey;
use crate::engine::limits::Quota;
use crate::engine::rejected::Bound;

#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) name: Arc<str>,
    /// Device time that its jobs used, from where it joined.
    pub(super) used: VirtualTime,
    /// Nanoseconds that its started jobs are expected to use yet.
    pub(super) running: u64,
    /// Breaks ties in the order in which tenants came.
    pub(super) entered: u64,
    pub(super) queues: BTreeMap<BatchKey, BTreeSet<(Duration, JobId)>>,
    pub(super) queued: usize,
    pub(super) live: usize,
    /// Device time of live jobs that is still to come, in nanoseconds.
    pub(super) work: u64,
    /// Accepted jobs within the quota's window: when, and their device time in nanoseconds.
    pub(super) accepted: VecDeque<(Duration, u64)>,
    pub(super) accepted_cost: u64,
}

impl Tenant {
    pub(super) fn new(name: Arc<str>, used: VirtualTime) -> Self {
        Self {
            name,
            used,
            running: 0,
            entered: 0,
            queues: BTreeMap::new(),
            queued: 0,
            live: 0,
            work: 0,
            accepted: VecDeque::new(),
            accepted_cost: 0,
        }
    }

    /// Who has the least starts next.
    pub(super) fn virtual_time(&self) -> VirtualTime {
        self.used.saturating_add(VirtualTime::from(self.running) * SCALE)
    }

    /// Forgets what was accepted at `until` and before; nothing where that is before all time.
    fn forget_accepted(&mut self, until: Option<Duration>) {
        while let Some((_, cost)) = self.accepted.front().filter(|(at, _)| Some(*at) <= until) {
            self.accepted_cost -= cost;
            self.accepted.pop_front();
        }
    }
}

impl Class {
    /// Looks at one tenant and forgets it if it has nothing: no jobs, no debt, no quota used.
    pub(super) fn sweep(&mut self, quota_start: Option<Duration>) {
        self.hand = if self.hand + 1 < self.tenants.len() { self.hand + 1 } else { 0 };
        let Some(slot) = self.tenants.get_mut(self.hand) else {
            return;
        };
        if let Some(tenant) = slot {
            tenant.forget_accepted(quota_start);
        }
        let gone = slot.as_ref().is_some_and(|tenant| {
            tenant.live == 0 && tenant.used <= self.tenant_now && tenant.accepted.is_empty()
        });
        if gone && let Some(tenant) = slot.take() {
            self.names.remove(&tenant.name);
            self.vacant.push(self.hand);
        }
    }
}

impl FairQueue {
    /// When the tenant's quota next has room for one more job of `cost` nanoseconds, and which part of
    /// it is used up; `None` where there is room.
    pub(crate) fn quota_wait(
        &mut self,
        class: usize,
        index: TenantIndex,
        quota: &Quota,
        cost: u64,
        now: Duration,
    ) -> Option<(Bound, Option<Duration>)> {
        let tenant = self.classes.get_mut(class)?.tenants.get_mut(index.0)?.as_mut()?;
        tenant.forget_accepted(now.checked_sub(quota.window));
        let room = nanos(quota.cost);
        if quota.count == 0 {
            return Some((Bound::Count, None));
        }
        if cost > room {
            return Some((Bound::Time, None));
        }
        let over = |left: usize, used: u64| left >= quota.count as usize || used > room - cost;
        let (mut left, mut used) = (tenant.accepted.len(), tenant.accepted_cost);
        if !over(left, used) {
            return None;
        }
        let counted = left >= quota.count as usize;
        let bound = if counted { Bound::Count } else { Bound::Time };
        let mut free_at = now;
        for (at, cost) in &tenant.accepted {
            if !over(left, used) {
                break;
            }
            (left, used) = (left - 1, used - cost);
            free_at = at.saturating_add(quota.window);
        }
        Some((bound, Some(free_at.saturating_sub(now))))
    }
}
