//! Who is next: classes by weight, tenants equally below them, earliest due first within a tenant.
//!
//! This is weighted deficit round robin charged in device time, with each flow's deficit kept as the
//! virtual time (time used over weight) at which it is paid off. The flow with the earliest is next, so
//! a choice among n flows is O(log n), and a flow's share over any window lacks at most one charge.
//! Everyone is charged for the device time of each launch when it is back. Among tenants that one starts
//! next who used least, what its started jobs are still expected to use counted in: so tenants come out
//! even without a started job being passed over. Only where a tenant has used a job's worth more than
//! another, because it was alone when its jobs started, do its jobs stand back.

mod tenant;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use self::tenant::Tenant;
use super::cost::BatchKey;

/// An accepted job's number, unique within its engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobId(pub(crate) u64);

impl JobId {
    /// The number itself, for logs.
    pub fn number(self) -> u64 {
        self.0
    }
}

impl std::fmt::Display for JobId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A tenant's place in its class's table; reused once the tenant has nothing left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TenantIndex(usize);

/// Nanoseconds of device time over weight, times `SCALE`.
type VirtualTime = u128;
const SCALE: u128 = 1 << 20;

/// Where a job waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) class: usize,
    pub(crate) tenant: TenantIndex,
    pub(crate) key: BatchKey,
    /// Earlier is sooner among a tenant's jobs of one key.
    pub(crate) due: Duration,
}

/// A class's waiting and ready jobs.
#[derive(Debug)]
struct Class {
    weight: u32,
    paused: bool,
    virtual_time: VirtualTime,
    lanes: HashMap<BatchKey, Lane>,
    /// The lanes with ready jobs, by virtual time.
    with_ready: BTreeSet<(VirtualTime, BatchKey)>,
    /// The lanes with waiting tenants, by virtual time.
    with_waiting: BTreeSet<(VirtualTime, BatchKey)>,
    lane_now: VirtualTime,
    tenants: Vec<Option<Tenant>>,
    vacant: Vec<usize>,
    names: HashMap<Arc<str>, TenantIndex>,
    /// Where tenants join that come back: moves as if every tenant with live jobs were served at once.
    tenant_now: VirtualTime,
    tenant_latest: VirtualTime,
    entered: u64,
    /// Accepted and not ended.
    live: usize,
    queued: usize,
    /// Tenants with live jobs.
    busy: usize,
    /// Where the sweep for tenants that left goes on.
    hand: usize,
}

#[derive(Debug, Default)]
struct Lane {
    virtual_time: VirtualTime,
    /// Between launches, by due time.
    ready: BTreeSet<(Duration, JobId)>,
    /// Tenants with queued jobs of this key.
    waiting: BTreeSet<(VirtualTime, u64, TenantIndex)>,
    /// Live jobs of this key, those in launches included.
    live: usize,
    /// Those of them that are not started.
    queued: usize,
}

/// All classes.
#[derive(Debug)]
pub(crate) struct FairQueue {
    classes: Vec<Class>,
    virtual_now: VirtualTime,
}

fn charge(time: &mut VirtualTime, nanos: u64, weight: u64) {
    *time += u128::from(nanos) * SCALE / u128::from(weight.max(1));
}

