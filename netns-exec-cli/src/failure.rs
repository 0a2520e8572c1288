//! Why the command gives up.

use std::fmt;
use std::io;
use std::process::ExitCode;

use nix::errno::Errno;

use crate::stdio;

/// The statuses that env(1) and nohup(1) use, for what is not the command's own.
pub(crate) const FAILED: u8 = 125;
pub(crate) const NOT_EXECUTABLE: u8 = 126;
pub(crate) const NOT_FOUND: u8 = 127;

/// What is said on stderr, in one line, before the command ends; and its exit
/// status.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    status: u8,
    /// The reader of our output is gone (`netns-exec ls | head`): end, and say
    /// nothing.
    quiet: bool,
}

impl Failure {
    /// A failure of the command itself, with status 2.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure {
            message: message.into(),
            hint: None,
            status: 2,
            quiet: false,
        }
    }

    /// What an attempt ("cannot open `x`") came to, in the words of the library.
    pub(crate) fn io(attempt: impl fmt::Display, error: impl Into<io::Error>) -> Self {
        let error = error.into();
        let Some(errno) = error.raw_os_error() else {
            return Failure::new(format!("{attempt}: {error}"));
        };
        let text = Errno::from_raw(errno).desc();
        let (first, rest) = text.split_at(1);
        Failure::new(format!("{attempt}: {}{rest}", first.to_lowercase()))
    }

    /// Adds what the reader can do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Replaces the exit status.
    pub(crate) fn status(mut self, status: u8) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn exit_status(&self) -> u8 {
        self.status
    }

    /// Says what happened on stderr, and returns the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.quiet {
            stdio::say(&format!("netns-exec: {self}\n"));
        }
        ExitCode::from(self.status)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file name may hold a line break; the message stays one line.
        let one_line = |text: &str| text.replace('\n', "\\n");
        f.write_str(&one_line(&self.message))?;
        match &self.hint {
            Some(hint) => write!(f, " ({})", one_line(hint)),
            None => Ok(()),
        }
    }
}

impl From<netns_exec::Error> for Failure {
    /// The library's text already ends with its hint.
    fn from(error: netns_exec::Error) -> Self {
        Failure::new(error.to_string())
    }
}

impl From<io::Error> for Failure {
    /// For writing to stdout, which is what a command does with `?`; attach
    /// words of your own to any other I/O error.
    fn from(error: io::Error) -> Self {
        Failure {
            quiet: error.kind() == io::ErrorKind::BrokenPipe,
            ..Failure::io("cannot write to stdout", error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_one_line_with_the_hint_in_brackets() {
        let failure = Failure::new("no netns `a\nb`").hint("see `netns-exec ls`");
        assert_eq!(
            failure.to_string(),
            "no netns `a\\nb` (see `netns-exec ls`)"
        );
    }
}
