//! A picture from a prompt.
//!
//! ```text
//! cargo run --release --example text_to_image -- "a red apple on a blue background"
//! ```

mod common;

use std::process::ExitCode;

use clap::Parser;

/// Draws a picture from a prompt.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    common: common::Common,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match common::run(&arguments.common, |_| ()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
