//! [`CpuStart`] to KVM's register structures.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vsc_firmware::boot::{CpuStart, Segment, Table};

pub(super) fn regs(start: &CpuStart) -> kvm_regs {
    kvm_regs {
        rip: start.rip,
        rsp: start.rsp,
        rbp: start.rsp,
        rbx: start.rbx,
        rsi: start.rsi,
        rflags: start.rflags,
        ..kvm_regs::default()
    }
}

/// Changes what `start` names and keeps the rest as KVM reset it.
pub(super) fn apply(sregs: &mut kvm_sregs, start: &CpuStart) {
    sregs.cr0 = start.cr0;
    sregs.cr3 = start.cr3;
    sregs.cr4 = start.cr4;
    sregs.efer = start.efer;
    table(&mut sregs.gdt, start.gdt);
    table(&mut sregs.idt, start.idt);
    sregs.cs = segment(&start.code);
    let data = segment(&start.data);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(&start.task);
}

fn table(to: &mut kvm_bindings::kvm_dtable, from: Table) {
    to.base = from.base;
    to.limit = from.limit;
}

fn segment(s: &Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.type_,
        present: s.present,
        dpl: s.dpl,
        db: s.db,
        s: s.s,
        l: s.l,
        g: s.g,
        ..kvm_segment::default()
    }
}
