//! Where and how the host runs the threads of a machine: CPUs, scheduling policy, priority.

use std::cell::RefCell;
use std::io;

use crate::resources::{Placement, Policy};

/// Why a thread cannot run as it shall.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// sched_setaffinity failed.
    #[error("Run the threads that serve the machine on the CPUs {cpus:?}")]
    Cpus {
        /// CPUs asked for.
        cpus: Vec<u32>,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// sched_setscheduler failed.
    #[error(
        "Give the threads that serve the machine real-time priority {priority}, one above its vCPUs"
    )]
    Priority {
        /// Priority asked for.
        priority: u8,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// sched_getaffinity failed.
    #[error("Ask which CPUs this process may use")]
    Ask(#[source] io::Error),
}

/// A set of CPUs as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mask(Vec<u64>);

impl Mask {
    fn of(cpus: &[u32]) -> Self {
        let last = cpus.iter().max().copied().unwrap_or(0);
        let mut mask = vec![0; last as usize / 64 + 1];
        for cpu in cpus {
            mask[*cpu as usize / 64] |= 1 << (cpu % 64);
        }
        Self(mask)
    }

    /// Of the calling thread.
    fn current() -> io::Result<Self> {
        // Most CPUs that Linux can be built for (CONFIG_NR_CPUS on x86).
        const MOST: usize = 8192;
        let mut mask = vec![0u64; MOST / 64];
        // SAFETY: the buffer outlives the call, and its length is what is said.
        let result =
            unsafe { libc::sched_getaffinity(0, mask.len() * 8, mask.as_mut_ptr().cast()) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(mask))
    }

    /// For the calling thread.
    fn set(&self) -> io::Result<()> {
        // SAFETY: the buffer outlives the call, and its length is what is said.
        let result =
            unsafe { libc::sched_setaffinity(0, self.0.len() * 8, self.0.as_ptr().cast()) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// Schedules the calling thread.
fn schedule(policy: i32, priority: u8) -> io::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: priority.into(),
    };
    // SAFETY: the structure outlives the call.
    match unsafe { libc::sched_setscheduler(0, policy, &parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a vCPU's thread does first. The default does nothing.
#[derive(Debug, Clone, Default)]
pub struct Seat {
    cpus: Option<Mask>,
    policy: Policy,
}

impl Seat {
    /// Nothing is to be done.
    pub(crate) fn is_any(&self) -> bool {
        self.cpus.is_none() && self.policy == Policy::Inherited
    }

    /// Puts the calling thread there.
    pub(crate) fn take(&self) -> io::Result<()> {
        if let Some(cpus) = &self.cpus {
            cpus.set()?;
        }
        match self.policy {
            Policy::Inherited => Ok(()),
            Policy::Fifo(priority) => schedule(libc::SCHED_FIFO, priority),
            Policy::RoundRobin(priority) => schedule(libc::SCHED_RR, priority),
            Policy::Batch => schedule(libc::SCHED_BATCH, 0),
            Policy::Idle => schedule(libc::SCHED_IDLE, 0),
        }
    }
}

/// What was done to a thread.
struct Moved {
    /// Its CPUs before.
    before: Mask,
    to: Placement,
}

thread_local! {
    /// A machine that starts again is built by a thread that was moved already, and that by now may not move.
    static MOVED: RefCell<Option<Moved>> = const { RefCell::new(None) };
}

/// Moves the calling thread, and with it every thread that it starts, to where the threads that serve the vCPUs run.
/// Returns the seats of the vCPUs. Without a word in `placement` nothing is done.
///
/// # Errors
/// [`PlacementError`].
pub(crate) fn take(placement: &Placement, vcpus: u32) -> Result<Vec<Seat>, PlacementError> {
    if *placement == Placement::default() {
        return Ok(Vec::new());
    }
    let Placement {
        vcpus: pins,
        others,
        policy,
    } = placement;
    let before = MOVED.with_borrow_mut(|moved| {
        if let Some(moved) = moved.as_ref().filter(|moved| moved.to == *placement) {
            return Ok(moved.before.clone());
        }
        let before = match moved.take() {
            Some(moved) => moved.before,
            None => Mask::current().map_err(PlacementError::Ask)?,
        };
        if !others.is_empty() {
            Mask::of(others)
                .set()
                .map_err(|source| PlacementError::Cpus {
                    cpus: others.clone(),
                    source,
                })?;
        }
        if let Some(priority) = policy.priority() {
            let above = priority.saturating_add(1);
            schedule(libc::SCHED_FIFO, above).map_err(|source| PlacementError::Priority {
                priority: above,
                source,
            })?;
        }
        let to = placement.clone();
        Ok::<_, PlacementError>(moved.insert(Moved { before, to }).before.clone())
    })?;
    let seat = |index: u32| Seat {
        cpus: match pins.get(index as usize) {
            Some(cpus) if !cpus.is_empty() => Some(Mask::of(cpus)),
            _ => (!others.is_empty()).then(|| before.clone()),
        },
        policy: *policy,
    };
    Ok((0..vcpus).map(seat).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_the_bits_of_its_cpus() {
        assert_eq!(Mask::of(&[0, 1, 63]).0, [0x8000_0000_0000_0003]);
        assert_eq!(Mask::of(&[64, 130]).0, [0, 1, 4]);
    }

    #[test]
    fn seats_are_taken_by_the_thread_that_takes_them_only() {
        let before = Mask::current().unwrap();
        let first = before.0.iter().position(|word| *word != 0).unwrap();
        let cpu = first as u32 * 64 + before.0[first].trailing_zeros();
        let thread = std::thread::spawn(move || {
            let placement = Placement {
                vcpus: vec![vec![], vec![cpu]],
                others: vec![cpu],
                policy: Policy::Idle,
            };
            let seats = take(&placement, 3).unwrap();
            let others = Mask::current().unwrap();
            let masks: Vec<_> = seats.iter().map(|s| s.cpus.clone().unwrap()).collect();
            seats[1].take().unwrap();
            // SAFETY: a plain call.
            (others, masks, unsafe { libc::sched_getscheduler(0) })
        });
        let (others, masks, policy) = thread.join().unwrap();
        let one = |mask: &Mask| mask.0.iter().map(|w| w.count_ones()).sum::<u32>();
        assert_eq!(one(&others), 1);
        assert_eq!(masks[0], before, "not pinned: where the process was");
        assert_eq!(masks[1], Mask::of(&[cpu]));
        assert_eq!(masks[2], before);
        assert_eq!(policy, libc::SCHED_IDLE);
        assert_eq!(Mask::current().unwrap(), before);
        assert!(take(&Placement::default(), 4).unwrap().is_empty());
    }
}
