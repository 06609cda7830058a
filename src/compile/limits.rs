//! `limits` that a cgroup keeps (version 2; Documentation/admin-guide/cgroup-v2.rst): where the run's own cgroup is
//! made, what is switched on above it for that, and what is written into it. Nothing is changed here.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::diag::{Diagnostic, Span};
use crate::facts::Facts;
use crate::scenario::value::size_text;
use crate::scenario::{IoMax, Limits, Parsed};
use crate::tune::{self, Act, Change};

use super::Problems;
use super::rights::Lacks;

/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// What the monitor needs beside the guest's memory: the same that libvirt's limit has (kbase launch_security_sev).
const BESIDE_GUEST: u64 = 256 << 20;
/// Page tables of host and guest are charged too: 16 bytes for each page of 4 KiB, and as much again to spare.
const TABLES: u64 = 128;
/// Threads of the monitor besides vCPUs and I/O loops, while it starts.
const OTHER_THREADS: u64 = 24;

/// The cgroup of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Its directory, but for the number of the process that ends its name.
    #[serde(rename = "prefix")]
    directory: String,
    /// Cgroups above it that are made where they are not there.
    pub slices: Vec<PathBuf>,
    /// Controllers that are handed down: file, what it says now, what it is to say.
    pub controllers: Vec<(PathBuf, String, String)>,
    /// What is written into it.
    pub values: Vec<Limit>,
    /// What would limit all machines of the slice together.
    pub advice: Vec<String>,
}

/// A limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// The scenario's key.
    pub key: String,
    /// The file in the cgroup.
    pub file: String,
    /// What is written.
    pub new: String,
}

impl Cgroup {
    /// Its directory, for the process of a number, or `PID` for that.
    pub fn directory(&self, process: &str) -> PathBuf {
        PathBuf::from(format!("{}{process}", self.directory))
    }

    /// What is done to the host for it, in order.
    pub fn changes(&self, process: u32) -> Vec<Change> {
        let change = |what: &str, act| Change {
            what: what.to_owned(),
            act,
            required: true,
        };
        let directory = self.directory(&process.to_string());
        let make = |path: &Path| {
            let path = path.to_owned();
            change("limits.slice", Act::Directory { path })
        };
        let controllers = self.controllers.iter().map(|(path, old, new)| {
            let (path, old, new) = (path.clone(), old.clone(), new.clone());
            let act = Act::Write { path, old, new };
            (act.target().to_owned(), change("limits", act))
        });
        // Each is handed down once the cgroup that does so is there.
        let mut changes: Vec<(PathBuf, Change)> = self
            .slices
            .iter()
            .map(|path| (path.clone(), make(path)))
            .chain(controllers)
            .collect();
        changes.sort_by(|(a, _), (b, _)| {
            let depth = |path: &Path| {
                let file = path.ends_with(CONTROL);
                (path.components().count() - usize::from(file), file)
            };
            depth(a).cmp(&depth(b))
        });
        let mut changes: Vec<Change> = changes.into_iter().map(|(_, change)| change).collect();
        // Its limits go with it.
        changes.push(change(tune::LIMITS, Act::Directory { path: directory }));
        changes
    }
}

/// Which controllers a cgroup hands down to those below it.
const CONTROL: &str = "cgroup.subtree_control";

/// What limits of the scenario are about.
pub(super) struct Around<'a> {
    /// Name of the machine.
    pub(super) name: &'a str,
    /// Guest RAM that is charged to the cgroup, bytes: pages of hugetlbfs are not.
    pub(super) memory: u64,
    /// vCPUs and I/O loops.
    pub(super) threads: u64,
    /// `memory.hard_limit`, bytes.
    pub(super) hard_limit: Option<crate::diag::Spanned<u64>>,
    /// vCPUs are real-time threads.
    pub(super) real_time: bool,
    /// Images of the disks, in their order.
    pub(super) images: Vec<Option<PathBuf>>,
}

