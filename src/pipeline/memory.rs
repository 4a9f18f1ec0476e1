//! How much memory the host has and has used (Linux; elsewhere unknown).

use std::fs;

/// Bytes that can still be allocated: the system's, or the control group's where that is less.
pub(super) fn available() -> Option<u64> {
    let system = line("/proc/meminfo", "MemAvailable:")?;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(max, current)| max.saturating_sub(current));
    Some(group.map_or(system, |group| group.min(system)))
}

/// The most memory that this process has held.
pub(super) fn peak() -> Option<u64> {
    line("/proc/self/status", "VmHWM:")
}

/// The value of a `name: 123 kB` line, in bytes.
fn line(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
