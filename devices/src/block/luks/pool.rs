//! Whole requests on a few threads.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::{Completion, Iovecs, Request};
use crate::secret::{Pages, clear_registers, hide_stack};

/// Bytes of a thread's stack.
const STACK: usize = 128 << 10;

/// What does a request, on any thread.
pub(super) trait Worker: Send + Sync + 'static {
    /// What a thread works in.
    fn buffer(&self) -> io::Result<Pages>;

    /// Does a request.
    ///
    /// # Safety
    /// The vectors must point to memory that stays mapped until this returns.
    unsafe fn serve(
        &self,
        request: &Request,
        iovecs: &Iovecs,
        buffer: &mut Pages,
    ) -> io::Result<()>;
}

#[derive(Default)]
struct State {
    todo: VecDeque<(Request, Iovecs)>,
    done: Vec<Completion>,
    stop: bool,
}

struct Shared<W> {
    worker: W,
    state: Mutex<State>,
    work: Condvar,
    finished: Condvar,
    ready: EventFd,
}

impl<W: Worker> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut buffer: Pages) {
        hide_stack();
        loop {
            let mut state = self.lock();
            let (request, iovecs) = loop {
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
            // SAFETY: whoever queued the request keeps its memory mapped until it is reaped.
            let result = unsafe { self.worker.serve(&request, &iovecs, &mut buffer) };
            clear_registers();
            let tag = request.tag;
            let mut state = self.lock();
            state.done.push(Completion { tag, result });
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

pub(super) struct Pool<W: Worker> {
    shared: Arc<Shared<W>>,
    /// What threads will work in, before they start; one stays for a pool that gets none.
    buffers: Vec<Pages>,
    threads: Vec<JoinHandle<()>>,
    queued: Vec<(Request, Iovecs)>,
    in_flight: usize,
}

impl<W: Worker> Pool<W> {
    /// A pool of up to `threads`. They start with the first request, as threads of the loop that submits it: so they are
    /// confined as it is.
    pub(super) fn new(worker: W, threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            worker,
            state: Mutex::default(),
            work: Condvar::new(),
            finished: Condvar::new(),
            ready: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
        });
        let buffers = (0..=threads.max(1)).map(|_| shared.worker.buffer());
        Ok(Self {
            buffers: buffers.collect::<io::Result<_>>()?,
            shared,
            threads: Vec::new(),
            queued: Vec::new(),
            in_flight: 0,
        })
    }

    fn start(&mut self) {
        while let Some(buffer) = self.buffers.pop() {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name("luks".into())
                .stack_size(STACK)
                .spawn(move || shared.run(buffer));
            match thread {
                Ok(thread) => self.threads.push(thread),
                // The buffer went with the attempt; the last one is for this thread.
                Err(_) if self.buffers.len() == 1 => return,
                Err(_) if self.threads.is_empty() => {}
                Err(_) => return self.buffers.clear(),
            }
        }
    }

    /// Takes a request on; [`Self::submit`] lets it run. Its memory stays mapped until it was reaped.
    pub(super) fn queue(&mut self, request: Request, iovecs: Iovecs) {
        self.queued.push((request, iovecs));
        self.in_flight += 1;
    }

    pub(super) fn submit(&mut self) {
        let count = self.queued.len();
        if count == 0 {
            return;
        }
        if self.threads.is_empty() && self.buffers.len() > 1 {
            self.start();
        }
        if self.threads.is_empty() {
            return self.serve_here();
        }
        self.shared.lock().todo.extend(self.queued.drain(..));
        for _ in 0..count.min(self.threads.len()) {
            self.shared.work.notify_one();
        }
    }

    /// Without threads, the loop does the work itself.
    fn serve_here(&mut self) {
        for (request, iovecs) in self.queued.drain(..) {
            let result = match self.buffers.first_mut() {
                // SAFETY: as for the threads.
                Some(buffer) => unsafe { self.shared.worker.serve(&request, &iovecs, buffer) },
                None => Err(io::ErrorKind::OutOfMemory.into()),
            };
            let tag = request.tag;
            self.shared.lock().done.push(Completion { tag, result });
        }
        clear_registers();
        // As above.
        let _ = self.shared.ready.write(1);
    }

    pub(super) fn reap(&mut self, out: &mut Vec<Completion>) {
        // First the signal, then what it announced: what comes in between is announced again.
        let _ = self.shared.ready.read();
        let mut state = self.shared.lock();
        self.in_flight = self.in_flight.saturating_sub(state.done.len());
        out.append(&mut state.done);
    }

    pub(super) fn drain(&mut self, out: &mut Vec<Completion>) {
        self.submit();
        while self.in_flight > 0 {
            let state = self.shared.lock();
            let waiting = |s: &mut State| s.done.is_empty();
            drop(
                self.shared
                    .finished
                    .wait_while(state, waiting)
                    .unwrap_or_else(PoisonError::into_inner),
            );
            self.reap(out);
        }
    }

    pub(super) fn ready_fd(&self) -> RawFd {
        self.shared.ready.as_raw_fd()
    }
}

impl<W: Worker> Drop for Pool<W> {
    fn drop(&mut self) {
        // What is running works on the guest's memory.
        self.drain(&mut Vec::new());
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to run.
            let _ = thread.join();
        }
    }
}
