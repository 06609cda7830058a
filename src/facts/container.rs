//! Whether this is a container, whose kernel belongs to somebody else.

#![forbid(unsafe_code)]

use std::fs;
use std::io::Read;
use std::path::Path;

use super::{Root, Variables};

/// Most that is read of a file that may name a container manager, bytes.
const MOST: u64 = 16 << 10;

/// Files that a container manager leaves, and whose they are.
const MARKS: [(&str, &str); 4] = [
    ("/.dockerenv", "docker"),
    ("/run/.containerenv", "podman"),
    ("/run/secrets/kubernetes.io", "kubernetes"),
    ("/var/run/secrets/kubernetes.io", "kubernetes"),
];

/// Files that hold the manager's name (systemd's CONTAINER_INTERFACE).
const NAMES: [&str; 2] = ["/run/systemd/container", "/run/host/container-manager"];

/// Words in the control groups of process 1, and whose they are.
const GROUPS: [(&str, &str); 7] = [
    ("kubepods", "kubernetes"),
    ("docker", "docker"),
    ("libpod", "podman"),
    ("containerd", "containerd"),
    ("lxc.payload", "lxc"),
    ("/lxc/", "lxc"),
    ("machine.slice", "systemd-machined"),
];

/// The initial namespaces of processes and users have fixed numbers (Linux include/linux/proc_ns.h,
/// PROC_PID_INIT_INO and PROC_USER_INIT_INO).
const INITIAL: [(&str, &str, &str); 2] = [
    (
        "/proc/self/ns/user",
        "user:[4026531837]",
        "a user namespace",
    ),
    ("/proc/self/ns/pid", "pid:[4026531836]", "a PID namespace"),
];

/// The kind of container, or `None` on a host. What a manager says of itself goes before what can only be inferred.
pub(super) fn find(root: &Root, variables: &Variables) -> Option<String> {
    told(root, variables).or_else(|| inferred(root).map(str::to_owned))
}

fn text(root: &Root, path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let file = fs::File::open(root.at(path)).ok()?;
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A manager's name as it wrote it, made fit to be shown.
fn name(text: &str) -> Option<String> {
    let line = text.lines().next()?.trim();
    let fit = !line.is_empty()
        && line.len() <= 64
        && line.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    fit.then(|| line.to_owned())
}

fn told(root: &Root, variables: &Variables) -> Option<String> {
    if let Some(container) = variables.container.as_deref().and_then(name) {
        return Some(container);
    }
    let mark = MARKS.iter().find(|(path, _)| root.at(path).exists());
    if let Some((_, whose)) = mark {
        return Some((*whose).to_owned());
    }
    if let Some(name) = NAMES.iter().find_map(|path| name(&text(root, path)?)) {
        return Some(name);
    }
    // Only root may read it.
    let environment = text(root, "/proc/1/environ").unwrap_or_default();
    let of_init = |key: &str| {
        let mut all = environment.split('\0');
        all.find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
    };
    of_init("container").and_then(name)
}

fn inferred(root: &Root) -> Option<&'static str> {
    let release = text(root, "/proc/sys/kernel/osrelease").unwrap_or_default();
    // Both kinds say so: 4.4.0-19041-Microsoft, 5.15.90.1-microsoft-standard-WSL2.
    let release = release.to_ascii_lowercase();
    if release.contains("microsoft") || release.contains("wsl") {
        return Some("wsl");
    }
    if root.at("/proc/vz").exists() && !root.at("/proc/bc").exists() {
        return Some("openvz");
    }
    let groups = text(root, "/proc/1/cgroup").unwrap_or_default();
    if let Some((_, whose)) = GROUPS.iter().find(|(word, _)| groups.contains(word)) {
        return Some(whose);
    }
    let foreign = INITIAL.iter().find(|(path, initial, _)| {
        fs::read_link(root.at(path)).is_ok_and(|link| link != Path::new(initial))
    });
    if let Some((_, _, what)) = foreign {
        return Some(what);
    }
    let mounts = text(root, "/proc/self/mountinfo").unwrap_or_default();
    read_only_sysfs(&mounts).then_some("a read-only /sys")
}

