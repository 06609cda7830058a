use std::path::{Path, PathBuf};

use super::*;
use crate::compile::describe;
use crate::facts::HostFacts;
use crate::scenario::{Input, parse};

/// A host with systemd, on which root has logged in.
fn host() -> HostFacts {
    let mut facts = HostFacts::default();
    for (path, text) in [
        (
            "/proc/self/cgroup",
            "0::/user.slice/user-0.slice/session-1.scope",
        ),
        (
            "/sys/fs/cgroup/cgroup.controllers",
            "cpuset cpu io memory hugetlb pids rdma misc",
        ),
        (
            "/sys/fs/cgroup/cgroup.subtree_control",
            "cpu io memory pids",
        ),
        (
            "/sys/fs/cgroup/user.slice/cgroup.controllers",
            "cpu io memory pids",
        ),
        (
            "/sys/fs/cgroup/user.slice/cgroup.subtree_control",
            "memory pids",
        ),
        ("/sys/fs/cgroup/user.slice/cgroup.procs", ""),
        (
            "/sys/fs/cgroup/user.slice/user-0.slice/cgroup.controllers",
            "memory pids",
        ),
        (
            "/sys/fs/cgroup/user.slice/user-0.slice/cgroup.subtree_control",
            "memory pids",
        ),
        ("/sys/fs/cgroup/user.slice/user-0.slice/cgroup.procs", ""),
        ("/sys/block/sda/dev", "8:0"),
        (
            "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
            "512",
        ),
        (
            "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "512",
        ),
        (
            "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages",
            "0",
        ),
    ] {
        facts.texts.insert(path.into(), text.into());
    }
    facts.devices.insert("/lab".into(), "sda".into());
    facts.memory = Some(crate::facts::HostMemory {
        total: 16 << 30,
        available: 8 << 30,
    });
    facts
}

fn compiled(text: &str, facts: &HostFacts) -> Result<Option<Cgroup>, String> {
    let parsed = parse(&Input {
        file: Some((Path::new("/lab/lab.yaml"), text.as_bytes())),
        ..Input::default()
    });
    let description = describe(parsed, facts).map_err(|e| e.to_string())?;
    match description.monitor {
        Ok((_, run)) => Ok(run.cgroup),
        Err(messages) => Err(messages.to_string()),
    }
}

fn paths(changes: &[Change]) -> Vec<String> {
    let text = |change: &Change| match &change.act {
        Act::Directory { path } => format!("mkdir {}", path.display()),
        Act::Write { path, new, .. } => format!("{} = {new}", path.display()),
        other => format!("{other:?}"),
    };
    changes.iter().map(text).collect()
}

#[test]
fn nothing_asked_is_no_cgroup() {
    assert_eq!(
        compiled("memory: 64M\nlimits: {timeout: 5s}\n", &host()),
        Ok(None)
    );
}

#[test]
fn a_run_of_root_gets_a_cgroup_beside_its_shell() {
    let text = "memory: 256M\nlimits: {memory_max: 1G, pids_max: 64}\n";
    let cgroup = compiled(text, &host()).unwrap().unwrap();
    let top = "/sys/fs/cgroup/user.slice/user-0.slice";
    assert_eq!(
        cgroup.directory("PID"),
        PathBuf::from(format!("{top}/vsc-lab-PID"))
    );
    let values: Vec<_> = cgroup
        .values
        .iter()
        .map(|v| format!("{} {}", v.file, v.new))
        .collect();
    assert_eq!(values, ["memory.max 1073741824", "pids.max 64"]);
    assert_eq!(
        paths(&cgroup.changes(7)),
        [
            "/sys/fs/cgroup/cgroup.subtree_control = cpu io memory pids",
            "/sys/fs/cgroup/user.slice/cgroup.subtree_control = memory pids",
            "/sys/fs/cgroup/user.slice/user-0.slice/cgroup.subtree_control = memory pids",
            "mkdir /sys/fs/cgroup/user.slice/user-0.slice/vsc-lab-7",
        ],
        "nothing changes above: it is held only"
    );
    assert_eq!(cgroup.advice, [""; 0]);
}

