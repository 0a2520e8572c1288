//! `netns-exec exec` shows what `ip netns exec` shows.

use netns_exec_tests::TempNetns;

use super::{Who, assert_fails, in_own_run, output, text};

const BOTH: [Who; 2] = [Who::Root, Who::OrdinaryUser];

/// Makes `blue` with a hosts file of its own.
const BLUE: &str = "ip netns add blue && mkdir -p /etc/netns/blue \
     && echo '10.1.2.3 db.internal' > /etc/netns/blue/hosts && ";

/// Shows what is mounted, but for names of namespaces, which come and go, and a file.
const SEEN: &str = "'grep -v nsfs /proc/self/mountinfo; cat /etc/hosts'";

#[test]
fn command_sees_what_it_sees_under_ip_netns_exec() {
    const SHOW: &str = "cat /etc/hosts; ls /sys/class/net; cat /proc/net/dev | wc -l; \
         getent hosts db.internal";
    for who in BOTH {
        let script = format!(
            "{BLUE} ip netns exec blue sh -c '{SHOW}' > /run/ip; ip_status=$?; \
             \"$0\" exec blue -- sh -c '{SHOW}' > /run/ours; echo $? $ip_status; \
             diff /run/ip /run/ours && cat /run/ours"
        );
        let output = in_own_run(who, &script);
        let said = text(&output.stdout);
        assert!(
            said.starts_with("0 0\n10.1.2.3 db.internal\nlo\n"),
            "{who:?}: {said}"
        );
        assert_eq!(text(&output.stderr), "", "{who:?}");
    }
}

#[test]
fn what_is_mounted_below_sys_stays() {
    for who in BOTH {
        let script = format!(
            "{BLUE} ls /sys/fs/cgroup > /run/here; \"$0\" exec blue -- ls /sys/fs/cgroup \
             | diff - /run/here && test -s /run/here && echo same"
        );
        let output = in_own_run(who, &script);
        assert_eq!(text(&output.stdout), "same\n", "{}", text(&output.stderr));
    }
}

#[test]
fn no_view_leaves_the_mounts_alone() {
    for who in BOTH {
        let script = format!(
            "{BLUE} \"$0\" exec --no-view blue -- sh -c {SEEN} > /run/there; \
             sh -c {SEEN} | diff - /run/there && echo same"
        );
        let output = in_own_run(who, &script);
        assert_eq!(text(&output.stdout), "same\n", "{}", text(&output.stderr));
    }
}

#[test]
fn nothing_is_seen_outside_of_the_command() {
    for who in BOTH {
        let script = format!(
            "{BLUE} sh -c {SEEN} > /run/before; \
             \"$0\" exec blue -- true; \"$0\" exec blue --json -- true > /dev/null; \
             sh -c {SEEN} | diff /run/before - && echo same"
        );
        let output = in_own_run(who, &script);
        assert_eq!(text(&output.stdout), "same\n", "{}", text(&output.stderr));
    }
}

#[test]
fn every_namespace_of_several_has_its_own_view() {
    for who in BOTH {
        let script = format!(
            "{BLUE} ip netns add red && mkdir /etc/netns/red && echo red > /etc/netns/red/hosts && \
             \"$0\" exec blue red -- cat /etc/hosts | sort"
        );
        let output = in_own_run(who, &script);
        assert_eq!(
            text(&output.stdout),
            "blue: 10.1.2.3 db.internal\nred: red\n",
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn file_that_etc_has_no_place_for_is_named_and_only_refused_when_it_is_insisted_on() {
    for who in BOTH {
        let script = format!(
            "{BLUE} echo x > /etc/netns/blue/new && \"$0\" exec blue -- cat /etc/hosts; echo $?; \
             \"$0\" exec --view blue -- echo ran; echo $?; \
             \"$0\" exec --view --no-view blue -- echo ran; test -e /etc/new || echo none"
        );
        let output = in_own_run(who, &script);
        assert_eq!(
            text(&output.stdout),
            "10.1.2.3 db.internal\n0\n125\nran\nnone\n",
            "{}",
            text(&output.stderr)
        );
        let said: Vec<_> = text(&output.stderr).lines().collect();
        assert_eq!(said.len(), 2, "{said:?}");
        for line in &said {
            assert!(line.starts_with("netns-exec: cannot show"), "{line}");
            assert!(line.contains("as /etc/new: there is nothing"), "{line}");
        }
        assert!(said[1].contains("--no-view"), "{said:?}");
    }
}

#[test]
fn namespace_that_netns_exec_is_in_is_left_as_it_is() {
    let script = format!(
        "sh -c {SEEN} > /run/before; \"$0\" exec /proc/self/ns/net -- sh -c {SEEN} \
         | diff - /run/before && echo same; \
         \"$0\" exec --view /proc/self/ns/net -- sh -c {SEEN} | cmp -s - /run/before; echo $?"
    );
    for who in BOTH {
        let output = in_own_run(who, &script);
        assert_eq!(
            text(&output.stdout),
            "same\n1\n",
            "{}",
            text(&output.stderr)
        );
    }
}

/// A sysfs of the host's network namespace is not for root of a user namespace.
#[test]
fn view_that_the_kernel_refuses_names_what_was_refused_and_the_way_without() {
    let script = "exec unshare --user --map-root-user \"$0\" exec --view /proc/self/ns/net -- true";
    let refused = in_own_run(Who::Root, script);
    let parts = ["cannot mount sysfs on /sys", "not permitted", "--no-view"];
    assert_fails(&refused, 125, &parts);
    let supervised = script.replace("--view", "--view --json");
    let refused = in_own_run(Who::Root, &supervised);
    assert_eq!(refused.status.code(), Some(125));
    for part in parts {
        assert!(
            text(&refused.stderr).contains(part),
            "{}",
            text(&refused.stderr)
        );
    }
    let without = script.replace("--view", "--no-view");
    assert_eq!(in_own_run(Who::Root, &without).status.code(), Some(0));
}

#[test]
fn status_of_a_program_that_is_not_there_is_as_without_a_view() {
    let blue = TempNetns::new();
    for view in ["--view", "--no-view"] {
        let missing = output(&["exec", view, blue.name(), "--", "/no/such"]);
        assert_fails(&missing, 127, &["cannot execute `/no/such`"]);
        let not_one = output(&["exec", view, blue.name(), "--", "/etc/passwd"]);
        assert_fails(&not_one, 126, &["cannot execute `/etc/passwd`"]);
    }
}
