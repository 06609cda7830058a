//! What CPUID says, and whether it is consistent.

use crate::out::{Ascii, Out, Outcome, ensure, text};
use crate::sys::cpuid;

fn registers(words: &[u32], to: &mut [u8]) {
    for (word, place) in words.iter().zip(to.chunks_exact_mut(4)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

pub fn all(out: &mut Out) {
    let zero = cpuid(0, 0);
    let mut vendor = [0; 12];
    registers(&[zero.ebx, zero.edx, zero.ecx], &mut vendor);
    let mut brand = [0; 48];
    if cpuid(0x8000_0000, 0).eax >= 0x8000_0004 {
        for (i, part) in (0..3).zip(brand.chunks_exact_mut(16)) {
            let r = cpuid(0x8000_0002 + i, 0);
            registers(&[r.eax, r.ebx, r.ecx, r.edx], part);
        }
    }
    let end = brand
        .iter()
        .rposition(|&b| b != 0 && b != b' ')
        .map_or(0, |n| n + 1);
    let one = cpuid(1, 0);
    out.info(
        "cpu",
        text!(
            "{} family {} model {} stepping {} \"{}\"",
            Ascii(&vendor),
            (one.eax >> 8 & 15)
                + if one.eax >> 8 & 15 == 15 {
                    one.eax >> 20 & 0xff
                } else {
                    0
                },
            one.eax >> 4 & 15 | one.eax >> 12 & 0xf0,
            one.eax & 15,
            Ascii(&brand[..end])
        ),
    );
    if one.ecx >> 31 != 0 {
        let hypervisor = cpuid(0x4000_0000, 0);
        let mut name = [0; 12];
        registers(&[hypervisor.ebx, hypervisor.ecx, hypervisor.edx], &mut name);
        let end = name.iter().rposition(|&b| b != 0).map_or(0, |n| n + 1);
        out.info(
            "hypervisor",
            text!(
                "\"{}\" leaves to {:#x} features {:#x}",
                Ascii(&name[..end]),
                hypervisor.eax,
                cpuid(0x4000_0001, 0).eax
            ),
        );
    } else {
        out.info("hypervisor", text!("none named"));
    }
    out.info(
        "apic",
        text!(
            "id {} logical {} x2apic {} tsc-deadline {} invariant-tsc {}",
            one.ebx >> 24,
            one.ebx >> 16 & 0xff,
            one.ecx >> 21 & 1,
            one.ecx >> 24 & 1,
            cpuid(0x8000_0007, 0).edx >> 8 & 1
        ),
    );
    out.result(text!("cpu.features"), features());
    out.result(text!("cpu.topology"), topology());
}

fn features() -> Outcome {
    let (one, extended) = (cpuid(1, 0), cpuid(0x8000_0001, 0));
    for (present, name) in [
        (one.edx & 1 << 4, "tsc"),
        (one.edx & 1 << 6, "pae"),
        (one.edx & 1 << 8, "cx8"),
        (one.edx & 1 << 9, "apic"),
        (one.edx & 1 << 15, "cmov"),
        (one.edx & 1 << 24, "fxsr"),
        (one.edx & 1 << 26, "sse2"),
        (extended.edx & 1 << 29, "long mode"),
    ] {
        ensure!(present != 0, "no {name}");
    }
    // The floating point unit and SSE compute.
    let (mut x, mut y) = (1.0_f64, 0_u32);
    for i in 1..20_u32 {
        x = core::hint::black_box(x * f64::from(i));
        y = y.wrapping_add(i);
    }
    ensure!(
        x == 121_645_100_408_832_000.0 && y == 190,
        "19! is {}",
        x as u64
    );
    Ok(text!(
        "1:ecx {:#x} 1:edx {:#x} 80000001:edx {:#x}",
        one.ecx,
        one.edx,
        extended.edx
    ))
}

/// Leaves 1, 4/0xb/0x1f and 0x80000008 must tell one story.
fn topology() -> Outcome {
    let (most, one) = (cpuid(0, 0).eax, cpuid(1, 0));
    let leaf = if most >= 0x1f && cpuid(0x1f, 0).ebx != 0 {
        0x1f
    } else {
        0xb
    };
    if most < leaf || cpuid(leaf, 0).ebx & 0xffff == 0 {
        return Ok(text!(
            "no leaf 0xb; leaf 1 counts {} logical",
            one.ebx >> 16 & 0xff
        ));
    }
    let (mut threads, mut logical, mut shift, mut last) = (0, 0, 0, 0);
    for level in 0..8 {
        let r = cpuid(leaf, level);
        let kind = r.ecx >> 8 & 0xff;
        if kind == 0 {
            break;
        }
        ensure!(
            r.ecx & 0xff == level,
            "leaf {leaf:#x} level {level} calls itself {}",
            r.ecx & 0xff
        );
        ensure!(
            r.eax & 31 >= shift && r.ebx & 0xffff >= last,
            "leaf {leaf:#x} level {level} is smaller than the last"
        );
        ensure!(
            r.edx & 0xff == one.ebx >> 24,
            "leaf {leaf:#x} says APIC id {}, leaf 1 {}",
            r.edx,
            one.ebx >> 24
        );
        shift = r.eax & 31;
        last = r.ebx & 0xffff;
        if kind == 1 {
            threads = last;
        }
        logical = last;
    }
    Ok(text!(
        "{threads} threads per core, {logical} logical per package, leaf {leaf:#x}"
    ))
}
