//! The example `many_requests`, as its reader starts it.
#![cfg(all(feature = "embedded", feature = "cpu"))]

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Output};

/// Test programs lie in `deps`, the examples that are built with them beside it.
fn run(arguments: &[&str]) -> Output {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(std::path::Path::parent).unwrap();
    let program: PathBuf =
        profile.join("examples").join(format!("many_requests{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.is_file(),
        "{}: not there: cargo build --example many_requests makes it",
        program.display()
    );
    Command::new(program).args(arguments).output().unwrap()
}

#[test]
fn every_request_of_a_burst_is_accounted_for_in_the_table() {
    let output = run(&["--requests", "40", "--load", "6"]);
    let (text, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    let lines: Vec<&str> = text.lines().collect();
    let columns = "class queued live finished refused distilled dropped in time";
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>().join(" "), columns);
    // Every tenth pays.
    for (line, (class, requests)) in lines[1..].iter().zip([("paid", 4), ("free", 36)]) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((fields[0], fields.len()), (class, 8), "{line}");
        let names = ["queued", "live", "finished", "refused", "distilled", "dropped"];
        let counts: HashMap<&str, u64> =
            names.into_iter().zip(&fields[1..]).map(|(name, field)| (name, field.parse().unwrap())).collect();
        assert_eq!((counts["queued"], counts["live"]), (0, 0), "{line}");
        assert_eq!(counts["finished"] + counts["refused"] + counts["dropped"], requests, "{line}");
        assert!(counts["finished"] > 0 && counts["distilled"] <= requests, "{line}");
        let share: f64 = fields[7].trim_end_matches('%').parse().unwrap();
        assert!(fields[7].ends_with('%') && (0.0..=100.0).contains(&share), "{line}");
    }
    assert!(lines[3].starts_with("40 requests at 6 times the pace of one every "), "{}", lines[3]);
    assert_eq!(lines.len(), 4, "{text}");
}

#[test]
fn a_load_below_the_devices_own_pace_is_refused_by_name() {
    let output = run(&["--load", "0"]);
    assert!(!output.status.success() && output.stdout.is_empty());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("--load"), "{errors}");
}
