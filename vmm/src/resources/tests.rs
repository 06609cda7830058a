use super::*;

fn resources(irqchip: Irqchip, topology: Topology) -> VmResources {
    VmResources {
        name: "test".into(),
        cpus: Cpus {
            count: topology.sockets * topology.cores * topology.threads,
            topology,
            nested: false,
        },
        memory: 64 << 20,
        backing: Backing::default(),
        placement: Placement::default(),
        irqchip,
        pit: false,
        payload: Payload::Builtin {
            parameters: String::new(),
        },
        serials: Vec::new(),
        consoles: Vec::new(),
        disks: Vec::new(),
        rng: None,
        console_log: None,
        iothreads: 0,
        events: Events::default(),
        limits: Limits::default(),
    }
}

#[test]
fn wide_apic_ids_need_the_split_irqchip() {
    let of = |sockets, cores| Topology {
        sockets,
        cores,
        threads: 1,
    };
    for (topology, fits) in [
        (of(1, 255), true),
        (of(1, 256), false),
        // Ids of 129 cores take 8 bits of each socket.
        (of(2, 129), false),
        (of(2, 120), true),
    ] {
        let said = resources(Irqchip::Kernel, topology).validate();
        assert_eq!(said.is_ok(), fits, "{topology:?}: {said:?}");
        assert_eq!(resources(Irqchip::Split, topology).validate(), Ok(()));
    }
    let said = resources(Irqchip::Kernel, of(1, 300)).validate();
    assert!(said.unwrap_err().contains("irqchip: split"));
}