/// The cgroup that the scenario wants, if any.
pub(super) fn compile(
    limits: &Limits,
    around: &Around<'_>,
    parsed: &Parsed,
    facts: &dyn Facts,
    problems: &mut Problems,
    lacks: &mut Lacks,
) -> Option<Cgroup> {
    let Limits {
        // Times are `events`'s.
        timeout: _,
        boot_deadline: _,
        stop_grace: _,
        memory_max,
        memory_high,
        cpu_max,
        pids_max,
        io_max,
        slice,
    } = limits;
    let mut wishes: Vec<(Limit, Span)> = Vec::new();
    let mut wish = |key: &str, file: &str, new: String, span| {
        let (key, file) = (key.to_owned(), file.to_owned());
        wishes.push((Limit { key, file, new }, span));
    };
    if let (Some(max), Some(hard)) = (memory_max, around.hard_limit)
        && max.value != hard.value
    {
        let message = format!(
            "`limits.memory_max` is {}, and `memory.hard_limit` is {}",
            size_text(max.value),
            size_text(hard.value)
        );
        let d = Diagnostic::error("E-CONFLICT", max.span, message).also(hard.span, "the other one");
        problems.push(d.help("Keep one of the two: both limit the whole run"));
    }
    let most = memory_max
        .map(|m| ("limits.memory_max", m))
        .or(around.hard_limit.map(|m| ("memory.hard_limit", m)));
    if let Some((key, max)) = most {
        let beside = BESIDE_GUEST.max(around.memory / TABLES);
        let least = around.memory.saturating_add(beside);
        // One that leaves the emulator nothing is told by the domain's rules.
        let told = key == "memory.hard_limit" && max.value <= around.memory;
        if max.value < least && !told {
            let message = format!(
                "`{key}` is {}, less than the {} that the run needs",
                size_text(max.value),
                size_text(least)
            );
            let d = Diagnostic::error("E-LIMIT", max.span, message);
            problems.push(
                d.why(format!(
                    "{} of the guest and {} for the monitor and for page tables; with less the host's kernel would kill it",
                    size_text(around.memory),
                    size_text(beside)
                ))
                .help(format!("Give at least {}", size_text(least))),
            );
        }
        wish(key, "memory.max", page_down(max.value), max.span);
    }
    if let Some(high) = memory_high {
        if let Some((_, max)) = most
            && high.value > max.value
        {
            let message = "`limits.memory_high` is more than the most that the run may have";
            let d = Diagnostic::error("E-CONFLICT", high.span, message);
            problems.push(d.also(max.span, "the most").help("Give less"));
        }
        wish(
            "limits.memory_high",
            "memory.high",
            page_down(high.value),
            high.span,
        );
    }
    if let Some(cpu) = cpu_max {
        if around.real_time {
            let message = "`limits.cpu_max` does not hold for real-time vCPUs";
            let d = Diagnostic::warning("W-CPU-MAX", cpu.span, message);
            problems.push(
                d.why("The host's kernel counts the time of ordinary threads only (sched-rt-group.rst)")
                    .help("Say `cpu: {scheduler: batch}`, or pin them: `cpu: {pin: …}`"),
            );
        }
        match quota(&cpu.value) {
            Some(value) => wish("limits.cpu_max", "cpu.max", value, cpu.span),
            None => {
                let d = Diagnostic::error("E-VALUE", cpu.span, "This is no amount of CPU time");
                problems.push(d.why("cpu.max of a cgroup: a quota of 1000 microseconds at least, in a period of 1000 to 1000000")
                    .help("For example `50%`, `200%`, or `50000 100000`"));
            }
        }
    }
    if let Some(pids) = pids_max {
        let least = around.threads.saturating_add(OTHER_THREADS);
        if pids.value < least {
            let message = format!(
                "{} threads are too few for this machine: it needs up to {least}",
                pids.value
            );
            let d = Diagnostic::error("E-LIMIT", pids.span, message);
            problems.push(
                d.why("One for each vCPU and each I/O loop, and some while it starts")
                    .help(format!("Give at least {least}")),
            );
        }
        wish(
            "limits.pids_max",
            "pids.max",
            pids.value.to_string(),
            pids.span,
        );
    }
    for (value, span) in disks(io_max, around, facts, problems) {
        wish("limits.io_max", "io.max", value, span);
    }
    let span = wishes
        .iter()
        .map(|(_, span)| *span)
        .chain(slice.iter().map(|s| s.span))
        // Who asks for one of them wants it to hold.
        .max_by_key(|span| !parsed.sources.is_advice(*span))?;
    let place = match slice {
        None => Ok(None),
        Some(slice) => slice_path(&slice.value).map(Some).ok_or(slice.span),
    };
    let Ok(place) = place else {
        let d = Diagnostic::error(
            "E-VALUE",
            span,
            "This is no cgroup: its name goes below /sys/fs/cgroup",
        );
        problems.push(d.help("For example `slice: machine.slice`, or `slice: machine.slice/lab`"));
        return None;
    };
    let values: Vec<Limit> = wishes.into_iter().map(|(value, _)| value).collect();
    match find(place.as_deref(), &values, facts) {
        Ok((base, slices, controllers)) => Some(Cgroup {
            directory: format!("{}/vsc-{}-", base.display(), around.name),
            slices,
            controllers,
            advice: match slice {
                Some(slice) => advice(&slice.value, &values, facts),
                None => Vec::new(),
            },
            values,
        }),
        Err((message, help)) => {
            let mut keys: Vec<&str> = values.iter().map(|v| v.key.as_str()).collect();
            keys.dedup();
            if keys.is_empty() {
                keys.push("limits.slice");
            }
            let mut d = Diagnostic::error("E-CGROUP", span, message);
            d.why = Some(format!(
                "{} would be kept by a cgroup of the run's own",
                keys.join(", ")
            ));
            d.help = Some(help);
            for key in keys {
                lacks.push(parsed, key, d.clone());
            }
            None
        }
    }
}

