//! What is to run where, and whether all of it can.

use std::ffi::OsString;
use std::time::Duration;

use crate::failure::Failure;
use crate::netns_arg::Labelled;
use crate::sys::Inherited;
use crate::view::ViewArgs;

/// Everything that a supervisor is told.
pub(super) struct Plan {
    pub(super) namespaces: Vec<Labelled>,
    /// The program and its arguments.
    pub(super) command: Vec<OsString>,
    /// How many run at the same time, at most.
    pub(super) jobs: usize,
    pub(super) timeout: Option<Duration>,
    pub(super) fail_fast: bool,
    pub(super) form: Form,
    pub(super) inherited: Inherited,
    pub(super) view: ViewArgs,
}

/// What output looks like.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// What a command writes is kept until it has ended.
    pub(super) group: bool,
    pub(super) json: bool,
}

/// Two pipes.
const FILES_PER_COMMAND: usize = 2;
/// While one group is printed, others go to files.
const FILES_PER_SPOOL: usize = 2;
/// Those that are open for a moment while a command starts, and the supervisor's.
const OTHER_FILES: usize = 24;

impl Plan {
    /// How many run at the same time at the beginning.
    pub(super) fn first_wave(&self) -> usize {
        self.jobs.min(self.namespaces.len())
    }

    /// Makes sure of all that can be, before a command starts.
    pub(super) fn check(&self) -> Result<(), Failure> {
        for Labelled { netns, .. } in &self.namespaces {
            netns.check_enter()?;
        }
        let per_command = match self.form.group {
            true => FILES_PER_COMMAND + FILES_PER_SPOOL,
            false => FILES_PER_COMMAND,
        };
        self.check_room_for(self.first_wave() * per_command + OTHER_FILES)
    }

    /// Takes so many files and lets go of them again: there is no better answer to
    /// whether they can be had.
    fn check_room_for(&self, files: usize) -> Result<(), Failure> {
        let (reader, _writer) =
            std::io::pipe().map_err(|error| Failure::io("cannot make a pipe", error))?;
        let mut taken = Vec::with_capacity(files);
        for _ in 0..files {
            match reader.try_clone() {
                Ok(file) => taken.push(file),
                Err(error) => {
                    let commands = self.first_wave();
                    let limit = self.inherited.hard_file_limit();
                    let attempt = format!("cannot run {commands} commands at a time");
                    return Err(Failure::io(attempt, error).hint(format!(
                        "it takes {files} more open files and the hard limit is {limit}: raise it, \
                         or use --jobs"
                    )));
                }
            }
        }
        Ok(())
    }
}
