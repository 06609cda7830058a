//! What a guest can ask of the machine as a whole.

use std::sync::Arc;

/// A request or a report that ends, restarts or explains a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest asked for a reset (i8042, ACPI reset register, port 0xcf9).
    Reset,
    /// The guest powered itself off (ACPI S5).
    PowerOff,
    /// The guest kernel reported a panic (pvpanic); `loaded` says that a crash kernel takes over.
    Panicked {
        /// A crash kernel was loaded and will run next.
        loaded: bool,
    },
    /// The guest wrote a status to the exit port.
    Exit(u8),
}

/// Where devices send [`GuestEvent`]s. Called on a vCPU or I/O thread; must not block.
pub trait EventSink: Send + Sync {
    /// Delivers one event. The first [`GuestEvent::Reset`], [`GuestEvent::PowerOff`] or [`GuestEvent::Exit`] stops
    /// the vCPUs before they run another instruction after the register access that caused it.
    fn notify(&self, event: GuestEvent);
}

/// A shared handle to the sink.
pub type Sink = Arc<dyn EventSink>;