impl FairQueue {
    pub(crate) fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let class = |weight| Class {
            weight,
            paused: false,
            virtual_time: 0,
            lanes: HashMap::new(),
            with_ready: BTreeSet::new(),
            with_waiting: BTreeSet::new(),
            lane_now: 0,
            tenants: Vec::new(),
            vacant: Vec::new(),
            names: HashMap::new(),
            tenant_now: 0,
            tenant_latest: 0,
            entered: 0,
            live: 0,
            queued: 0,
            busy: 0,
            hand: 0,
        };
        Self { classes: weights.into_iter().map(class).collect(), virtual_now: 0 }
    }

    pub(crate) fn set_weight(&mut self, class: usize, weight: u32) {
        self.with(class, |class| class.weight = weight);
    }

    pub(crate) fn set_paused(&mut self, class: usize, paused: bool) {
        let now = self.virtual_now;
        self.with(class, |class| {
            class.paused = paused;
            // What it did not get while paused is not owed to it.
            class.virtual_time = class.virtual_time.max(now);
        });
    }

    pub(crate) fn is_paused(&self, class: usize) -> bool {
        self.classes.get(class).is_some_and(|class| class.paused)
    }

    pub(crate) fn live(&self, class: usize) -> usize {
        self.classes.get(class).map_or(0, |class| class.live)
    }

    /// Live jobs of a key, of every class.
    pub(crate) fn live_of(&self, key: BatchKey) -> usize {
        self.classes.iter().filter_map(|class| class.lanes.get(&key)).map(|lane| lane.live).sum()
    }

    /// Tenants of a class with live jobs, their names and how many are queued and live.
    pub(crate) fn tenants(&self, class: usize) -> impl Iterator<Item = (Arc<str>, usize, usize)> + '_ {
        let tenants = self.classes.get(class).into_iter().flat_map(|class| class.tenants.iter().flatten());
        tenants
            .filter(|tenant| tenant.live > 0)
            .map(|tenant| (tenant.name.clone(), tenant.queued, tenant.live))
    }

    fn with(&mut self, class: usize, change: impl FnOnce(&mut Class)) {
        if let Some(class) = self.classes.get_mut(class) {
            change(class);
        }
    }

    /// The tenant of that name, made if need be. Also looks at two others, and forgets those that have
    /// nothing left but jobs that were accepted up to `quota_start`.
    pub(crate) fn tenant(
        &mut self,
        class: usize,
        name: &Arc<str>,
        quota_start: Option<Duration>,
    ) -> TenantIndex {
        let Some(class) = self.classes.get_mut(class) else {
            return TenantIndex(usize::MAX);
        };
        class.sweep(quota_start);
        class.sweep(quota_start);
        if let Some(index) = class.names.get(name) {
            return *index;
        }
        let tenant = Tenant::new(name.clone(), class.tenant_now);
        let index = match class.vacant.pop() {
            Some(index) => index,
            None => {
                class.tenants.push(None);
                class.tenants.len() - 1
            }
        };
        if let Some(slot) = class.tenants.get_mut(index) {
            *slot = Some(tenant);
        }
        class.names.insert(name.clone(), TenantIndex(index));
        TenantIndex(index)
    }

    /// Device time to come of the tenant's live jobs in nanoseconds, and how many tenants of its class
    /// have live jobs, itself counted.
    pub(crate) fn tenant_work(&self, class: usize, index: TenantIndex) -> (u64, usize) {
        let Some(class) = self.classes.get(class) else {
            return (0, 1);
        };
        match class.tenants.get(index.0).and_then(Option::as_ref) {
            Some(tenant) => (tenant.work, class.busy + usize::from(tenant.live == 0)),
            None => (0, class.busy + 1),
        }
    }

    /// An accepted job: counts it, and puts it in its tenant's queue.
    pub(crate) fn accept(&mut self, id: JobId, place: Place, work: u64, quota_at: Option<Duration>) {
        let Some(class) = self.classes.get_mut(place.class) else {
            return;
        };
        if class.live == 0 {
            class.virtual_time = class.virtual_time.max(self.virtual_now);
        }
        class.live += 1;
        let lane_now = class.lane_now;
        let lane = class
            .lanes
            .entry(place.key)
            .or_insert_with(|| Lane { virtual_time: lane_now, ..Lane::default() });
        lane.live += 1;
        if let Some(tenant) = class.tenants.get_mut(place.tenant.0).and_then(Option::as_mut) {
            if tenant.live == 0 {
                class.busy += 1;
                tenant.used = tenant.used.max(class.tenant_now);
            }
            tenant.live += 1;
            tenant.work += work;
            if let Some(at) = quota_at {
                tenant.accepted.push_back((at, work));
                tenant.accepted_cost += work;
            }
        }
        self.enqueue(id, place);
    }

    /// Puts a job that is not started in its tenant's queue.
    pub(crate) fn enqueue(&mut self, id: JobId, place: Place) {
        let Some(class) = self.classes.get_mut(place.class) else {
            return;
        };
        let Some(tenant) = class.tenants.get_mut(place.tenant.0).and_then(Option::as_mut) else {
            return;
        };
        if tenant.queued == 0 {
            class.entered += 1;
            tenant.entered = class.entered;
        }
        let virtual_time = tenant.virtual_time();
        let queue = tenant.queues.entry(place.key).or_default();
        if queue.is_empty()
            && let Some(lane) = class.lanes.get_mut(&place.key)
        {
            lane.waiting.insert((virtual_time, tenant.entered, place.tenant));
        }
        if queue.insert((place.due, id)) {
            tenant.queued += 1;
            class.queued += 1;
            if let Some(lane) = class.lanes.get_mut(&place.key) {
                lane.queued += 1;
            }
        }
        class.file(place.key);
    }

    /// Takes a job out of its tenant's queue; whether it was there.
    pub(crate) fn dequeue(&mut self, id: JobId, place: &Place) -> bool {
        let Some(class) = self.classes.get_mut(place.class) else {
            return false;
        };
        let Some(tenant) = class.tenants.get_mut(place.tenant.0).and_then(Option::as_mut) else {
            return false;
        };
        let Some(queue) = tenant.queues.get_mut(&place.key) else {
            return false;
        };
        let found = queue.remove(&(place.due, id));
        let emptied = queue.is_empty();
        if emptied {
            tenant.queues.remove(&place.key);
        }
        if let Some(lane) = class.lanes.get_mut(&place.key) {
            lane.queued -= usize::from(found);
            if emptied {
                lane.waiting.remove(&(tenant.virtual_time(), tenant.entered, place.tenant));
            }
        }
        if found {
            tenant.queued -= 1;
            class.queued -= 1;
        }
        class.file(place.key);
        found
    }

    /// A started job is back from a launch.
    pub(crate) fn make_ready(&mut self, id: JobId, place: &Place) {
        self.with(place.class, |class| {
            if let Some(lane) = class.lanes.get_mut(&place.key) {
                lane.ready.insert((place.due, id));
            }
            class.file(place.key);
        });
    }

    /// A started job goes into a launch, or ends; whether it was ready.
    pub(crate) fn take_ready(&mut self, id: JobId, place: &Place) -> bool {
        let Some(class) = self.classes.get_mut(place.class) else {
            return false;
        };
        let lane = class.lanes.get_mut(&place.key);
        let found = lane.is_some_and(|lane| lane.ready.remove(&(place.due, id)));
        class.file(place.key);
        found
    }

    /// A job ended: no trace of it is left.
    pub(crate) fn release(&mut self, id: JobId, place: &Place) {
        self.dequeue(id, place);
        self.take_ready(id, place);
        let Some(class) = self.classes.get_mut(place.class) else {
            return;
        };
        class.live -= 1;
        if let Some(lane) = class.lanes.get_mut(&place.key) {
            lane.live -= 1;
            if lane.live == 0 {
                // Nothing of it is ready or waits.
                class.lanes.remove(&place.key);
            }
        }
        if let Some(tenant) = class.tenants.get_mut(place.tenant.0).and_then(Option::as_mut) {
            tenant.live -= 1;
            if tenant.live == 0 {
                class.busy -= 1;
                tenant.running = 0;
                if class.busy == 0 {
                    // Nobody is left to be passed over: debts end.
                    class.tenant_now = class.tenant_now.max(class.tenant_latest);
                }
            }
        }
    }

    /// The device time to come of a tenant's job changed, in nanoseconds.
    pub(crate) fn work_changed(&mut self, place: &Place, before: u64, after: u64) {
        self.with(place.class, |class| {
            if let Some(tenant) = class.tenants.get_mut(place.tenant.0).and_then(Option::as_mut) {
                tenant.work = tenant.work - before + after;
            }
        });
    }

    /// The batch key whose turn it is: the first lane of the first class in virtual time. Lanes with
    /// nothing but queued jobs only where `may_start`; lanes that are `resting` after all others.
    pub(crate) fn turn(&mut self, may_start: bool, resting: impl Fn(BatchKey) -> bool) -> Option<BatchKey> {
        let turns = self.classes.iter().enumerate().filter_map(|(index, class)| {
            let starts = may_start && !class.paused;
            let lanes = || [&class.with_ready, &class.with_waiting].into_iter().take(1 + usize::from(starts));
            let first = lanes().filter_map(BTreeSet::first).min()?;
            let awake = lanes().filter_map(|lanes| lanes.iter().find(|(_, key)| !resting(*key))).min();
            let (lane_time, key) = awake.unwrap_or(first);
            Some((awake.is_none(), class.virtual_time, index, *lane_time, *key))
        });
        let (_, time, index, lane_time, key) = turns.min()?;
        self.virtual_now = self.virtual_now.max(time);
        self.with(index, |class| class.lane_now = class.lane_now.max(lane_time));
        Some(key)
    }

    /// Ready jobs of a class and key in the order in which they are due.
    pub(crate) fn ready(&self, class: usize, key: BatchKey) -> impl Iterator<Item = JobId> + '_ {
        let lane = self.classes.get(class).and_then(|class| class.lanes.get(&key));
        lane.into_iter().flat_map(|lane| lane.ready.iter().map(|(_, id)| *id))
    }

    /// The queued job of a class and key that is to start next.
    pub(crate) fn next_queued(&self, class: usize, key: BatchKey) -> Option<JobId> {
        let class = self.classes.get(class).filter(|class| !class.paused)?;
        let (_, _, index) = class.lanes.get(&key)?.waiting.first()?;
        let queue = class.tenants.get(index.0)?.as_ref()?.queues.get(&key)?;
        queue.first().map(|(_, id)| *id)
    }

    /// Virtual times of the classes, to be moved on with [`virtual_charge`] while a launch is filled.
    pub(crate) fn virtual_times(&self) -> Vec<(u128, u32)> {
        self.classes.iter().map(|class| (class.virtual_time, class.weight)).collect()
    }

    /// A class's jobs used `nanos` of a launch of `key`.
    pub(crate) fn charge_launch(&mut self, class: usize, key: BatchKey, nanos: u64) {
        self.with(class, |class| {
            charge(&mut class.virtual_time, nanos, u64::from(class.weight));
            if let Some(lane) = class.lanes.get_mut(&key) {
                class.with_ready.remove(&(lane.virtual_time, key));
                class.with_waiting.remove(&(lane.virtual_time, key));
                // A started job counts like a waiting tenant: so lanes get time as they have company to
                // share it with, and no launch is spent on one job while many wait for the next.
                let claims = lane.waiting.len() + (lane.live - lane.queued);
                charge(&mut lane.virtual_time, nanos, claims as u64);
            }
            class.file(key);
        });
    }

    /// A tenant's started job is expected to use `after` nanoseconds more where it was `before`; a job that
    /// starts was expected to use none, and one that ends is.
    pub(crate) fn charge_start(&mut self, place: &Place, before: u64, after: u64) {
        self.with(place.class, |class| {
            class.recharge(place.tenant, |tenant| {
                tenant.running = tenant.running.saturating_add(after).saturating_sub(before);
            });
        });
    }

    /// A tenant's job used `nanos` of a launch.
    pub(crate) fn charge_use(&mut self, place: &Place, nanos: u64) {
        self.with(place.class, |class| {
            charge(&mut class.tenant_now, nanos, class.busy as u64);
            class.recharge(place.tenant, |tenant| charge(&mut tenant.used, nanos, 1));
        });
    }

    /// What a tenant used, against others of its class; [`ahead`] reads it.
    pub(crate) fn used(&self, place: &Place) -> u128 {
        let tenant = self.classes.get(place.class).and_then(|class| class.tenants.get(place.tenant.0));
        tenant.and_then(Option::as_ref).map_or(0, |tenant| tenant.used)
    }
}

