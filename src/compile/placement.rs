//! `cpu.pin`, `cpu.emulator_cpus`, `cpu.scheduler`, `cpu.priority`: where and how the host runs the threads.

#![forbid(unsafe_code)]

use std::path::Path;

use vsc_vmm::resources::{MAX_PRIORITY, Placement, Policy};

use crate::diag::{Diagnostic, Span};
use crate::facts::Facts;
use crate::scenario::{Cpu, Parsed};

use super::Problems;
use super::rights::{Lacks, Right, allowed, lack, limit, listed, numbers};

/// Where and how `vcpus` vCPUs and the threads that serve them run.
pub(super) fn compile(
    cpu: &Cpu,
    vcpus: u32,
    parsed: &Parsed,
    facts: &dyn Facts,
    problems: &mut Problems,
    lacks: &mut Lacks,
) -> Placement {
    let Cpu {
        // How the guest sees its CPUs is `cpu`'s.
        count: _,
        sockets: _,
        cores: _,
        threads: _,
        ht: _,
        nested: _,
        pin,
        emulator_cpus,
        scheduler,
        priority,
    } = cpu;
    let mut placement = Placement::default();
    if pin.is_empty() && emulator_cpus.is_none() && scheduler.is_none() {
        return placement;
    }
    let usable = usable(facts);
    let mut pins = vec![Vec::new(); vcpus as usize];
    for (index, pin) in pin.iter().enumerate() {
        let vcpu = pin.value.vcpu.map_or(index as u64, |v| v.value);
        // What is no set, or no vCPU of this machine, is an error of its own.
        let (Some(cpus), Some(slot)) = (
            pin.value.cpus.as_ref(),
            usize::try_from(vcpu).ok().and_then(|v| pins.get_mut(v)),
        ) else {
            continue;
        };
        if let Some(set) = set_of(&cpus.value, cpus.span, "cpu.pin", &usable, parsed, lacks) {
            *slot = set;
        }
    }
    if let Some(cpus) = emulator_cpus {
        let key = "cpu.emulator_cpus";
        placement.others =
            set_of(&cpus.value, cpus.span, key, &usable, parsed, lacks).unwrap_or_default();
    }
    if let Some(scheduler) = scheduler {
        let level = priority.map_or(1, |p| u8::try_from(p.value).unwrap_or(u8::MAX));
        placement.policy = match scheduler.value {
            "fifo" => Policy::Fifo(level),
            "rr" => Policy::RoundRobin(level),
            "batch" => Policy::Batch,
            "idle" => Policy::Idle,
            _ => Policy::Inherited,
        };
    }
    if let (Some(level), Some(scheduler)) = (placement.policy.priority(), scheduler) {
        if level > MAX_PRIORITY {
            let span = priority.map_or(scheduler.span, |p| p.span);
            let message = format!("vCPUs cannot have real-time priority {level} in this monitor");
            let d = Diagnostic::error("E-CPU-HOST", span, message);
            problems.push(
                d.why("The threads that serve them are one above: a guest that spins must not keep its monitor from stopping it")
                    .help(format!("Give 1 to {MAX_PRIORITY}")),
            );
        }
        let needed = u64::from(level) + 1;
        if let Some(most) = limit(Right::Priority, facts)
            && most < needed
        {
            let message = format!(
                "vCPUs cannot have real-time priority {level}: this process may give {most} at most"
            );
            let mut d = lack("E-RTPRIO", scheduler.span, message);
            d.why = Some(format!(
                "RLIMIT_RTPRIO is {most}, {needed} is needed (vCPUs {level}, the threads that serve them {needed}), and the process has no CAP_SYS_NICE"
            ));
            d.help = Some(format!(
                "As root: echo \"USER - rtprio {needed}\" >/etc/security/limits.d/vsc.conf, and log in again; a \
                 service has LimitRTPRIO=; or `cpu: {{scheduler: batch}}`"
            ));
            if lacks.push(parsed, "cpu.scheduler", d) {
                placement.policy = Policy::Inherited;
            }
        }
    }
    // A guest that computes makes no system call that blocks, and is killed for that (setrlimit(2), sched(7)).
    if let (Some(_), Some(scheduler)) = (placement.policy.priority(), scheduler)
        && let Some(most) = limit(Right::RealTime, facts)
    {
        let message = format!(
            "real-time vCPUs would be killed once one computes for {most} microseconds without a pause"
        );
        let mut d = lack("E-RTTIME", scheduler.span, message);
        d.why = Some(format!("RLIMIT_RTTIME is {most} microseconds"));
        d.help = Some(
            "bash: ulimit -R unlimited, where the hard limit allows it (ulimit -H -R); a service has \
             LimitRTTIME=infinity; or `cpu: {scheduler: batch}`"
                .to_owned(),
        );
        if lacks.push(parsed, "cpu.scheduler", d) {
            placement.policy = Policy::Inherited;
        }
    }
    // Real-time vCPUs have CPUs of their own where the host keeps some, as in the domain XML.
    let isolated = within_cpuset(facts.isolated_cpus(), facts);
    if pin.is_empty() && placement.policy.priority().is_some() && isolated.len() >= vcpus as usize {
        for (slot, cpu) in pins.iter_mut().zip(isolated) {
            *slot = vec![cpu];
        }
    }
    if pins.iter().any(|set| !set.is_empty()) {
        placement.vcpus = pins;
    }
    placement
}

