//! What may import what.

use std::collections::{BTreeMap, BTreeSet};

use crate::modules::{Modules, begins};
use crate::source::{Offence, Source};

/// The library's modules from the top down. A module uses rows below its own, and itself:
/// what is not listed belongs to the longest listed path that it begins with.
const ROWS: &[&[&str]] = &[
    &["fuzz", "private", "serialize", "unwind", "rootless"],
    &["ports", "net", "process"],
    &["executor"],
    &["executor::futures"],
    &[
        "executor::apart",
        "executor::broadcast",
        "executor::pinned",
        "executor::scope",
    ],
    &["executor::abort"],
    &["executor::handle", "executor::owner"],
    &["executor::awaited", "executor::future"],
    &["executor::submit"],
    &["executor::worker"],
    &["executor::current", "executor::lost"],
    &["executor::birth"],
    &["executor::registry"],
    &["executor::group"],
    &["executor::pool"],
    &["executor::queue"],
    &[
        "executor::spare",
        "executor::stats",
        "executor::hooks",
        "executor::stop",
    ],
    &["executor::crowd", "executor::event", "executor::wakers"],
    &["handoff"],
    &["handoff::scope"],
    &["handoff::broadcast", "handoff::future", "handoff::batch"],
    &["handoff::lane", "handoff::task"],
    &["handoff::handle"],
    &["handoff::counted", "handoff::job"],
    &["handoff::outcome", "handoff::latch"],
    &["handoff::at", "handoff::turns"],
    &["handoff::pace"],
    &["handoff::first_look"],
    &["guard", "audit", "view"],
    &["netns"],
    &["bell"],
    &["home"],
    &["netns::id"],
    &["error", "sync"],
    &["payload", "refused", "sys"],
];

/// May look anywhere: the crate's face, and the models of what is beneath it.
const FREE: &[&str] = &["", "models"];

/// The row and the unit of a module of the library.
fn row_of(module: &str) -> Option<(usize, &'static str)> {
    let units = (0..)
        .zip(ROWS)
        .flat_map(|(row, units)| units.iter().map(move |unit| (row, *unit)));
    units
        .filter(|(_, unit)| begins(module, unit))
        .max_by_key(|(_, unit)| unit.len())
}

pub(crate) fn imports_run_downwards(tree: &[Source]) -> Vec<Offence> {
    let modules = Modules::of(tree, "netns-exec/src/");
    let free = |module: &str| {
        FREE.iter()
            .any(|unit| module == *unit || !unit.is_empty() && begins(module, unit))
    };
    let mut found = Vec::new();
    for (module, source) in &modules.sources {
        if !free(module) && modules.ships(module) && row_of(module).is_none() {
            found.push(source.offence(
                1,
                format!("`{module}` is in no row; add it to ROWS and to the layout"),
            ));
        }
    }
    for (module, used, target) in modules.edges().filter(|(module, ..)| !free(module)) {
        // A folder's face gives on what its files define.
        let face = used.given_on.is_some() && begins(&target, module);
        let (Some((row, unit)), Some((below, other))) = (row_of(module), row_of(&target)) else {
            continue;
        };
        if unit != other && below <= row && !face {
            let what = format!(
                "`{unit}` uses `{}`, and `{other}` is not in a row below it; move what both need down, or pass it in",
                used.path.join("::"),
            );
            found.push(modules.sources[module].offence(used.line, what));
        }
    }
    found
}

pub(crate) fn no_file_is_in_a_circle(tree: &[Source]) -> Vec<Offence> {
    let crates = [
        "netns-exec/src/",
        "netns-exec-cli/src/",
        "netns-exec-lab/src/",
        "netns-exec-macros/src/",
        "benches/src/",
        "benches/measure/src/",
    ];
    crates
        .iter()
        .flat_map(|folder| circles_of(&Modules::of(tree, folder)))
        .collect()
}

fn circles_of(modules: &Modules<'_>) -> Vec<Offence> {
    let mut graph: BTreeMap<&str, BTreeMap<String, usize>> = BTreeMap::new();
    for (module, used, target) in modules.edges() {
        // A folder's mod.rs uses its files, and these what it defines.
        let face = begins(&target, module) || module.is_empty();
        if !face && used.given_on.is_none() && modules.ships(&target) {
            graph
                .entry(module)
                .or_default()
                .entry(target)
                .or_insert(used.line);
        }
    }
    let reaches = |from: &str, to: &str| {
        let (mut seen, mut ahead) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(module) = ahead.pop() {
            if module == to {
                return true;
            }
            if seen.insert(module.clone()) {
                ahead.extend(
                    graph
                        .get(module.as_str())
                        .into_iter()
                        .flat_map(BTreeMap::keys)
                        .cloned(),
                );
            }
        }
        false
    };
    let mut found = Vec::new();
    for (module, targets) in &graph {
        for (target, line) in targets.iter().filter(|(target, _)| reaches(target, module)) {
            let what = format!(
                "`{module}` imports `{target}`, which imports it again; cut one of the two ways"
            );
            found.push(modules.sources[*module].offence(*line, what));
        }
    }
    found
}

