//! The I/O scheduler of the disks that hold this machine's images, and of no others.

#![forbid(unsafe_code)]

use super::{HostChange, Planner};

const WHAT: &str = "host.io_scheduler";

pub(super) fn plan(planner: &mut Planner<'_>) {
    let Some(scheduler) = planner.word("io_scheduler") else {
        return;
    };
    let mut seen: Vec<String> = Vec::new();
    let mut nowhere: Vec<HostChange> = Vec::new();
    for image in &planner.machine.images {
        match planner.facts.disks_of(image) {
            Ok(disks) => seen.extend(disks),
            Err(why) => {
                let place = image.display().to_string();
                let mut change = planner.bare(WHAT, &place, None, scheduler.clone());
                change.skipped = Some(why);
                nowhere.push(change);
            }
        }
    }
    let mut disks: Vec<String> = Vec::new();
    for disk in seen {
        if !disks.contains(&disk) {
            disks.push(disk);
        }
    }
    if disks.is_empty() && nowhere.is_empty() {
        let mut change = planner.bare(WHAT, "/sys/block", None, scheduler.clone());
        change.skipped = Some("it has no images on this host".into());
        planner.push(change);
    }
    for disk in disks {
        let change = disk_change(planner, &disk, &scheduler);
        planner.push(change);
    }
    for change in nowhere {
        planner.push(change);
    }
}

fn disk_change(planner: &Planner<'_>, disk: &str, scheduler: &str) -> HostChange {
    let path = format!("/sys/block/{disk}/queue/scheduler");
    let mut change = planner.knob(WHAT, &path, scheduler.to_owned());
    let now = planner.text(&path).unwrap_or_default();
    // A disk that cannot have one says `none` alone (block/elevator.c).
    if now == "none" && scheduler != "none" {
        change.act = None;
        change.skipped = Some(format!("not offered: {now}"));
    }
    if change.act.is_none() && now.contains('[') && is_module(planner, scheduler) {
        let old = crate::tune::value(&now).to_owned();
        change.skipped = None;
        change.note = Some("the kernel loads its module for it, which stays".into());
        change.act = Some(crate::tune::Act::Write {
            path: path.into(),
            old,
            new: scheduler.to_owned(),
        });
    }
    change
}

/// Whether a scheduler that is not offered is a module of the running kernel, which loads it when it is asked for
/// (block/elevator.c, elv_iosched_load_module).
fn is_module(planner: &Planner<'_>, scheduler: &str) -> bool {
    let Some(release) = planner.text("/proc/sys/kernel/osrelease") else {
        return false;
    };
    let file = match scheduler {
        "kyber" => "kyber-iosched",
        other => other,
    };
    let loadable = |directory: &str, ending: &str| {
        let file = format!("{directory}/lib/modules/{release}/kernel/block/{file}.ko{ending}");
        planner.facts.exists(file.as_ref())
    };
    ["", "/usr"].iter().any(|dir| {
        ["", ".xz", ".zst", ".gz"]
            .iter()
            .any(|end| loadable(dir, end))
    })
}
