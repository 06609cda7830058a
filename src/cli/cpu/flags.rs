//! CPU features by the names that Linux gives them in /proc/cpuinfo.
//!
//! The names and their places are those of Linux 6.12, arch/x86/include/asm/cpufeatures.h (only names that Linux
//! prints) and arch/x86/kernel/cpu/scattered.c. Features that Linux reads from MSRs, or makes up for itself, are no
//! part of CPUID and not here.

use vsc_vmm::kvm::Leaf;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// A bit of CPUID: function, index, register, bit.
type Bit = (u32, u32, Register, u32);

/// Registers that are nothing but flags: the names of bit 0 and up, `-` where Linux prints none.
const WORDS: [(u32, u32, Register, &str); 14] = [
    (
        1,
        0,
        Edx,
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    ),
    (
        0x8000_0001,
        0,
        Edx,
        "- - - - - - - - - - - syscall - - - - - - - mp nx - mmxext - - fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    (
        1,
        0,
        Ecx,
        "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave - avx f16c rdrand hypervisor",
    ),
    (
        0x8000_0001,
        0,
        Ecx,
        "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
    ),
    (
        7,
        0,
        Ebx,
        "fsgsbase tsc_adjust sgx bmi1 hle avx2 - smep bmi2 erms invpcid rtm cqm - mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    (0xd, 1, Eax, "xsaveopt xsavec xgetbv1 xsaves"),
    (
        7,
        1,
        Eax,
        "- - - - avx_vnni avx512_bf16 - - - - - - - - - - - fred - - - - - - - - lam",
    ),
    (
        0x8000_0008,
        0,
        Ebx,
        "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - - - - - - - - - - - - amd_ppin - virt_ssbd - cppc - - - brs",
    ),
    (
        6,
        0,
        Eax,
        "dtherm ida arat - pln - pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req - - - - - - - hfi",
    ),
    (
        0x8000_000a,
        0,
        Edx,
        "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - - pausefilter - pfthreshold avic - v_vmsave_vmload vgif - x2avic - v_spec_ctrl - - - - vnmi",
    ),
    (
        7,
        0,
        Ecx,
        "- avx512vbmi umip pku ospke waitpkg avx512_vbmi2 - gfni vaes vpclmulqdq avx512_vnni avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid - bus_lock_detect cldemote - movdiri movdir64b enqcmd sgx_lc",
    ),
    (0x8000_0007, 0, Ebx, "overflow_recov succor - smca"),
    (
        7,
        0,
        Edx,
        "- - avx512_4vnniw avx512_4fmaps fsrm - - - avx512_vp2intersect - md_clear - - - serialize - tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16 amx_tile amx_int8 - - flush_l1d arch_capabilities",
    ),
    (
        0x8000_001f,
        0,
        Eax,
        "sme sev - sev_es sev_snp - - - - - - - - - debug_swap - - - - - - - - - - - - - svsm",
    ),
];

/// Names that stand elsewhere, each with the bits any of which shows it.
const SCATTERED: [(&str, &[Bit]); 29] = [
    // One bit, two promises: a constant rate, and no stop in deep sleep.
    ("constant_tsc", &[(0x8000_0007, 0, Edx, 8)]),
    ("nonstop_tsc", &[(0x8000_0007, 0, Edx, 8)]),
    // Intel's and AMD's bits for the same controls (Linux arch/x86/kernel/cpu/common.c, init_speculation_control).
    ("ibrs", &[(7, 0, Edx, 26), (0x8000_0008, 0, Ebx, 14)]),
    ("ibpb", &[(7, 0, Edx, 26), (0x8000_0008, 0, Ebx, 12)]),
    ("stibp", &[(7, 0, Edx, 27), (0x8000_0008, 0, Ebx, 15)]),
    (
        "ssbd",
        &[
            (7, 0, Edx, 31),
            (0x8000_0008, 0, Ebx, 24),
            (0x8000_0008, 0, Ebx, 25),
        ],
    ),
    ("ibrs_enhanced", &[(0x8000_0021, 0, Eax, 8)]),
    ("user_shstk", &[(7, 0, Ecx, 7)]),
    ("aperfmperf", &[(6, 0, Ecx, 0)]),
    ("epb", &[(6, 0, Ecx, 3)]),
    ("intel_ppin", &[(7, 1, Ebx, 0)]),
    ("cqm_llc", &[(0xf, 0, Edx, 1)]),
    ("cqm_occup_llc", &[(0xf, 1, Edx, 0)]),
    ("cqm_mbm_total", &[(0xf, 1, Edx, 1)]),
    ("cqm_mbm_local", &[(0xf, 1, Edx, 2)]),
    ("cat_l3", &[(0x10, 0, Ebx, 1)]),
    ("cat_l2", &[(0x10, 0, Ebx, 2)]),
    ("mba", &[(0x10, 0, Ebx, 3), (0x8000_0008, 0, Ebx, 6)]),
    ("cdp_l3", &[(0x10, 1, Ecx, 2)]),
    ("cdp_l2", &[(0x10, 2, Ecx, 2)]),
    ("hw_pstate", &[(0x8000_0007, 0, Edx, 7)]),
    ("cpb", &[(0x8000_0007, 0, Edx, 9)]),
    ("proc_feedback", &[(0x8000_0007, 0, Edx, 11)]),
    ("acc_power", &[(0x8000_0007, 0, Edx, 12)]),
    ("rapl", &[(0x8000_0007, 0, Edx, 14)]),
    ("perfmon_v2", &[(0x8000_0022, 0, Eax, 0)]),
    ("amd_lbr_v2", &[(0x8000_0022, 0, Eax, 1)]),
    ("amd_lbr_pmc_freeze", &[(0x8000_0022, 0, Eax, 2)]),
    // Intel's architectural performance monitoring: version 1 is the lowest bit of the version.
    (
        "arch_perfmon",
        &[(0xa, 0, Eax, 0), (0xa, 0, Eax, 1), (0xa, 0, Eax, 2)],
    ),
];

/// The names of what these leaves show, in the order of the table.
pub(super) fn names(leaves: &[Leaf]) -> Vec<&'static str> {
    let register = |function, index, register| {
        // Sub-leaf 0 stands for leaves that have none.
        let leaf = leaves
            .iter()
            .find(|l| (l.function, l.index) == (function, index));
        leaf.map_or(0, |l| match register {
            Register::Eax => l.eax,
            Register::Ebx => l.ebx,
            Register::Ecx => l.ecx,
            Register::Edx => l.edx,
        })
    };
    let mut out = Vec::new();
    for (function, index, which, table) in WORDS {
        let word = register(function, index, which);
        let bits = table.split(' ').enumerate();
        out.extend(
            bits.filter(|&(bit, name)| name != "-" && word & (1 << bit) != 0)
                .map(|(_, name)| name),
        );
    }
    for (name, bits) in SCATTERED {
        if bits.iter().any(|&(function, index, which, bit)| {
            register(function, index, which) & (1 << bit) != 0
        }) {
            out.push(name);
        }
    }
    out
}

