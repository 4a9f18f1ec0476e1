//! The end of a test program that has used a GPU driver.

use std::io::Write;

use libtest_mimic::Conclusion;

/// Ends the process with what the tests came to, and without exit handlers: software Vulkan's threads may still be at
/// work, and what those handlers free under them (LLVM's own tables) ends in a crash after the last test has passed.
#[allow(unsafe_code, reason = "a function of the C library that cannot go wrong")]
pub(crate) fn leave(conclusion: &Conclusion) -> ! {
    unsafe extern "C" {
        safe fn _exit(code: i32) -> !;
    }
    let _ = std::io::stdout().flush();
    _exit(if conclusion.has_failed() { 101 } else { 0 })
}
