//! The command `headgate`.

use std::process::ExitCode;

use clap::Parser;
use headgate::cli::Cli;

/// Reports, limits and their answers are thousands of small texts and lists, made and thrown away ten times a second, here and more so where
/// the simulator plays a fleet: a twentieth of its time with glibc's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(cli.run());
    // A driver call that never returns must not hold up the exit.
    runtime.shutdown_background();
    outcome
}
