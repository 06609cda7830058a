//! Calls on a few threads.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Call, Outcome};

/// Threads per disk: a few requests in flight are most of what parallelism gives, and each costs a stack.
const THREADS: usize = 4;

#[derive(Default)]
struct State {
    todo: VecDeque<(u32, Call)>,
    done: Vec<Outcome>,
    stop: bool,
}

struct Shared {
    fd: RawFd,
    state: Mutex<State>,
    work: Condvar,
    finished: Condvar,
    ready: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        loop {
            let mut state = self.lock();
            let (tag, call) = loop {
                if let Some(next) = state.todo.pop_front() {
                    break next;
                }
                if state.stop {
                    return;
                }
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            // SAFETY: whoever queued the call keeps its memory mapped until the outcome is reaped.
            let result = unsafe { call.run(self.fd, 0) };
            let mut state = self.lock();
            state.done.push((tag, result));
            let first = state.done.len() == 1;
            drop(state);
            self.finished.notify_one();
            if first {
                // Only fails when the counter is about to overflow, and then it is readable anyway.
                let _ = self.ready.write(1);
            }
        }
    }
}

pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    queued: Vec<(u32, Call)>,
    in_flight: usize,
}

impl Pool {
    pub(super) fn new(fd: RawFd) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            fd,
            state: Mutex::default(),
            work: Condvar::new(),
            finished: Condvar::new(),
            ready: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        });
        let mut pool = Self {
            shared,
            threads: Vec::new(),
            queued: Vec::new(),
            in_flight: 0,
        };
        for _ in 0..THREADS {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name("disk".into())
                .stack_size(64 << 10)
                .spawn(move || shared.serve());
            match thread {
                Ok(thread) => pool.threads.push(thread),
                Err(e) if pool.threads.is_empty() => return Err(e),
                Err(_) => break,
            }
        }
        Ok(pool)
    }

    pub(super) fn queue(&mut self, tag: u32, call: Call) {
        self.queued.push((tag, call));
        self.in_flight += 1;
    }

    pub(super) fn submit(&mut self) {
        let count = self.queued.len();
        if count == 0 {
            return;
        }
        self.shared.lock().todo.extend(self.queued.drain(..));
        for _ in 0..count.min(self.threads.len()) {
            self.shared.work.notify_one();
        }
    }

    pub(super) fn reap(&mut self, out: &mut Vec<Outcome>) {
        // First the signal, then the outcomes: one that comes in between is announced again. A signal may also come
        // late, when its outcome was taken before.
        let _ = self.shared.ready.read();
        let mut state = self.shared.lock();
        self.in_flight = self.in_flight.saturating_sub(state.done.len());
        out.append(&mut state.done);
    }

    pub(super) fn wait(&mut self) {
        self.submit();
        if self.in_flight == 0 {
            return;
        }
        let state = self.shared.lock();
        let waiting = |s: &mut State| s.done.is_empty();
        drop(
            self.shared
                .finished
                .wait_while(state, waiting)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn ready_fd(&self) -> RawFd {
        self.shared.ready.as_raw_fd()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to run.
            let _ = thread.join();
        }
    }
}
