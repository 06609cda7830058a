//! sanlock: leases of images on storage that hosts share, which its daemon keeps; what they take of room, and a host set
//! up for them, as a plan.

#![forbid(unsafe_code)]

mod client;
mod error;
mod leases;
mod status;
mod sweep;
mod wire;

pub use client::Daemon;
pub use error::SanlockError;
pub use leases::{IO_TIMEOUT, Lease, Leases, OnLoss, Sanlock};
pub use status::{LeaseOf, Status};
pub use sweep::sweep;
pub use wire::HELPER;

use std::path::{Path, PathBuf};

use serde::Serialize;

/// The file of libvirt's lockspace in the lease directory, where hosts have their numbers.
pub const LOCKSPACE: &str = "__LIBVIRT__DISKS__";
/// Numbers of hosts in a lockspace (sanlock(8): max_hosts).
pub const HOST_IDS: std::ops::RangeInclusive<u64> = 1..=2000;
/// Bytes of a lease with sectors of 512 bytes and of 4 KiB, in MB of 2^20 (sanlock(8): 1MB, 8MB for 4k sectors).
const LEASE: [(u64, u64); 2] = [(512, 1), (4096, 8)];

/// Room for leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Leases: one for each disk.
    pub leases: u64,
    /// MB (2^20 bytes) of a lease.
    pub lease_megabytes: u64,
    /// MB of all.
    pub megabytes: u64,
}

/// The room that leases take: `hosts` with `vms` machines each of `disks` disks each. `None`: not a number that fits,
/// or a sector of another size than 512 or 4096 bytes.
pub fn size(hosts: u64, vms: u64, disks: u64, sector: u64) -> Option<Size> {
    let (_, lease_megabytes) = LEASE.into_iter().find(|(bytes, _)| *bytes == sector)?;
    let leases = hosts.checked_mul(vms)?.checked_mul(disks)?;
    Some(Size {
        leases,
        lease_megabytes,
        megabytes: leases.checked_mul(lease_megabytes)?,
    })
}

/// A step of setting a host up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What is to be done, as a command or a line of a file.
    pub what: String,
    /// Why, or what to mind.
    pub why: String,
    /// It is so already.
    pub done: bool,
}

/// What a host's administrator chooses.
#[derive(Debug, Clone)]
pub struct Choices {
    /// `host_id`.
    pub host_id: u64,
    /// `disk_lease_dir`.
    pub leases: PathBuf,
    /// What is mounted there, as `SERVER:/EXPORT`.
    pub export: Option<String>,
    /// User and group that the leases belong to.
    pub owner: (String, String),
    /// The watchdog is left out: for trying it only.
    pub no_watchdog: bool,
}

/// The host that is to be set up.
pub struct Host<'a> {
    /// Whether it has a file of this name.
    pub exists: &'a dyn Fn(&Path) -> bool,
    /// What is in one.
    pub text: &'a dyn Fn(&Path) -> Option<String>,
}

impl Host<'_> {
    fn has(&self, path: impl AsRef<Path>) -> bool {
        (self.exists)(path.as_ref())
    }

    /// Whether a line of a file, without comments, contains all of `words`.
    fn says(&self, file: &str, words: &[&str]) -> bool {
        let text = (self.text)(Path::new(file)).unwrap_or_default();
        let lines = text
            .lines()
            .map(|l| l.split('#').next().unwrap_or_default());
        lines
            .into_iter()
            .any(|line| words.iter().all(|word| line.contains(word)))
    }

    fn mounted(&self, path: &Path) -> bool {
        let wanted = path.to_string_lossy().into_owned();
        let mounts = (self.text)(Path::new("/proc/mounts")).unwrap_or_default();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1) == Some(&wanted))
    }

    /// A unit that systemd starts at boot.
    fn enabled(&self, unit: &str) -> bool {
        let wants = format!("/etc/systemd/system/multi-user.target.wants/{unit}");
        self.has(wants)
    }
}

fn step(what: impl Into<String>, why: impl Into<String>, done: bool) -> Step {
    Step {
        what: what.into(),
        why: why.into(),
        done,
    }
}

/// The line of /etc/fstab for a directory that hosts share. `hard`: a lock that a slow server forgets is none.
fn fstab(export: &str, directory: &Path) -> String {
    format!("{export} {} nfs hard,nointr 0 0", directory.display())
}

