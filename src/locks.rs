//! Locks on images beyond the open file's own ([`vsc_devices::block::lock`]): who holds one, lockspaces as libvirt's
//! virtlockd keeps them, and leases of sanlock.

#![forbid(unsafe_code)]

mod config;
pub mod holders;
pub mod keys;
pub mod lockspace;
pub mod now;
pub mod sanlock;

pub use config::{Config, DiskLock, Driver, Guard, LockPlan, Place};
pub use holders::{Holder, Holders, file_holders, held_by, hold};
