//! Memory, descriptors and threads after very many namespaces. Measured on the
//! whole process, so nothing else may run in it.
//!
//! `NETNS_EXEC_LONG=1` goes through 10,000 namespaces instead of 2,000.

use std::env;
use std::time::Duration;

use netns_exec::{Executor, Netns};
use netns_exec_tests::{
    eventually, fds_of_this_process, here, require_root, resident, threads_of_this_process,
};

netns_exec::rootless::test_harness!(own_net);

#[test]
fn namespaces_made_used_once_and_dropped_leave_memory_flat() {
    require_root();
    const BATCH: usize = 100;
    let total = if env::var_os("NETNS_EXEC_LONG").is_some() {
        10_000
    } else {
        2_000
    };
    // Nothing is retired: workers idle out, and take the namespace along.
    let executor = Executor::builder()
        .idle_timeout(Some(Duration::from_millis(1)))
        .build()
        .unwrap();
    let batch = || {
        let weak: Vec<_> = (0..BATCH)
            .map(|_| {
                let netns = Netns::new().unwrap();
                assert_eq!(executor.run(&netns, here).unwrap(), netns.id());
                netns.downgrade()
            })
            .collect();
        eventually("workers have idled out", || executor.stats().workers == 0);
        for weak in weak {
            eventually("the namespace is gone", || weak.upgrade().is_none());
        }
    };
    for _ in 0..4 {
        batch();
    }
    // The watch for deletions ends a moment after the last worker.
    let now = || (threads_of_this_process(), fds_of_this_process());
    let (before, base) = (resident(), now());
    for _ in 0..total / BATCH {
        batch();
    }
    eventually("threads and descriptors are as before", || {
        let now = now();
        now.0 <= base.0 && now.1 <= base.1
    });
    let grown = resident().saturating_sub(before);
    println!("{total} namespaces: {grown} bytes more than before");
    // Less than a page for each ten of them: nothing is kept of any.
    assert!(grown < total as u64 * 400, "{grown} bytes more than before");
    let stats = executor.stats();
    assert_eq!(stats.done as usize, total + 4 * BATCH);
    assert!(stats.per_netns.is_empty());
}
