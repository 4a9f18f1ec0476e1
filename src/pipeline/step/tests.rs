//! What a step does where a launch for several jobs fails, by jobs that no request makes.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::{DeviceChoice, Error, Guidance, Job, LoadOptions, Pipeline, Request, Stage};

fn pipeline(max_batch: usize) -> Pipeline {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pipelines/sd15");
    let options = LoadOptions { device: DeviceChoice::Cpu, max_batch, ..LoadOptions::default() };
    Pipeline::load(folder, options).unwrap()
}

fn start(pipeline: &Pipeline, seed: u64) -> Job {
    let guidance = Some(Guidance::classifier_free(5.0).negative("blur"));
    pipeline.start(&Request { steps: Some(3), seed, guidance, ..Request::new("a fox") }).unwrap()
}

fn bits(job: &Job) -> Vec<u32> {
    let values = job.rows.iter().flat_map(|row| row.latents.tensor().try_into_vec_as::<f32>().unwrap());
    values.map(f32::to_bits).collect()
}

fn step(pipeline: &Pipeline, jobs: &mut [Job]) -> Vec<crate::Result<()>> {
    pipeline.step(&mut jobs.iter_mut().collect::<Vec<_>>())
}

fn change(job: &mut Job, change: impl Fn(Tensor<3>) -> Tensor<3>) {
    job.positive = change(job.positive.clone());
    if let Some((_, negative)) = &mut job.guided {
        *negative = change(negative.clone());
    }
}

/// Text states of another length stand in no tensor with the neighbours', and alone steer as well as any.
#[test]
fn jobs_whose_common_launch_fails_are_launched_one_by_one() {
    let pipeline = pipeline(16);
    let jobs = || {
        let mut jobs = [0, 1, 2].map(|seed| start(&pipeline, seed));
        change(&mut jobs[1], |states| states.narrow(1, 0, 5));
        jobs
    };
    let (mut together, mut alone) = (jobs(), jobs());
    for _ in 0..2 {
        assert!(step(&pipeline, &mut together).iter().all(Result::is_ok));
        for job in &mut alone {
            pipeline.step(&mut [job]).remove(0).unwrap();
        }
    }
    for (job, alone) in together.iter().zip(&alone) {
        assert_eq!(job.step(), 2);
        assert!(bits(job) == bits(alone));
    }
}

#[test]
fn a_job_whose_launch_fails_stays_where_it_was_and_its_neighbours_have_their_own_bits() {
    let pipeline = pipeline(16);
    let mut jobs = [0, 1, 2].map(|seed| start(&pipeline, seed));
    assert!(step(&pipeline, &mut jobs).iter().all(Result::is_ok));
    let before = bits(&jobs[1]);
    // Twice as many channels as the weights read.
    change(&mut jobs[1], |states| Tensor::cat(vec![states.clone(), states], 2));
    jobs[1].rows[0].placed.clear();
    let results = step(&pipeline, &mut jobs);
    assert!(matches!(results[1], Err(Error::Device(_))), "{results:?}");
    assert!(jobs[1].step() == 1 && bits(&jobs[1]) == before);
    for neighbour in [0, 2] {
        assert!(results[neighbour].is_ok());
        let mut alone = start(&pipeline, neighbour as u64);
        for _ in 0..2 {
            pipeline.step(&mut [&mut alone]).remove(0).unwrap();
        }
        assert!(jobs[neighbour].step() == 2 && bits(&jobs[neighbour]) == bits(&alone));
    }
}