/// The kernel keeps whole pages.
fn page_down(bytes: u64) -> String {
    (bytes & !0xfff).to_string()
}

/// `cpu.max` of `50%` or `50000 100000`.
fn quota(text: &str) -> Option<String> {
    /// Microseconds; kernel/sched/core.c, min_cfs_quota_period and max_cfs_quota_period.
    const PERIOD: std::ops::RangeInclusive<u64> = 1000..=1_000_000;
    const USUAL: u64 = 100_000;
    let (quota, period) = match text.trim().strip_suffix('%') {
        Some(percent) => (
            percent
                .trim()
                .parse::<u64>()
                .ok()?
                .checked_mul(USUAL / 100)?,
            USUAL,
        ),
        None => {
            let (quota, period) = text.trim().split_once(' ')?;
            (quota.parse().ok()?, period.trim().parse().ok()?)
        }
    };
    // An hour of CPU time in each period is more than any machine has.
    let fits = (1000..=3_600_000_000).contains(&quota) && PERIOD.contains(&period);
    fits.then(|| format!("{quota} {period}"))
}

/// Lines of `io.max`, one for each disk of the host.
fn disks(
    wanted: &[crate::diag::Spanned<IoMax>],
    around: &Around<'_>,
    facts: &dyn Facts,
    problems: &mut Problems,
) -> Vec<(String, Span)> {
    let mut lines: Vec<(String, [u64; 4], Span)> = Vec::new();
    for member in wanted {
        let IoMax {
            disk,
            rbps,
            wbps,
            riops,
            wiops,
        } = &member.value;
        let given = [rbps, wbps, riops, wiops].map(|v| v.map_or(0, |v| v.value));
        if given == [0; 4] {
            let d = Diagnostic::error(
                "E-REQUIRED",
                member.span,
                "This limit of a disk has no number",
            );
            problems.push(d.help("For example `{disk: 0, wbps: 100M}`: rbps, wbps, riops, wiops"));
            continue;
        }
        let all = 0..around.images.len();
        let which: Vec<usize> = match disk {
            Some(disk) if usize::try_from(disk.value).is_ok_and(|n| all.contains(&n)) => {
                vec![usize::try_from(disk.value).unwrap_or_default()]
            }
            Some(disk) => {
                let message = format!("There is no disk {}: there are {}", disk.value, all.end);
                problems.push(Diagnostic::error("E-INDEX", disk.span, message));
                continue;
            }
            None => all.collect(),
        };
        for index in which {
            let Some(image) = around.images.get(index).and_then(Option::as_ref) else {
                continue;
            };
            let number = facts
                .device_of(image)
                .and_then(|device| facts.text(&Path::new("/sys/block").join(device).join("dev")));
            let Some(number) = number else {
                let message =
                    format!("disks[{index}] lies on no disk of this host, so nothing can limit it");
                let d = Diagnostic::error("E-LIMIT-DISK", member.span, message);
                problems.push(d.why(format!(
                    "{} is in memory or on the network",
                    image.display()
                )));
                continue;
            };
            // Two images on one disk may have what both may have together.
            match lines.iter_mut().find(|(n, _, _)| *n == number) {
                Some((_, sums, _)) => sums.iter_mut().zip(given).for_each(|(sum, more)| {
                    *sum = match (*sum, more) {
                        (0, _) | (_, 0) => 0,
                        (sum, more) => sum.saturating_add(more),
                    };
                }),
                None => lines.push((number, given, member.span)),
            }
        }
    }
    lines
        .into_iter()
        .map(|(number, given, span)| {
            let words = ["rbps", "wbps", "riops", "wiops"].iter().zip(given);
            let words = words
                .filter(|(_, n)| *n > 0)
                .map(|(w, n)| format!(" {w}={n}"));
            (number + &words.collect::<String>(), span)
        })
        .collect()
}

