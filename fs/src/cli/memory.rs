//! How malloc keeps what is freed.
//!
//! A chunk's bytes pass through some buffers of their size on each node. Fresh from the kernel, each comes page by page and goes
//! back the same way, which took a third of the processor time of a sequential write. So malloc keeps them, and what it keeps
//! goes back once the process is large.

use std::time::Duration;

use crate::node::process::memory_resident_bytes;

/// Each arena keeps its own free memory; two are enough for the threads that matter.
const ARENAS_MAX: libc::c_int = 2;
/// Larger than any buffer that is made again and again.
const MMAP_THRESHOLD_BYTES: libc::c_int = 4 << 20;
/// Free memory at the end of an arena that stays: a few chunks.
const TRIM_THRESHOLD_BYTES: libc::c_int = 8 << 20;
/// A process that takes less may keep what it has.
const RESIDENT_BYTES_MIN: u64 = 56 << 20;
/// It is not looked for anew before the process has grown by so much.
const GROWTH_BYTES_MIN: u64 = 2 << 20;
const INTERVAL: Duration = Duration::from_secs(2);

/// Sets malloc up. To be called before there are threads.
pub(super) fn set_up() {
    #[expect(
        unsafe_code,
        reason = "mallopt has no safe wrapper; it only sets parameters, before threads exist"
    )]
    // SAFETY: no pointers are passed, and no other thread runs yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES);
    }
}

/// Gives back what malloc keeps whenever a large process has grown. Never ends.
pub(super) async fn keep_small() {
    let mut least = 0;
    loop {
        tokio::time::sleep(INTERVAL).await;
        // Off the async threads: it looks through all that is free.
        if is_worth_it(&mut least, memory_resident_bytes())
            && tokio::task::spawn_blocking(give_back).await.is_ok()
        {
            least = memory_resident_bytes();
        }
    }
}

/// Whether a process of `resident_bytes` should give memory back that had `least` after it did so last.
fn is_worth_it(least: &mut u64, resident_bytes: u64) -> bool {
    *least = resident_bytes.min(*least);
    resident_bytes >= RESIDENT_BYTES_MIN && resident_bytes - *least >= GROWTH_BYTES_MIN
}

fn give_back() {
    #[expect(unsafe_code, reason = "malloc_trim has no safe wrapper")]
    // SAFETY: it takes no pointer, locks malloc's arenas itself, and touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_large_process_that_has_grown_gives_memory_back() {
        let mut least = 0;
        assert!(!is_worth_it(&mut least, RESIDENT_BYTES_MIN - 1));
        assert!(is_worth_it(&mut least, RESIDENT_BYTES_MIN));
        least = RESIDENT_BYTES_MIN + (1 << 20);
        assert!(!is_worth_it(&mut least, RESIDENT_BYTES_MIN + (2 << 20)));
        // It has become smaller by itself, and grows again.
        assert!(!is_worth_it(&mut least, RESIDENT_BYTES_MIN));
        assert!(is_worth_it(&mut least, RESIDENT_BYTES_MIN + GROWTH_BYTES_MIN));
    }
}