impl Class {
    /// Puts a lane where it belongs after a change of what is ready or waits in it.
    fn file(&mut self, key: BatchKey) {
        let Some(lane) = self.lanes.get(&key) else {
            return;
        };
        let place = (lane.virtual_time, key);
        let lists = [
            (&mut self.with_ready, lane.ready.is_empty()),
            (&mut self.with_waiting, lane.waiting.is_empty()),
        ];
        for (list, empty) in lists {
            if empty {
                list.remove(&place);
            } else {
                list.insert(place);
            }
        }
    }

    /// Changes a tenant's charges, and its place in the lanes where it waits.
    fn recharge(&mut self, index: TenantIndex, change: impl FnOnce(&mut Tenant)) {
        let Some(tenant) = self.tenants.get_mut(index.0).and_then(Option::as_mut) else {
            return;
        };
        let old = (tenant.virtual_time(), tenant.entered, index);
        change(tenant);
        let new = (tenant.virtual_time(), tenant.entered, index);
        self.tenant_latest = self.tenant_latest.max(tenant.used);
        if new == old {
            return;
        }
        for key in tenant.queues.keys() {
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.waiting.remove(&old);
                lane.waiting.insert(new);
            }
        }
    }
}

/// Whether a tenant that used so much is further than `nanos` before one that used `least`.
pub(crate) fn ahead(used: u128, least: u128, nanos: u64) -> bool {
    used > least.saturating_add(u128::from(nanos) * SCALE)
}

/// Moves a class's virtual time on by `nanos` of device time.
pub(crate) fn virtual_charge(time: &mut (u128, u32), nanos: u64) {
    charge(&mut time.0, nanos, u64::from(time.1));
}
