//! Whether a command sees the file system as its namespace has it.

use std::process::Command;

use netns_exec::{CommandExt, Netns, View};

use crate::failure::{FAILED, Failure};
use crate::stdio;

/// As `ip netns exec` has it, unless told otherwise.
#[derive(clap::Args, Clone, Copy)]
pub(crate) struct ViewArgs {
    /// Show the command /sys and the files of /etc/netns/NAME as its namespace has them, and
    /// fail where one of them cannot be shown [default: show them, except in the namespace
    /// that netns-exec is in itself, and name the files that /etc has no place for]
    #[arg(long, overrides_with = "no_view")]
    view: bool,

    /// Leave the mounts alone: the command sees the /sys and the /etc that netns-exec sees
    #[arg(long)]
    no_view: bool,
}

impl ViewArgs {
    /// Has `command` run in `ns`.
    pub(crate) fn prepare(self, command: &mut Command, ns: &Netns) -> Result<(), Failure> {
        if !self.is_wanted(ns)? {
            command.in_netns(ns);
            return Ok(());
        }
        // Where an error is told, the command is as it was.
        match command.view(View::new()).in_netns(ns) {
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() && !self.view => {
                stdio::say(&format!("netns-exec: {}\n", Failure::from(error)));
            }
            Err(error) => return Err(failed(error)),
        }
        let lenient = View::new().skip_missing(true);
        command.view(lenient).in_netns(ns).map_err(failed)?;
        Ok(())
    }

    /// Why a command did not start, where its view is why.
    pub(crate) fn explain(self, ns: &Netns) -> Option<Failure> {
        let wanted = self.is_wanted(ns).unwrap_or(false);
        let refused = wanted.then(|| View::new().skip_missing(true).check(ns).err());
        refused.flatten().map(failed)
    }

    fn is_wanted(self, ns: &Netns) -> Result<bool, Failure> {
        // There, what netns-exec was started with is what there is to see; and an
        // ordinary user may be there, but may not mount.
        Ok(self.view || (!self.no_view && *ns != Netns::home()?))
    }
}

fn failed(error: netns_exec::Error) -> Failure {
    Failure::from(error)
        .hint("--no-view does without")
        .status(FAILED)
}
