//! What a thread that keeps `CAP_SYS_ADMIN` cannot do all the same.

use super::*;
use crate::guard::seal::Seal;

#[test]
fn thread_with_the_capability_can_neither_move_nor_breed_counted_or_not() {
    let elsewhere = in_new_netns(|_| Netns::current().expect("a namespace"));
    for counts in [true, false] {
        let seal = Seal::keeping_admin().expect("root can seal");
        let seal = match counts {
            true => seal,
            false => seal.uncounted(),
        };
        in_new_netns(|_registration| {
            let _sealed = seal.install().expect("what was tried works");
            assert!(sys::caps::has_sys_admin().expect("capget"));
            let refused = |result: nix::Result<()>| assert_eq!(result, Err(Errno::EPERM));
            refused(nix::sched::setns(&elsewhere, CloneFlags::CLONE_NEWNET));
            refused(nix::sched::setns(&elsewhere, CloneFlags::empty()));
            refused(unshare(CloneFlags::CLONE_NEWNET));
            refused(unshare(CloneFlags::CLONE_NEWNS));
            refused(unshare(CloneFlags::CLONE_FILES));
            assert_eq!(unshare(CloneFlags::CLONE_NEWUSER), Err(Errno::EINVAL));
            assert_eq!(refusal(), Some(libc::EPERM));
        });
    }
}
