//! What the guest sees beside what stands behind it on the host.

use serde::{Deserialize, Serialize};
use vsc_devices::virtio::blk::BlkSpec;
use vsc_devices::virtio::rng::RngSpec;
use vsc_vmm::resources::VmResources;

use crate::scenario::value::endpoint_text;

use super::{Plan, ports};

/// A device of the guest and what stands behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePair {
    /// What the guest sees: kind of device, and its name there.
    pub guest: String,
    /// What stands behind it on the host.
    pub host: String,
    /// The scenario's name of it.
    pub id: String,
}

/// All devices that the machine has beyond CPUs, interrupt controllers and timers, in the order of the guest's names.
pub fn device_pairs(plan: &Plan) -> Vec<DevicePair> {
    machine_pairs(&plan.resources)
}

/// The same of a machine.
pub fn machine_pairs(resources: &VmResources) -> Vec<DevicePair> {
    let VmResources {
        name: _,
        cpus: _,
        memory: _,
        // `threads` tells of these.
        backing: _,
        placement: _,
        irqchip: _,
        pit: _,
        payload: _,
        serials,
        consoles,
        disks,
        rng,
        console_log: _,
        iothreads: _,
        events: _,
        limits: _,
    } = resources;
    let pair = |guest: String, host: String, id: String| DevicePair { guest, host, id };
    let mut out = Vec::new();
    for serial in serials {
        let guest = format!(
            "isa-serial ttyS{} (port 0x{:x}, irq {})",
            serial.index,
            serial.port(),
            serial.irq()
        );
        out.push(pair(
            guest,
            endpoint_text(&serial.endpoint),
            format!("serial{}", serial.index),
        ));
    }
    for (guest, host, id) in consoles.iter().flat_map(ports::pairs) {
        out.push(pair(guest, host, id));
    }
    for (index, disk) in disks.iter().enumerate() {
        out.push(pair(
            format!("virtio-blk {}", block_name(index)),
            image(disk),
            disk.id.clone(),
        ));
    }
    if let Some(RngSpec {}) = rng {
        out.push(pair(
            "virtio-rng hwrng".into(),
            "getrandom(2)".into(),
            "rng".into(),
        ));
    }
    out
}

fn image(disk: &BlkSpec) -> String {
    let BlkSpec {
        id: _,
        path,
        format,
        encryption,
        read_only,
        cache,
        direct_io,
        sync_mode,
        discard: _,
        ..
    } = disk;
    let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    let mut out = format!("{}:{} (cache={}", word(format), path.display(), word(cache));
    if let Some(direct) = direct_io {
        out.push_str(if *direct {
            ", direct_io"
        } else {
            ", no direct_io"
        });
    }
    if let Some(sync) = sync_mode {
        out.push_str(&format!(", sync={}", word(sync)));
    }
    if *read_only {
        out.push_str(", read_only");
    }
    if encryption.is_some() {
        out.push_str(", encryption=luks");
    }
    out.push(')');
    out
}

/// Linux's name of the n-th virtio disk: vda … vdz, vdaa …
fn block_name(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or(0)));
        rest /= 26;
    }
    letters.into_iter().chain("dv".chars()).rev().collect()
}

#[cfg(test)]
mod tests {
    use super::block_name;

    #[test]
    fn disks_are_named_as_linux_does() {
        let names: Vec<String> = [0, 1, 25, 26, 51, 52, 701, 702].map(block_name).to_vec();
        assert_eq!(
            names,
            ["vda", "vdb", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa"]
        );
    }
}
