//! How the guest reaches a device.
