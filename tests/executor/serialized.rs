//! Ids and figures by serde.

use netns_exec::{Executor, NetnsId};
use netns_exec_tests::{fresh, here};
use serde_json::{Value, from_value, json, to_value};

#[test]
fn id_is_a_number_and_is_read_back() {
    let netns = fresh();
    let written = to_value(netns.id()).unwrap();
    assert_eq!(written, json!(netns.id().as_u64()));
    assert_eq!(from_value::<NetnsId>(written).unwrap(), netns.id());
    for nonsense in [json!(-1), json!("blue"), Value::Null] {
        assert!(from_value::<NetnsId>(nonsense).is_err());
    }
}

#[test]
fn stats_have_each_figure_by_its_name() {
    let executor = Executor::new().unwrap();
    let netns = fresh();
    executor.run(&netns, here).unwrap();
    let stats = executor.stats();
    let part = &stats.per_netns[0];
    let expected = json!({
        "workers": stats.workers,
        "threads": stats.threads,
        "queued": stats.queued,
        "running": stats.running,
        "futures": stats.futures,
        "done": 1,
        "panicked": 0,
        "refused": 0,
        "per_netns": [{
            "id": netns.id(),
            "label": netns.label(),
            "workers": part.workers,
            "rung": part.rung,
            "queued": part.queued,
            "running": part.running,
            "futures": part.futures,
            "done": 1,
            "panicked": 0,
        }],
    });
    assert_eq!(to_value(&stats).unwrap(), expected);
}
