//! Parameters of KVM's modules. Some can be written while the module is loaded; the others are read when it is, and
//! it can be loaded anew only while no machine of this host runs, so that is left to a person.

#![forbid(unsafe_code)]

use super::{ALREADY, HostChange, Planner};

/// A parameter of a key: the module, `kvm_*` being that of the CPU's vendor, and its name there.
struct Parameter {
    key: &'static str,
    /// Module and parameter, the first that the host has.
    places: &'static [(&'static str, &'static str)],
}

const PARAMETERS: [Parameter; 6] = [
    Parameter {
        key: "nested",
        places: &[("kvm_amd", "nested"), ("kvm_intel", "nested")],
    },
    Parameter {
        key: "halt_poll_ns",
        places: &[("kvm", "halt_poll_ns")],
    },
    Parameter {
        key: "nx_huge_pages",
        places: &[("kvm", "nx_huge_pages")],
    },
    Parameter {
        key: "ignore_msrs",
        places: &[("kvm", "ignore_msrs")],
    },
    Parameter {
        key: "tdp",
        places: &[("kvm_amd", "npt"), ("kvm_intel", "ept")],
    },
    Parameter {
        key: "apicv",
        places: &[("kvm_amd", "avic"), ("kvm_intel", "enable_apicv")],
    },
];

pub(super) fn plan(planner: &mut Planner<'_>) {
    for Parameter { key, places } in PARAMETERS {
        let Some(wish) = planner.wish(&format!("kvm.{key}")).cloned() else {
            continue;
        };
        let wish = match (wish.as_bool(), wish.as_u64()) {
            (Some(flag), _) => Wish::Flag(flag),
            (None, Some(number)) => Wish::Number(number),
            (None, None) => continue,
        };
        let change = parameter(planner, key, places, wish);
        planner.push(change);
    }
}

#[derive(Clone, Copy)]
enum Wish {
    Flag(bool),
    Number(u64),
}

fn parameter(planner: &Planner<'_>, key: &str, places: &[(&str, &str)], wish: Wish) -> HostChange {
    let what = format!("host.kvm.{key}");
    let file = |(module, name): &(&str, &str)| format!("/sys/module/{module}/parameters/{name}");
    let found = places.iter().find(|p| planner.text(file(p)).is_some());
    let Some((module, name)) = found else {
        let modules: Vec<&str> = places.iter().map(|(module, _)| *module).collect();
        let path = places.first().map(file).unwrap_or_default();
        let new = written(wish, "Y");
        let mut change = planner.bare(&what, &path, None, new);
        change.skipped = Some(format!("{} has no such parameter here", modules.join(", ")));
        return change;
    };
    let path = file(&(module, name));
    let now = planner.text(&path).unwrap_or_default();
    let mut change = planner.knob(&what, &path, written(wish, &now));
    // A mode without write bits: the kernel refuses even root.
    let fixed = planner
        .facts
        .mode(change.path.as_path())
        .is_some_and(|mode| mode & 0o222 == 0);
    let so = change.skipped.as_deref() == Some(ALREADY);
    if fixed {
        change.act = None;
        if !so {
            let new = &change.new;
            change.skipped = Some(format!(
                "read-only while {module} is loaded; `options {module} {name}={new}` in \
                 /etc/modprobe.d and loading it anew while no machine runs sets it"
            ));
        }
    } else if key == "nx_huge_pages" && now == "never" {
        // arch/x86/kvm/mmu/mmu.c, nx_hugepage_mitigation_hard_disabled.
        change.act = None;
        change.skipped = Some(format!(
            "off for good since {module} was loaded with nx_huge_pages=never"
        ));
    }
    change
}

/// A value in the words of the parameter: booleans show themselves as `Y` and `N`, integers used as such as `1` and `0`
/// (kvm_amd's `nested` is an integer in older kernels), and both take either.
fn written(wish: Wish, now: &str) -> String {
    match wish {
        Wish::Number(number) => number.to_string(),
        Wish::Flag(flag) => match (matches!(now, "0" | "1"), flag) {
            (true, true) => "1",
            (true, false) => "0",
            (false, true) => "Y",
            (false, false) => "N",
        }
        .to_owned(),
    }
}
