//! CPUID leaves to look at: this processor's, those that KVM can show to a guest, and those that a guest of ours gets.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2 as Entry};
use kvm_ioctls::Kvm;
use serde::{Deserialize, Serialize};

use super::{KvmError, cpuid, machine};
use crate::resources::Cpus;

/// Highest leaf of a range that is read, counted from its first: no processor has more.
const LEAVES_MAX: u32 = 0x40;

/// One CPUID leaf and its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf {
    /// EAX of the question.
    pub function: u32,
    /// ECX of the question; 0 where the leaf has no sub-leaves.
    pub index: u32,
    /// EAX of the answer.
    pub eax: u32,
    /// EBX of the answer.
    pub ebx: u32,
    /// ECX of the answer.
    pub ecx: u32,
    /// EDX of the answer.
    pub edx: u32,
}

impl From<&Entry> for Leaf {
    fn from(e: &Entry) -> Self {
        Self {
            function: e.function,
            index: e.index,
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        }
    }
}

/// What the CPUID instruction says to this process, without the hypervisor's own leaves.
pub fn processor() -> Vec<Leaf> {
    let mut leaves = Vec::new();
    for base in [0, 0x8000_0000u32] {
        let last = __cpuid_count(base, 0).eax.clamp(base, base + LEAVES_MAX);
        for function in base..=last {
            for index in 0..=last_index(function) {
                let answer = __cpuid_count(function, index);
                leaves.push(Leaf {
                    function,
                    index,
                    eax: answer.eax,
                    ebx: answer.ebx,
                    ecx: answer.ecx,
                    edx: answer.edx,
                });
            }
        }
    }
    leaves
}

/// The last sub-leaf that carries feature bits (Intel SDM volume 2A, AMD APM volume 3 appendix E).
fn last_index(function: u32) -> u32 {
    match function {
        // EAX of sub-leaf 0 is the number of the last one; three are in use.
        7 => __cpuid_count(7, 0).eax.min(2),
        0xd | 0xf | 0x12 => 1,
        0x10 => 3,
        _ => 0,
    }
}

/// All that KVM can show to a guest (KVM_GET_SUPPORTED_CPUID).
///
/// # Errors
/// [`KvmError`] naming the call.
pub fn supported() -> Result<Vec<Leaf>, KvmError> {
    let supported = open()?
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
    Ok(supported.as_slice().iter().map(Leaf::from).collect())
}

/// What the boot CPU of a machine with these vCPUs sees, by the function that builds such a machine.
///
/// # Errors
/// [`KvmError`] naming the call; [`KvmError::NoNested`] where nesting is asked of a host without it.
pub fn of_guest(cpus: &Cpus) -> Result<Vec<Leaf>, KvmError> {
    let kvm = open()?;
    let vm = machine::create(&kvm)?;
    let vcpu = vm
        .create_vcpu(0)
        .map_err(KvmError::vcpu("KVM_CREATE_VCPU", 0))?;
    let mut entries = machine::guest_cpuid(&kvm, &vm, &vcpu, cpus)?;
    cpuid::for_vcpu(&mut entries, cpus.topology, 0);
    Ok(entries.iter().map(Leaf::from).collect())
}

fn open() -> Result<Kvm, KvmError> {
    Kvm::new().map_err(|e| KvmError::Open(std::io::Error::from_raw_os_error(e.errno())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_has_the_leaves_that_every_64_bit_one_has() {
        let leaves = processor();
        let leaf = |function, index| {
            leaves
                .iter()
                .find(|l| (l.function, l.index) == (function, index))
                .copied()
        };
        assert!(leaf(0, 0).unwrap().eax >= 1);
        // SSE2 (leaf 1 EDX 26) and long mode (0x80000001 EDX 29).
        assert_ne!(leaf(1, 0).unwrap().edx & (1 << 26), 0);
        assert_ne!(leaf(0x8000_0001, 0).unwrap().edx & (1 << 29), 0);
        let mut keys: Vec<_> = leaves.iter().map(|l| (l.function, l.index)).collect();
        keys.dedup();
        assert_eq!(keys.len(), leaves.len());
    }
}
