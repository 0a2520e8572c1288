//! Completions and manual pages.

use std::env;
use std::fs;
use std::process::Command;

use netns_exec_tests::{TempNetns, unique_name};

use super::{PROGRAM, assert_fails, output, text};

/// What bash makes of a command line, with the cursor behind its last word.
fn completed(line: &[&str]) -> Vec<String> {
    let path = env::temp_dir().join(unique_name());
    fs::write(&path, output(&["completions", "bash"]).stdout).expect("a file of our own");
    let folder = std::path::Path::new(PROGRAM).parent().expect("it has one");
    let words = line.iter().map(|word| format!("'{word}'"));
    let script = format!(
        "PATH={}:$PATH; . {}; COMP_WORDS=({}); COMP_CWORD={}; COMP_TYPE=9; \
         $(complete -p netns-exec | grep -o '_[^ ]*') netns-exec '{}' x; \
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        folder.display(),
        path.display(),
        words.collect::<Vec<_>>().join(" "),
        line.len() - 1,
        line.last().expect("a word"),
    );
    let shown = Command::new("bash").args(["-c", &script]).output();
    fs::remove_file(&path).expect("own file");
    let shown = shown.expect("bash");
    let words = text(&shown.stdout).lines();
    words.map(|word| word.trim_end().to_owned()).collect()
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = output(&["completions", shell]);
        assert!(script.status.success());
        assert!(text(&script.stdout).contains("netns-exec"), "{shell}");
    }
    assert_eq!(completed(&["netns-exec", "dem"]), ["demo"]);
    let words = completed(&["netns-exec", ""]);
    for subcommand in ["create", "delete", "shell", "monitor"] {
        assert!(words.iter().any(|word| word == subcommand), "{words:?}");
    }
    assert!(completed(&["netns-exec", "exec", "--no"]).contains(&"--no-view".to_owned()));
}

#[test]
fn completions_know_the_names_that_there_are() {
    let blue = TempNetns::new();
    let beginning = &blue.name()[..blue.name().len() - 1];
    for subcommand in ["exec", "shell", "pids", "delete", "del"] {
        let words = completed(&["netns-exec", subcommand, beginning]);
        assert!(
            words.iter().any(|word| word == blue.name()),
            "{subcommand}: {words:?}"
        );
    }
    // A second one, after the first.
    let words = completed(&["netns-exec", "exec", "red", beginning]);
    assert!(words.iter().any(|word| word == blue.name()), "{words:?}");
    // A path is completed as one.
    let words = completed(&["netns-exec", "exec", "/proc/self/ns/ne"]);
    assert_eq!(words, ["/proc/self/ns/net"]);
}

#[test]
fn a_variable_of_another_program_changes_nothing() {
    let shown = Command::new(PROGRAM)
        .args(["completions", "bash"])
        .env("COMPLETE", "bash")
        .output()
        .expect("the program was built");
    assert!(text(&shown.stdout).contains("complete -o"));
    let shown = Command::new(PROGRAM)
        .env("NETNS_EXEC_COMPLETE", "tcsh")
        .output()
        .expect("the program was built");
    assert_eq!(shown.status.code(), Some(2));
    assert!(
        text(&shown.stderr).starts_with("netns-exec: "),
        "{}",
        text(&shown.stderr)
    );
}

#[test]
fn there_is_a_manual_page_for_every_subcommand() {
    let dir = env::temp_dir().join(unique_name());
    let path = dir.join("deep").display().to_string();
    let shown = output(&["man", "--dir", &path]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let help = output(&["--help"]);
    let subcommands = (text(&help.stdout).lines())
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|subcommand| *subcommand != "help");
    let mut count = 1;
    for subcommand in subcommands {
        let page = format!("{path}/netns-exec-{subcommand}.1");
        let page = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(
            page.contains(".TH") && page.contains(".SH SYNOPSIS"),
            "{page}"
        );
        count += 1;
    }
    assert_eq!(fs::read_dir(&path).expect("there").count(), count);
    let first = output(&["man"]);
    assert_eq!(
        text(&first.stdout),
        fs::read_to_string(format!("{path}/netns-exec.1")).expect("a page")
    );
    fs::remove_dir_all(&dir).expect("our own");
}

#[test]
fn folder_that_cannot_be_made_is_named() {
    let shown = output(&["man", "--dir", "/etc/passwd/man1"]);
    assert_fails(
        &shown,
        2,
        &["cannot make /etc/passwd/man1", "not a directory"],
    );
}