/// The steps for sanlock.
pub fn sanlock_steps(choices: &Choices, host: &Host<'_>) -> Vec<Step> {
    let Choices {
        host_id,
        leases,
        export,
        owner: (user, group),
        no_watchdog,
    } = choices;
    let dir = leases.display();
    let mut steps = vec![step(
        "apt-get install sanlock libvirt-daemon-plugin-sanlock   (SUSE, Fedora: libvirt-daemon-plugin-sanlock or libvirt-lock-sanlock)",
        "the daemon, and libvirt's plug-in that speaks to it",
        host.has("/usr/sbin/sanlock"),
    )];
    // Debian's file; SUSE and Fedora have another.
    let options = match host.has("/etc/sysconfig/sanlock") {
        true => "/etc/sysconfig/sanlock: SANLOCKOPTS=\"-w 0\"",
        false => "/etc/default/sanlock: sanlock_opts=\"-w 0\"",
    };
    if *no_watchdog {
        let file = options.split(':').next().unwrap_or_default();
        steps.push(step(
            options,
            "no watchdog: for trying it only; a host that loses its storage goes on writing",
            host.says(file, &["-w 0"]),
        ));
    } else {
        let file = options.split(':').next().unwrap_or_default();
        if host.says(file, &["-w 0"]) {
            steps.push(step(
                format!("{file}: without -w 0"),
                "Debian leaves the watchdog out unless it is told otherwise; then a host that loses its storage goes on writing",
                false,
            ));
        }
        let file = "/etc/default/wdmd";
        if host.has(file) {
            steps.push(step(
                format!("{file}: enabled=1"),
                "it needs a watchdog device; `modprobe softdog` makes one",
                host.says(file, &["enabled=1"]),
            ));
        }
        steps.push(step(
            "systemctl enable --now wdmd",
            "WATCHDOG: the host will reboot when sanlock cannot renew its leases for about 80 seconds, whatever else runs on it; to try it without, --no-watchdog",
            host.enabled("wdmd.service"),
        ));
    }
    steps.push(step(
        "systemctl enable --now sanlock",
        "keeps the leases",
        host.has("/run/sanlock/sanlock.sock") && host.enabled("sanlock.service"),
    ));
    steps.push(step(
        format!("mkdir -p {dir}"),
        "the leases",
        host.has(leases),
    ));
    match export {
        Some(export) => {
            steps.push(step(
                format!("/etc/fstab: {}", fstab(export, leases)),
                "all hosts share the leases",
                host.says("/etc/fstab", &[export, &leases.to_string_lossy()]),
            ));
            steps.push(step(format!("mount {dir}"), "", host.mounted(leases)));
            steps.push(step(
                "on the server, in /etc/exports: rw,sync,no_root_squash",
                "libvirt makes the leases as root; where the server maps root to nobody, the next step must work there",
                false,
            ));
        }
        None => steps.push(step(
            format!("share {dir} among the hosts (--export SERVER:/PATH shows how)"),
            "leases that only one host sees protect nothing on the others",
            host.mounted(leases),
        )),
    }
    steps.push(step(
        format!("chown {user}:{group} {dir} && chmod 770 {dir}"),
        "sanlock reads and writes them; a server that squashes root refuses this, and then needs no_root_squash",
        false,
    ));
    let file = "/etc/libvirt/qemu-sanlock.conf";
    for (line, why) in [
        (
            format!("host_id = {host_id}"),
            "1 to 2000, another one on each host",
        ),
        (
            "auto_disk_leases = 1".to_owned(),
            "each disk gets a lease of its own",
        ),
        (format!("disk_lease_dir = \"{dir}\""), ""),
        (format!("user = \"{user}\""), ""),
        (format!("group = \"{group}\""), ""),
    ] {
        let key = line.split(" = ").next().unwrap_or_default();
        let value = line.split(" = ").nth(1).unwrap_or_default();
        let done = host.says(file, &[key, value]);
        steps.push(step(format!("{file}: {line}"), why, done));
    }
    let file = "/etc/libvirt/qemu.conf";
    steps.push(step(
        format!("{file}: lock_manager = \"sanlock\""),
        "",
        host.says(file, &["lock_manager", "\"sanlock\""]),
    ));
    steps.push(step(
        "systemctl restart libvirtd",
        format!("machines of libvirt then have leases in {dir}, and {LOCKSPACE} beside them"),
        false,
    ));
    steps
}

