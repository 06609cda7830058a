//! The virtual machine as KVM holds it: memory, irqchip, vCPUs.

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MAX_CPUID_ENTRIES,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, kvm_cpuid_entry2,
    kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vsc_devices::Memory;
use vsc_devices::virtio::transport::KickRegistry;

use super::cpuid::{self, Params};
use super::probe::API_VERSION;
use super::{KvmError, KvmVcpu, Lines};
use crate::layout;
use crate::resources::{Cpus, Irqchip, XAPIC_MAX_ID};

/// A KVM virtual machine without memory. Creating one waits for grace periods of the host's kernel (0.2 to 10 ms, most
/// of it asleep), during which the builder has other things to do.
pub struct EmptyMachine {
    kvm: Kvm,
    vm: VmFd,
}

impl EmptyMachine {
    /// Opens KVM and creates a machine.
    ///
    /// # Errors
    /// [`KvmError`] naming the call.
    pub fn create() -> Result<Self, KvmError> {
        let kvm =
            Kvm::new().map_err(|e| KvmError::Open(std::io::Error::from_raw_os_error(e.errno())))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::Version(version));
        }
        let vm = create(&kvm)?;
        Ok(Self { kvm, vm })
    }
}

/// A KVM virtual machine with its memory.
pub struct Machine {
    kvm: Kvm,
    vm: Arc<VmFd>,
    /// Mapped into the guest, so it must live as long as `vm`.
    memory: Memory,
}

