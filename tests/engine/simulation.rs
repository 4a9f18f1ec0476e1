//! The production scheduler under the surge of a week, in virtual time: 700 million requests, of which
//! the default run plays a part. Longer runs:
//!
//! * `ENGINE_SIM_SEEDS=10000 cargo test --test engine whatever_goes_wrong` plays so many fault seeds
//! * `ENGINE_SIM_WEEK=7000000 cargo test --test engine part_of_the_week` plays so much of the week, here a
//!   hundredth
//! * `ENGINE_SIM_REQUESTS=1000000` is the length of each run of `a_surge_keeps_its_promises_at_every_load`
//! * `ENGINE_SIM_SEED` replays one seed; a run that fails says which

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use crate::common::outcome::Outcome;
use crate::common::quiet;
use crate::common::sim::{Config, Sim};

/// Of the week's requests.
const THOUSANDTH: u64 = 700_000;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Runs one simulation; if it breaks a promise, says how to see that again.
fn play(config: Config, test: &str) -> Outcome {
    let seed = config.seed;
    catch_unwind(AssertUnwindSafe(|| Sim::new(config).run())).unwrap_or_else(|panic| {
        eprintln!("replay: ENGINE_SIM_SEED={seed} cargo test --test engine {test}");
        resume_unwind(panic)
    })
}

/// Processor time of this thread, so that a busy machine does not count (Linux; elsewhere real time).
fn processor_time(since: Instant) -> Duration {
    let line = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = line.split(' ').next().and_then(|nanos| nanos.parse().ok());
    nanos.map_or_else(|| since.elapsed(), Duration::from_nanos)
}

fn show(load: f64, out: &mut Outcome, took: Duration) {
    println!("{} in {:.1} s", out.line(load), took.as_secs_f64());
}

#[test]
fn a_surge_keeps_its_promises_at_every_load() {
    let _quiet = quiet();
    let requests = setting("ENGINE_SIM_REQUESTS", 150_000) as usize;
    let seed = setting("ENGINE_SIM_SEED", 1);
    let mut paid_at_90 = f64::NAN;
    for load in [0.5, 0.9, 1.2, 3.0, 10.0] {
        let begun = Instant::now();
        let mut out = play(Config::surge(seed, load, requests), "a_surge_keeps_its_promises_at_every_load");
        show(load, &mut out, begun.elapsed());
        let paid_p99 = out.classes[0].percentile(0.99);
        if load == 0.9 {
            paid_at_90 = paid_p99;
        }
        if load >= 0.9 {
            assert!(
                out.told_accepted * 10 >= out.told * 9 && out.told > 1_000,
                "{} of {} who came back as told were accepted",
                out.told_accepted,
                out.told
            );
        }
        if load == 3.0 {
            assert!(paid_p99 <= 2.0 * paid_at_90, "paid p99 {paid_p99} s, {paid_at_90} s at 0.9");
            assert!(out.goodput >= 0.95, "goodput {}", out.goodput);
            out.refusals.sort();
            let late = out.refusals[out.refusals.len() * 99 / 100];
            assert!(late < Duration::from_micros(100), "a refusal took {late:?}");
        }
        assert!(out.classes.iter().all(|class| class.finished > 0), "nothing was played");
    }
}

#[test]
fn a_part_of_the_week_is_played_in_less_than_a_minute_a_thousandth() {
    let _quiet = quiet();
    let begun = Instant::now();
    let before = processor_time(begun);
    let requests = setting("ENGINE_SIM_WEEK", THOUSANDTH);
    let config = Config::surge(setting("ENGINE_SIM_SEED", 7), 1.2, requests as usize);
    let mut out = play(config, "a_part_of_the_week");
    let took = processor_time(begun) - before;
    show(1.2, &mut out, took);
    assert!(took.as_secs_f64() < 60.0 * requests as f64 / THOUSANDTH as f64, "{took:?}");
    assert!(
        out.told_accepted * 10 >= out.told * 9 && out.told > 1_000,
        "{} of {}",
        out.told_accepted,
        out.told
    );
    let offered: u64 = out.classes.iter().map(|class| class.offered).sum();
    assert!(offered >= requests);
}

#[test]
fn whatever_goes_wrong_every_job_has_one_outcome_and_every_sum_is_zero_at_the_end() {
    let _quiet = quiet();
    let only = std::env::var("ENGINE_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = setting("ENGINE_SIM_SEEDS", 500);
    let mut endings = std::collections::HashMap::new();
    for seed in only.map_or(0..seeds, |seed: u64| seed..seed + 1) {
        let out = play(
            Config::disaster(seed),
            "whatever_goes_wrong_every_job_has_one_outcome_and_every_sum_is_zero_at_the_end",
        );
        for (ending, count) in out.endings {
            *endings.entry(ending).or_insert(0) += count;
        }
    }
    println!("{endings:?}");
    if only.is_none() {
        for ending in ["finished", "cancelled", "expired", "failed", "device lost", "suspended", "shut down"]
        {
            assert!(endings.contains_key(ending), "no job ended as {ending}");
        }
    }
}
