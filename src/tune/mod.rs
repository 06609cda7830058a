//! The only code that changes the host: plans are carried out, journalled and undone here.
//!
//! [`Tuner::begin`] writes into a journal what it is about to do, and does it. Whatever happens then, somebody undoes
//! it: the run's own end, the warden when the run is killed, the next run or `vsc-run gc` when both are. Users
//! are counted by the journal: who is last restores a value, and only where it is still what was made of it.

mod apart;
mod apply;
mod attributes;
mod change;
mod error;
mod hands;
mod journal;
mod kept;
mod killed;
mod life;
mod merged;
mod place;
mod report;
mod state;
#[cfg(test)]
mod tests;
mod touch;
mod tuner;
mod undo;
mod unit;
mod wait;
mod warden;

pub use change::{Act, Change, UnitState, value};
pub use error::TuneError;
pub use kept::KeptFile;
pub use killed::LIMITS;
pub use life::Sign;
pub use report::{
    Active, Begun, Damage, Foreign, Holder, How, SEV_ENABLE, Told, Undone, Unwound, Verdict,
};
pub use state::Run;
pub use tuner::Tuner;
pub use wait::Locker;
pub use warden::{EndError, Guard, WARDEN, Witness, warden};
