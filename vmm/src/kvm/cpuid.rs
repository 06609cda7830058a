//! The CPUID leaves a guest sees: what KVM supports, with topology, timing and hypervisor leaves filled in.
//!
//! Pure functions over tables. Leaf meanings: Intel SDM volume 2A (CPUID), AMD APM volume 3 appendix E, and for
//! 0x4000_00xx Linux Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2 as Entry};

use crate::resources::Topology;

/// What makes one vCPU's leaves differ from what the host supports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Params {
    pub(super) topology: Topology,
    /// Keeps SVM and VMX.
    pub(super) nested: bool,
    /// Guest TSC frequency, kHz; 0 when unknown.
    pub(super) tsc_khz: u32,
    /// KVM_CAP_TSC_DEADLINE_TIMER: not part of KVM_GET_SUPPORTED_CPUID's answer.
    pub(super) tsc_deadline: bool,
    /// I/O APIC messages carry 15-bit destinations (KVM_FEATURE_MSI_EXT_DEST_ID).
    pub(super) ext_dest_id: bool,
}

/// How the fields of an APIC id are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ApicBits {
    thread: u32,
    core: u32,
}

impl ApicBits {
    pub(super) fn new(topology: Topology) -> Self {
        let bits = |n: u32| n.max(1).next_power_of_two().trailing_zeros();
        Self {
            thread: bits(topology.threads),
            core: bits(topology.cores),
        }
    }

    /// Shift from an APIC id to its package.
    pub(super) fn package_shift(self) -> u32 {
        self.thread + self.core
    }
}

/// The APIC id of vCPU `index`: threads, cores and sockets in fields of whole bits.
pub(crate) fn apic_id(topology: Topology, index: u32) -> u32 {
    let bits = ApicBits::new(topology);
    let thread = index % topology.threads;
    let core = index / topology.threads % topology.cores;
    let socket = index / topology.threads / topology.cores;
    (socket << bits.package_shift()) | (core << bits.thread) | thread
}

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_X2APIC: u32 = 1 << 21;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const EXT1_ECX_CMP_LEGACY: u32 = 1 << 1;
const EXT1_ECX_SVM: u32 = 1 << 2;
const EXT1_ECX_TOPOLOGY: u32 = 1 << 22;
const KVM_FEATURES: u32 = 0x4000_0001;
const KVM_FEATURE_MSI_EXT_DEST_ID: u32 = 1 << 15;
const KVM_SIGNATURE: u32 = 0x4000_0000;
const TIMING: u32 = 0x4000_0010;
/// KVM's local APIC bus runs at 1 GHz (Linux arch/x86/kvm/lapic.h, APIC_BUS_CYCLE_NS).
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Everything that all vCPUs share. Call [`for_vcpu`] on the result for each of them.
pub(super) fn shared(supported: &[Entry], params: &Params) -> Vec<Entry> {
    let t = params.topology;
    let per_package = t.cores * t.threads;
    let bits = ApicBits::new(t);
    let mut out: Vec<Entry> = supported
        .iter()
        // Topology and timing leaves are written anew.
        .filter(|e| !matches!(e.function, 0xb | 0x1f | 0x8000_0026 | TIMING))
        .copied()
        .collect();
    let mut has_ext_topology = false;
    for e in &mut out {
        match (e.function, e.index) {
            (0, _) => e.eax = e.eax.max(0xb),
            (1, _) => {
                e.ecx |= LEAF1_ECX_HYPERVISOR | LEAF1_ECX_X2APIC;
                set(&mut e.ecx, LEAF1_ECX_TSC_DEADLINE, params.tsc_deadline);
                if !params.nested {
                    e.ecx &= !LEAF1_ECX_VMX;
                }
                set(&mut e.edx, LEAF1_EDX_HTT, per_package > 1);
                let logical = (1u32 << bits.package_shift()).min(255);
                e.ebx = (e.ebx & 0x0000_ffff) | (logical << 16);
            }
            (4, _) => share_intel_cache(e, bits),
            // No architectural performance monitoring (Intel), no memory encryption (SEV). AMD's performance counters
            // stay as KVM offers them.
            (0xa | 0x8000_001f, _) => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
            (0x8000_0001, _) => {
                if !params.nested {
                    e.ecx &= !EXT1_ECX_SVM;
                }
                has_ext_topology = e.ecx & EXT1_ECX_TOPOLOGY != 0;
                set(
                    &mut e.ecx,
                    EXT1_ECX_CMP_LEGACY,
                    per_package > 1 && has_ext_topology,
                );
            }
            (0x8000_0008, _) if has_ext_topology => {
                // ECX: NC, logical processors less one, and ApicIdSize, the width of that field.
                e.ecx =
                    (e.ecx & !0xf0ff) | (per_package - 1).min(255) | (bits.package_shift() << 12);
            }
            (0x8000_000a, _) if !params.nested => (e.eax, e.ebx, e.ecx, e.edx) = (0, 0, 0, 0),
            (0x8000_001d, _) => share_amd_cache(e, t),
            (KVM_SIGNATURE, _) => {
                e.eax = if params.tsc_khz != 0 {
                    TIMING
                } else {
                    KVM_FEATURES
                }
            }
            (KVM_FEATURES, _) => set(&mut e.eax, KVM_FEATURE_MSI_EXT_DEST_ID, params.ext_dest_id),
            _ => {}
        }
    }
    for (level, (shift, logical, kind)) in [
        (bits.thread, t.threads, 1),
        (bits.package_shift(), per_package, 2),
        (0, 0, 0),
    ]
    .into_iter()
    .enumerate()
    {
        out.push(Entry {
            function: 0xb,
            index: level as u32,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: logical,
            ecx: (kind << 8) | level as u32,
            ..Entry::default()
        });
    }
    if params.tsc_khz != 0 {
        out.push(Entry {
            function: TIMING,
            eax: params.tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Entry::default()
        });
    }
    out
}

