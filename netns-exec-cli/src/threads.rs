//! Where the threads of this process are.

use std::fs;
use std::path::Path;

use crate::failure::Failure;

/// Counts the threads outside the home namespace that are not workers.
pub(crate) fn strays() -> Result<usize, Failure> {
    let failed = |error| Failure::io("cannot read /proc/self/task", error);
    let home = fs::read_link("/proc/self/ns/net").map_err(failed)?;
    let mut strays = 0;
    for task in fs::read_dir("/proc/self/task").map_err(failed)? {
        let task = task.map_err(failed)?.path();
        // A thread that has ended meanwhile is nowhere.
        if let Ok(netns) = fs::read_link(task.join("ns/net"))
            && netns != home
            && !is_worker(&task)
        {
            strays += 1;
        }
    }
    Ok(strays)
}

fn is_worker(task: &Path) -> bool {
    fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("ns:"))
}
