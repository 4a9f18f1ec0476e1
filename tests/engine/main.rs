//! The serving engine: its scheduler under a virtual clock, its threads before a device made of numbers,
//! and all of it over the embedded model.

mod chaos;
mod common;
mod corners;
mod distilled;
#[cfg(all(feature = "embedded", feature = "cpu"))]
mod distilled_real;
mod drills;
mod fairness;
mod faults;
mod own_thread;
mod phases;
#[cfg(all(feature = "embedded", feature = "cpu"))]
mod real;
mod scheduler;
mod serving;
mod simulation;
