//! A distilled model beside the one that is asked for, under a virtual clock.

use std::collections::HashMap;
use std::time::Duration;

use crate::common::drive::{Drive, MS, PLAIN, limits, offer, price};
use aquatint::engine::{Accepted, BatchKey, DegradeReason, JobId, Limits, Model, Offer, Phase, Price};

const TIERS: [(&str, u32); 2] = [("paid", 8), ("free", 2)];
/// A unit of load: two jobs and a half.
const LOAD: Duration = Duration::from_millis(100);

/// One shape for both models.
fn on(model: Model, steps: u32) -> Price {
    let price = price(1, steps);
    Price { key: BatchKey { model, ..price.key }, ..price }
}

fn plain(class: &str, tenant: u64) -> Offer {
    offer(class, tenant, on(Model::Main, 20))
}

/// Who also takes four steps of the distilled model.
fn agreed(class: &str, tenant: u64) -> Offer {
    Offer { prices: vec![on(Model::Main, 20), on(Model::Distilled, 4)], ..plain(class, tenant) }
}

fn drive() -> Drive {
    Drive::new(Limits { degrade_after: LOAD, ..limits(&TIERS) })
}

fn is_moved(accepted: &Accepted) -> bool {
    let Accepted { variant, reason, .. } = accepted;
    assert_eq!(*reason, (*variant > 0).then_some(DegradeReason::Load));
    *variant == 1
}

#[test]
fn jobs_move_to_the_distilled_model_only_with_consent_only_under_load_and_lower_classes_first() {
    let mut drive = drive();
    // From no load to three units of it.
    let mut first_moved = HashMap::new();
    for tenant in 0.. {
        let load = drive.scheduler.status().predicted_drain;
        if load > 3 * LOAD {
            break;
        }
        for class in ["paid", "free"] {
            // Probed in a scheduler of its own, so that the probe is no load.
            let mut probe = self::drive();
            for other in 0..tenant {
                probe.offer("free", other, &plain("free", other)).unwrap();
            }
            assert_eq!(probe.scheduler.status().predicted_drain, load);
            if is_moved(&probe.offer(class, 1_000, &agreed(class, 1_000)).unwrap()) {
                first_moved.entry(class).or_insert(load);
            }
        }
        assert!(!is_moved(&drive.offer("free", tenant, &plain("free", tenant)).unwrap()), "without consent");
    }
    let (free, paid) = (first_moved["free"], first_moved["paid"]);
    // A job is 40.2 ms of work before anything was measured.
    let job = Duration::from_micros(40_200);
    assert!(free >= LOAD && free < LOAD + job, "{free:?}");
    assert!(paid >= 2 * LOAD && paid < 2 * LOAD + job, "{paid:?}");
    drive.run();
    assert!(!is_moved(&drive.offer("free", 0, &agreed("free", 0)).unwrap()), "the load is gone");
    drive.run();
}

#[test]
fn no_launch_mixes_models_although_their_jobs_have_one_shape() {
    let mut drive = drive();
    let mut models: HashMap<JobId, Model> = HashMap::new();
    for tenant in 0..400 {
        let class = TIERS[tenant as usize % 2].0;
        let offer = if tenant % 3 == 0 { plain(class, tenant) } else { agreed(class, tenant) };
        let accepted = drive.offer(class, tenant, &offer).unwrap();
        models.insert(accepted.id, if is_moved(&accepted) { Model::Distilled } else { Model::Main });
        drive.run_until(drive.now + MS);
    }
    drive.run();
    for (.., launch) in &drive.launches {
        for id in &launch.jobs {
            assert_eq!(models[id], launch.key.model, "{id} in {launch:?}");
        }
    }
    for model in [Model::Main, Model::Distilled] {
        for phase in [Phase::Start, Phase::Step, Phase::Finish] {
            let of = drive.launches.iter().filter(|(.., l)| (l.key.model, l.phase) == (model, phase));
            assert!(of.map(|(.., launch)| launch.jobs.len()).max() > Some(1), "{model:?} {phase:?}");
        }
    }
}

#[test]
fn what_is_measured_of_one_model_says_nothing_of_the_other() {
    let mut drive = drive();
    // One after the other, each alone.
    let run = |drive: &mut Drive, model| {
        for tenant in 0..20 {
            drive.submit("paid", tenant, on(model, 4)).unwrap();
            drive.run();
        }
    };
    run(&mut drive, Model::Main);
    let before = drive.scheduler.plan(&on(Model::Main, 4)).time;
    drive.times.step = 10 * PLAIN.step;
    run(&mut drive, Model::Distilled);
    let main = drive.scheduler.plan(&on(Model::Main, 4)).time;
    let distilled = drive.scheduler.plan(&on(Model::Distilled, 4)).time;
    // A tenth of a millisecond to start and to finish, and four steps of 2 ms and of 11 ms.
    let is = |found: Duration, micros: f64| (found.as_secs_f64() * 1e6 / micros - 1.0).abs() < 1e-3;
    assert!(main == before && is(main, 8_200.0), "{main:?}, {before:?} before");
    assert!(is(distilled, 44_200.0), "{distilled:?}");
}
