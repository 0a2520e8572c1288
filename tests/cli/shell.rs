//! `netns-exec shell`: a login shell in a namespace.

use std::io::Write;
use std::process::{Output, Stdio};

use netns_exec_tests::{TempNetns, netns_link_of, unique_name, within};

use super::exec_terminal::Terminal;
use super::{PROGRAM, Who, assert_fails, command, in_own_run, output, text};

/// Runs a shell with what it is to read.
fn shell(netns: &str, shell: &str, typed: &str) -> Output {
    let mut child = command(&["shell", netns])
        .env("SHELL", shell)
        .env_remove("PS1")
        .env_remove("debian_chroot")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program was built");
    let mut keys = child.stdin.take().expect("piped");
    keys.write_all(typed.as_bytes()).expect("a shell reads");
    drop(keys);
    within("a shell", move || child.wait_with_output().expect("output"))
}

#[test]
fn shell_is_a_login_shell_in_the_namespace_and_its_status_is_passed_on() {
    let blue = TempNetns::new();
    let typed = "readlink /proc/self/ns/net; echo $0; ls /sys/class/net; exit 7\n";
    let shown = shell(blue.name(), "/bin/sh", typed);
    let expected = format!("{}\n-sh\nlo\n", netns_link_of(&blue));
    assert_eq!(text(&shown.stdout), expected, "{}", text(&shown.stderr));
    assert_eq!(shown.status.code(), Some(7));
}

#[test]
fn prompt_variables_name_the_namespace() {
    let blue = TempNetns::new();
    // Not a shell: what it is given, before a profile has a say.
    let shown = shell(blue.name(), "/usr/bin/env", "");
    let said = text(&shown.stdout);
    for line in [
        format!("NETNS={}", blue.name()),
        format!("PS1=({}) $ ", blue.name()),
        format!("debian_chroot={}", blue.name()),
    ] {
        assert!(said.lines().any(|shown| shown == line), "no {line}: {said}");
    }
}

#[test]
fn name_in_a_prompt_is_not_executed() {
    let script = "ip netns add '$(reboot)' && SHELL=/usr/bin/env PS1='> ' \
         \"$0\" shell '$(reboot)' | grep -E '^(PS1|NETNS)=' | sort";
    let shown = in_own_run(Who::Root, script);
    let expected = "NETNS=$(reboot)\nPS1=(__reboot_) > \n";
    assert_eq!(text(&shown.stdout), expected);
}

#[test]
fn interactive_shell_has_the_terminal_and_shows_the_namespace() {
    let blue = TempNetns::new();
    // Where a profile sets no prompt of its own.
    let words = [
        "env",
        "SHELL=/bin/bash",
        "HOME=/nonexistent",
        PROGRAM,
        "shell",
        blue.name(),
    ];
    let mut terminal = Terminal::start(&words);
    terminal.press(b"PS1=\"[$NETNS] \"\n");
    terminal.wait_for(&format!("[{}] ", blue.name()), 1);
    terminal.press(b"test -t 0 && echo terminal: $((1 + 1)); exit 3\n");
    terminal.wait_for("terminal: 2", 1);
    assert_eq!(terminal.status(), Some(3), "{}", terminal.shown());
}

#[test]
fn ordinary_user_has_a_shell_with_the_view() {
    for who in [Who::Root, Who::OrdinaryUser] {
        let script = "ip netns add blue && mkdir -p /etc/netns/blue && \
             echo blue > /etc/netns/blue/hosts && \
             echo 'cat /etc/hosts; echo $NETNS' | SHELL=/bin/sh \"$0\" shell blue";
        let shown = in_own_run(who, script);
        assert_eq!(
            text(&shown.stdout),
            "blue\nblue\n",
            "{}",
            text(&shown.stderr)
        );
    }
}

#[test]
fn shell_of_the_account_is_taken_where_none_is_told() {
    let script = "ip netns add blue && echo 'root:x:0:0::/:/usr/bin/printenv' > /etc/passwd && \
         env -u SHELL \"$0\" shell blue | grep NETNS=";
    let shown = in_own_run(Who::Root, script);
    assert_eq!(
        text(&shown.stdout),
        "NETNS=blue\n",
        "{}",
        text(&shown.stderr)
    );
}

#[test]
fn status_tells_own_failures_from_those_of_the_shell() {
    let missing = unique_name();
    assert_fails(&output(&["shell", &missing]), 125, &[&missing]);
    assert_eq!(output(&["shell"]).status.code(), Some(125));
    let blue = TempNetns::new();
    assert_fails(
        &shell(blue.name(), "/no/such", ""),
        127,
        &["cannot execute"],
    );
    assert_fails(
        &shell(blue.name(), "/etc/passwd", ""),
        126,
        &["cannot execute"],
    );
}
