//! Counts that belong to the whole process, so that nothing else may run in it.

use netns_exec::Netns;
use netns_exec_tests::{TempName, eventually, fds_of_this_process, threads_of_this_process};

netns_exec::rootless::test_harness!(own_net);

#[test]
fn thousand_cycles_leave_fds_and_threads_as_they_were() {
    let name = TempName::new();
    let cycle = || {
        let made = Netns::create(&name).unwrap();
        let opened = Netns::open(&name).unwrap();
        assert_eq!(made, opened);
        made.check_enter().unwrap();
        Netns::delete(&name).unwrap();
        let weak = made.downgrade();
        drop((made, opened));
        assert_eq!(weak.upgrade(), None);
        // The ways that fail have descriptors to close, too.
        Netns::open(&name).unwrap_err();
        Netns::delete(&name).unwrap_err();
        Netns::from_path("/").unwrap_err();
        Netns::from_pid(u32::MAX).unwrap_err();
    };
    // The first one starts the home thread, which stays.
    cycle();
    let before = (fds_of_this_process(), threads_of_this_process());

    for _ in 0..1000 {
        cycle();
    }

    // The watch has a descriptor of its own while it looks; a thread that was joined is
    // listed a moment longer.
    eventually("all is as it was", || {
        (fds_of_this_process(), threads_of_this_process()) == before
    });
}
