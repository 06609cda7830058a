//! `vsc-run locks`: who holds which image, what keeps others off, and what lockspaces need.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use vsc::diag::shown;
use vsc::facts::{Facts, LiveFacts, Root, Variables};
use vsc::locks::holders::{Lock, all_holders, clock};
use vsc::locks::lockspace::{self, Space, Swept};
use vsc::locks::sanlock::{self, Choices, Host, Step};
use vsc::locks::{Driver, Holder, Holders, file_holders};

use super::Common;
use super::table::table;
use crate::say;

mod leases;

/// Where libvirt's own configuration suggests lockspaces (qemu-lockd.conf).
const SPACES: [(&str, Space); 3] = [
    ("/var/lib/libvirt/lockd/files", Space::File),
    ("/var/lib/libvirt/lockd/lvmvolumes", Space::Lvm),
    ("/var/lib/libvirt/lockd/scsivolumes", Space::Scsi),
];

/// Most of a configuration file that is looked at, bytes.
const MOST_TEXT: usize = 1 << 20;

/// Arguments of `locks`.
#[derive(Debug, Args)]
pub(super) struct LocksArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Lists what can keep other machines off an image.
    Drivers,
    /// Lists who holds locks and leases on images, QEMU and libvirt included.
    List(ListArgs),
    /// Computes the room that sanlock's leases take.
    Size(SizeArgs),
    /// Removes files of lockspaces, and leases of sanlock, that nobody holds.
    Gc(GcArgs),
    /// Shows what a host needs for lockspaces.
    Setup(SetupArgs),
}

/// Arguments of `locks list`.
#[derive(Debug, Args)]
struct ListArgs {
    /// Only this image, with all locks on it.
    image: Option<PathBuf>,
}

/// Arguments of `locks size`.
#[derive(Debug, Args)]
struct SizeArgs {
    /// Hosts.
    #[arg(long, value_name = "N")]
    hosts: u64,
    /// Machines of each host.
    #[arg(long, value_name = "N")]
    vms: u64,
    /// Disks of each machine.
    #[arg(long, value_name = "N")]
    disks: u64,
    /// Bytes of a sector of the storage: 512 or 4096.
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    sector: u64,
}

