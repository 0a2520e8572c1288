//! What an audit finds by serde: as the command prints it.

use netns_exec::audit::{Process, holders, namespaces};
use netns_exec::{Executor, Netns};
use netns_exec_tests::{TempNetns, tid};
use serde_json::{Value, json, to_value};

/// The entry of `list` with this in it.
fn with<'a>(list: &'a Value, key: &str, value: &Value) -> &'a Value {
    let mut entries = list.as_array().expect("an array").iter();
    let found = entries.find(|entry| entry[key] == *value);
    found.unwrap_or_else(|| panic!("no {key} {value} in {list:#}"))
}

#[test]
fn process_tells_each_of_its_threads() {
    let netns = TempNetns::new();
    let executor = Executor::new().unwrap();
    let worker = executor.run(netns.netns(), tid).unwrap();
    let process = to_value(Process::this().unwrap()).unwrap();
    assert_eq!(process["pid"], std::process::id());
    assert!(process["name"].is_string());
    assert_eq!(process["home"], json!(Netns::current().unwrap().id()));
    let thread = with(&process["threads"], "tid", &json!(worker));
    let name = thread["name"].as_str().expect("a name");
    let expected = json!({
        "tid": worker,
        "name": name,
        "netns_id": netns.netns().id(),
        "label": netns.name(),
        "verdict": "worker",
        "seems_child_of": null,
        "origin": null,
    });
    assert_eq!(*thread, expected);
    let main = with(&process["threads"], "tid", &process["pid"]);
    assert_eq!(main["verdict"], "home");
}

#[test]
fn holder_has_what_it_holds_beside_its_process() {
    let netns = TempNetns::new();
    let executor = Executor::new().unwrap();
    let (worker, _socket) = executor
        .run(netns.netns(), || {
            (
                tid(),
                std::net::UdpSocket::bind("0.0.0.0:0").expect("any port"),
            )
        })
        .unwrap();
    let found = to_value(holders(netns.netns()).unwrap()).unwrap();
    assert!(found["unreadable"].is_array());
    let thread = with(&found["holders"], "tid", &json!(worker));
    assert_eq!(
        (&thread["kind"], &thread["pid"]),
        (&json!("thread"), &json!(std::process::id()))
    );
    assert!(thread["process"].is_string());
    let mount = with(&found["holders"], "kind", &json!("mount"));
    assert!(
        mount["path"]
            .as_str()
            .expect("a path")
            .ends_with(netns.name())
    );
    for kind in ["fd", "socket"] {
        assert!(with(&found["holders"], "kind", &json!(kind))["fd"].is_u64());
    }

    let all = to_value(namespaces().unwrap()).unwrap();
    let namespace = with(&all["namespaces"], "id", &json!(netns.netns().id()));
    assert_eq!(namespace["names"], json!([netns.name()]));
    assert!(namespace["inode"].is_u64() && all["unreadable"].is_array());
    with(&namespace["holders"], "tid", &json!(worker));
}
