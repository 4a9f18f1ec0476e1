//! The benches that `run.py` runs, as one program, so that what they share is packed once: `kernels`, `denoise_step` and
//! `generate`. The names that are asked for tell them apart.

#![allow(clippy::duplicate_mod, reason = "each bench has what they share as a module of its own")]

use criterion::criterion_main;

#[path = "../denoise_step.rs"]
mod denoise_step;
#[path = "../generate/main.rs"]
mod generate;
#[path = "../kernels.rs"]
mod kernels;

criterion_main!(kernels::benches, denoise_step::benches, generate::benches);
