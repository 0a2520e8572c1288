//! Output that is kept until its command has ended: in memory, and when it is
//! long in a file without a name.

use std::env;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;

/// What stays in memory, for each stream of each command.
const IN_MEMORY: usize = 256 * 1024;

#[derive(Default)]
pub(super) struct Spool {
    memory: Vec<u8>,
    /// What came after the memory was full.
    file: Option<File>,
}

impl Spool {
    /// Keeps more.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            if self.memory.len() + bytes.len() <= IN_MEMORY {
                self.memory.extend_from_slice(bytes);
                return Ok(());
            }
            self.file = Some(nameless_file()?);
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => unreachable!("opened above"),
        }
    }

    /// Ends the keeping: from here on it is read.
    pub(super) fn into_reader(self) -> io::Result<impl Read> {
        let mut file = self.file;
        if let Some(file) = &mut file {
            file.seek(SeekFrom::Start(0))?;
        }
        let rest: Box<dyn Read> = match file {
            Some(file) => Box::new(file),
            None => Box::new(io::empty()),
        };
        Ok(io::Cursor::new(self.memory).chain(rest))
    }
}

fn nameless_file() -> io::Result<File> {
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match open(&env::temp_dir(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(file) => Ok(file.into()),
        // No such folder, or one where there can be none: memory, then.
        Err(_) => Ok(memfd_create(c"netns-exec-output", MFdFlags::MFD_CLOEXEC)?.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_comes_back_in_order_however_long_it_is() {
        for pieces in [0, 1, 3, 100] {
            let mut spool = Spool::default();
            let piece = |n: usize| vec![n as u8; 10_000];
            for n in 0..pieces {
                spool.push(&piece(n)).expect("room in the folder for such");
            }
            let mut read = Vec::new();
            let mut reader = spool.into_reader().expect("a file can be rewound");
            reader.read_to_end(&mut read).expect("a file can be read");
            assert!(read == (0..pieces).flat_map(piece).collect::<Vec<_>>());
        }
    }
}
