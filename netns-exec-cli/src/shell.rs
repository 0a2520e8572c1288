//! `netns-exec shell`: a shell of the user's in a namespace.

use std::env;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use clap_complete::engine::ArgValueCompleter;
use nix::unistd::{User, getuid};

use crate::completions::netns_args;
use crate::exec::become_command;
use crate::failure::{FAILED, Failure};
use crate::syntax::NetnsArg;
use crate::sys::Inherited;
use crate::view::ViewArgs;

/// Become a login shell in a namespace
///
/// The shell is $SHELL, or the one that the user's account names, or /bin/sh. It has the
/// view that `exec` gives: the /sys of the namespace, and /etc/netns/NAME over /etc.
///
/// $NETNS is the namespace, for a prompt of your own. $PS1 begins with it, which counts
/// unless a profile sets another; the bash of Debian and Ubuntu shows $debian_chroot, which
/// is set too unless it is already.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  netns-exec shell blue
  netns-exec shell pid:4711         where that process is

Exit status:
  that of the shell; 125 when netns-exec itself failed, 126 and 127 when there is no such
  shell or it cannot be executed")]
pub(crate) struct Args {
    /// The namespace: a NAME, a PATH (anything with a slash), or pid:N
    #[arg(value_name = "NS", add = ArgValueCompleter::new(netns_args))]
    netns: NetnsArg,

    #[command(flatten)]
    view: ViewArgs,
}

pub(crate) fn run(args: Args) -> Result<ExitCode, Failure> {
    start(args).map_err(|failure| match failure.exit_status() {
        ..FAILED => failure.status(FAILED),
        _ => failure,
    })
}

fn start(args: Args) -> Result<ExitCode, Failure> {
    let inherited = Inherited::read()
        .map_err(|error| Failure::io("cannot read signal dispositions and limits", error))?;
    let netns = args.netns.open()?;
    netns.check_enter()?;
    let shell = shell();
    // How login(1) tells a shell that it is the first one.
    let mut name = OsString::from("-");
    name.push(Path::new(&shell).file_name().unwrap_or(&shell));
    let label = args.netns.to_os_string();
    let shown = for_a_prompt(&label.to_string_lossy());
    let mut command = Command::new(&shell);
    command.arg0(name).env("NETNS", &label);
    let mut prompt = OsString::from(format!("({shown}) "));
    prompt.push(env::var_os("PS1").unwrap_or_else(|| "$ ".into()));
    command.env("PS1", prompt);
    if env::var_os("debian_chroot").is_none_or(|chroot| chroot.is_empty()) {
        command.env("debian_chroot", shown);
    }
    Err(become_command(command, &netns, args.view, inherited))
}

fn shell() -> OsString {
    let told = env::var_os("SHELL").filter(|shell| !shell.is_empty());
    let of_account = || {
        let user = User::from_uid(getuid()).ok().flatten()?;
        Some(user.shell.into_os_string()).filter(|shell| !shell.is_empty())
    };
    (told.or_else(of_account)).unwrap_or_else(|| "/bin/sh".into())
}

/// Shells execute what stands in a prompt: a name may be any bytes.
fn for_a_prompt(name: &str) -> String {
    let harmless = |c: char| c.is_alphanumeric() || "-_.:@+/".contains(c);
    name.chars()
        .map(|c| if harmless(c) { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_in_a_prompt_is_not_executed() {
        assert_eq!(for_a_prompt("blue-1.0"), "blue-1.0");
        assert_eq!(for_a_prompt("größe"), "größe");
        assert_eq!(for_a_prompt("$(reboot)`x`\\u\n"), "__reboot__x__u_");
    }
}
