//! What forbids a user namespace, and what allows it.

use std::fs;

use crate::error::Error;
use crate::sys::caps;
use crate::sys::userns::{EntryStep, Failed};

/// What the system says of its own accord. The errno of unshare(2) is the same for
/// nearly all of it.
#[derive(Clone, Debug, Default)]
struct System {
    /// Whether there are user namespaces at all: `/proc/self/ns/user`.
    has_user_namespaces: bool,
    /// The sysctl `user.max_user_namespaces`, and those of the other kinds that were
    /// asked for: the first one that is 0.
    none_allowed: Option<&'static str>,
    /// The sysctl `kernel.unprivileged_userns_clone` of Debian's kernels is 0.
    debian_forbids: bool,
    /// The sysctl `kernel.apparmor_restrict_unprivileged_userns` of Ubuntu's is not 0.
    apparmor_restricts: bool,
    /// A seccomp filter is on this thread.
    has_seccomp: bool,
    /// This is uid 0 without `CAP_SETFCAP`.
    is_root_that_may_not_map_itself: bool,
}

impl System {
    fn read() -> System {
        let number = |file: &str| -> Option<u64> {
            let text = fs::read_to_string(format!("/proc/sys/{file}")).ok()?;
            text.trim().parse().ok()
        };
        let limits = [
            "user.max_user_namespaces",
            "user.max_mnt_namespaces",
            "user.max_net_namespaces",
        ];
        let is_zero = |limit: &&str| number(&limit.replacen('.', "/", 1)) == Some(0);
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let seccomp = (status.lines()).find_map(|line| line.strip_prefix("Seccomp:"));
        System {
            has_user_namespaces: fs::symlink_metadata("/proc/self/ns/user").is_ok(),
            none_allowed: limits.into_iter().find(is_zero),
            debian_forbids: number("kernel/unprivileged_userns_clone") == Some(0),
            apparmor_restricts: number("kernel/apparmor_restrict_unprivileged_userns")
                .is_some_and(|value| value != 0),
            has_seccomp: seccomp.is_some_and(|mode| mode.trim() != "0"),
            is_root_that_may_not_map_itself: nix::unistd::geteuid().is_root()
                && caps::effective().is_ok_and(|set| set & caps::SETFCAP == 0),
        }
    }

    /// What forbids the step, and the cure; the most certain first.
    fn explain(&self, step: EntryStep, errno: i32) -> String {
        let denied = matches!(errno, libc::EPERM | libc::EACCES);
        match step {
            EntryStep::Unshare if errno == libc::EINVAL && !self.has_user_namespaces => {
                "this kernel has no user namespaces, or /proc is not mounted: \
                 CONFIG_USER_NS=y"
                    .to_owned()
            }
            EntryStep::Unshare if errno == libc::EINVAL => {
                "a process with threads cannot: call it first in main".to_owned()
            }
            EntryStep::Unshare if matches!(errno, libc::ENOSPC | libc::EUSERS) => {
                match self.none_allowed {
                    Some(limit) => format!(
                        "the sysctl {limit} is 0, which allows none; as root: sysctl -w {limit}=10000, \
                     and a line of that in /etc/sysctl.d to keep it"
                    ),
                    None => "a limit is reached: the sysctls user.max_user_namespaces, \
                     user.max_mnt_namespaces and user.max_net_namespaces, of this user namespace \
                     and of each one that it is in, or 32 user namespaces in each other"
                        .to_owned(),
                }
            }
            EntryStep::Unshare if denied && self.debian_forbids => {
                "the sysctl kernel.unprivileged_userns_clone is 0; as root: sysctl -w \
                 kernel.unprivileged_userns_clone=1, and a line of that in /etc/sysctl.d to keep it"
                    .to_owned()
            }
            EntryStep::Unshare | EntryStep::Run if denied && self.has_seccomp => {
                "a seccomp filter is on this process, as in most containers, and refuses it: \
                 start the container with a profile that allows unshare(2) and mount(2) \
                 (docker run --security-opt seccomp=unconfined), or with --privileged"
                    .to_owned()
            }
            _ if denied && self.apparmor_restricts => {
                "AppArmor takes the capabilities away that come with it; as root: sysctl -w \
                 kernel.apparmor_restrict_unprivileged_userns=0, or give this program a profile \
                 that has the rule `userns,`"
                    .to_owned()
            }
            EntryStep::Run if denied => {
                "a user namespace can be made, and nothing be mounted in it: a \
                 security module forbids it, or a container's runtime"
                    .to_owned()
            }
            EntryStep::Unshare if denied => {
                "what refuses it is a security module (SELinux: the boolean or the rule for \
                 user_namespace create), a root directory of its own (chroot(2)), or a user that \
                 the surrounding user namespace does not map (/etc/subuid, newuidmap(1))"
                    .to_owned()
            }
            EntryStep::MapUser if denied && self.is_root_that_may_not_map_itself => {
                "uid 0 without CAP_SETFCAP may not be uid 0 of a user namespace: run it as \
                 another user, or with CAP_SETFCAP"
                    .to_owned()
            }
            EntryStep::DenySetgroups | EntryStep::MapUser | EntryStep::MapGroup if denied => {
                "the user or the group of this process is not mapped in the user namespace that \
                 it is in, whose maker has to map more ids, from /etc/subuid and /etc/subgid \
                 (newuidmap(1)); or a security module forbids it"
                    .to_owned()
            }
            EntryStep::Exec if errno == libc::ELOOP => {
                "the program was executed again, and did not run this library's function before \
                 main: is it linked without .init_array?"
                    .to_owned()
            }
            EntryStep::Exec => {
                "it has threads, so it has to execute itself once more; call this first \
                 in main, before the first thread"
                    .to_owned()
            }
            _ => "run it as root, or with CAP_SYS_ADMIN".to_owned(),
        }
    }
}

