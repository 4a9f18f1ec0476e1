//! The modules use each other in one direction.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// For each top-level module, what it may use: the arrows of the crate's design.
const ARROWS: &[(&str, &[&str])] = &[
    ("engine", &["pipeline", "job", "request", "samplers", "device", "error"]),
    (
        "pipeline",
        &[
            "families",
            "job",
            "denoisers",
            "autoencoder",
            "guidance",
            "nn",
            "ops",
            "samplers",
            "text",
            "weights",
            "image",
            "request",
            "device",
            "error",
        ],
    ),
    ("job", &["samplers", "guidance", "ops", "request"]),
    (
        "families",
        &["text", "denoisers", "autoencoder", "samplers", "weights", "nn", "device", "request", "error"],
    ),
    ("text", &["nn", "ops", "weights", "request", "error"]),
    ("denoisers", &["nn", "ops", "weights"]),
    ("autoencoder", &["nn", "ops", "weights"]),
    ("nn", &["ops", "weights"]),
    ("guidance", &["request"]),
    ("ops", &[]),
    ("samplers", &[]),
    ("weights", &[]),
    ("image", &[]),
    ("request", &["samplers"]),
    ("device", &["error"]),
    ("error", &["device", "image", "job", "request", "samplers", "text", "weights"]),
    ("lib", &[]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The top-level module that a file belongs to.
fn module(source: &Path, root: &Path) -> String {
    let first = source.strip_prefix(root).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// Modules named in `crate::name` paths; `crate::Result` and the like are the error module's.
fn used(source: &str) -> Vec<String> {
    let paths = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1));
    paths
        .map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>())
        .filter(|name| name.chars().next().is_some_and(char::is_lowercase))
        .collect()
}

#[test]
fn modules_use_each_other_in_one_direction() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sweep found {} files", files.len());
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in &files {
        let from = module(file, &root);
        let allowed = allowed.get(from.as_str()).unwrap_or_else(|| panic!("no arrows for the module {from}"));
        for to in used(&fs::read_to_string(file).unwrap()) {
            if to != from && !allowed.contains(&to.as_str()) {
                wrong.push(format!("{}: {from} uses {to}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_source_file_is_longer_than_two_things() {
    let mut files = Vec::new();
    for folder in ["src", "tests", "examples", "benches", "kernels"] {
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    }
    let long: Vec<String> = files
        .iter()
        .map(|file| (file, fs::read_to_string(file).unwrap().lines().count()))
        .filter(|(_, lines)| *lines > 500)
        .map(|(file, lines)| format!("{}: {lines}", file.display()))
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}
