//! `vsc-run doctor`: what this host is, what works on it, and what mends the rest.

use clap::Args;
use serde::Serialize;
use vsc::facts::{Facts, LiveFacts, Root, Variables};
use vsc_vmm::kvm::{Host, HostKind};

use super::Common;
use crate::say;

/// Arguments of `doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {}

/// The verdict.
#[derive(Debug, Serialize)]
struct Report {
    kvm: Host,
    summary: String,
    checks: Vec<Check>,
    kernels: Vec<String>,
}

/// One thing that works or does not.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    works: bool,
    /// Why not, or what it rests on.
    detail: String,
    /// The one command, or step, that mends it.
    remedy: Option<String>,
}

pub(super) fn run(_: &DoctorArgs, common: &Common) -> u8 {
    let facts = LiveFacts::new(Root(common.host_root.clone()), Variables::of_process());
    let report = examine(&facts);
    if common.json {
        say::out(&(serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"));
    } else {
        say::out(&text(&report));
    }
    u8::from(report.kvm.kind == HostKind::None)
}

fn examine(facts: &LiveFacts) -> Report {
    let host = facts.host();
    let kernels: Vec<_> = facts.kernels().into_iter().map(|k| k.path).collect();
    let cpl3 = |p: &std::path::PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().contains("cpl3"));
    let hardware = host.kind == HostKind::Hardware;
    let check = |what: &str, works, detail: String, remedy: Option<String>| Check {
        what: what.into(),
        works,
        detail,
        remedy,
    };
    let mut checks = vec![
        check("KVM", host.kind != HostKind::None, host.describe(), host.remedy()),
        check(
            "built-in guest",
            host.kind != HostKind::None,
            "vsc-run without a scenario boots it".into(),
            host.remedy(),
        ),
    ];
    let stock = kernels.iter().find(|p| !cpl3(p));
    let native = kernels.iter().find(|p| cpl3(p));
    checks.push(match (hardware, stock) {
        (true, Some(path)) => check("stock Linux kernels", true, format!("the newest is {}", path.display()), None),
        (true, None) => check(
            "stock Linux kernels",
            true,
            "none is installed in /boot".into(),
            Some("sudo apt install linux-image-cloud-amd64".into()),
        ),
        (false, _) => check(
            "stock Linux kernels",
            false,
            "they need hardware KVM".into(),
            host.remedy().or_else(|| Some("tests/rig/run -- CMD boots them in an emulated AMD host".into())),
        ),
    });
    if host.kind == HostKind::SoftwarePaging {
        checks.push(match native {
            Some(path) => check("vsc's cpl3 kernel", true, format!("{}", path.display()), None),
            None => check(
                "vsc's cpl3 kernel",
                false,
                "none is installed, so no Linux command runs natively".into(),
                Some("firmware/kernel/build cpl3 ~/.local/share/vsc/kernels".into()),
            ),
        });
    }
    checks.push(check(
        "nested virtualization",
        facts.nested() && hardware,
        if hardware { "the module parameter nested of kvm_amd or kvm_intel".into() } else { "needs hardware KVM".into() },
        (hardware && !facts.nested()).then(|| "sudo modprobe -r kvm_amd && sudo modprobe kvm_amd nested=1".into()),
    ));
    if let Some(container) = facts.container() {
        checks.push(check("outside of a container", false, format!("this runs in {container}"), None));
    }
    Report {
        kvm: host,
        summary: host.describe(),
        checks,
        kernels: kernels.iter().map(|k| k.display().to_string()).collect(),
    }
}

fn text(report: &Report) -> String {
    let mut text = format!("{}\n\n", report.summary);
    for c in &report.checks {
        let mark = if c.works { "works" } else { "no   " };
        text += &format!("{mark}  {}: {}\n", c.what, c.detail);
        if let Some(remedy) = &c.remedy {
            text += &format!("       try: {remedy}\n");
        }
    }
    if !report.kernels.is_empty() {
        text += &format!("\nkernels found: {}\n", report.kernels.join(", "));
    }
    text
}