/// The one error of this module.
pub(super) fn failed(Failed { step, cause }: Failed) -> Error {
    let attempt = match step {
        EntryStep::Unshare => "cannot enter a user namespace",
        EntryStep::DenySetgroups => {
            "cannot enter a user namespace: cannot write /proc/self/setgroups"
        }
        EntryStep::MapUser => "cannot enter a user namespace: cannot write /proc/self/uid_map",
        EntryStep::MapGroup => "cannot enter a user namespace: cannot write /proc/self/gid_map",
        EntryStep::Run => "cannot enter a user namespace: cannot mount a /run/netns there",
        EntryStep::Loopback => "cannot enter a user namespace: cannot bring the loopback up there",
        EntryStep::Try => "cannot enter a user namespace: cannot try it in a copy of this process",
        EntryStep::Exec => "cannot enter a user namespace: cannot execute this program once more",
    };
    let hint = System::read().explain(step, cause.raw_os_error().unwrap_or(0));
    Error::kernel(attempt, cause).hint(format!("{hint}; or run it as root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> System {
        System {
            has_user_namespaces: true,
            ..System::default()
        }
    }

    #[track_caller]
    fn assert_says(system: &System, step: EntryStep, errno: i32, words: &[&str]) {
        let text = system.explain(step, errno);
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    }

    #[test]
    fn limit_of_none_is_named_and_told_from_a_limit_that_is_reached() {
        let system = System {
            none_allowed: Some("user.max_mnt_namespaces"),
            ..plain()
        };
        let words = ["user.max_mnt_namespaces is 0", "sysctl -w user.max_mnt"];
        assert_says(&system, EntryStep::Unshare, libc::ENOSPC, &words);
        assert_says(&plain(), EntryStep::Unshare, libc::ENOSPC, &["is reached"]);
        assert_says(&plain(), EntryStep::Unshare, libc::EUSERS, &["32"]);
    }

    #[test]
    fn debians_sysctl_is_named_before_what_may_be_there_beside_it() {
        let system = System {
            debian_forbids: true,
            has_seccomp: true,
            apparmor_restricts: true,
            ..plain()
        };
        let words = ["kernel.unprivileged_userns_clone=1"];
        assert_says(&system, EntryStep::Unshare, libc::EPERM, &words);
    }

    #[test]
    fn seccomp_is_named_where_a_filter_is_there() {
        let system = System {
            has_seccomp: true,
            ..plain()
        };
        let words = ["seccomp=unconfined"];
        assert_says(&system, EntryStep::Unshare, libc::EPERM, &words);
        assert_says(&system, EntryStep::Run, libc::EPERM, &words);
        let words = ["security module", "chroot", "subuid"];
        assert_says(&plain(), EntryStep::Unshare, libc::EPERM, &words);
    }

    #[test]
    fn apparmor_is_named_at_each_step_that_it_refuses() {
        let system = System {
            apparmor_restricts: true,
            ..plain()
        };
        for step in [
            EntryStep::Unshare,
            EntryStep::MapUser,
            EntryStep::MapGroup,
            EntryStep::Run,
        ] {
            let words = ["apparmor_restrict_unprivileged_userns=0"];
            assert_says(&system, step, libc::EPERM, &words);
            assert_says(&system, step, libc::EACCES, &words);
        }
    }

    #[test]
    fn ids_that_are_not_mapped_are_said_to_be() {
        for step in [EntryStep::MapUser, EntryStep::MapGroup] {
            assert_says(&plain(), step, libc::EPERM, &["/etc/subuid", "newuidmap"]);
        }
        let system = System {
            is_root_that_may_not_map_itself: true,
            ..plain()
        };
        assert_says(&system, EntryStep::MapUser, libc::EPERM, &["CAP_SETFCAP"]);
    }
}