/// What a copy of /proc/cpuinfo names, its first processor's.
pub(super) fn of_cpuinfo(text: &str) -> Option<Vec<&str>> {
    let line = text
        .lines()
        .find(|line| line.split([' ', '\t', ':']).next() == Some("flags"))?;
    Some(line.split_once(':')?.1.split_ascii_whitespace().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_has_one_name_and_every_name_one_place() {
        let mut seen: Vec<&str> = SCATTERED.iter().map(|(name, _)| *name).collect();
        for (function, _, which, table) in WORDS {
            let words: Vec<_> = table.split(' ').collect();
            assert!(
                words.len() <= 32 && words.iter().all(|w| !w.is_empty()),
                "{function:#x} {which:?}"
            );
            seen.extend(words.into_iter().filter(|w| *w != "-"));
        }
        let all = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), all);
        assert!(all > 200);
    }

    #[test]
    fn bits_get_their_names() {
        let leaf = |function, index, eax, ebx, ecx, edx| Leaf {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
        };
        let leaves = [
            // fpu, ht; vmx, hypervisor.
            leaf(1, 0, 0, 0, 1 << 5 | 1 << 31, 1 | 1 << 28),
            // fsgsbase, avx512vl; gfni; md_clear.
            leaf(7, 0, 0, 1 | 1 << 31, 1 << 8, 1 << 10),
            leaf(7, 1, 1 << 5, 0, 0, 0),
            // svm; lm.
            leaf(0x8000_0001, 0, 0, 0, 1 << 2, 1 << 29),
            leaf(0x8000_0007, 0, 0, 0, 0, 1 << 8),
            leaf(0x8000_0008, 0, 0, 1 << 12, 0, 0),
        ];
        let mut names = names(&leaves);
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "avx512_bf16",
                "avx512vl",
                "constant_tsc",
                "fpu",
                "fsgsbase",
                "gfni",
                "ht",
                "hypervisor",
                "ibpb",
                "lm",
                "md_clear",
                "nonstop_tsc",
                "svm",
                "vmx"
            ]
        );
    }

    #[test]
    fn cpuinfo_is_read_as_linux_writes_it() {
        let text = "processor\t: 0\nflags_not\t: x\nflags\t\t: fpu vme\nbugs\t\t: y\n\nprocessor\t: 1\nflags\t\t: z\n";
        assert_eq!(of_cpuinfo(text), Some(vec!["fpu", "vme"]));
        assert_eq!(of_cpuinfo("model name\t: none\n"), None);
    }
}