#[cfg(test)]
mod broken {
    use super::*;
    use crate::source::assert_finds;

    const SYS: (&str, &str) = ("netns-exec/src/sys/mod.rs", "pub(crate) fn tid() {}");

    #[test]
    fn import_of_a_row_above_is_found_however_it_is_written() {
        let home = "use crate::{\n    sys,\n    executor::{self as _, Executor},\n};\n\
                    fn a() { crate::executor::b(); }\nfn c() { println!(\"{}\", super::executor::d()); }\n\
                    mod inner { use super::super::executor; }\n";
        assert_finds(
            imports_run_downwards,
            &[
                SYS,
                ("netns-exec/src/home/mod.rs", home),
                ("netns-exec/src/executor/mod.rs", "pub struct Executor;"),
            ],
            &[
                ("netns-exec/src/home/mod.rs:3", "`executor`"),
                ("netns-exec/src/home/mod.rs:3", "Executor"),
                ("netns-exec/src/home/mod.rs:5", "executor::b"),
                ("netns-exec/src/home/mod.rs:6", "executor::d"),
                ("netns-exec/src/home/mod.rs:7", "`executor`"),
            ],
        );
    }

    #[test]
    fn import_through_another_module_is_one_of_what_it_gives_on() {
        assert_finds(
            imports_run_downwards,
            &[
                ("netns-exec/src/lib.rs", "mod netns;\npub use netns::Netns;"),
                (
                    "netns-exec/src/netns/mod.rs",
                    "mod handle;\nmod id;\npub use handle::Netns;\npub use id::NetnsId;",
                ),
                (
                    "netns-exec/src/netns/handle.rs",
                    "use super::NetnsId;\npub struct Netns;",
                ),
                ("netns-exec/src/netns/id.rs", "pub struct NetnsId;"),
                (
                    "netns-exec/src/home/mod.rs",
                    "use crate::netns::NetnsId;\nuse crate::Netns;",
                ),
            ],
            &[(
                "netns-exec/src/home/mod.rs:2",
                "`home` uses `Netns`, and `netns`",
            )],
        );
    }

    #[test]
    fn a_units_neighbour_in_its_row_is_not_below_it() {
        assert_finds(
            imports_run_downwards,
            &[
                ("netns-exec/src/process.rs", "use crate::ports;"),
                ("netns-exec/src/ports/mod.rs", ""),
            ],
            &[("netns-exec/src/process.rs:1", "ports")],
        );
    }

    #[test]
    fn inside_the_executor_and_the_handoff_rows_hold_too() {
        assert_finds(
            imports_run_downwards,
            &[
                (
                    "netns-exec/src/executor/group.rs",
                    "use super::registry::Registry;",
                ),
                (
                    "netns-exec/src/executor/registry.rs",
                    "use super::group::Group;",
                ),
                ("netns-exec/src/handoff/latch.rs", "use super::job::Job;"),
                ("netns-exec/src/handoff/job.rs", "use super::latch::Latch;"),
            ],
            &[
                ("netns-exec/src/executor/group.rs:1", "executor::registry"),
                ("netns-exec/src/handoff/latch.rs:1", "handoff::job"),
            ],
        );
    }

    #[test]
    fn file_in_no_row_is_found() {
        assert_finds(
            imports_run_downwards,
            &[("netns-exec/src/util.rs", "")],
            &[("netns-exec/src/util.rs:1", "no row")],
        );
    }

    #[test]
    fn tests_and_models_look_anywhere() {
        let home = "#[cfg(test)]\nmod tests { use crate::executor; }\n#[cfg(test)]\nmod far;\n\
                    #[cfg(all(test, loom))]\nuse crate::executor;\n";
        assert_finds(
            imports_run_downwards,
            &[
                ("netns-exec/src/home/mod.rs", home),
                ("netns-exec/src/home/far.rs", "use crate::executor;"),
                ("netns-exec/src/models/job.rs", "use crate::executor;"),
                ("netns-exec/src/executor/mod.rs", ""),
            ],
            &[],
        );
    }

    #[test]
    fn circle_of_three_files_is_found_and_a_face_is_none() {
        assert_finds(
            no_file_is_in_a_circle,
            &[
                (
                    "benches/src/lib.rs",
                    "mod a;\nmod b;\nmod c;\npub use a::A;",
                ),
                ("benches/src/a.rs", "use crate::b::B;\npub struct A;"),
                ("benches/src/b.rs", "\nuse crate::c::C;\npub struct B;"),
                ("benches/src/c.rs", "\n\nuse crate::A;\npub struct C;"),
            ],
            &[
                ("benches/src/a.rs:1", "`b`"),
                ("benches/src/b.rs:2", "`c`"),
                ("benches/src/c.rs:3", "`a`"),
            ],
        );
    }
}