#[test]
fn controllers_are_handed_down_where_they_are_not() {
    let text = "memory: 256M\nlimits: {cpu_max: 50%}\n";
    let cgroup = compiled(text, &host()).unwrap().unwrap();
    assert_eq!(
        paths(&cgroup.changes(7))[..3],
        [
            "/sys/fs/cgroup/cgroup.subtree_control = cpu io memory pids",
            "/sys/fs/cgroup/user.slice/cgroup.subtree_control = cpu io memory pids",
            "/sys/fs/cgroup/user.slice/user-0.slice/cgroup.subtree_control = cpu io memory pids",
        ]
    );
    let mut busy = host();
    let procs = "/sys/fs/cgroup/user.slice/user-0.slice/cgroup.procs";
    busy.texts.insert(procs.into(), "12".into());
    let why = compiled(text, &busy).unwrap_err();
    assert!(why.contains("has processes of its own"), "{why}");
    assert!(why.contains("systemd-run"), "{why}");
}

#[test]
fn a_slice_that_is_not_there_is_made_from_the_top() {
    let text = "memory: 256M\nlimits: {slice: machine-lab.slice, memory_max: 512M}\n";
    let cgroup = compiled(text, &host()).unwrap().unwrap();
    assert_eq!(
        paths(&cgroup.changes(7)),
        [
            "/sys/fs/cgroup/cgroup.subtree_control = cpu io memory pids",
            "mkdir /sys/fs/cgroup/machine.slice",
            "/sys/fs/cgroup/machine.slice/cgroup.subtree_control = cpu io memory pids",
            "mkdir /sys/fs/cgroup/machine.slice/machine-lab.slice",
            "/sys/fs/cgroup/machine.slice/machine-lab.slice/cgroup.subtree_control = cpu io memory pids",
            "mkdir /sys/fs/cgroup/machine.slice/machine-lab.slice/vsc-lab-7",
        ]
    );
    let advice = cgroup.advice.join("\n");
    assert!(
        advice.contains("systemctl set-property machine-lab.slice MemoryMax=14336M"),
        "{advice}"
    );
    assert!(
        advice.contains("machine-lab.slice.d/90-MemoryMax.conf"),
        "{advice}"
    );
    assert!(advice.contains("starve the others"), "{advice}");
    for wrong in ["../x", "a//b", "cgroup.procs", ""] {
        let text = format!("limits: {{slice: {wrong:?}}}\n");
        assert!(
            compiled(&text, &host()).unwrap_err().contains("no cgroup"),
            "{wrong}"
        );
    }
}

#[test]
fn a_cgroup_above_what_is_seen_is_not_looked_for() {
    let mut facts = host();
    let own = "0::/../../user.slice/session-1.scope";
    facts.texts.insert("/proc/self/cgroup".into(), own.into());
    let text = "memory: 256M\nlimits: {memory_max: 1G}\n";
    let why = compiled(text, &facts).unwrap_err();
    assert!(
        why.contains("E-CGROUP") && why.contains("cgroup_namespaces(7)"),
        "{why}"
    );
    let text = "memory: 256M\nlimits: {memory_max: 1G, slice: machine.slice}\n";
    assert!(compiled(text, &facts).unwrap().is_some());
}

#[test]
fn hosts_without_version_2_say_so() {
    let mut old = HostFacts::default();
    let text = "memory: 256M\nlimits: {memory_max: 1G}\n";
    assert!(
        compiled(text, &old)
            .unwrap_err()
            .contains("This host has no cgroups")
    );
    old.texts.insert("/sys/fs/cgroup".into(), String::new());
    let why = compiled(text, &old).unwrap_err();
    assert!(
        why.contains("E-CGROUP") && why.contains("cgroup v1"),
        "{why}"
    );
    assert!(why.contains("limits.memory_max would be kept"), "{why}");
    let mut poor = host();
    poor.texts.insert(
        "/sys/fs/cgroup/cgroup.controllers".into(),
        "cpu pids".into(),
    );
    let why = compiled(text, &poor).unwrap_err();
    assert!(why.contains("no controller `memory`"), "{why}");
}

