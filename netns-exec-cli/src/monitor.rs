//! `netns-exec monitor`: names as they come and go.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use serde::Serialize;

use crate::failure::Failure;
use crate::names::{FOLDER, names};
use crate::output::{self, printable};
use crate::stdio::{self, Woken};

/// Tell when names of namespaces come and go, until interrupted
///
/// One a line, in the words of `ip netns monitor`: `add NAME` and `delete NAME`. None is
/// told that was there before, and none is missed when the kernel's queue overflows or
/// /run/netns itself comes or goes.
#[derive(clap::Args)]
#[command(after_help = "\
JSON, one object a line:
  {\"event\": \"add\"|\"delete\", \"name\": \"...\"}
Keys may be added.

Examples:
  netns-exec monitor
  netns-exec monitor --json | jq --unbuffered -r .name")]
pub(crate) struct Args {
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Add,
    Delete,
}

#[derive(Serialize)]
struct Line<'a> {
    event: What,
    name: &'a str,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    let mut monitor = Monitor::start()?;
    loop {
        if stdio::wait_for_reader(Some(monitor.inotify.as_fd()), None)? == Woken::ReaderGone {
            return Ok(ExitCode::SUCCESS);
        }
        for (what, name) in monitor.read()? {
            tell(what, &name, args.json)?;
        }
    }
}

fn tell(event: What, name: &OsStr, json: bool) -> Result<(), Failure> {
    let name = &name.to_string_lossy();
    if json {
        return output::json_line(&Line { event, name });
    }
    match event {
        What::Add => output::line(format_args!("add {}", printable(name))),
        What::Delete => output::line(format_args!("delete {}", printable(name))),
    }
}

struct Monitor {
    inotify: Inotify,
    /// That of the folder, when it is there.
    folder: Option<WatchDescriptor>,
    known: BTreeSet<OsString>,
}

type Events = Vec<(What, OsString)>;

impl Monitor {
    fn start() -> Result<Monitor, Failure> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|errno| Failure::io("cannot watch files", errno))?;
        let parent = Path::new(FOLDER).parent().expect("it has one");
        let comes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        (inotify.add_watch(parent, comes))
            .map_err(|errno| Failure::io(format!("cannot watch {}", parent.display()), errno))?;
        let mut monitor = Monitor {
            inotify,
            folder: None,
            known: BTreeSet::new(),
        };
        monitor.watch_folder()?;
        monitor.known = names()?.into_iter().collect();
        Ok(monitor)
    }

    fn watch_folder(&mut self) -> Result<(), Failure> {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_ONLYDIR;
        self.folder = match self.inotify.add_watch(FOLDER, flags) {
            Ok(watch) => Some(watch),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(Failure::io(format!("cannot watch {FOLDER}"), errno)),
        };
        Ok(())
    }

    /// What has happened since the last call.
    fn read(&mut self) -> Result<Events, Failure> {
        let events = match self.inotify.read_events() {
            Ok(events) => events,
            Err(Errno::EAGAIN | Errno::EINTR) => Vec::new(),
            Err(errno) => return Err(Failure::io(format!("cannot watch {FOLDER}"), errno)),
        };
        let mut told = Vec::new();
        for event in events {
            let in_folder = Some(event.wd) == self.folder;
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                told.append(&mut self.look_again()?);
            } else if in_folder && event.mask.contains(AddWatchFlags::IN_IGNORED) {
                // The folder has gone, and may be there again.
                self.watch_folder()?;
                told.append(&mut self.look_again()?);
            } else if let Some(name) = event.name {
                if in_folder {
                    told.extend(self.note(event.mask, name));
                } else if Path::new(FOLDER).file_name() == Some(&name) && self.folder.is_none() {
                    self.watch_folder()?;
                    told.append(&mut self.look_again()?);
                }
            }
        }
        Ok(told)
    }

    fn note(&mut self, mask: AddWatchFlags, name: OsString) -> Option<(What, OsString)> {
        let comes = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        let goes = AddWatchFlags::IN_DELETE | AddWatchFlags::IN_MOVED_FROM;
        if mask.intersects(comes) {
            (self.known.insert(name.clone())).then_some((What::Add, name))
        } else if mask.intersects(goes) {
            (self.known.remove(&name)).then_some((What::Delete, name))
        } else {
            None
        }
    }

    /// Compares what is there with what is known.
    fn look_again(&mut self) -> Result<Events, Failure> {
        let there: BTreeSet<OsString> = names()?.into_iter().collect();
        let gone = self.known.difference(&there);
        let gone = gone.map(|name| (What::Delete, name.clone()));
        let new = there.difference(&self.known);
        let new = new.map(|name| (What::Add, name.clone()));
        let told = gone.chain(new).collect();
        self.known = there;
        Ok(told)
    }
}
