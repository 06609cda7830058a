use super::*;

const T: Topology = Topology {
    sockets: 2,
    cores: 3,
    threads: 2,
};

fn host() -> Vec<Entry> {
    let e = |function, eax, ebx, ecx, edx| Entry {
        function,
        eax,
        ebx,
        ecx,
        edx,
        ..Entry::default()
    };
    let mut l3 = e(0x8000_001d, 0x163, 0, 0, 0);
    l3.index = 3;
    vec![
        e(0, 7, 0, 0, 0),
        e(1, 0, 0x0502_0800, LEAF1_ECX_VMX, 0),
        e(0xb, 99, 99, 99, 99),
        e(KVM_SIGNATURE, KVM_FEATURES, 0x4b4d_564b, 0, 0),
        e(KVM_FEATURES, 0x0100_8eff, 0, 0, 0),
        e(0x8000_0001, 0, 0, EXT1_ECX_SVM | EXT1_ECX_TOPOLOGY, 0),
        e(0x8000_0008, 0x3030, 0, 0x5003, 0),
        e(0x8000_000a, 1, 0x8000, 0, 0xff),
        e(0x8000_001d, 0x121, 0, 0, 0),
        l3,
        e(0x8000_001e, 9, 9, 9, 9),
        e(0x8000_001f, 0x1f, 0x173, 0x1fd, 1),
    ]
}

fn params() -> Params {
    Params {
        topology: T,
        nested: false,
        tsc_khz: 2_600_000,
        tsc_deadline: true,
        ext_dest_id: false,
    }
}

fn leaf(entries: &[Entry], function: u32, index: u32) -> Entry {
    let all: Vec<_> = entries
        .iter()
        .filter(|e| e.function == function && e.index == index)
        .collect();
    assert_eq!(
        all.len(),
        1,
        "leaf {function:#x}.{index} must be there once"
    );
    *all[0]
}

#[test]
fn apic_ids_are_unique_and_keep_fields_apart() {
    let ids: Vec<_> = (0..12).map(|i| apic_id(T, i)).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13]);
    let flat = Topology {
        sockets: 1,
        cores: 300,
        threads: 1,
    };
    assert_eq!(
        (0..300).map(|i| apic_id(flat, i)).collect::<Vec<_>>(),
        (0..300).collect::<Vec<_>>()
    );
}

#[test]
fn topology_leaves_agree_with_the_apic_id() {
    let mut entries = shared(&host(), &params());
    for_vcpu(&mut entries, T, 7);
    let id = apic_id(T, 7);
    let smt = leaf(&entries, 0xb, 0);
    let core = leaf(&entries, 0xb, 1);
    assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (1, 2, 0x100, id));
    assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 6, 0x201, id));
    assert_eq!(leaf(&entries, 0xb, 2).ecx, 2, "the last level has type 0");
    assert_eq!(
        leaf(&entries, 0, 0).eax,
        0xb,
        "the largest basic leaf covers the topology leaf"
    );
    let one = leaf(&entries, 1, 0);
    assert_eq!(one.ebx >> 24, id);
    assert_eq!((one.ebx >> 16) & 0xff, 8, "addressable ids in a package");
    assert_eq!(
        one.ebx & 0xff00,
        0x0800,
        "the cache line size is the host's"
    );
    assert_ne!(one.edx & LEAF1_EDX_HTT, 0);
    let ext = leaf(&entries, 0x8000_001e, 0);
    assert_eq!((ext.eax, ext.ebx, ext.ecx), (id, 0x100, 1));
    let size = leaf(&entries, 0x8000_0008, 0);
    assert_eq!((size.ecx & 0xff, size.ecx >> 12 & 0xf), (5, 3));
}

#[test]
fn caches_are_shared_by_the_right_processors() {
    let entries = shared(&host(), &params());
    assert_eq!(
        leaf(&entries, 0x8000_001d, 0).eax >> 14 & 0xfff,
        1,
        "L1 by the threads of a core"
    );
    assert_eq!(
        leaf(&entries, 0x8000_001d, 3).eax >> 14 & 0xfff,
        5,
        "L3 by the package"
    );
}

#[test]
fn nested_virtualization_shows_only_when_asked() {
    let hidden = shared(&host(), &params());
    assert_eq!(leaf(&hidden, 1, 0).ecx & LEAF1_ECX_VMX, 0);
    assert_eq!(leaf(&hidden, 0x8000_0001, 0).ecx & EXT1_ECX_SVM, 0);
    assert_eq!(leaf(&hidden, 0x8000_000a, 0).edx, 0);
    let shown = shared(
        &host(),
        &Params {
            nested: true,
            ..params()
        },
    );
    assert_ne!(leaf(&shown, 1, 0).ecx & LEAF1_ECX_VMX, 0);
    assert_ne!(leaf(&shown, 0x8000_0001, 0).ecx & EXT1_ECX_SVM, 0);
    assert_eq!(leaf(&shown, 0x8000_000a, 0).edx, 0xff);
}

#[test]
fn timing_is_told_when_known() {
    let entries = shared(&host(), &params());
    assert_eq!(leaf(&entries, KVM_SIGNATURE, 0).eax, TIMING);
    let timing = leaf(&entries, TIMING, 0);
    assert_eq!((timing.eax, timing.ebx), (2_600_000, 1_000_000));
    assert_ne!(leaf(&entries, 1, 0).ecx & LEAF1_ECX_TSC_DEADLINE, 0);
    let unknown = shared(
        &host(),
        &Params {
            tsc_khz: 0,
            tsc_deadline: false,
            ..params()
        },
    );
    assert_eq!(leaf(&unknown, KVM_SIGNATURE, 0).eax, KVM_FEATURES);
    assert!(unknown.iter().all(|e| e.function != TIMING));
    assert_eq!(leaf(&unknown, 1, 0).ecx & LEAF1_ECX_TSC_DEADLINE, 0);
}

#[test]
fn encrypted_memory_is_not_offered() {
    let sev = leaf(&shared(&host(), &params()), 0x8000_001f, 0);
    assert_eq!((sev.eax, sev.ebx, sev.ecx, sev.edx), (0, 0, 0, 0));
}

#[test]
fn counts_that_do_not_fit_are_the_largest_that_do() {
    let topology = Topology {
        sockets: 1,
        cores: 300,
        threads: 1,
    };
    let entries = shared(
        &host(),
        &Params {
            topology,
            ..params()
        },
    );
    let size = leaf(&entries, 0x8000_0008, 0);
    assert_eq!((size.ecx & 0xff, size.ecx >> 12 & 0xf), (255, 9));
    assert_eq!((leaf(&entries, 1, 0).ebx >> 16) & 0xff, 255);
}

#[test]
fn one_vcpu_has_no_siblings() {
    let topology = Topology {
        sockets: 1,
        cores: 1,
        threads: 1,
    };
    let mut entries = shared(
        &host(),
        &Params {
            topology,
            ..params()
        },
    );
    for_vcpu(&mut entries, topology, 0);
    let one = leaf(&entries, 1, 0);
    assert_eq!(one.edx & LEAF1_EDX_HTT, 0);
    assert_eq!(leaf(&entries, 0xb, 1).eax, 0);
    assert_eq!(leaf(&entries, 0x8000_0001, 0).ecx & EXT1_ECX_CMP_LEGACY, 0);
}
