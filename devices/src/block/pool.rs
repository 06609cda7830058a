//! Jobs of one kind on a few threads: calls on a file where there is no io_uring, requests of an encrypted disk.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What does a job, on any thread.
pub(crate) trait Worker: Send + Sync + 'static {
    type Job: Send;
    type Done: Send;
    /// What a thread works in.
    type Place: Send;

    /// Name of the threads.
    const NAME: &str;
    /// Bytes of a thread's stack.
    const STACK: usize;

    fn place(&self) -> io::Result<Self::Place>;

    /// Called by each thread, first.
    fn enter(&self) {}

    /// Does a job.
    ///
    /// # Safety
    /// What the job points to must stay mapped until this returns.
    unsafe fn serve(&self, job: Self::Job, place: &mut Self::Place) -> Self::Done;
}

struct State<W: Worker> {
    todo: VecDeque<W::Job>,
    done: Vec<W::Done>,
    stop: bool,
}

struct Shared<W: Worker> {
    worker: W,
    state: Mutex<State<W>>,
    work: Condvar,
    finished: Condvar,
    ready: EventFd,
}

impl<W: Worker> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut place: W::Place) {
        self.worker.enter();
        loop {
            let mut state = self.lock();
            let job = loop {
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
            // SAFETY: whoever queued the job keeps its memory mapped until it was reaped.
            let done = unsafe { self.worker.serve(job, &mut place) };
            self.finish(done);
        }
    }

    fn finish(&self, done: W::Done) {
        let mut state = self.lock();
        state.done.push(done);
        let first = state.done.len() == 1;
        drop(state);
        self.finished.notify_one();
        if first {
            // Only fails when the counter is about to overflow, and then it is readable anyway.
            let _ = self.ready.write(1);
        }
    }
}

pub(crate) struct Pool<W: Worker> {
    shared: Arc<Shared<W>>,
    /// What threads will work in, until they start.
    places: Vec<W::Place>,
    /// What this thread works in when there are none.
    spare: W::Place,
    threads: Vec<JoinHandle<()>>,
    queued: Vec<W::Job>,
    in_flight: usize,
}

impl<W: Worker> Pool<W> {
    /// A pool of up to `threads`, at least one. They start with the first job, if [`Self::start`] was not called
    /// before, as threads of the loop that submits it: so they are confined as it is.
    pub(super) fn new(worker: W, threads: usize) -> io::Result<Self> {
        let places = (0..threads.max(1)).map(|_| worker.place());
        Ok(Self {
            places: places.collect::<io::Result<_>>()?,
            spare: worker.place()?,
            shared: Arc::new(Shared {
                worker,
                state: Mutex::new(State {
                    todo: VecDeque::new(),
                    done: Vec::new(),
                    stop: false,
                }),
                work: Condvar::new(),
                finished: Condvar::new(),
                ready: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            }),
            threads: Vec::new(),
            queued: Vec::new(),
            in_flight: 0,
        })
    }

    /// Starts the threads: as many as can be had. An error: there is none.
    pub(super) fn start(&mut self) -> io::Result<()> {
        let mut outcome = Ok(());
        for place in std::mem::take(&mut self.places) {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new()
                .name(W::NAME.into())
                .stack_size(W::STACK)
                .spawn(move || shared.run(place));
            match thread {
                Ok(thread) => {
                    self.threads.push(thread);
                    outcome = Ok(());
                }
                Err(_) if !self.threads.is_empty() => break,
                Err(e) => outcome = Err(e),
            }
        }
        outcome
    }

    /// Takes a job on; [`Self::submit`] lets it run.
    ///
    /// # Safety
    /// What it points to stays mapped until it was reaped.
    pub(super) unsafe fn queue(&mut self, job: W::Job) {
        self.queued.push(job);
        self.in_flight += 1;
    }

    pub(super) fn submit(&mut self) {
        let count = self.queued.len();
        if count == 0 {
            return;
        }
        if !self.places.is_empty() {
            // Without threads, the loop does the work itself.
            let _ = self.start();
        }
        if self.threads.is_empty() {
            return self.serve_here();
        }
        self.shared.lock().todo.extend(self.queued.drain(..));
        for _ in 0..count.min(self.threads.len()) {
            self.shared.work.notify_one();
        }
    }

    fn serve_here(&mut self) {
        for job in self.queued.drain(..) {
            // SAFETY: as for the threads.
            let done = unsafe { self.shared.worker.serve(job, &mut self.spare) };
            self.shared.finish(done);
        }
    }

    pub(super) fn reap(&mut self, out: &mut Vec<W::Done>) {
        // First the signal, then what it announced: what comes in between is announced again. A signal may also come
        // late, when what it announced was taken before.
        let _ = self.shared.ready.read();
        let mut state = self.shared.lock();
        self.in_flight = self.in_flight.saturating_sub(state.done.len());
        out.append(&mut state.done);
    }

    /// Waits until there is something to reap; returns at once when nothing is in flight.
    pub(super) fn wait(&mut self) {
        self.submit();
        if self.in_flight == 0 {
            return;
        }
        let state = self.shared.lock();
        let waiting = |s: &mut State<W>| s.done.is_empty();
        drop(
            self.shared
                .finished
                .wait_while(state, waiting)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Waits until nothing is in flight, appending what has ended.
    pub(super) fn drain(&mut self, out: &mut Vec<W::Done>) {
        while self.in_flight > 0 {
            self.wait();
            self.reap(out);
        }
    }

    /// Jobs queued or running that were not reaped.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn ready_fd(&self) -> RawFd {
        self.shared.ready.as_raw_fd()
    }
}

impl<W: Worker> Drop for Pool<W> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing left to run.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Tells how many have entered.
    struct Twice(AtomicUsize);

    impl Worker for Twice {
        type Job = u32;
        type Done = (u32, bool);
        type Place = bool;
        const NAME: &str = "twice";
        const STACK: usize = 64 << 10;

        fn place(&self) -> io::Result<bool> {
            Ok(true)
        }

        fn enter(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        unsafe fn serve(&self, job: u32, place: &mut bool) -> (u32, bool) {
            (2 * job, *place)
        }
    }

    fn pool(threads: usize) -> Pool<Twice> {
        Pool::new(Twice(AtomicUsize::new(0)), threads).unwrap()
    }

    fn hundred(pool: &mut Pool<Twice>) -> Vec<(u32, bool)> {
        // SAFETY: a number points to nothing.
        (0..100).for_each(|n| unsafe { pool.queue(n) });
        let mut done = Vec::new();
        pool.drain(&mut done);
        assert_eq!(pool.in_flight(), 0);
        done.sort_unstable();
        done
    }

    #[test]
    fn there_are_as_many_threads_as_were_asked_for() {
        for (asked, given) in [(0, 1), (1, 1), (3, 3)] {
            let mut pool = pool(asked);
            assert_eq!(pool.threads.len(), 0, "they start with the first job");
            let all: Vec<_> = (0..100).map(|n| (2 * n, true)).collect();
            assert_eq!(hundred(&mut pool), all);
            assert_eq!(pool.threads.len(), given);
            let shared = Arc::clone(&pool.shared);
            drop(pool);
            // They have all ended, so no more come.
            assert_eq!(shared.worker.0.load(Ordering::Relaxed), given);
        }
    }

    #[test]
    fn without_threads_the_work_is_done_all_the_same() {
        let mut pool = pool(2);
        pool.places.clear();
        pool.spare = false;
        let all: Vec<_> = (0..100).map(|n| (2 * n, false)).collect();
        assert_eq!(hundred(&mut pool), all);
        assert_eq!(pool.threads.len(), 0);
    }
}