#[test]
fn too_little_is_an_error_with_both_numbers() {
    let why = compiled("memory: 512M\nlimits: {memory_max: 600M}\n", &host()).unwrap_err();
    assert!(why.contains("600 MiB") && why.contains("768 MiB"), "{why}");
    // Pages of hugetlbfs are not charged.
    let huge = "memory: {size: 512M, hugepages: 2M}\nlimits: {memory_max: 600M}\n";
    assert!(compiled(huge, &host()).unwrap().is_some());
    let why = compiled("memory: 64M\nlimits: {pids_max: 2}\n", &host()).unwrap_err();
    assert!(why.contains("26"), "{why}");
    let why = compiled(
        "memory: {size: 4G, hard_limit: 5G}\nlimits: {memory_max: 6G}\n",
        &host(),
    );
    assert!(why.unwrap_err().contains("E-CONFLICT"));
    let hard = compiled("memory: {size: 4G, hard_limit: 4456448K}\n", &host())
        .unwrap()
        .unwrap();
    assert_eq!(
        (hard.values[0].file.as_str(), hard.values[0].new.as_str()),
        ("memory.max", "4563402752")
    );
}

#[test]
fn real_time_is_not_counted_and_that_is_said() {
    let parsed = |text: &str| {
        let input = Input {
            file: Some((Path::new("/lab/lab.yaml"), text.as_bytes())),
            ..Input::default()
        };
        crate::compile::compile(parse(&input), &host())
            .unwrap()
            .warnings
    };
    let said = parsed("limits: {cpu_max: 50%}\ncpu: {scheduler: fifo}\n").to_string();
    assert!(said.contains("W-CPU-MAX"), "{said}");
    let said = parsed("limits: {cpu_max: 50%}\ncpu: {scheduler: idle}\n").to_string();
    assert!(!said.contains("W-CPU-MAX"), "{said}");
}

#[test]
fn cpu_time_is_per_cent_or_a_quota() {
    for (text, value) in [
        ("50%", Some("50000 100000")),
        ("200 %", Some("200000 100000")),
        ("1500 20000", Some("1500 20000")),
        ("0%", None),
        ("50", None),
        ("500 100000", None),
        ("5000 100", None),
        ("max 100000", None),
        ("-5%", None),
        ("99999999999999999999%", None),
    ] {
        assert_eq!(quota(text).as_deref(), value, "{text}");
    }
}

#[test]
fn disks_of_one_device_have_together_what_each_may_have() {
    let disks = "memory: 64M\ndisks: [{path: a.img}, {path: b.img}, {path: /elsewhere/c.img}]\n";
    let mut facts = host();
    for file in ["/lab/a.img", "/lab/b.img", "/elsewhere/c.img"] {
        let info = crate::facts::FileInfo {
            kind: crate::facts::FileKind::Regular,
            length: 1 << 20,
            writable: true,
        };
        facts.files.insert(file.into(), Ok(info));
    }
    let of = |limit: &str| {
        let text = format!("{disks}limits: {{io_max: {limit}}}\n");
        compiled(&text, &facts).map(|c| {
            c.unwrap()
                .values
                .into_iter()
                .map(|v| v.new)
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(
        of("[{disk: 0, wbps: 1M, riops: 9}]").unwrap(),
        ["8:0 wbps=1048576 riops=9"]
    );
    assert_eq!(
        of("[{disk: 0, wbps: 1M, rbps: 1M}, {disk: 1, wbps: 2M}]").unwrap(),
        ["8:0 wbps=3145728"],
        "the second may read as it likes"
    );
    assert!(
        of("[{disk: 2, wbps: 1M}]")
            .unwrap_err()
            .contains("E-LIMIT-DISK")
    );
    assert!(of("[{disk: 3, wbps: 1M}]").unwrap_err().contains("E-INDEX"));
    assert!(of("[{disk: 0}]").unwrap_err().contains("no number"));
}