/// Whether /sys can be looked at only (proc_pid_mountinfo(5): the sixth field has the mount's options).
fn read_only_sysfs(mounts: &str) -> bool {
    let mut options = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        (fields.nth(4)? == "/sys").then_some(fields.next())?
    });
    // The last one is on top.
    options
        .next_back()
        .is_some_and(|options| options.split(',').any(|o| o == "ro"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::tests::Fake;

    fn found(case: &str, files: &[(&str, &str)]) -> Option<String> {
        let fake = Fake::new(&format!("container-{case}"), files);
        find(&Root(fake.0.clone()), &Variables::default())
    }

    #[test]
    fn every_kind_is_known_by_what_it_leaves() {
        for (case, path, content, want) in [
            ("docker", ".dockerenv", "", "docker"),
            ("podman", "run/.containerenv", "", "podman"),
            ("pod", "var/run/secrets/kubernetes.io/x", "", "kubernetes"),
            (
                "nspawn",
                "run/systemd/container",
                "systemd-nspawn\n",
                "systemd-nspawn",
            ),
            ("manager", "run/host/container-manager", "mkosi\n", "mkosi"),
            (
                "init",
                "proc/1/environ",
                "PATH=/bin\0container=lxc\0",
                "lxc",
            ),
            (
                "wsl",
                "proc/sys/kernel/osrelease",
                "5.15.90.1-microsoft-standard-WSL2\n",
                "wsl",
            ),
            ("vz", "proc/vz/x", "", "openvz"),
            (
                "kube",
                "proc/1/cgroup",
                "3:cpu:/kubepods/besteffort/pod1/2\n",
                "kubernetes",
            ),
            (
                "lxc",
                "proc/1/cgroup",
                "0::/lxc.payload.web/init.scope\n",
                "lxc",
            ),
            (
                "sys",
                "proc/self/mountinfo",
                "22 27 0:22 / /sys rw - sysfs sysfs rw\n30 22 0:22 / /sys ro,nosuid - sysfs sysfs ro\n",
                "a read-only /sys",
            ),
        ] {
            assert_eq!(
                found(case, &[(path, content)]).as_deref(),
                Some(want),
                "{case}"
            );
        }
    }

    #[test]
    fn a_host_is_none() {
        let host = [
            ("proc/1/environ", "PATH=/bin\0nocontainer=x\0"),
            ("proc/1/cgroup", "0::/init.scope\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-41-amd64\n"),
            ("proc/vz/x", ""),
            ("proc/bc/x", ""),
            ("run/systemd/container", "\n"),
            (
                "proc/self/mountinfo",
                "30 22 0:22 / /sys ro - sysfs sysfs rw\n31 22 0:22 / /sys rw - sysfs sysfs rw\n",
            ),
        ];
        assert_eq!(found("none", &host), None);
    }

    #[test]
    fn namespaces_tell_where_nothing_else_does() {
        let fake = Fake::new("container-ns", &[("proc/self/ns/x", "")]);
        let link = |name: &str, to: &str| {
            let path = fake.0.join("proc/self/ns").join(name);
            fs::remove_file(&path).ok();
            std::os::unix::fs::symlink(to, path).unwrap();
        };
        let find = || find(&Root(fake.0.clone()), &Variables::default());
        link("pid", "pid:[4026531836]");
        link("user", "user:[4026531837]");
        assert_eq!(find(), None);
        link("pid", "pid:[4026532201]");
        assert_eq!(find().as_deref(), Some("a PID namespace"));
        link("user", "user:[4026532200]");
        assert_eq!(find().as_deref(), Some("a user namespace"));
    }

    /// What a manager says is text of somebody else.
    #[test]
    fn a_name_that_is_none_is_not_shown() {
        let marks = [("run/systemd/container", "\u{1b}[31mred\n")];
        assert_eq!(found("escape", &marks), None);
        let fake = Fake::new("container-env", &[("x", "")]);
        let variables = Variables {
            container: Some("oci".into()),
            ..Variables::default()
        };
        let found = find(&Root(fake.0.clone()), &variables);
        assert_eq!(found.as_deref(), Some("oci"));
    }
}
