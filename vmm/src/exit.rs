//! What a vCPU may stop for, without KVM types.

/// One exit to this process.
#[derive(Debug)]
pub enum Exit<'a> {
    /// `in`: fill each chunk of `size` bytes from `port`.
    PortIn {
        /// Port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: usize,
        /// One or more accesses (string instructions repeat).
        data: &'a mut [u8],
    },
    /// `out`.
    PortOut {
        /// Port.
        port: u16,
        /// Bytes of one access: 1, 2 or 4.
        size: usize,
        /// One or more accesses.
        data: &'a [u8],
    },
    /// A load from an address without memory.
    MmioRead {
        /// Guest-physical address.
        address: u64,
        /// To be filled.
        data: &'a mut [u8],
    },
    /// A store to an address without memory.
    MmioWrite {
        /// Guest-physical address.
        address: u64,
        /// What was stored.
        data: &'a [u8],
    },
    /// The local APIC finished a level-triggered interrupt (split irqchip).
    Eoi(u8),
    /// A signal interrupted the guest.
    Interrupted,
    /// `hlt` without an irqchip in the kernel.
    Halt,
    /// Triple fault.
    Shutdown,
    /// KVM gave up on the guest; suberror 1 is an instruction that its emulator does not know.
    InternalError {
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// The instruction's bytes, when KVM tells them.
        instruction: Vec<u8>,
    },
    /// The processor refused to enter the guest.
    FailEntry(u64),
    /// Anything that nobody here asked for.
    Unexpected(&'static str),
}

/// Counters of exits by kind, one set per vCPU, written only by its thread.
#[derive(Debug, Default)]
pub struct ExitCounters {
    /// Port reads.
    pub port_in: Counter,
    /// Port writes.
    pub port_out: Counter,
    /// MMIO loads.
    pub mmio_read: Counter,
    /// MMIO stores.
    pub mmio_write: Counter,
    /// The rest.
    pub other: Counter,
}

impl ExitCounters {
    /// All exits to this process.
    pub fn total(&self) -> u64 {
        [
            &self.port_in,
            &self.port_out,
            &self.mmio_read,
            &self.mmio_write,
            &self.other,
        ]
        .into_iter()
        .map(Counter::get)
        .sum()
    }
}

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(std::sync::atomic::AtomicU64);

impl Counter {
    /// Adds one. Only the owning thread calls this, so a plain load and store will do.
    pub fn add(&self) {
        use std::sync::atomic::Ordering::Relaxed;
        self.0.store(self.0.load(Relaxed) + 1, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }
}
