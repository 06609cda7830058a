//! Model-specific registers that differ from KVM's reset state when a kernel starts without firmware.

/// IA32_MISC_ENABLE (Linux arch/x86/include/asm/msr-index.h).
const MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations, bit 0, which firmware turns on.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// IA32_MTRR_DEF_TYPE.
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled (bit 11), default type write-back (6): without firmware nobody else says that RAM is cacheable.
const MTRR_WRITE_BACK: u64 = (1 << 11) | 6;

/// (index, value) pairs for every vCPU. A host that refuses one of them still runs guests, so refusals are ignored.
pub(super) fn boot() -> [(u32, u64); 2] {
    [
        (MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ]
}
