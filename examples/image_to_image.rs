//! A picture from a picture and a prompt.
//!
//! ```text
//! cargo run --release --example image_to_image -- "a green apple on a blue background" --image apple.png --strength 0.7
//! ```

mod common;

use std::path::PathBuf;
use std::process::ExitCode;

use aquatint::Input;
use clap::Parser;

/// Redraws a picture towards a prompt.
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    common: common::Common,
    /// The picture to start from.
    #[arg(long)]
    image: PathBuf,
    /// How far to move away from it, 0 to 1.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    strength: f32,
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let image = aquatint::image::open(&arguments.image)?;
    common::run(&arguments.common, |request| {
        request.input = Input::Image { image, strength: arguments.strength };
    })
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
