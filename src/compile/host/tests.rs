use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::compile::{Description, HostChange, HostPlan, compile, describe};
use crate::diag::Diagnostics;
use crate::facts::{FileInfo, FileKind, HostFacts, HostMemory};
use crate::scenario::{Input, Parsed, parse};
use crate::tune::{Act, UnitState};

const THP: &str = "/sys/kernel/mm/transparent_hugepage";
const KSM: &str = "/sys/kernel/mm/ksm";

/// A host with every knob.
fn host() -> HostFacts {
    let texts = [
        (format!("{THP}/enabled"), "always [madvise] never"),
        (
            format!("{THP}/shmem_enabled"),
            "always within_size advise [never] deny force",
        ),
        (
            format!("{THP}/defrag"),
            "always defer defer+madvise [madvise] never",
        ),
        (format!("{KSM}/run"), "0"),
        (format!("{KSM}/merge_across_nodes"), "1"),
        (format!("{KSM}/pages_shared"), "0"),
        (format!("{KSM}/pages_sharing"), "0"),
        ("/proc/sys/vm/swappiness".into(), "60"),
        ("/proc/sys/kernel/osrelease".into(), "6.1.0-41-amd64"),
        (
            "/sys/block/sda/queue/scheduler".into(),
            "[mq-deadline] none",
        ),
        (
            "/sys/block/nvme0n1/queue/scheduler".into(),
            "[none] mq-deadline kyber bfq",
        ),
        ("/sys/block/dm-9/queue/scheduler".into(), "none"),
    ];
    let disks = |names: &[&str]| Ok(names.iter().map(|n| (*n).to_owned()).collect());
    HostFacts {
        memory: Some(HostMemory {
            total: 16 << 30,
            available: 8 << 30,
        }),
        texts: texts.map(|(path, text)| (path.into(), text.into())).into(),
        disks: [
            ("/".into(), disks(&["sda"])),
            ("/fast".into(), disks(&["nvme0n1"])),
            ("/both".into(), disks(&["sda", "nvme0n1"])),
            ("/dm".into(), disks(&["dm-9"])),
            (
                "/tmp".into(),
                Err("/tmp is tmpfs (tmpfs), which is on no disk of this host".into()),
            ),
        ]
        .into(),
        ..HostFacts::default()
    }
}

fn with(more: &[(&str, &str)]) -> HostFacts {
    let mut facts = host();
    let more = more
        .iter()
        .map(|(path, text)| (path.into(), (*text).to_owned()));
    facts.texts.extend(more.collect::<BTreeMap<PathBuf, _>>());
    facts
}

fn parsed(text: &str) -> Parsed {
    parse(&Input {
        file: Some((Path::new("s.yaml"), text.as_bytes())),
        ..Input::default()
    })
}

