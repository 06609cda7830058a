//! Calls through io_uring. The ring's own descriptor is readable while completions wait, so no eventfd is needed, and
//! nothing has to be read from it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};

use super::{Call, Outcome};

/// Attempts to hand calls to a kernel that is short of memory before leaving it to a later [`Uring::submit`].
const ATTEMPTS: u32 = 1000;

pub(crate) struct Uring {
    ring: IoUring,
    fd: RawFd,
    in_flight: usize,
    /// Reaped while waiting for the kernel to take more.
    early: Vec<Outcome>,
}

/// Operations of [`Call`].
const NEEDED: [u8; 4] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

fn restricted(depth: u32) -> io::Result<IoUring> {
    let ring = IoUring::builder()
        .dontfork()
        .setup_clamp()
        .setup_r_disabled()
        .build(depth)?;
    let ring = checked(ring)?;
    let mut allowed = NEEDED.map(Restriction::sqe_op);
    ring.submitter().register_restrictions(&mut allowed)?;
    ring.submitter().register_enable_rings()?;
    Ok(ring)
}

fn checked(ring: IoUring) -> io::Result<IoUring> {
    let mut probe = io_uring::Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if !NEEDED.iter().all(|&code| probe.is_supported(code)) || !ring.params().is_feature_nodrop() {
        return Err(io::Error::from(io::ErrorKind::Unsupported));
    }
    Ok(ring)
}

impl Uring {
    /// A ring for no file yet ([`Self::serve`]). It can do to descriptors what the disk's own calls can, and nothing
    /// else: what runs in a ring passes by filters of system calls.
    pub(super) fn new(depth: u32) -> io::Result<Self> {
        let depth = depth.max(1).next_power_of_two();
        let ring = match restricted(depth) {
            // Linux before 5.10 has no restrictions.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                checked(IoUring::builder().dontfork().setup_clamp().build(depth)?)?
            }
            ring => ring?,
        };
        Ok(Self {
            ring,
            fd: -1,
            in_flight: 0,
            early: Vec::new(),
        })
    }

    /// From now on its calls are on `fd`.
    pub(super) fn serve(mut self, fd: RawFd) -> Self {
        self.fd = fd;
        self
    }

    /// # Safety
    /// See [`super::Engine::queue`].
    pub(super) unsafe fn queue(&mut self, tag: u32, call: Call) {
        let entry = self.entry(call).user_data(u64::from(tag));
        // SAFETY: the caller keeps what the entry points to valid until its completion.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            self.submit(false);
            if self.ring.submission().is_full() {
                self.submit(true);
            }
        }
        self.in_flight += 1;
    }

    fn entry(&self, call: Call) -> squeue::Entry {
        let fd = types::Fd(self.fd);
        let flags = call.rw_flags();
        match call {
            Call::Read { iov, count, offset } => {
                opcode::Readv::new(fd, iov, count).offset(offset).build()
            }
            Call::Write {
                iov, count, offset, ..
            } => opcode::Writev::new(fd, iov, count)
                .offset(offset)
                .rw_flags(flags)
                .build(),
            Call::Sync => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Call::Allocate { mode, offset, len } => opcode::Fallocate::new(fd, len)
                .offset(offset)
                .mode(mode)
                .build(),
        }
    }

    /// Hands over what is queued; with `wait`, returns only when a completion is there (or nothing is in flight).
    pub(super) fn submit(&mut self, wait: bool) {
        for _ in 0..ATTEMPTS {
            let want = usize::from(wait && self.in_flight > self.early.len());
            if self.ring.submission().is_empty() && want == 0 {
                return;
            }
            match self.ring.submit_and_wait(want) {
                Ok(_) if self.ring.submission().is_empty() => return,
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                // EAGAIN, EBUSY, ENOMEM: room comes with completions.
                Err(_) => {
                    self.collect();
                    std::thread::yield_now();
                }
            }
        }
    }

    fn collect(&mut self) {
        loop {
            let done = self.ring.completion();
            self.early
                .extend(done.map(|c| (c.user_data() as u32, c.result())));
            // More in flight than the ring has room for: the kernel keeps the rest until it is asked.
            if !self.ring.submission().cq_overflow() || self.ring.submit_and_wait(0).is_err() {
                return;
            }
        }
    }

    pub(super) fn reap(&mut self, out: &mut Vec<Outcome>) {
        self.collect();
        self.in_flight = self.in_flight.saturating_sub(self.early.len());
        out.append(&mut self.early);
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    pub(super) fn ready_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// The result of any operation.
    #[cfg(test)]
    pub(super) fn outcome_of(&mut self, entry: squeue::Entry) -> i32 {
        // SAFETY: what the entry points to is static.
        unsafe { self.ring.submission().push(&entry) }.unwrap();
        self.ring.submit_and_wait(1).unwrap();
        self.ring.completion().next().unwrap().result()
    }
}