/// Those of `cpus` that the cpuset of this process's cgroup has (cgroup v2; the nearest cgroup above that has one).
fn within_cpuset(mut cpus: Vec<u32>, facts: &dyn Facts) -> Vec<u32> {
    if cpus.is_empty() {
        return cpus;
    }
    let root = Path::new("/sys/fs/cgroup");
    let own = facts
        .text(Path::new("/proc/self/cgroup"))
        .unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = root.join(own.unwrap_or_default());
    let mut sets = own
        .ancestors()
        .take_while(|path| path.starts_with(root))
        .filter_map(|path| facts.text(&path.join("cpuset.cpus.effective")));
    if let Some(set) = sets.next().and_then(|text| numbers(&text)) {
        cpus.retain(|cpu| set.contains(cpu));
    }
    cpus
}

/// CPUs that threads of this process may run on; `None` where the host does not tell.
fn usable(facts: &dyn Facts) -> Option<Vec<u32>> {
    let online = facts
        .text(Path::new("/sys/devices/system/cpu/online"))
        .and_then(|text| numbers(&text));
    let mut usable = match (online, allowed("Cpus_allowed_list", facts)) {
        (Some(online), Some(allowed)) => {
            // Isolated ones are in nobody's set, and are there to be named.
            let isolated = within_cpuset(facts.isolated_cpus(), facts);
            let ours = |cpu: &u32| allowed.contains(cpu) || isolated.contains(cpu);
            online.into_iter().filter(ours).collect()
        }
        (online, allowed) => online.or(allowed)?,
    };
    usable.sort_unstable();
    Some(usable)
}

/// The CPUs of a set that was written, if this process may use them all.
fn set_of(
    text: &str,
    span: Span,
    key: &str,
    usable: &Option<Vec<u32>>,
    parsed: &Parsed,
    lacks: &mut Lacks,
) -> Option<Vec<u32>> {
    let wanted = numbers(text)?;
    let Some(usable) = usable else {
        return Some(wanted);
    };
    let missing: Vec<u32> = wanted
        .iter()
        .filter(|cpu| !usable.contains(cpu))
        .copied()
        .collect();
    if missing.is_empty() && !wanted.is_empty() {
        return Some(wanted);
    }
    let message = match missing.is_empty() {
        true => "These are no CPUs at all".to_owned(),
        false => format!(
            "This process may not run on CPU {} of this host (it may on {})",
            listed(&missing),
            listed(usable)
        ),
    };
    let mut d = lack("E-CPU-HOST", span, message);
    d.why = Some(
        "CPUs are those that are online (/sys/devices/system/cpu/online) and that whoever started this allows it (taskset, cpuset: Cpus_allowed_list in /proc/self/status), or isolated ones".into(),
    );
    d.help = Some(format!("For example `\"{}\"`", listed(usable)));
    lacks.push(parsed, key, d);
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::HostFacts;

    /// One that is off, or another's, cannot be had: the kernel refuses it, and with it the run.
    #[test]
    fn isolated_cpus_are_those_that_can_be_had() {
        let cpu = "/sys/devices/system/cpu";
        let group = "/sys/fs/cgroup/a.slice";
        let of = |more: &[(String, &str)]| {
            let mut facts = HostFacts::default();
            let usual = [
                (format!("{cpu}/online"), "0-5"),
                (format!("{cpu}/isolated"), "4-7"),
                ("/proc/self/cgroup".to_owned(), "0::/a.slice/b.scope"),
            ];
            for (path, text) in usual.iter().chain(more) {
                facts.texts.insert(path.into(), (*text).to_owned());
            }
            within_cpuset(facts.isolated_cpus(), &facts)
        };
        assert_eq!(of(&[]), [4, 5]);
        assert_eq!(
            of(&[(format!("{group}/cpuset.cpus.effective"), "0-4")]),
            [4]
        );
        let inner = format!("{group}/b.scope/cpuset.cpus.effective");
        let outer = format!("{group}/cpuset.cpus.effective");
        assert_eq!(of(&[(outer, "0-4"), (inner, "5")]), [5]);
    }
}