#[track_caller]
fn described(facts: &HostFacts, text: &str) -> Description {
    describe(parsed(text), facts).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn plan(facts: &HostFacts, text: &str) -> HostPlan {
    described(facts, text).host
}

/// `what old → new`, with an exclamation mark where nothing does it, and why.
fn lines(plan: &HostPlan) -> Vec<String> {
    let line = |c: &HostChange| {
        let name = c.path.file_name().unwrap().to_string_lossy();
        let old = c.old.as_deref().unwrap_or("-");
        let act = if c.act.is_some() { "" } else { "!" };
        let why = c.skipped.as_ref().map(|w| format!(" ({w})"));
        format!("{act}{name} {old} → {}{}", c.new, why.unwrap_or_default())
    };
    plan.changes.iter().map(line).collect()
}

#[track_caller]
fn note_of(plan: &HostPlan, what: &str) -> String {
    let change = plan.changes.iter().rfind(|c| c.what == what).unwrap();
    change.note.clone().unwrap_or_default()
}

#[test]
fn each_kind_of_knob_says_what_does_it_or_why_nothing_does() {
    let text = "host: {thp: always, thp_shmem: never, thp_defrag: defer, swappiness: 120}\n";
    let plan_here = plan(&host(), text);
    assert_eq!(
        lines(&plan_here),
        [
            "enabled madvise → always",
            "shmem_enabled never → never (already so)",
            "defrag madvise → defer",
            "swappiness 60 → 120",
        ]
    );
    assert_eq!(
        note_of(&plan_here, "host.swappiness"),
        "more than 100 needs Linux 5.8"
    );
    let wanted = plan_here.wanted();
    assert_eq!(wanted.len(), 4, "what is so is held");
    assert_eq!(
        wanted[0].act,
        Act::Write {
            path: format!("{THP}/enabled").into(),
            old: "madvise".into(),
            new: "always".into(),
        }
    );
    assert!(!wanted[0].required);
    let old = with(&[(&format!("{THP}/defrag"), "always [madvise] never")]);
    let bare = HostFacts::default();
    assert_eq!(
        lines(&plan(&old, "host: {thp_defrag: defer}\n")),
        ["!defrag madvise → defer (not offered: always [madvise] never)"]
    );
    assert_eq!(
        lines(&plan(&bare, "host: {ksm: true}\n")),
        ["!run - → 1 (this host has no /sys/kernel/mm/ksm/run)"]
    );
    assert!(plan(&host(), "memory: 1G\n").changes.is_empty());
}

#[test]
fn huge_pages_of_a_memfd_have_a_knob_of_their_own() {
    let memfd = "memory: {source: memfd}\nhost: {thp: always}\n";
    let note = note_of(&plan(&host(), memfd), "host.thp");
    assert_eq!(
        note,
        "this machine's RAM is a memfd, for which host.thp_shmem decides: never now"
    );
    let private = "memory: {source: anonymous}\nhost: {thp: always}\n";
    assert_eq!(note_of(&plan(&host(), private), "host.thp"), "");
    let both = "memory: {source: memfd}\nhost: {thp: always, thp_shmem: advise}\n";
    assert_eq!(note_of(&plan(&host(), both), "host.thp"), "");
}

#[test]
fn pages_that_do_not_fit_apart_stay_merged() {
    let merged = |mib: u64| {
        with(&[
            (&format!("{KSM}/run"), "1"),
            (&format!("{KSM}/pages_shared"), "1"),
            (&format!("{KSM}/pages_sharing"), &(mib << 8).to_string()),
        ])
    };
    let apart = "host: {ksm: true, ksm_merge_across_nodes: false}\n";
    assert_eq!(
        lines(&plan(&host(), apart)),
        ["merge_across_nodes 1 → 0", "run 0 → 1"],
        "in the order that the kernel takes"
    );
    let fits = plan(&merged(8192), apart);
    assert_eq!(
        lines(&fits),
        ["merge_across_nodes 1 → 0", "run 1 → 1 (already so)"]
    );
    assert_eq!(
        note_of(&fits, "host.ksm_merge_across_nodes"),
        "merged pages are separated for it, which takes up to 8192 MiB"
    );
    assert_eq!(
        lines(&plan(&merged(8193), apart)),
        [
            "!merge_across_nodes 1 → 0 (it changes only while nothing is merged, and to separate what is takes 8193 \
             MiB, with 8192 MiB free)",
            "run 1 → 1 (already so)"
        ]
    );
    let so = "host: {ksm: true, ksm_merge_across_nodes: true}\n";
    assert_eq!(
        lines(&plan(&merged(8193), so)),
        [
            "merge_across_nodes 1 → 1 (already so)",
            "run 1 → 1 (already so)"
        ]
    );
}

#[test]
fn it_is_said_whose_memory_is_merged() {
    let note = |memory: &str| {
        let text = format!("memory: {memory}\nhost: {{ksm: true}}\n");
        note_of(&plan(&host(), &text), "host.ksm")
    };
    assert!(note("{source: memfd, access: shared}").contains("RAM is shared"));
    assert!(note("{nosharepages: true}").contains("does not take part"));
    assert!(note("1G").contains("under libvirt only"));
    assert_eq!(note("{source: anonymous}"), "");
    assert_eq!(
        note_of(&plan(&host(), "host: {ksm: false}\n"), "host.ksm"),
        ""
    );
}

#[test]
fn services_that_merge_are_started_and_stopped_with_it() {
    let unit = |name: &str| format!("/usr/lib/systemd/system/{name}");
    let mut facts = with(&[
        (&unit("ksm.service"), "[Unit]"),
        (&unit("ksmtuned.service"), "[Unit]"),
        ("/run/systemd/units/invocation:ksmtuned.service", "8f2e"),
    ]);
    let on = plan(&facts, "host: {ksm: true}\n");
    assert_eq!(
        lines(&on),
        [
            "!ksm.service stopped → started (systemd does not run here)",
            "run 0 → 1"
        ]
    );
    let directory = FileInfo {
        kind: FileKind::Directory,
        length: 0,
        writable: false,
    };
    facts
        .files
        .insert("/run/systemd/system".into(), Ok(directory));
    let on = plan(&facts, "host: {ksm: true}\n");
    assert_eq!(lines(&on), ["ksm.service stopped → started", "run 0 → 1"]);
    let of = |active| UnitState {
        active: Some(active),
        enabled: None,
    };
    assert_eq!(
        on.wanted()[0].act,
        Act::Unit {
            name: "ksm.service".into(),
            was: of(false),
            now: of(true),
        }
    );
    let off = plan(&facts, "host: {ksm: false}\n");
    assert_eq!(
        lines(&off),
        [
            "ksmtuned.service started → stopped",
            "ksm.service stopped → stopped (already so)",
            "run 0 → 0 (already so)"
        ]
    );
}

#[test]
fn only_disks_that_hold_images_get_a_scheduler() {
    let on = |disks: &str, scheduler: &str| {
        let text = format!("disks: {disks}\nhost: {{io_scheduler: {scheduler}}}\n");
        lines(&plan(&host(), &text))
    };
    let mut facts = host();
    let name = |c: &HostChange| c.path.display().to_string();
    let text = "disks: [/a.img, /fast/b.img, /both/c.img]\nhost: {io_scheduler: kyber}\n";
    let both = plan(&facts, text);
    assert_eq!(
        both.changes.iter().map(name).collect::<Vec<_>>(),
        [
            "/sys/block/sda/queue/scheduler",
            "/sys/block/nvme0n1/queue/scheduler"
        ]
    );
    assert_eq!(
        lines(&both),
        [
            "!scheduler mq-deadline → kyber (not offered: [mq-deadline] none)",
            "scheduler none → kyber"
        ]
    );
    assert_eq!(
        on("[/a.img]", "mq-deadline"),
        ["scheduler mq-deadline → mq-deadline (already so)"]
    );
    assert_eq!(
        on("[/dm/a.img]", "bfq"),
        ["!scheduler none → bfq (not offered: none)"]
    );
    assert_eq!(
        on("[/dm/a.img]", "none"),
        ["scheduler none → none (already so)"]
    );
    assert_eq!(
        on("[/tmp/a.img]", "none"),
        ["!a.img - → none (/tmp is tmpfs (tmpfs), which is on no disk of this host)"]
    );
    assert_eq!(
        lines(&plan(&facts, "host: {io_scheduler: none}\n")),
        ["!block - → none (it has no images on this host)"]
    );
    // The kernel loads it when it is asked for it.
    let module = "/lib/modules/6.1.0-41-amd64/kernel/block/bfq.ko.xz";
    facts.texts.insert(module.into(), String::new());
    let text = "disks: [/a.img]\nhost: {io_scheduler: bfq}\n";
    let loaded = plan(&facts, text);
    assert_eq!(lines(&loaded), ["scheduler mq-deadline → bfq"]);
    assert!(note_of(&loaded, "host.io_scheduler").contains("loads its module"));
}

#[test]
fn parameters_of_kvm_that_are_read_when_it_is_loaded_are_told_of() {
    let text = "host: {kvm: {nested: true, halt_poll_ns: 0, nx_huge_pages: true, ignore_msrs: false, tdp: false, apicv: true}}\n";
    let module = |name: &str| format!("/sys/module/{name}");
    let mut facts = with(&[
        (&module("kvm_amd/parameters/nested"), "0"),
        (&module("kvm_amd/parameters/npt"), "Y"),
        (&module("kvm/parameters/halt_poll_ns"), "200000"),
        (&module("kvm/parameters/nx_huge_pages"), "never"),
        (&module("kvm/parameters/ignore_msrs"), "N"),
    ]);
    for name in ["nested", "npt"] {
        let path = module(&format!("kvm_amd/parameters/{name}"));
        facts.modes.insert(path.into(), 0o444);
    }
    let how = |assignment: &str| {
        format!(
            "read-only while kvm_amd is loaded; `options kvm_amd {assignment}` in /etc/modprobe.d and loading it anew while no machine runs sets it"
        )
    };
    assert_eq!(
        lines(&plan(&facts, text)),
        [
            format!("!nested 0 → 1 ({})", how("nested=1")),
            "halt_poll_ns 200000 → 0".into(),
            "!nx_huge_pages never → Y (off for good since kvm was loaded with nx_huge_pages=never)"
                .into(),
            "ignore_msrs N → N (already so)".into(),
            format!("!npt Y → N ({})", how("npt=N")),
            "!avic - → Y (kvm_amd, kvm_intel has no such parameter here)".into(),
        ]
    );
    facts
        .texts
        .insert(module("kvm_amd/parameters/nested").into(), "1".into());
    assert_eq!(
        lines(&plan(&facts, "host: {kvm: {nested: on}}\n")),
        ["!nested 1 → 1 (already so)"]
    );
}

/// A pool of pages of 2 MiB: how many there are, are free, and are promised.
fn pool(have: u64, free: u64, reserved: u64) -> HostFacts {
    let base = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    with(&[
        (&format!("{base}/nr_hugepages"), &have.to_string()),
        (&format!("{base}/free_hugepages"), &free.to_string()),
        (&format!("{base}/resv_hugepages"), &reserved.to_string()),
    ])
}

#[test]
fn huge_pages_are_counted() {
    let text = "memory: {size: 1G, hugepages: 2M}\n";
    let by = |facts: &HostFacts| match plan(facts, text).wanted().as_slice() {
        [] => 0,
        [change] => match change.act {
            Act::Add { by, .. } => by,
            _ => panic!("{change:?}"),
        },
        more => panic!("{more:?}"),
    };
    assert_eq!(by(&pool(0, 0, 0)), 512);
    assert_eq!(by(&pool(100, 100, 0)), 412);
    assert_eq!(by(&pool(100, 100, 40)), 452, "promised ones are somebody's");
    assert_eq!(by(&pool(600, 512, 0)), 0);
    assert_eq!(by(&pool(600, 512, 1)), 1);
    assert_eq!(
        lines(&plan(&pool(600, 600, 0), text)),
        ["!nr_hugepages 600 → 600 (600 of the host are free, no more are needed)"]
    );
    assert_eq!(lines(&plan(&pool(8, 5, 0), text)), ["nr_hugepages 8 → 515"]);
    assert!(plan(&pool(8, 5, 0), text).wanted()[0].required);
    // A run that has added pages may not have used them yet; one that was killed leaves none.
    let mut claimed = pool(612, 612, 0);
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    claimed.claims.insert(path.into(), 512);
    assert_eq!(by(&claimed), 412);
    let mut used = pool(612, 50, 0);
    used.claims.insert(path.into(), 512);
    assert_eq!(by(&used), 462);
    let giant = with(&[(
        "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages",
        "1",
    )]);
    assert_eq!(
        lines(&plan(&giant, "memory: {size: 3G, hugepages: 1G}\n")),
        ["nr_hugepages 1 → 4"]
    );
}

/// Two nodes of four CPUs with this much free, MiB.
fn nodes(free: [u64; 2]) -> HostFacts {
    let mut facts = pool(30, 10, 0);
    for (node, free) in (0..).zip(free) {
        let base = format!("/sys/devices/system/node/node{node}");
        let pages = format!("{base}/hugepages/hugepages-2048kB");
        let first = node * 4;
        let meminfo = format!(
            "Node {node} MemTotal: 99 kB\nNode {node} MemFree: {} kB\nNode {node} Inactive(file): 1024 kB",
            free << 10
        );
        for (path, text) in [
            (format!("{base}/cpulist"), format!("{first}-{}", first + 3)),
            (format!("{base}/meminfo"), meminfo),
            (format!("{pages}/nr_hugepages"), "15".into()),
            (format!("{pages}/free_hugepages"), "5".into()),
        ] {
            facts.texts.insert(path.into(), text);
        }
    }
    facts
}

#[test]
fn huge_pages_come_from_the_nodes_of_the_machine() {
    let paths = |facts: &HostFacts, text: &str| -> Vec<String> {
        let changes = plan(facts, text).changes;
        let line = |c: &HostChange| format!("{} {}", c.path.display(), c.new);
        let lines = changes.iter().map(line);
        lines
            .map(|l| l.replace("/hugepages/hugepages-2048kB/nr_hugepages", ""))
            .collect()
    };
    let facts = nodes([4096, 4096]);
    let one = |node: &str| format!("memory: {{size: 1G, hugepages: 2M, numa_nodes: \"{node}\"}}\n");
    assert_eq!(
        paths(&facts, &one("1")),
        ["/sys/devices/system/node/node1 522"]
    );
    // All nodes are no choice: the kernel spreads them.
    assert_eq!(paths(&facts, &one("0-1")), ["/sys/kernel/mm 532"]);
    let pinned = |cpus: &str| {
        format!("memory: {{size: 1G, hugepages: 2M}}\ncpu: {{count: 1, pin: [\"{cpus}\"]}}\n")
    };
    assert_eq!(
        paths(&facts, &pinned("5,6")),
        ["/sys/devices/system/node/node1 522"]
    );
    assert_eq!(paths(&facts, &pinned("3-4")), ["/sys/kernel/mm 532"]);
    assert_eq!(
        paths(&facts, "memory: {size: 1G, hugepages: 2M}\n"),
        ["/sys/kernel/mm 532"]
    );
    // Three nodes, two of them wanted: what is missing is shared out.
    let mut three = nodes([4096, 4096]);
    let third = "/sys/devices/system/node/node2/cpulist";
    three.texts.insert(third.into(), "8-11".into());
    assert_eq!(
        paths(
            &three,
            "memory: {size: 1030M, hugepages: 2M, numa_nodes: \"0-1\"}\n"
        ),
        [
            "/sys/devices/system/node/node0 268",
            "/sys/devices/system/node/node1 267"
        ]
    );
}

fn message(problems: &Diagnostics) -> Option<&str> {
    let mut all = problems.list.iter();
    all.find(|d| d.code == "E-HUGEPAGES")
        .map(|d| d.message.as_str())
}

#[test]
fn pages_that_the_host_has_no_memory_for_are_refused_with_numbers() {
    let facts = nodes([100, 4096]);
    let text = "memory: {size: 1G, hugepages: 2M, numa_nodes: \"0\"}\n";
    let description = described(&facts, text);
    assert_eq!(
        lines(&description.host),
        ["!nr_hugepages 15 → 522 (the host has not the memory for them)"]
    );
    let wanted = "1 GiB of memory in pages of 2 MiB needs 512 of them, 5 are free, and the host has not the memory for 507 more: 101 MiB of it can be had, 1014 MiB are needed";
    assert_eq!(message(&description.monitor.unwrap_err()), Some(wanted));
    let run = compile(parsed(text), &facts).map(drop).unwrap_err();
    assert_eq!(message(&run), Some(wanted));
    let none = described(&HostFacts::default(), "memory: {size: 1G, hugepages: 1G}\n");
    assert_eq!(
        lines(&none.host),
        ["!nr_hugepages - → 1 (this host has no pages of 1 GiB)"]
    );
}

/// What the pool has is all there is: a plan says so, and so does the run, before it begins.
#[test]
fn pages_that_cannot_be_reserved_here_are_missing() {
    let text = "memory: {size: 1G, hugepages: 2M}\n";
    let contained = |facts: HostFacts| HostFacts {
        container: Some("lxc".into()),
        ..facts
    };
    let wanted = "1 GiB of memory in pages of 2 MiB needs 512 of them, 10 are free, and no more can be had: this is a container (lxc), which does not change its host";
    let facts = contained(nodes([4096, 4096]));
    assert_eq!(
        message(&described(&facts, text).monitor.unwrap_err()),
        Some(wanted)
    );
    let run = compile(parsed(text), &facts).map(drop).unwrap_err();
    assert_eq!(message(&run), Some(wanted));
    // What is free already is enough, in a container as anywhere.
    let facts = contained(pool(600, 512, 0));
    assert!(described(&facts, text).monitor.is_ok());
}

/// What a preset recommends gives way.
#[test]
fn recommended_pages_that_are_not_to_be_had_are_done_without() {
    let facts = nodes([1, 1]);
    let description = described(&facts, "preset: soft-rt\nmemory: 15G\n");
    let change = description
        .host
        .changes
        .iter()
        .find(|c| c.what == "memory.hugepages");
    let change = change.unwrap();
    assert_eq!(
        change.skipped.as_deref(),
        Some("the host has not the memory for them")
    );
    assert!(change.act.is_none() && !change.required);
}

#[test]
fn in_a_container_all_of_it_is_left_and_still_shown() {
    let facts = HostFacts {
        container: Some("lxc".into()),
        ..host()
    };
    let plan_here = plan(&facts, "host: {swappiness: 1}\n");
    assert_eq!(
        plan_here.skipped_all.as_deref(),
        Some("in container: host tuning disabled (lxc)")
    );
    assert_eq!(lines(&plan_here), ["swappiness 60 → 1"]);
    assert!(plan_here.wanted().is_empty());
    assert_eq!(plan(&facts, "memory: 1G\n").skipped_all, None);
}

/// A run gets the same plan as `plan` shows, for the images that it has itself.
#[test]
fn a_run_plans_for_its_own_images() {
    let file = FileInfo {
        kind: FileKind::Regular,
        length: 1 << 20,
        writable: true,
    };
    let mut facts = host();
    for name in ["vmlinuz", "/fast/a.img"] {
        facts.files.insert(name.into(), Ok(file));
    }
    let text = "kernel: vmlinuz\ndisks: [/fast/a.img]\nhost: {swappiness: 10, io_scheduler: bfq}\n";
    let run = compile(parsed(text), &facts).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        lines(&run.host),
        ["swappiness 60 → 10", "scheduler none → bfq"]
    );
    assert_eq!(run.host, plan(&facts, text));
    let none = compile(parsed("kernel: vmlinuz\n"), &facts).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(none.host, HostPlan::default());
}
