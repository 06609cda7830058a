//! How a device reaches an interrupt controller without knowing which one there is.

use std::sync::Arc;

/// One interrupt input of the machine (an ISA IRQ or a GSI).
pub trait IrqLine: Send + Sync {
    /// Raises and lowers the line: one edge.
    fn pulse(&self);

    /// Drives a level-triggered line. Lines may be shared: the controller sees the OR of its sources, so each
    /// source calls this only when its own level changes.
    fn set_level(&self, high: bool);
}

/// A line connected to nothing, for devices that the guest polls and for tests.
#[derive(Debug, Default)]
pub struct Unconnected;

impl IrqLine for Unconnected {
    fn pulse(&self) {}
    fn set_level(&self, _high: bool) {}
}

/// A shared handle to a line.
pub type Line = Arc<dyn IrqLine>;