/// Arguments of `locks gc`.
#[derive(Debug, Args)]
struct GcArgs {
    /// Only says what would be removed.
    #[arg(long)]
    dry_run: bool,
    /// The lockspace of files (default: those of libvirt's that are there).
    #[arg(long, value_name = "DIR")]
    file_lockspace_dir: Option<PathBuf>,
    /// The lockspace of logical volumes.
    #[arg(long, value_name = "DIR")]
    lvm_lockspace_dir: Option<PathBuf>,
    /// The lockspace of SCSI units.
    #[arg(long, value_name = "DIR")]
    scsi_lockspace_dir: Option<PathBuf>,
    /// The leases of sanlock (default: those whose lockspace its daemon here is in).
    #[arg(long, value_name = "DIR")]
    disk_lease_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Manager {
    /// libvirt's virtlockd, and this program's `locking: lockd`.
    Lockd,
    /// sanlock's daemon.
    Sanlock,
}

/// Arguments of `locks setup`.
#[derive(Debug, Args)]
struct SetupArgs {
    /// For which.
    manager: Manager,
    /// Shows the steps; this program does none of them.
    #[arg(long, required = true)]
    plan: bool,
    /// The directory that hosts share (sanlock's default: /var/lib/libvirt/sanlock).
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Where it is mounted from: SERVER:/PATH.
    #[arg(long, value_name = "EXPORT")]
    export: Option<String>,
    /// This host's number among those that share sanlock's leases, 1 to 2000.
    #[arg(long, value_name = "N", default_value_t = 1)]
    host_id: u64,
    /// Who owns the leases.
    #[arg(long, value_name = "USER", default_value = "root")]
    user: String,
    /// Their group.
    #[arg(long, value_name = "GROUP", default_value = "sanlock")]
    group: String,
    /// sanlock without a watchdog (-w 0), to try it.
    #[arg(long)]
    no_watchdog: bool,
}

pub(super) fn run(args: &LocksArgs, common: &Common) -> u8 {
    let root = Root(common.host_root.clone());
    let facts = LiveFacts::new(root, Variables::of_process());
    match &args.what {
        What::Drivers => drivers(&facts, common),
        What::List(args) => list(args.image.as_deref(), &facts, common),
        What::Size(args) => size(args, common),
        What::Gc(args) => gc(args, &facts, common),
        What::Setup(args) => setup(args, common),
    }
}

fn answer(common: &Common, data: &Value, text: &str) -> u8 {
    match common.json {
        true => say::out(&format!("{data:#}\n")),
        false => say::out(text),
    }
    0
}

fn fail(message: &str) -> u8 {
    say::error(message);
    crate::FAILED
}

fn drivers(facts: &dyn Facts, common: &Common) -> u8 {
    let rows = Driver::ALL.map(|driver| {
        let (state, what) = match driver {
            Driver::Files => (
                "default".to_owned(),
                "locks on the images themselves, on QEMU's bytes",
            ),
            Driver::Lockd => (
                "available".to_owned(),
                "the same, and byte 0 or a lockspace, as virtlockd has them",
            ),
            Driver::Sanlock => (
                leases::state(facts, common),
                "leases on shared storage, kept by its daemon",
            ),
            Driver::None => ("available".to_owned(), "nothing"),
        };
        (driver, state, what)
    });
    let data: Vec<Value> = rows
        .iter()
        .map(|(driver, state, what)| {
            json!({"driver": driver, "libvirt": driver.libvirt(), "state": state, "what": what})
        })
        .collect();
    let lines = rows.iter().map(|(driver, state, what)| {
        let libvirt = driver.libvirt().unwrap_or("-");
        [driver.word(), libvirt, state.as_str(), what]
            .map(str::to_owned)
            .into()
    });
    let lines: Vec<Vec<String>> = lines.collect();
    let text = table(&["DRIVER", "LIBVIRT", "STATE", "WHAT"], &lines);
    answer(common, &json!(data), &text)
}

fn list(image: Option<&Path>, facts: &dyn Facts, common: &Common) -> u8 {
    let proc = common.host_root.join("proc");
    let found = match image {
        Some(image) => match file_holders(&proc, image) {
            Ok(found) => found,
            Err(e) => return fail(&format!("{}: {e}", image.display())),
        },
        None => Holders {
            seen: all_holders(&proc),
            hidden: Vec::new(),
        },
    };
    let data = |holder: &Holder| {
        let mut data = json!(holder);
        data["access"] = json!(holder.access());
        data
    };
    let leases = leases::list(image, &found, facts, common);
    let told = json!({
        "holders": found.seen.iter().map(data).collect::<Vec<_>>(),
        "hidden": found.hidden,
        "leases": leases,
    });
    let rows = found.seen.iter().map(|h| {
        vec![
            h.pid.to_string(),
            h.vm.clone().unwrap_or_else(|| "-".into()),
            h.program.clone(),
            h.since.map_or_else(|| "-".into(), clock),
            h.access().to_owned(),
            bytes(&h.locks),
            h.path.display().to_string(),
        ]
    });
    let rows: Vec<_> = rows.chain(leases.iter().map(leases::Held::row)).collect();
    let head = ["PID", "VM", "PROGRAM", "SINCE", "ACCESS", "BYTES", "FILE"];
    let mut text = match (rows.is_empty(), image) {
        (true, None) if rustix::process::geteuid().is_root() => "no image is locked\n".to_owned(),
        (true, None) => {
            "no image is locked by a process that this user may look at; root sees all\n".to_owned()
        }
        (true, Some(image)) => format!(
            "no process seen here locks {}\n",
            shown(&image.display().to_string())
        ),
        (false, _) => table(&head, &rows),
    };
    if !found.hidden.is_empty() {
        text += &format!(
            "and bytes {} by processes that /proc does not show here (of another user, in another container, on another host)\n",
            bytes(&found.hidden)
        );
    }
    answer(common, &told, &text)
}

fn bytes(locks: &[Lock]) -> String {
    let mut bytes: Vec<String> = locks.iter().map(Lock::bytes).collect();
    bytes.dedup();
    bytes.join(",")
}

fn size(args: &SizeArgs, common: &Common) -> u8 {
    match sanlock::size(args.hosts, args.vms, args.disks, args.sector) {
        Some(size) => answer(common, &json!(size), &format!("{} MB\n", size.megabytes)),
        None if ![512, 4096].contains(&args.sector) => {
            fail("--sector: storage has sectors of 512 or 4096 bytes")
        }
        None => fail("so many leases have no size"),
    }
}

fn gc(args: &GcArgs, facts: &dyn Facts, common: &Common) -> u8 {
    let given = [
        (&args.file_lockspace_dir, Space::File),
        (&args.lvm_lockspace_dir, Space::Lvm),
        (&args.scsi_lockspace_dir, Space::Scsi),
    ];
    let spaces: Vec<(PathBuf, Space)> = given
        .into_iter()
        .filter_map(|(dir, space)| Some((dir.clone()?, space)))
        .collect();
    let default = spaces.is_empty() && args.disk_lease_dir.is_none();
    let swept = match default {
        true => sweep_default(common, args.dry_run),
        false => sweep(spaces, args.dry_run),
    };
    let leases = match (&args.disk_lease_dir, default) {
        (None, false) => Ok(Vec::new()),
        (directory, _) => leases::sweep(directory.as_deref(), args.dry_run, facts, common),
    };
    let swept = match (swept, leases) {
        (Ok(mut swept), Ok(leases)) => {
            swept.extend(leases);
            swept
        }
        (Err(why), _) | (_, Err(why)) => return fail(&why),
    };
    let mut rows = Vec::new();
    let mut data = Vec::new();
    for (path, state) in swept {
        let mut told = json!(state);
        told["path"] = json!(path);
        data.push(told);
        let state = match state {
            Swept::Removed => "removed".to_owned(),
            Swept::Stale => "would be removed".to_owned(),
            Swept::Held { by: Some(by) } => format!("held by {by}"),
            Swept::Held { by: None } => "held".to_owned(),
            Swept::Kept { why } => format!("kept: {why}"),
        };
        rows.push(vec![path.display().to_string(), state]);
    }
    let text = match rows.is_empty() {
        true => "nothing to remove\n".to_owned(),
        false => table(&[], &rows),
    };
    answer(common, &json!(data), &text)
}

/// What became of the files of lockspaces, or why they cannot be looked at.
type AllSwept = Result<Vec<(PathBuf, Swept)>, String>;

fn sweep(spaces: Vec<(PathBuf, Space)>, dry: bool) -> AllSwept {
    let mut all = Vec::new();
    for (directory, space) in spaces {
        all.extend(lockspace::sweep(&directory, space, dry).map_err(|e| crate::run::chain(&e))?);
    }
    Ok(all)
}

/// Sweeps those of libvirt's lockspaces that are there.
pub(super) fn sweep_default(common: &Common, dry: bool) -> AllSwept {
    let root = Root(common.host_root.clone());
    let own = SPACES.map(|(dir, space)| (root.at(dir), space));
    let readable = |dir: &PathBuf| std::fs::read_dir(dir).is_ok();
    sweep(
        own.into_iter().filter(|(dir, _)| readable(dir)).collect(),
        dry,
    )
}

fn setup(args: &SetupArgs, common: &Common) -> u8 {
    let root = Root(common.host_root.clone());
    let host = Host {
        exists: &|path| root.at(path).symlink_metadata().is_ok(),
        text: &|path| {
            let bytes = vsc::read_text(&root.at(path), MOST_TEXT).ok()?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        },
    };
    if !sanlock::HOST_IDS.contains(&args.host_id) {
        return fail(
            "--host-id: a host has a number from 1 to 2000, and no two hosts have the same",
        );
    }
    let names = [
        &args.user,
        &args.group,
        args.export.as_ref().unwrap_or(&args.user),
    ];
    if names
        .iter()
        .any(|name| name.is_empty() || name.contains(char::is_whitespace))
    {
        return fail("--user, --group and --export have no blanks");
    }
    let steps = match args.manager {
        Manager::Lockd => {
            sanlock::lockd_steps(args.directory.as_deref(), args.export.as_deref(), &host)
        }
        Manager::Sanlock => {
            let choices = Choices {
                host_id: args.host_id,
                leases: args
                    .directory
                    .clone()
                    .unwrap_or_else(|| "/var/lib/libvirt/sanlock".into()),
                export: args.export.clone(),
                owner: (args.user.clone(), args.group.clone()),
                no_watchdog: args.no_watchdog,
            };
            sanlock::sanlock_steps(&choices, &host)
        }
    };
    let line = |(number, step): (usize, &Step)| {
        let done = if step.done { "  (done)" } else { "" };
        let why = match step.why.as_str() {
            "" => String::new(),
            why => format!("     {}\n", shown(why)),
        };
        format!("{:>2}. {}{done}\n{why}", number + 1, shown(&step.what))
    };
    let text: String = steps.iter().enumerate().map(line).collect();
    answer(common, &json!(steps), &text)
}
