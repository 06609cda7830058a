//! `cpu`: number, topology, nesting.

use vsc_vmm::resources::{Cpus, Topology};

use crate::diag::{Diagnostic, Span};
use crate::facts::Facts;
use crate::scenario::Cpu;

use super::Problems;

/// The vCPUs; something valid even where an error was reported.
pub(super) fn compile(cpu: &Cpu, facts: &dyn Facts, problems: &mut Problems) -> Cpus {
    let Cpu {
        count,
        sockets,
        cores,
        threads,
        ht,
        nested,
        // Where they run is `placement`'s.
        pin: _,
        emulator_cpus: _,
        scheduler: _,
        priority: _,
    } = cpu;
    let given = |g: &Option<crate::diag::Spanned<u64>>| {
        g.map(|s| u32::try_from(s.value).unwrap_or(u32::MAX))
    };
    let span = count.map_or(Span::NONE, |c| c.span);

    let mut per_core = given(threads);
    if let (Some(ht), Some(threads)) = (ht, threads)
        && ht.value != (threads.value == 2)
    {
        let message = format!(
            "cpu.ht is {}, and cpu.topology.threads is {}",
            ht.value, threads.value
        );
        let d =
            Diagnostic::error("E-CONFLICT", ht.span, message).also(threads.span, "the other one");
        problems.push(d.help("Keep one of the two: both say how many threads a core has"));
    }
    let all_of_it = |sockets: u32, cores: u32| {
        sockets
            .saturating_mul(cores)
            .saturating_mul(per_core.unwrap_or(1))
    };
    let product = given(sockets)
        .zip(given(cores))
        .map(|(sockets, cores)| all_of_it(sockets, cores));
    let number = given(count).or(product).or(per_core).unwrap_or(1);
    let limit = facts.kvm().map_or(u32::MAX, |kvm| kvm.max_vcpus);

    if number == 0 {
        let d = Diagnostic::error("E-VCPU-COUNT", span, "A machine needs at least one vCPU");
        problems.push(
            d.why("InvalidVcpuCount: cpu.count is 1 or more")
                .help("Write `cpus: 1`, or leave it out"),
        );
    } else if number > limit {
        let at = [count, cores, sockets]
            .into_iter()
            .flatten()
            .next()
            .map_or(Span::NONE, |c| c.span);
        let message =
            format!("{number} vCPUs are more than the {limit} that this host's KVM allows");
        let d = Diagnostic::error("E-VCPU-COUNT", at, message);
        problems.push(
            d.why("InvalidVcpuCount: KVM_CAP_MAX_VCPUS")
                .help(format!("Give 1 to {limit}")),
        );
    } else if let Some(online) = if number > 1 {
        facts.online_cpus()
    } else {
        None
    } && number > online.saturating_mul(4)
    {
        let message = format!("{number} vCPUs share {online} CPUs of the host");
        let d = Diagnostic::warning("W-VCPU-COUNT", span, message);
        problems.push(
            d.why("A vCPU that waits for a lock whose holder does not run burns its time slice"),
        );
    }

    if ht.is_some_and(|h| h.value) && per_core.is_none() {
        per_core = Some(if number == 1 { 1 } else { 2 });
    }
    let threads_each = per_core.unwrap_or(1).max(1);
    if threads_each == 2 && number % 2 == 1 {
        let at = count
            .map(|c| c.span)
            .or(threads.map(|t| t.span))
            .unwrap_or_default();
        let mut d = Diagnostic::error(
            "E-VCPU-ODD",
            at,
            format!("{number} vCPUs cannot be two threads per core"),
        );
        if let Some(ht) = ht {
            d = d.also(ht.span, "asked for here");
        }
        problems.push(
            d.why("With two threads per core the number of vCPUs is 1 or even")
                .help("Give an even number"),
        );
    }

    let packages = given(sockets).unwrap_or(1).max(1);
    let fixed = packages.saturating_mul(threads_each);
    let each = given(cores).unwrap_or((number / fixed).max(1));
    let total = fixed.saturating_mul(each);
    // A wrong number was reported above; saying that its product is wrong too would help nobody.
    let blamed = number == 0 || (threads_each == 2 && number % 2 == 1);
    if total != number && !blamed {
        let at = [cores, sockets, threads]
            .into_iter()
            .flatten()
            .next()
            .map_or(span, |t| t.span);
        let message = format!(
            "{packages} sockets × {each} cores × {threads_each} threads are {total} vCPUs, and cpu.count is {number}"
        );
        let mut d = Diagnostic::error("E-TOPOLOGY", at, message);
        if let Some(count) = count {
            d = d.also(count.span, "the count");
        }
        problems.push(d.help("Make the product equal to the count, or leave one of them out"));
    }
    let nested_on = nested.is_some_and(|n| n.value);
    if let Some(nested) = nested
        && nested_on
        && !facts.nested()
    {
        let d = Diagnostic::error(
            "E-NESTED",
            nested.span,
            "This host does not let guests run machines of their own",
        );
        let d =
            d.why("The parameter `nested` of kvm_amd or kvm_intel is off, or neither is loaded");
        problems.push(
            d.help("As root: modprobe -r kvm_amd && modprobe kvm_amd nested=1 (or kvm_intel)"),
        );
    }
    Cpus {
        count: number,
        topology: Topology {
            sockets: packages,
            cores: each,
            threads: threads_each,
        },
        nested: nested_on,
    }
}
