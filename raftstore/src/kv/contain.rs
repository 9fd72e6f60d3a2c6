//! Containing the panics of engine libraries: on damaged files some of them panic where an error would do.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Names of threads that engine libraries start themselves begin so. A panic there poisons the engine, and the
/// next call to it fails.
const ENGINE_THREADS: &str = "sled-";

/// Whether a panic of the present thread is dealt with: it comes from an engine library, and the engine's caller
/// gets an error.
#[must_use]
pub fn panic_is_contained() -> bool {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or_default();
    DEPTH.get() > 0 || name.starts_with(ENGINE_THREADS)
}

/// Makes every panic end the process, as a defect should, except those that [`panic_is_contained`] speaks of.
/// For `main`; the program must be built with unwinding panics.
pub fn abort_on_other_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        if !panic_is_contained() {
            std::process::abort();
        }
    }));
}

/// Runs `call` and turns its panic into an `Err` with the panic's message.
pub(super) fn contain<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            DEPTH.set(DEPTH.get() - 1);
        }
    }
    // What a panic leaves behind is not used again: the caller poisons the engine.
    catch_unwind(AssertUnwindSafe(|| {
        DEPTH.set(DEPTH.get() + 1);
        let _leave = Leave;
        call()
    }))
    .map_err(|panic| message(&*panic))
}

fn message(panic: &(dyn Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else {
        "the engine gave up without a message".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_thread_is_as_before() {
        assert!(!panic_is_contained());
        let caught = contain(|| -> u32 {
            assert!(panic_is_contained());
            panic!("page {} is bad", 7)
        });
        assert_eq!(caught, Err("page 7 is bad".to_owned()));
        assert!(!panic_is_contained());
        assert_eq!(contain(|| 5), Ok(5));
    }
}
