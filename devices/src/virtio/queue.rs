//! A virtqueue in use: popping chains, returning them, and deciding when to interrupt.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{GuestMemory as _, VolatileSlice};

use super::Interrupt;
use crate::Memory;

/// A queue that the driver has set up, with everything needed to serve it.
pub struct VirtQueue {
    queue: Queue,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    index: u16,
    broken: bool,
}

/// A buffer the driver made available: guest memory to read from, then guest memory to write to.
///
/// The slices were checked to lie in guest RAM and stay valid as long as the `VirtQueue`'s memory does.
pub struct Chain {
    /// Descriptor index to return the buffer under.
    pub head: u16,
    /// Device-readable parts: (guest address, length in bytes).
    pub readable: Vec<(vm_memory::GuestAddress, u32)>,
    /// Device-writable parts.
    pub writable: Vec<(vm_memory::GuestAddress, u32)>,
}
