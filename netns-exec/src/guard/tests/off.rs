//! What is still checked when nothing is guarded.

use super::*;

#[test]
fn escaped_thread_is_found() {
    let policy = Policy::prepare(Guard::Off).expect("nothing is needed");
    in_new_netns(|registration| {
        let mut guard = policy.install(registration).expect("procfs");
        guard.before_job();
        assert!(matches!(guard.after_job(), ThreadState::Clean));
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        assert!(matches!(guard.after_job(), ThreadState::Escaped));
    });
}

#[test]
fn signals_are_blocked_again_before_the_worker_sleeps() {
    let policy = Policy::prepare(Guard::Off).expect("nothing is needed");
    in_new_netns(|registration| {
        let mut guard = policy.install(registration).expect("procfs");
        let mut some = SigSet::empty();
        some.add(Signal::SIGUSR1);
        some.thread_unblock().expect("a valid mask");
        assert!(matches!(guard.before_park(), ThreadState::Clean));
        let mask = SigSet::empty()
            .thread_swap_mask(SigmaskHow::SIG_BLOCK)
            .expect("a valid mask");
        assert!(mask.contains(Signal::SIGUSR1));
        assert!(mask.contains(Signal::SIGTERM));
    });
}