/// A slice's path below the cgroups: `a-b.slice` is in `a.slice` (systemd.slice(5)); a path is one already.
fn slice_path(text: &str) -> Option<PathBuf> {
    let text = text.trim().trim_matches('/');
    let part = |p: &str| {
        let plain = p.chars().all(|c| c.is_ascii_graphic());
        plain && !p.is_empty() && !p.starts_with('.') && !p.starts_with("cgroup.") && p.len() < 200
    };
    if !text.split('/').all(part) {
        return None;
    }
    let Some(name) = text.strip_suffix(".slice").filter(|n| !n.contains('/')) else {
        return Some(text.into());
    };
    let mut path = PathBuf::new();
    for (at, _) in name.match_indices('-').filter(|(at, _)| *at > 0) {
        path.push(format!("{}.slice", name.get(..at)?));
    }
    path.push(format!("{name}.slice"));
    Some(path)
}

/// Why there is no cgroup, and what helps.
type No = (String, String);
/// The cgroup in which the run's is made; those that are made for that; what hands controllers down.
type Found = (PathBuf, Vec<PathBuf>, Vec<(PathBuf, String, String)>);

fn find(slice: Option<&Path>, values: &[Limit], facts: &dyn Facts) -> Result<Found, No> {
    let root = Path::new(CGROUPS);
    let words = |path: &Path| -> Option<Vec<String>> {
        let text = facts.text(path)?;
        Some(text.split_ascii_whitespace().map(str::to_owned).collect())
    };
    let has = words(&root.join("cgroup.controllers")).ok_or_else(|| {
        let there = facts.exists(root);
        let (what, help) = match there {
            true => ("cgroup v1", "Boot it with systemd.unified_cgroup_hierarchy=1"),
            false => (
                "no cgroups",
                "As root: mount -t cgroup2 cgroup2 /sys/fs/cgroup; a container is given them by its engine",
            ),
        };
        (
            format!("This host has {what}, and limits are kept by cgroup v2"),
            format!("{help}; `timeout` works everywhere"),
        )
    })?;
    let mut needed: Vec<&str> = values
        .iter()
        .filter_map(|v| v.file.split('.').next())
        .collect();
    needed.sort_unstable();
    needed.dedup();
    let own = facts
        .text(Path::new("/proc/self/cgroup"))
        .unwrap_or_default();
    let own = own
        .lines()
        .find_map(|l| l.strip_prefix("0::/"))
        .unwrap_or_default();
    if slice.is_none() && own.split('/').any(|part| part == "..") {
        let message =
            "This process is in a cgroup outside of those that it sees (cgroup_namespaces(7))";
        let help = "`limits: {slice: …}` names one below /sys/fs/cgroup".to_owned();
        return Err((message.to_owned(), help));
    }
    let own = root.join(own.trim_end_matches(" (deleted)"));
    let base = match slice {
        Some(slice) => root.join(slice),
        // A cgroup with processes hands no controllers down ("no internal processes"), but the root does.
        None => own
            .parent()
            .filter(|p| p.starts_with(root))
            .unwrap_or(root)
            .to_owned(),
    };
    let remedy = || {
        "systemd-run --user --scope -p Delegate=yes vsc-run … gives it one, or as root `limits: {slice: machine.slice}`"
            .to_owned()
    };
    let mut slices = Vec::new();
    let mut controllers = Vec::new();
    let mut offered = has;
    let levels: Vec<&Path> = base
        .ancestors()
        .take_while(|p| p.starts_with(root))
        .collect();
    for level in levels.into_iter().rev() {
        let new = !facts.exists(&level.join("cgroup.procs")) && level != root;
        if new {
            let above = level.parent().unwrap_or(root);
            if slices.is_empty() && !facts.may_write(above) {
                return Err((
                    format!("This user may not make the cgroup {}", level.display()),
                    remedy(),
                ));
            }
        }
        if new || slice.is_some_and(|s| level != root && root.join(s).starts_with(level)) {
            slices.push(level.to_owned());
        }
        if let Some(lack) = needed.iter().find(|c| !offered.iter().any(|o| o == *c)) {
            let message = format!(
                "There is no controller `{lack}` in the cgroup {}",
                level.display()
            );
            let help = "The kernel has it not (/proc/cgroups), cgroup v1 has it, or whoever delegates keeps it: as a user, \
                        systemd-run --user --scope -p Delegate=yes vsc-run …";
            return Err((message, help.to_owned()));
        }
        let file = level.join(CONTROL);
        let now = if new {
            Vec::new()
        } else {
            words(&file).unwrap_or_default()
        };
        let enough = needed.iter().all(|c| now.iter().any(|n| n == c));
        // Every run switches on the same ones, so that the last one knows what to switch off.
        let then: Vec<String> = match enough {
            true => now.clone(),
            false => {
                let wanted = |c: &String| {
                    now.contains(c) || ["cpu", "io", "memory", "pids"].contains(&c.as_str())
                };
                offered.iter().filter(|c| wanted(c)).cloned().collect()
            }
        };
        if !enough && !new {
            if level != root
                && facts
                    .text(&level.join("cgroup.procs"))
                    .is_some_and(|p| !p.is_empty())
            {
                let message = format!(
                    "The cgroup {} has processes of its own, so it hands no controllers down",
                    level.display()
                );
                return Err((message, remedy()));
            }
            if !facts.may_write(&file) {
                return Err((
                    format!(
                        "This user may not hand controllers down from the cgroup {}",
                        level.display()
                    ),
                    remedy(),
                ));
            }
        }
        if !needed.is_empty() {
            controllers.push((file, now.join(" "), then.join(" ")));
        }
        offered = then;
    }
    let exists = slices.last() != Some(&base) || facts.exists(&base.join("cgroup.procs"));
    // To move, a process must be allowed to write to what both cgroups have in common ("Delegation Containment").
    let common = own
        .ancestors()
        .find(|p| base.starts_with(p))
        .unwrap_or(root);
    let denied = [base.clone(), common.join("cgroup.procs")];
    for (path, matters) in denied.into_iter().zip([exists, true]) {
        if matters && facts.exists(&path) && !facts.may_write(&path) {
            return Err((
                format!(
                    "This user may not put a process into a cgroup of {}",
                    base.display()
                ),
                remedy(),
            ));
        }
    }
    Ok((base, slices, controllers))
}

/// How all machines of a slice are limited together, which their own limits do not do.
fn advice(slice: &str, values: &[Limit], facts: &dyn Facts) -> Vec<String> {
    if slice.contains('/') || !slice.ends_with(".slice") {
        return Vec::new();
    }
    // What is left of it keeps the host alive.
    let all = facts.memory().map(|m| (m.total - m.total / 8) & !0xf_ffff);
    let own = values
        .iter()
        .find(|v| v.file == "memory.max")
        .and_then(|v| v.new.parse().ok());
    let Some(bytes) = all.or(own) else {
        return Vec::new();
    };
    let amount = format!("{}M", bytes >> 20);
    vec![
        format!("All machines of {slice} together, so that the host keeps the rest:"),
        format!("  systemctl set-property {slice} MemoryMax={amount}"),
        format!("or /etc/systemd/system/{slice}.d/90-MemoryMax.conf, then systemctl daemon-reload:"),
        "  [Slice]".to_owned(),
        format!("  MemoryMax={amount}"),
        "Within that limit one machine can still starve the others: hence `limits.memory_max` for each.".to_owned(),
    ]
}

#[cfg(test)]
mod tests;
