//! virtio-rng: entropy from the host's kernel (VIRTIO 5.4).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Activation, Chain, ConfigSpace, Device, Segment, VirtQueue, Watch};

/// Most bytes given per request, which bounds the work (VIRTIO 5.4.6.2 allows fewer than asked for). Linux asks for
/// 64 or fewer at a time.
const MAX_REQUEST: usize = 64 * 1024;

/// Entries of the one queue; Linux keeps one request in flight.
const QUEUE_SIZE: u16 = 16;

/// A virtio-rng device. It has nothing to choose yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RngSpec {}

/// The device.
pub struct Rng {
    config: Arc<ConfigSpace>,
    queue: Option<VirtQueue>,
    chain: Chain,
}

impl Rng {
    /// A device as `spec` says.
    pub fn new(spec: &RngSpec) -> Self {
        let RngSpec {} = spec;
        Self {
            config: Arc::new(ConfigSpace::new(&[], 0..0)),
            queue: None,
            chain: Chain::default(),
        }
    }
}

impl Device for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn config(&self) -> Arc<ConfigSpace> {
        Arc::clone(&self.config)
    }

    fn activate(&mut self, activation: Activation, _watch: &mut dyn Watch) -> Result<(), String> {
        self.queue = activation.queues.into_iter().next().flatten();
        Ok(())
    }

    fn kick(&mut self, _index: u16, _watch: &mut dyn Watch) {
        let Some(queue) = &mut self.queue else { return };
        queue.suppress();
        loop {
            while queue.pop(&mut self.chain) {
                match fill(queue, &self.chain.writable) {
                    Ok(written) => queue.push(self.chain.head, written),
                    Err(reason) => queue.fail(&reason),
                }
            }
            queue.notify();
            if !queue.rearm() {
                return;
            }
        }
    }

    fn reset(&mut self, _watch: &mut dyn Watch) {
        self.queue = None;
    }
}

/// Puts at most [`MAX_REQUEST`] random bytes into `segments`. Returns how many, at least 1.
fn fill(queue: &VirtQueue, segments: &[Segment]) -> Result<u32, String> {
    let mut written = 0;
    for slice in queue.slices(segments) {
        let wanted = slice.len().min(MAX_REQUEST - written);
        // SAFETY: the slice is mapped and writable for `wanted` bytes while `queue` lives. Nothing in this process
        // refers to guest memory by reference.
        let got = unsafe { libc::getrandom(slice.ptr_guard_mut().as_ptr().cast(), wanted, 0) };
        match usize::try_from(got) {
            Ok(got) => written += got,
            Err(_) if written == 0 => {
                return Err(format!(
                    "getrandom failed: {}",
                    std::io::Error::last_os_error()
                ));
            }
            Err(_) => break,
        }
        if written == MAX_REQUEST {
            break;
        }
    }
    // VIRTIO 5.4.6.2 wants at least one byte written, for which the driver has to leave room.
    match u32::try_from(written) {
        Ok(written @ 1..) => Ok(written),
        _ => Err("a request has no room for entropy".to_owned()),
    }
}

#[cfg(test)]
mod tests;
