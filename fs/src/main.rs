//! The `bramble` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    bramble::cli::main()
}