/// The steps for lockd, of which a host alone needs none.
pub fn lockd_steps(directory: Option<&Path>, export: Option<&str>, host: &Host<'_>) -> Vec<Step> {
    let mut steps = vec![step(
        "nothing, for this program: `locking: lockd`",
        "it takes the locks itself, as any user; it starts no daemon and needs none",
        true,
    )];
    if let Some(directory) = directory {
        let dir = directory.display();
        steps.push(step(
            format!("mkdir -p {dir}"),
            "a file for each image in use",
            host.has(directory),
        ));
        if let Some(export) = export {
            steps.push(step(
                format!("/etc/fstab: {}", fstab(export, directory)),
                "all hosts that use the images share it; the server's lock service has to run (NFSv3: rpc.statd)",
                host.says("/etc/fstab", &[export, &directory.to_string_lossy()]),
            ));
            steps.push(step(format!("mount {dir}"), "", host.mounted(directory)));
        }
        steps.push(step(
            format!("in scenarios or settings: locking: {{driver: lockd, file_lockspace_dir: {dir}}}"),
            "the same on every host; the first machine writes that down in the directory, and who differs is refused",
            false,
        ));
        let file = "/etc/libvirt/qemu-lockd.conf";
        steps.push(step(
            format!("{file}: file_lockspace_dir = \"{dir}\""),
            "for machines of libvirt on the same images",
            host.says(file, &["file_lockspace_dir", &directory.to_string_lossy()]),
        ));
    }
    let file = "/etc/libvirt/qemu.conf";
    steps.push(step(
        format!("{file}: lock_manager = \"lockd\""),
        "for machines of libvirt on the same images",
        host.says(file, &["lock_manager", "\"lockd\""]),
    ));
    steps.push(step(
        "systemctl enable --now virtlockd.socket && systemctl restart libvirtd",
        "libvirt's part; each user's libvirt starts a virtlockd of its own",
        host.has("/run/libvirt/virtlockd-sock"),
    ));
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A host that has these files.
    fn on<T>(files: &[(&str, &str)], steps: impl FnOnce(&Host<'_>) -> T) -> T {
        let files: BTreeMap<&Path, &str> = files.iter().map(|(p, t)| (Path::new(*p), *t)).collect();
        steps(&Host {
            exists: &|path| files.contains_key(path),
            text: &|path| files.get(path).map(|t| (*t).to_owned()),
        })
    }

    #[test]
    fn leases_take_a_megabyte_for_each_disk() {
        assert_eq!(size(20, 50, 2, 512).unwrap().megabytes, 2000);
        let large = size(20, 50, 2, 4096).unwrap();
        assert_eq!(
            (large.leases, large.lease_megabytes, large.megabytes),
            (2000, 8, 16_000)
        );
        assert_eq!(size(0, 50, 2, 512).unwrap().megabytes, 0);
        assert_eq!(size(20, 50, 2, 520), None);
        assert_eq!(size(u64::MAX, 2, 1, 512), None);
    }

    fn choices() -> Choices {
        Choices {
            host_id: 7,
            leases: "/var/lib/libvirt/sanlock".into(),
            export: Some("nfs.lab:/export/sanlock".into()),
            owner: ("root".into(), "sanlock".into()),
            no_watchdog: false,
        }
    }

    #[test]
    fn a_plan_has_every_step_and_knows_what_is_done() {
        let steps = on(&[], |host| sanlock_steps(&choices(), host));
        let all: Vec<&str> = steps.iter().map(|s| s.what.as_str()).collect();
        assert!(all.contains(&"systemctl enable --now wdmd"));
        assert!(all.contains(
            &"/etc/fstab: nfs.lab:/export/sanlock /var/lib/libvirt/sanlock nfs hard,nointr 0 0"
        ));
        assert!(all.contains(&"/etc/libvirt/qemu-sanlock.conf: host_id = 7"));
        assert!(steps.iter().any(|s| s.why.contains("the host will reboot")));
        assert!(all.iter().any(|s| s.contains("no_root_squash")));
        assert!(steps.iter().all(|s| !s.done));

        let files = [
            ("/usr/sbin/sanlock", ""),
            ("/var/lib/libvirt/sanlock", ""),
            (
                "/etc/libvirt/qemu.conf",
                "# lock_manager = \"lockd\"\nlock_manager = \"sanlock\"\n",
            ),
            ("/etc/libvirt/qemu-sanlock.conf", "#host_id = 7\n"),
            (
                "/proc/mounts",
                "nfs.lab:/export/sanlock /var/lib/libvirt/sanlock nfs4 rw 0 0\n",
            ),
            ("/etc/default/sanlock", "sanlock_opts=\"-w 0\"\n"),
            ("/etc/default/wdmd", "enabled=0\n"),
        ];
        let tried = Choices {
            no_watchdog: true,
            ..choices()
        };
        let steps = on(&files, |host| sanlock_steps(&tried, host));
        let done = |part: &str| steps.iter().find(|s| s.what.contains(part)).unwrap().done;
        for (part, is) in [
            ("apt-get", true),
            ("mkdir", true),
            ("mount /var", true),
            ("-w 0", true),
            ("lock_manager", true),
            ("host_id", false),
            ("chown", false),
        ] {
            assert_eq!(done(part), is, "{part}");
        }
        assert!(!steps.iter().any(|s| s.what.contains("wdmd")));
        let steps = on(&files, |host| sanlock_steps(&choices(), host));
        for part in ["without -w 0", "/etc/default/wdmd: enabled=1"] {
            assert!(
                steps.iter().any(|s| s.what.contains(part) && !s.done),
                "{part}"
            );
        }
    }

    #[test]
    fn lockd_needs_nothing_alone_and_a_directory_among_hosts() {
        assert!(on(&[], |host| lockd_steps(None, None, host))[0].done);
        let steps = on(&[], |host| {
            lockd_steps(Some(Path::new("/locks")), Some("s:/l"), host)
        });
        assert!(
            steps
                .iter()
                .any(|s| s.what == "/etc/fstab: s:/l /locks nfs hard,nointr 0 0")
        );
        assert!(
            steps
                .iter()
                .any(|s| s.what.contains("file_lockspace_dir = \"/locks\""))
        );
    }
}