/// Writes the fields that name one vCPU.
pub(super) fn for_vcpu(entries: &mut [Entry], topology: Topology, index: u32) {
    let id = apic_id(topology, index);
    for e in entries {
        match e.function {
            1 => e.ebx = (e.ebx & 0x00ff_ffff) | (id.min(255) << 24),
            0xb => e.edx = id,
            0x8000_001e => {
                // EAX: APIC id; EBX: core id and threads per core; ECX: node id, one node per package.
                e.eax = id;
                let core = index / topology.threads % topology.cores;
                e.ebx = (core & 0xff) | ((topology.threads - 1) << 8);
                e.ecx = (index / topology.threads / topology.cores) & 0xff;
            }
            _ => {}
        }
    }
}

/// Whether KVM offers SVM or VMX to guests.
pub(super) fn has_nested(supported: &[Entry]) -> bool {
    supported.iter().any(|e| {
        (e.function == 1 && e.ecx & LEAF1_ECX_VMX != 0)
            || (e.function == 0x8000_0001 && e.ecx & EXT1_ECX_SVM != 0)
    })
}

fn set(word: &mut u32, bit: u32, on: bool) {
    *word = if on { *word | bit } else { *word & !bit };
}

/// Leaf 4: EAX[25:14] ids sharing the cache less one, EAX[31:26] ids reserved for cores less one.
fn share_intel_cache(e: &mut Entry, bits: ApicBits) {
    let level = (e.eax >> 5) & 7;
    if e.eax & 0x1f == 0 {
        return;
    }
    let sharing = if level >= 3 {
        1 << bits.package_shift()
    } else {
        1u32 << bits.thread
    };
    let cores = 1u32 << bits.core;
    e.eax = (e.eax & 0x3fff) | (((sharing - 1) & 0xfff) << 14) | (((cores - 1) & 0x3f) << 26);
}

/// Leaf 0x8000_001d: EAX[25:14] logical processors sharing the cache less one.
fn share_amd_cache(e: &mut Entry, t: Topology) {
    let level = (e.eax >> 5) & 7;
    if e.eax & 0x1f == 0 {
        return;
    }
    let sharing = if level >= 3 {
        t.cores * t.threads
    } else {
        t.threads
    };
    e.eax = (e.eax & !(0xfff << 14)) | (((sharing - 1) & 0xfff) << 14);
}

#[cfg(test)]
mod tests;
