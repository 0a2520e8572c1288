//! Builds an executor with `Guard::BirthsAtHome`, and says what came of it: whether a program
//! that is linked in some way can have that. `ci/static` links it without shared libraries.

use std::process::ExitCode;

use netns_exec::{Executor, Guard, Netns};

fn main() -> ExitCode {
    match Executor::builder().guard(Guard::BirthsAtHome).build() {
        Ok(executor) => {
            let here = Netns::current().expect("own namespace");
            let thread = executor.run(&here, || std::thread::spawn(|| ()).join().is_ok());
            println!(
                "built: a job gets threads: {}",
                thread.expect("no privilege is needed")
            );
            ExitCode::SUCCESS
        }
        Err(error) if error.is_invalid_input() => {
            println!("refused: {error}");
            ExitCode::from(3)
        }
        Err(error) => {
            println!("failed: {error}");
            ExitCode::FAILURE
        }
    }
}