/// A row whose latents overflow is found by the step that counts them, alone of its launch.
#[test]
fn a_row_that_overflows_fails_alone_and_names_the_step() {
    let pipeline = pipeline(16);
    let mut jobs = [0, 1, 2].map(|seed| start(&pipeline, seed));
    let mut alone = [0, 1, 2].map(|seed| start(&pipeline, seed));
    assert!(step(&pipeline, &mut jobs).iter().all(Result::is_ok));
    let mut values = jobs[1].rows[0].latents.tensor().try_into_vec_as::<f32>().unwrap();
    values[3] = f32::NAN;
    let shape = jobs[1].rows[0].latents.dims();
    let lost = super::super::upload(values, shape, pipeline.device());
    jobs[1].rows[0].latents = crate::ops::Slot::new(lost);
    let results = step(&pipeline, &mut jobs);
    let Err(error) = &results[1] else { panic!("{results:?}") };
    assert!(
        matches!(error, Error::NonFinite { stage: Stage::Denoise, step: Some(2), count: 1.., .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains(", from step 2 on"), "{error}");
    for job in &mut alone {
        for _ in 0..2 {
            pipeline.step(&mut [job]).remove(0).unwrap();
        }
    }
    for neighbour in [0, 2] {
        assert!(results[neighbour].is_ok() && bits(&jobs[neighbour]) == bits(&alone[neighbour]));
    }
}

/// In launches that split the two halves of a row as well.
#[test]
fn text_states_stay_together_as_long_as_the_same_rows_make_a_launch() {
    for max_batch in [16, 3] {
        let pipeline = pipeline(max_batch);
        let mut jobs = [0, 1, 2].map(|seed| start(&pipeline, seed));
        let places = |jobs: &[Job]| -> Vec<*const Tensor<3>> {
            let placed = jobs.iter().flat_map(|job| job.rows.iter().flat_map(|row| &row.placed));
            placed.map(|placed| Arc::as_ptr(&placed.context)).collect()
        };
        assert!(step(&pipeline, &mut jobs).iter().all(Result::is_ok));
        let first = places(&jobs);
        assert_eq!(first.len(), 6);
        assert!(step(&pipeline, &mut jobs).iter().all(Result::is_ok));
        assert!(places(&jobs) == first, "{max_batch}");
        // In another order the rows are others'.
        jobs.reverse();
        assert!(step(&pipeline, &mut jobs).iter().all(Result::is_ok));
        let last = places(&jobs);
        assert!(first.iter().all(|place| !last.contains(place)), "{max_batch}");
        // One leaves, and the others stay where they are.
        assert!(step(&pipeline, &mut jobs[1..]).iter().all(Result::is_ok));
        for (job, seed) in jobs.iter().zip([2, 1, 0]) {
            let mut alone = start(&pipeline, seed);
            while alone.step() < job.step() {
                pipeline.step(&mut [&mut alone]).remove(0).unwrap();
            }
            assert!(bits(job) == bits(&alone), "{max_batch}, seed {seed}");
        }
    }
}

/// Guidance that begins and ends within the run changes which text states a launch takes.
#[test]
fn kept_text_states_are_those_that_each_step_needs() {
    let pipeline = pipeline(16);
    let start = |seed: u64| {
        let guidance = Some(Guidance::classifier_free(5.0).negative("blur").within(0.3..=0.7));
        let prompt = ["a fox", "a rose"][seed as usize % 2];
        pipeline.start(&Request { steps: Some(6), seed, guidance, ..Request::new(prompt) }).unwrap()
    };
    let jobs = || [0, 1, 2].map(start);
    let (mut kept, mut fresh) = (jobs(), jobs());
    for step_index in 0..6 {
        // One leaves for a step, and comes back in another place.
        let order: &[usize] = if step_index == 2 {
            &[2, 0]
        } else if step_index == 3 {
            &[1, 2, 0]
        } else {
            &[0, 1, 2]
        };
        for jobs in [&mut kept, &mut fresh] {
            let mut moving: Vec<Option<&mut Job>> = jobs.iter_mut().map(Some).collect();
            let mut moving: Vec<&mut Job> =
                order.iter().map(|&index| moving[index].take().unwrap()).collect();
            assert!(pipeline.step(&mut moving).iter().all(Result::is_ok));
        }
        fresh.iter_mut().for_each(|job| job.rows.iter_mut().for_each(|row| row.placed.clear()));
    }
    for (kept, fresh) in kept.iter().zip(&fresh) {
        assert!(bits(kept) == bits(fresh));
    }
    // What is done keeps no launch's text states.
    assert!(kept.iter().all(|job| !job.is_done() || job.rows.iter().all(|row| row.placed.is_empty())));
}
