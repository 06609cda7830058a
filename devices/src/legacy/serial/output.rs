//! Bytes on their way from a UART to the host.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::alarm::Alarm;
use crate::console_log::ConsoleLog;
use crate::source::Stop;
use crate::stream::WriteEnd;

/// Written at the latest when so much has gathered. No more than a pipe takes in one piece.
const BATCH: usize = 4096;
/// Kept for a reader that falls behind; then the vCPU waits.
const KEPT: usize = 64 << 10;
/// A line without its end is written after this long.
const IDLE: Duration = Duration::from_millis(5);

struct State {
    end: Option<Arc<WriteEnd>>,
    pending: VecDeque<u8>,
    /// The host had no room; the loop waits for it.
    blocked: bool,
    /// Nobody reads any more; the loop has not been told yet.
    gone: bool,
}

/// What a flush came to.
pub(super) struct Progress {
    /// The host has no room.
    pub(super) blocked: bool,
    /// Nobody reads any more.
    pub(super) gone: bool,
}

pub(super) struct Output {
    state: Mutex<State>,
    log: Option<ConsoleLog>,
    stop: Stop,
}

impl Output {
    pub(super) fn new(end: Option<Arc<WriteEnd>>, log: Option<ConsoleLog>, stop: Stop) -> Self {
        let state = State {
            end,
            pending: VecDeque::new(),
            blocked: false,
            gone: false,
        };
        Self {
            state: Mutex::new(state),
            log,
            stop,
        }
    }

    /// Takes bytes from the guest, on a vCPU thread. Waits when too many are pending.
    pub(super) fn push(&self, bytes: &[u8], alarm: &Alarm) {
        if let Some(log) = &self.log {
            log.push(bytes);
        }
        let mut state = self.lock();
        if state.end.is_none() {
            return;
        }
        state.pending.extend(bytes);
        let full = state.pending.len() >= KEPT;
        let watched = state.blocked && !full;
        if full {
            state = self.wait(state, KEPT - BATCH);
        } else if !watched && (bytes.contains(&b'\n') || state.pending.len() >= BATCH) {
            state.write();
        }
        let (blocked, gone, idle) = (state.blocked, state.gone, state.pending.is_empty());
        drop(state);
        if gone || blocked && !watched {
            alarm.now();
        } else if !idle && !blocked {
            alarm.within(IDLE);
        }
    }

    /// Writes what the host has room for, on the loop.
    pub(super) fn flush(&self) -> Progress {
        if let Some(log) = &self.log {
            // The error is kept in the log for whoever asks at the end.
            log.write_pending();
        }
        let mut state = self.lock();
        state.write();
        Progress {
            blocked: state.blocked,
            gone: std::mem::take(&mut state.gone),
        }
    }

    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// Another reader, or none: what is pending was for the one before.
    pub(super) fn connect(&self, end: Option<Arc<WriteEnd>>) {
        let mut state = self.lock();
        state.pending.clear();
        state.blocked = false;
        state.gone = false;
        state.end = end;
    }

    /// Writes everything, waiting for the reader as long as it takes something every now and then.
    pub(super) fn finish(&self, patience: Duration) -> bool {
        let mut state = self.lock();
        loop {
            state.write();
            let Some(end) = state.end.clone().filter(|_| !state.pending.is_empty()) else {
                return true;
            };
            drop(state);
            if !poll(&[(end.as_raw_fd(), libc::POLLOUT)], Some(patience)) {
                return false;
            }
            state = self.lock();
        }
    }

    /// Waits until at most `most` bytes are pending or the machine stops. The lock is free meanwhile.
    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, most: usize) -> MutexGuard<'a, State> {
        loop {
            state.write();
            if state.pending.len() <= most || self.stop.is_raised() {
                return state;
            }
            let Some(end) = state.end.clone() else {
                return state;
            };
            drop(state);
            let ends = [
                (end.as_raw_fd(), libc::POLLOUT),
                (self.stop.fd(), libc::POLLIN),
            ];
            poll(&ends, None);
            state = self.lock();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn write(&mut self) {
        self.blocked = false;
        while let Some(end) = &self.end
            && !self.pending.is_empty()
        {
            match end.write(self.pending.as_slices().0) {
                Ok(n) => {
                    self.pending.drain(..n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return;
                }
                Err(_) => {
                    self.pending.clear();
                    self.end = None;
                    self.gone = true;
                }
            }
        }
    }
}

/// Waits for one of the descriptors, for `limit` at most. False: nothing happened. A signal counts as something.
fn poll(ends: &[(RawFd, libc::c_short)], limit: Option<Duration>) -> bool {
    let mut list: Vec<_> = ends
        .iter()
        .map(|&(fd, events)| libc::pollfd {
            fd,
            events,
            revents: 0,
        })
        .collect();
    let limit = limit.map_or(-1, |limit| limit.as_millis().try_into().unwrap_or(i32::MAX));
    // SAFETY: the list outlives the call and its length is given.
    unsafe { libc::poll(list.as_mut_ptr(), list.len() as libc::nfds_t, limit) != 0 }
}
