//! From registers to a sentence: what a guest that ended badly was doing.

use std::path::Path;

use vsc_vmm::control::Stop;
use vsc_vmm::kvm::{Host, HostKind};
use vsc_vmm::vcpu::{CpuSnapshot, Sleep};
use vsc_vmm::vm::Report;

/// CR0.PE.
const PROTECTED: u64 = 1;
/// EFER.LMA.
const LONG: u64 = 1 << 10;

/// Explains a stop that is neither a power off nor a reset.
pub(crate) fn explain(report: &Report) -> String {
    let place = |vcpu: u32| {
        report
            .vcpus
            .get(vcpu as usize)
            .copied()
            .flatten()
            .map_or_else(String::new, |s| format!(" {}", locate(&s)))
    };
    match &report.stop {
        Stop::TripleFault { vcpu } => format!(
            "the guest died of a triple fault on vCPU {vcpu}{}: an exception came while it had no working handler",
            place(*vcpu)
        ),
        Stop::Halted => format!(
            "the guest stopped for good: every vCPU executed hlt with interrupts masked{}",
            place(0)
        ),
        Stop::NoLife => no_life(report),
        Stop::InternalError {
            vcpu,
            suberror: 1,
            instruction,
        } => format!(
            "KVM cannot emulate an instruction on vCPU {vcpu}{}: {}{}",
            place(*vcpu),
            hex(instruction),
            emulation_hint()
        ),
        Stop::InternalError { vcpu, suberror, .. } => {
            format!(
                "KVM gave up on vCPU {vcpu}{} (KVM_EXIT_INTERNAL_ERROR, suberror {suberror})",
                place(*vcpu)
            )
        }
        Stop::FailEntry { vcpu, reason } => {
            format!(
                "the processor refused to run vCPU {vcpu}{}: hardware entry failure {reason:#x}",
                place(*vcpu)
            )
        }
        Stop::VcpuError { vcpu, errno } => format!(
            "KVM_RUN failed on vCPU {vcpu}{}: {}",
            place(*vcpu),
            std::io::Error::from_raw_os_error(*errno)
        ),
        Stop::Unexpected { vcpu, what } => {
            format!("vCPU {vcpu} stopped for {what}{}", place(*vcpu))
        }
        Stop::Bug => {
            "a thread of the monitor failed; this is a bug of vsc, please report it".into()
        }
        Stop::NotConfined { thread, errno } => format!(
            "a thread of kind {thread} could not be confined: {}; --no-sandbox runs without",
            std::io::Error::from_raw_os_error(*errno)
        ),
        Stop::PowerOff | Stop::Reset | Stop::Exit { .. } | Stop::Panic | Stop::Requested => {
            "the machine ended".into()
        }
    }
}

/// The state of a guest that was cut off while it ran.
pub(crate) fn whereabouts(report: &Report) -> Option<String> {
    let snapshot = report.vcpus.first().copied().flatten()?;
    Some(format!("vCPU 0 was {}", locate(&snapshot)))
}

fn no_life(report: &Report) -> String {
    let what = match report.vcpus.first().copied().flatten() {
        None => "its first vCPU does not answer".to_owned(),
        Some(s) if s.sleep == Sleep::Halted => format!(
            "vCPU 0 sleeps in hlt, waiting for an interrupt, {}",
            locate(&s)
        ),
        Some(s) if report.exits == 0 => {
            format!(
                "vCPU 0 has made no exit at all and is {}{}",
                locate(&s),
                emulation_hint()
            )
        }
        Some(s) => format!("vCPU 0 runs {}", locate(&s)),
    };
    format!("the guest showed no sign of life (no console output, no driver): {what}")
}

fn locate(s: &CpuSnapshot) -> String {
    let mode = match (s.cr0 & PROTECTED, s.efer & LONG) {
        (0, _) => "16-bit real mode",
        (_, 0) => "32-bit mode",
        _ => "64-bit mode",
    };
    format!(
        "at rip {:#x} ({mode}, CPL {}, cr3 {:#x}, rflags {:#x})",
        s.rip, s.cpl, s.cr3, s.rflags
    )
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "its bytes are not known".into();
    }
    bytes
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

fn emulation_hint() -> &'static str {
    // It has run a machine; nothing is opened any more.
    match Host::classify(Path::new("/"), Ok(())).kind {
        HostKind::SoftwarePaging => {
            "; on this host (kvm_pvm) all kernel-mode guest code is emulated, and only kernels made for it run"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(stop: Stop, exits: u64) -> Report {
        let snapshot = CpuSnapshot {
            rip: 0xffff_ffff_8100_0000,
            rsp: 0,
            rflags: 2,
            cr0: PROTECTED,
            cr3: 0x1000,
            efer: LONG,
            cpl: 0,
            sleep: Sleep::Running,
        };
        Report {
            stop,
            vcpus: vec![Some(snapshot)],
            exits,
            kvm: vec![],
            devices: vec![],
            alive: false,
            panic: None,
            console_tail: vec![],
        }
    }

    #[test]
    fn sentences_name_the_instruction_pointer_and_the_mode() {
        for stop in [
            Stop::TripleFault { vcpu: 0 },
            Stop::Halted,
            Stop::NoLife,
            Stop::InternalError {
                vcpu: 0,
                suberror: 1,
                instruction: vec![0x0f, 0xc7],
            },
            Stop::FailEntry {
                vcpu: 0,
                reason: 0x8000_0021,
            },
            Stop::VcpuError {
                vcpu: 0,
                errno: libc::EFAULT,
            },
        ] {
            let text = explain(&report(stop.clone(), 5));
            assert!(
                text.contains("rip 0xffffffff81000000 (64-bit mode, CPL 0"),
                "{stop:?}: {text}"
            );
        }
        assert!(
            explain(&report(
                Stop::InternalError {
                    vcpu: 0,
                    suberror: 1,
                    instruction: vec![0x0f, 0xc7]
                },
                5
            ))
            .contains("0f c7")
        );
        assert!(explain(&report(Stop::NoLife, 0)).contains("no exit at all"));
    }
}
