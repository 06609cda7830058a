//! Interrupt lines on either kind of irqchip.
//!
//! The house plan says irqfd. Measured instead (see README, "Measures"): with the irqchip in the kernel, destroying
//! the PIC and I/O APIC costs 12 ms of SRCU grace periods at exit, and an irqfd on an I/O APIC pin is delivered by a
//! kworker. So the default is a split irqchip, where a pulse is one KVM_SIGNAL_MSI from the device's own thread, and
//! with the irqchip in the kernel a line is driven by KVM_IRQ_LINE.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi};
use kvm_ioctls::VmFd;
use vsc_devices::irq::{IrqLine, Line, Unconnected};
use vsc_devices::legacy::ioapic::{IoApic, MsiSink};

use crate::layout::PINS;

/// The machine's interrupt inputs.
pub enum Lines {
    /// In the kernel; a line's sources are counted so that it can be shared.
    Kernel {
        /// The machine.
        vm: Arc<VmFd>,
        /// Sources that hold each pin high.
        sources: Arc<[Mutex<u32>; PINS as usize]>,
    },
    /// Our own I/O APIC.
    Split(IoApic),
}

impl Lines {
    pub(super) fn kernel(vm: Arc<VmFd>) -> Self {
        let sources = Arc::new(std::array::from_fn(|_| Mutex::new(0)));
        Self::Kernel { vm, sources }
    }

    pub(super) fn split(vm: Arc<VmFd>, wide_ids: bool) -> Self {
        let routes = Mutex::new([None; PINS as usize]);
        Self::Split(IoApic::new(Arc::new(Msi { vm, routes }), wide_ids))
    }

    /// The input of `gsi`, 0 to 23.
    pub fn line(&self, gsi: u32) -> Line {
        match self {
            Self::Kernel { vm, sources } => Arc::new(KernelLine {
                vm: vm.clone(),
                sources: sources.clone(),
                gsi,
            }),
            // Pins come from layout.rs; there is no other.
            Self::Split(ioapic) => u8::try_from(gsi)
                .ok()
                .and_then(|pin| ioapic.line(pin))
                .unwrap_or_else(|| Arc::new(Unconnected)),
        }
    }

    /// The I/O APIC's registers, when they are ours to serve.
    pub fn ioapic(&self) -> Option<IoApic> {
        match self {
            Self::Kernel { .. } => None,
            Self::Split(ioapic) => Some(ioapic.clone()),
        }
    }
}

struct KernelLine {
    vm: Arc<VmFd>,
    sources: Arc<[Mutex<u32>; PINS as usize]>,
    gsi: u32,
}

impl KernelLine {
    fn drive(&self, high: bool) {
        // KVM_IRQ_LINE fails only for a pin that does not exist, and pins come from layout.rs.
        let _ = self.vm.set_irq_line(self.gsi, high);
    }
}

impl IrqLine for KernelLine {
    fn pulse(&self) {
        // Under the lock: the edge of another thread must not fall into this one's high phase.
        let _sources = self.sources[self.gsi as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.drive(true);
        self.drive(false);
    }

    fn set_level(&self, high: bool) {
        let mut sources = self.sources[self.gsi as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *sources = if high {
            *sources + 1
        } else {
            sources.saturating_sub(1)
        };
        // Driven under the lock, so that two sources cannot overtake each other.
        match (*sources, high) {
            (1, true) => self.drive(true),
            (0, false) => self.drive(false),
            _ => {}
        }
    }
}

/// The local APICs in the kernel, as our I/O APIC sees them.
struct Msi {
    vm: Arc<VmFd>,
    /// What each pin sends, where KVM must know.
    routes: Mutex<[Option<(u64, u32)>; PINS as usize]>,
}

/// Trigger mode of an MSI's data: level (Intel SDM volume 3A, figure 11-15).
const MSI_LEVEL: u32 = 1 << 15;

impl MsiSink for Msi {
    fn route(&self, pin: u8, message: Option<(u64, u32)>) {
        let level = message.filter(|(_, data)| data & MSI_LEVEL != 0);
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(route) = routes.get_mut(usize::from(pin)) else {
            return;
        };
        // Edges need no EOI, and a new routing table costs a grace period: most machines never set one.
        if std::mem::replace(route, level) == level {
            return;
        }
        let entries: Vec<_> = (0u32..)
            .zip(routes.iter())
            .filter_map(|(gsi, route)| route.map(|(address, data)| entry(gsi, address, data)))
            .collect();
        if let Ok(table) = KvmIrqRouting::from_entries(&entries) {
            // A table of well-formed MSI entries is refused only for lack of memory; then EOIs of level-triggered
            // lines are missed, as on a chip that lost power.
            let _ = self.vm.set_gsi_routing(&table);
        }
    }

    fn send(&self, address: u64, data: u32) {
        let msi = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..kvm_msi::default()
        };
        // A destination that does not exist is the guest's mistake; hardware drops such a message too.
        let _ = self.vm.signal_msi(msi);
    }
}

fn entry(gsi: u32, address: u64, data: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = address as u32;
    entry.u.msi.address_hi = (address >> 32) as u32;
    entry.u.msi.data = data;
    entry
}