impl Machine {
    /// Puts `memory` into a machine.
    ///
    /// # Errors
    /// [`KvmError`] naming the call.
    pub fn new(empty: EmptyMachine, memory: Memory) -> Result<Self, KvmError> {
        let EmptyMachine { kvm, vm } = empty;
        let vm = Arc::new(vm);
        for (slot, region) in memory.iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is mapped, `self` keeps `memory` as long as the machine, and slots do not overlap.
            unsafe { vm.set_user_memory_region(slot) }
                .map_err(KvmError::call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(Self { kvm, vm, memory })
    }

    /// KVM_CAP_MAX_VCPUS.
    pub fn max_vcpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX)
    }

    /// Guest RAM.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Creates the interrupt controllers (and the PIT), before any vCPU.
    ///
    /// # Errors
    /// [`KvmError`] naming the call.
    pub fn create_irqchip(
        &self,
        irqchip: Irqchip,
        pit: bool,
        cpus: &Cpus,
    ) -> Result<Lines, KvmError> {
        // Only Intel without unrestricted guest reads these; KVM elsewhere accepts and ignores them.
        self.vm
            .set_identity_map_address(layout::IDENTITY_MAP)
            .map_err(KvmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        self.vm
            .set_tss_address(layout::TSS as usize)
            .map_err(KvmError::call("KVM_SET_TSS_ADDR"))?;
        let lines = match irqchip {
            Irqchip::Kernel => {
                self.vm
                    .create_irq_chip()
                    .map_err(KvmError::call("KVM_CREATE_IRQCHIP"))?;
                Lines::kernel(self.vm.clone())
            }
            Irqchip::Split => {
                let mut cap = kvm_enable_cap {
                    cap: KVM_CAP_SPLIT_IRQCHIP,
                    ..Default::default()
                };
                cap.args[0] = layout::PINS.into();
                self.vm
                    .enable_cap(&cap)
                    .map_err(KvmError::call("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))?;
                Lines::split(self.vm.clone(), wide_ids(cpus))
            }
        };
        if pit {
            self.vm
                .create_pit2(kvm_pit_config {
                    flags: kvm_bindings::KVM_PIT_SPEAKER_DUMMY,
                    ..Default::default()
                })
                .map_err(KvmError::call("KVM_CREATE_PIT2"))?;
        }
        Ok(lines)
    }

    /// Creates the vCPUs with their CPUID and MSRs. Registers are the boot CPU's, set by [`KvmVcpu::start_at`].
    ///
    /// # Errors
    /// [`KvmError`] naming the call.
    pub fn create_vcpus(&self, cpus: &Cpus) -> Result<Vec<KvmVcpu>, KvmError> {
        let max = self.max_vcpus();
        if cpus.count > max {
            return Err(KvmError::TooManyVcpus {
                asked: cpus.count,
                max,
            });
        }
        if wide_ids(cpus) {
            self.enable_wide_ids()?;
        }
        let mut vcpus = Vec::with_capacity(cpus.count as usize);
        let mut entries = Vec::new();
        for index in 0..cpus.count {
            let id = cpuid::apic_id(cpus.topology, index);
            let fd = self
                .vm
                .create_vcpu(id.into())
                .map_err(KvmError::vcpu("KVM_CREATE_VCPU", index))?;
            if index == 0 {
                entries = guest_cpuid(&self.kvm, &self.vm, &fd, cpus)?;
            }
            cpuid::for_vcpu(&mut entries, cpus.topology, index);
            let table = CpuId::from_entries(&entries).map_err(|_| KvmError::Vcpu {
                call: "KVM_SET_CPUID2",
                vcpu: index,
                source: std::io::Error::from_raw_os_error(libc::E2BIG),
            })?;
            fd.set_cpuid2(&table)
                .map_err(KvmError::vcpu("KVM_SET_CPUID2", index))?;
            vcpus.push(KvmVcpu::new(fd, index)?);
        }
        Ok(vcpus)
    }

    /// Lets 32-bit APIC ids through, for machines of more than 254 of them.
    fn enable_wide_ids(&self) -> Result<(), KvmError> {
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_X2APIC_API,
            ..Default::default()
        };
        cap.args[0] =
            (KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK).into();
        self.vm
            .enable_cap(&cap)
            .map_err(KvmError::call("KVM_ENABLE_CAP(KVM_CAP_X2APIC_API)"))
    }

    /// Where hot queues register their ioeventfds.
    pub fn kicks(&self) -> Arc<dyn KickRegistry> {
        Arc::new(Kicks(self.vm.clone()))
    }
}

/// Whether there are APIC ids that need the x2APIC's wide destinations.
fn wide_ids(cpus: &Cpus) -> bool {
    cpuid::apic_id(cpus.topology, cpus.count.saturating_sub(1)) > XAPIC_MAX_ID
}

pub(super) fn create(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            Ok(vm) => return Ok(vm),
            // A signal during the grace periods of KVM_CREATE_VM restarts it, it is no failure.
            Err(e) if e.errno() == libc::EINTR => {}
            Err(e) => return Err(KvmError::call("KVM_CREATE_VM")(e)),
        }
    }
}

/// The CPUID leaves that all vCPUs of a machine share; `vcpu` is any of them.
pub(super) fn guest_cpuid(
    kvm: &Kvm,
    vm: &VmFd,
    vcpu: &VcpuFd,
    cpus: &Cpus,
) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
    let supported = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
    if cpus.nested && !cpuid::has_nested(supported.as_slice()) {
        return Err(KvmError::NoNested);
    }
    let params = Params {
        topology: cpus.topology,
        nested: cpus.nested,
        tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
        tsc_deadline: vm.check_extension(Cap::TscDeadlineTimer),
        ext_dest_id: wide_ids(cpus),
    };
    Ok(cpuid::shared(supported.as_slice(), &params))
}

struct Kicks(Arc<VmFd>);

impl KickRegistry for Kicks {
    fn register(&self, address: u64, queue: u16, fd: &EventFd) -> std::io::Result<()> {
        self.0
            .register_ioevent(fd, &IoEventAddress::Mmio(address), u32::from(queue))
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }

    fn unregister(&self, address: u64, queue: u16, fd: &EventFd) -> std::io::Result<()> {
        self.0
            .unregister_ioevent(fd, &IoEventAddress::Mmio(address), u32::from(queue))
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }
}
