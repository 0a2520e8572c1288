//! The executor of the whole process, as the program wants it.

use std::sync::Arc;

use netns_exec::{Executor, Guard, in_netns};
use netns_exec_tests::{Alone, alone, fresh};

#[test]
fn global_executor_is_configured_once_before_its_first_use() {
    alone!(Alone::AsIs);
    let builder = || Executor::builder().guard(Guard::Detect).name_prefix("mine");
    let invalid = Executor::configure_global(builder().queue_depth(0));
    assert!(
        invalid.unwrap_err().is_invalid_input(),
        "and is not made by that"
    );
    let made = Executor::configure_global(builder()).unwrap();
    assert!(std::ptr::eq(made, Executor::global()));

    let again = Arc::new(());
    let captured = Arc::clone(&again);
    let late = builder().on_worker_stop(move |_| {
        let _ = &captured;
    });
    let error = Executor::configure_global(late).unwrap_err();
    assert!(error.is_already_exists(), "{error}");
    assert!(error.to_string().contains("global executor"), "{error}");
    assert_eq!(Arc::strong_count(&again), 1);

    #[in_netns(fresh)]
    fn thread_name() -> String {
        std::fs::read_to_string("/proc/thread-self/comm").unwrap()
    }
    assert!(thread_name().starts_with("mine:"));
    netns_exec::run(&fresh(), || ()).unwrap();
}

#[test]
fn global_executor_cannot_be_configured_after_its_first_use() {
    alone!(Alone::AsIs);
    assert_eq!(Executor::global().guard(), Guard::Seal);
    let late = Executor::configure_global(Executor::builder().guard(Guard::Off));
    assert!(late.unwrap_err().is_already_exists());
    assert_eq!(Executor::global().guard(), Guard::Seal);
}
