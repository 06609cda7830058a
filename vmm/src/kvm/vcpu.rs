//! One KVM vCPU behind [`RunVcpu`].

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, Msrs,
    kvm_msr_entry, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vsc_firmware::boot::CpuStart;

use super::stats::VcpuStats;
use super::{KvmError, msrs, regs};
use crate::exit::Exit;
use crate::vcpu::{CpuSnapshot, Interrupter, RunVcpu, Sleep};

/// KVM_INTERNAL_ERROR_EMULATION (include/uapi/linux/kvm.h).
const EMULATION: u32 = 1;
/// KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.
const HAS_INSTRUCTION: u64 = 1;
/// RFLAGS.IF.
const INTERRUPTS: u64 = 1 << 9;

/// A vCPU; created on the main thread, run on its own.
pub struct KvmVcpu {
    fd: VcpuFd,
    index: u32,
}

impl KvmVcpu {
    pub(super) fn new(fd: VcpuFd, index: u32) -> Result<Self, KvmError> {
        let entries: Vec<_> = msrs::boot()
            .into_iter()
            .map(|(index, data)| kvm_msr_entry {
                index,
                data,
                ..Default::default()
            })
            .collect();
        if let Ok(msrs) = Msrs::from_entries(&entries) {
            // Hosts without one of them (software paging) stop at it; see msrs::boot.
            let _ = fd.set_msrs(&msrs);
        }
        Ok(Self { fd, index })
    }

    /// Sets the boot CPU's registers.
    ///
    /// # Errors
    /// [`KvmError`] naming the call.
    pub fn start_at(&self, start: &CpuStart) -> Result<(), KvmError> {
        let mut sregs = self
            .fd
            .get_sregs()
            .map_err(KvmError::vcpu("KVM_GET_SREGS", self.index))?;
        regs::apply(&mut sregs, start);
        self.fd
            .set_sregs(&sregs)
            .map_err(KvmError::vcpu("KVM_SET_SREGS", self.index))?;
        self.fd
            .set_regs(&regs::regs(start))
            .map_err(KvmError::vcpu("KVM_SET_REGS", self.index))
    }

    /// Opens KVM's counters of this vCPU, where the kernel (5.14 and later) has them.
    pub fn stats(&self) -> Option<VcpuStats> {
        VcpuStats::open(self.fd.as_raw_fd()).ok()
    }

    fn shared(&mut self) -> NonNull<kvm_run> {
        NonNull::from(self.fd.get_kvm_run())
    }
}

/// Sets `immediate_exit` in the page that KVM shares with us.
struct Immediate(NonNull<AtomicU8>);

// SAFETY: the pointer is to a byte in the vCPU's shared page, accessed atomically; `Interrupter`'s contract keeps the
// page mapped while it is used.
unsafe impl Send for Immediate {}
// SAFETY: as above.
unsafe impl Sync for Immediate {}

impl Interrupter for Immediate {
    fn set(&self, on: bool) {
        // SAFETY: see `Send`.
        unsafe { self.0.as_ref() }.store(on.into(), Ordering::SeqCst);
    }
}

impl RunVcpu for KvmVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn interrupter(&mut self) -> Box<dyn Interrupter> {
        let byte: *mut u8 = &mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: a field of a live mapping is not null, and AtomicU8 has the layout of u8.
        Box::new(Immediate(unsafe { NonNull::new_unchecked(byte.cast()) }))
    }

    fn run(&mut self) -> std::io::Result<Exit<'_>> {
        let shared = self.shared();
        // Valid only in the exits that say so; read through the pointer because the exit borrows the vCPU.
        // SAFETY: the page is mapped as long as `self`; KVM writes it only inside KVM_RUN.
        let io_size =
            || usize::from(unsafe { shared.as_ref().__bindgen_anon_1.io.size }).clamp(1, 4);
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(Exit::Interrupted);
            }
            Err(e) => return Err(std::io::Error::from_raw_os_error(e.errno())),
        };
        Ok(match exit {
            VcpuExit::IoIn(port, data) => Exit::PortIn {
                port,
                size: io_size(),
                data,
            },
            VcpuExit::IoOut(port, data) => Exit::PortOut {
                port,
                size: io_size(),
                data,
            },
            VcpuExit::MmioRead(address, data) => Exit::MmioRead { address, data },
            VcpuExit::MmioWrite(address, data) => Exit::MmioWrite { address, data },
            VcpuExit::IoapicEoi(vector) => Exit::Eoi(vector),
            VcpuExit::Intr => Exit::Interrupted,
            VcpuExit::Hlt => Exit::Halt,
            VcpuExit::Shutdown => Exit::Shutdown,
            VcpuExit::FailEntry(reason, _) => Exit::FailEntry(reason),
            VcpuExit::InternalError => {
                // SAFETY: KVM_EXIT_INTERNAL_ERROR says that this member of the union is filled in.
                let failure = unsafe { shared.as_ref().__bindgen_anon_1.emulation_failure };
                // SAFETY: plain integers, any value is valid.
                let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
                let known = failure.suberror == EMULATION
                    && failure.ndata > 0
                    && failure.flags & HAS_INSTRUCTION != 0;
                let len = if known {
                    usize::from(bytes.insn_size).min(bytes.insn_bytes.len())
                } else {
                    0
                };
                Exit::InternalError {
                    suberror: failure.suberror,
                    instruction: bytes.insn_bytes[..len].to_vec(),
                }
            }
            VcpuExit::SystemEvent(..) => Exit::Unexpected("KVM_EXIT_SYSTEM_EVENT"),
            VcpuExit::Debug(_) => Exit::Unexpected("KVM_EXIT_DEBUG"),
            VcpuExit::Hypercall(_) => Exit::Unexpected("KVM_EXIT_HYPERCALL"),
            VcpuExit::MemoryFault { .. } => Exit::Unexpected("KVM_EXIT_MEMORY_FAULT"),
            _ => Exit::Unexpected("an exit that was never enabled"),
        })
    }

    fn snapshot(&self) -> CpuSnapshot {
        let regs = self.fd.get_regs().unwrap_or_default();
        let sregs = self.fd.get_sregs().unwrap_or_default();
        let sleep = match self.fd.get_mp_state().map(|s| s.mp_state) {
            Ok(KVM_MP_STATE_HALTED) if regs.rflags & INTERRUPTS == 0 => Sleep::Forever,
            Ok(KVM_MP_STATE_HALTED) => Sleep::Halted,
            Ok(KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED) => Sleep::NotStarted,
            _ => Sleep::Running,
        };
        CpuSnapshot {
            rip: regs.rip,
            rsp: regs.rsp,
            rflags: regs.rflags,
            cr0: sregs.cr0,
            cr3: sregs.cr3,
            efer: sregs.efer,
            cpl: sregs.ss.dpl,
            sleep,
        }
    }
}
