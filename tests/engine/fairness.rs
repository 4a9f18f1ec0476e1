//! Tenants of one class: equal shares of the device, charged as it is used.

use std::collections::HashMap;
use std::time::Duration;

use crate::common::drive::{Drive, MS, limits, price};
use aquatint::engine::{Event, JobId, Limits, Phase, Price};

/// Device seconds that a tenant's jobs had of launches, up to each launch's end.
fn usage(drive: &Drive, tenant: u64) -> Vec<(Duration, f64)> {
    let mut sum = 0.0;
    let launches = drive.launches.iter().map(|(begin, end, launch)| {
        let own = launch.jobs.iter().filter(|id| drive.jobs[*id].tenant == tenant).count();
        sum += (*end - *begin).as_secs_f64() * own as f64 / launch.jobs.len() as f64;
        (*end, sum)
    });
    launches.collect()
}

/// By how much the worst-off of `tenants` falls short of an equal share over any window in `from..to`.
fn worst_lack(drive: &Drive, tenants: &[u64], from: Duration, to: Duration) -> f64 {
    let usages: Vec<_> = tenants.iter().map(|tenant| usage(drive, *tenant)).collect();
    let within: Vec<usize> =
        (0..usages[0].len()).filter(|index| (from..=to).contains(&usages[0][*index].0)).collect();
    assert!(within.len() > 50, "{} launches", within.len());
    let mut worst = 0.0f64;
    for usage in &usages {
        // What it lacks since the beginning of all; a window's lack is a rise of that.
        let mut least = f64::INFINITY;
        for index in &within {
            let all: f64 = usages.iter().map(|usage| usage[*index].1).sum();
            let lack = all / tenants.len() as f64 - usage[*index].1;
            least = least.min(lack);
            worst = worst.max(lack - least);
        }
    }
    worst
}

/// A launch of eight rows.
const LAUNCH: f64 = 0.009;

/// A job's own share of full launches, its start and finish included.
fn job(steps: u32) -> f64 {
    f64::from(steps) * LAUNCH / 8.0 + 0.0002
}

#[test]
fn a_backlogged_tenant_has_its_share_less_a_job_and_a_launch_over_any_window() {
    for (long, short) in [(40, 4), (4, 4), (100, 1)] {
        let mut drive = Drive::new(limits(&[("only", 1)]));
        for number in 0..1_500u64 {
            let steps = if number % 3 == 0 { long } else { short };
            drive.submit("only", number % 3, price(1, steps)).unwrap();
        }
        let to = Duration::from_secs_f64(500.0 * job(short));
        drive.run_until(to);
        let lack = worst_lack(&drive, &[0, 1, 2], 20 * MS, to);
        assert!(lack > 0.0 && lack <= job(long) + LAUNCH, "{lack} s of jobs of {long} and {short} steps");
    }
}

#[test]
fn a_tenant_that_comes_to_a_device_full_of_long_jobs_waits_for_one_job_and_not_for_all() {
    let mut drive = Drive::new(limits(&[("only", 1)]));
    for _ in 0..100 {
        drive.submit("only", 0, price(1, 100)).unwrap();
    }
    drive.run_until(Duration::from_secs(1));
    let from = drive.now;
    for _ in 0..1_000 {
        drive.submit("only", 1, price(1, 4)).unwrap();
    }
    let to = from + Duration::from_secs(2);
    drive.run_until(to);
    let lack = worst_lack(&drive, &[0, 1], from, to);
    assert!(lack > 0.0 && lack <= job(100) + LAUNCH, "{lack} s");
    drive.run();
    let of_long = |id: &JobId| drive.jobs[id].tenant == 0;
    let ended: Vec<JobId> = drive.ended.iter().map(|(id, ..)| *id).filter(of_long).collect();
    assert!(ended.is_sorted(), "a tenant's jobs overtook each other");
}

#[test]
fn a_tenant_is_charged_with_what_its_jobs_used_and_not_with_what_they_might_have() {
    let mut drive = Drive::new(limits(&[("only", 1)]));
    for _ in 0..2_000 {
        drive.submit("only", 0, price(1, 100)).unwrap();
        drive.submit("only", 1, price(1, 4)).unwrap();
    }
    let to = Duration::from_secs(2);
    let mut steps: HashMap<JobId, usize> = HashMap::new();
    let mut seen = 0;
    while drive.now < to {
        drive.run_until(drive.now + MS);
        // Its jobs are called back after four steps, though they were to take a hundred.
        for (.., launch) in &drive.launches[seen..] {
            for id in
                launch.jobs.iter().filter(|id| launch.phase == Phase::Step && drive.jobs[*id].tenant == 0)
            {
                *steps.entry(*id).or_default() += 1;
            }
        }
        seen = drive.launches.len();
        let over: Vec<JobId> = steps.iter().filter(|(_, count)| **count == 4).map(|(id, _)| *id).collect();
        for id in over {
            steps.remove(&id);
            drive.tick([Event::Cancel(id)]);
        }
    }
    let lack = worst_lack(&drive, &[0, 1], Duration::from_secs(1), to);
    assert!(lack <= job(100) + LAUNCH, "{lack} s");
    let last = |tenant| usage(&drive, tenant).last().unwrap().1;
    let share = last(0) / (last(0) + last(1));
    assert!((0.4..0.6).contains(&share), "{share} of the device");
}

#[test]
fn a_big_job_that_waits_for_memory_is_not_starved_by_small_ones_of_another_class() {
    let mut drive = Drive::new(Limits { memory: 100, ..limits(&[("paid", 8), ("free", 2)]) });
    for tenant in 0..50 {
        drive.submit("free", tenant, price(1, 4)).unwrap();
    }
    drive.run_until(20 * MS);
    let big = drive.submit("paid", 1_000, Price { memory: 95, ..price(1, 4) }).unwrap().id;
    let began = drive.now;
    for tenant in 0..1_000 {
        drive.submit("free", 2_000 + tenant, price(1, 4)).unwrap();
        drive.run_until(drive.now + MS);
    }
    let ended = drive.ended.iter().find(|(id, ..)| *id == big).map(|(.., at)| *at).expect("it starves");
    // The jobs that hold the memory take four launches of eight rows, and it takes four of one.
    assert!(ended - began < 100 * MS, "{:?}", ended - began);
}
