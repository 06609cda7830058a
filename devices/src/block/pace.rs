//! When a loop may block on a disk.
//!
//! A blocking call answers one request sooner than a round through an asynchronous engine, but the devices that share
//! the loop wait meanwhile. So the loop blocks as long as the store is quick. A call that took `t`, longer than
//! [`QUICK`], sends the following ones through the engine for `t` × [`REST`]: at most 1 % of the loop's time is lost.

use std::time::{Duration, Instant};

/// Calls shorter than this cost the other devices of the loop less than their own interrupts.
const QUICK: Duration = Duration::from_micros(250);
const REST: u32 = 100;

/// Remembers how long blocking calls took.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    resting_until: Option<Instant>,
}

impl Pace {
    /// Whether the loop may block at `now`.
    pub(crate) fn may_block(&self, now: Instant) -> bool {
        self.resting_until.is_none_or(|until| now >= until)
    }

    /// A blocking call ran from `from` to `to`.
    pub(crate) fn blocked(&mut self, from: Instant, to: Instant) {
        let took = to.saturating_duration_since(from);
        self.resting_until = if took > QUICK {
            to.checked_add(took.saturating_mul(REST))
        } else {
            None
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_store_is_left_to_the_engine_for_a_hundred_times_as_long() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::default();
        assert!(pace.may_block(start));
        pace.blocked(start, start + QUICK);
        assert!(pace.may_block(start + QUICK));
        pace.blocked(start, at(10));
        assert!(!pace.may_block(at(10)));
        assert!(!pace.may_block(at(1009)));
        assert!(pace.may_block(at(1010)));
        pace.blocked(at(1010), at(1010));
        assert!(pace.may_block(at(1010)));
    }
}
