use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::*;
use vsc_devices::bus::BusDevice;
use vsc_devices::event::{EventSink, GuestEvent};

/// A vCPU that plays a script, then waits inside "KVM_RUN" until it is interrupted.
struct Scripted {
    script: VecDeque<Step>,
    data: [u8; 8],
    interrupted: Arc<AtomicBool>,
    log: Arc<Mutex<Vec<Vec<u8>>>>,
}

enum Step {
    In(u16, usize, usize),
    Out(u16, usize, Vec<u8>),
    Shutdown,
    Fail(i32),
}

struct Flag(Arc<AtomicBool>);

impl Interrupter for Flag {
    fn set(&self, on: bool) {
        self.0.store(on, Ordering::SeqCst);
    }
}

impl RunVcpu for Scripted {
    fn index(&self) -> u32 {
        3
    }
    fn interrupter(&mut self) -> Box<dyn Interrupter> {
        Box::new(Flag(self.interrupted.clone()))
    }
    fn run(&mut self) -> io::Result<Exit<'_>> {
        self.log.lock().unwrap().push(self.data.to_vec());
        match self.script.pop_front() {
            Some(Step::In(port, size, len)) => Ok(Exit::PortIn {
                port,
                size,
                data: &mut self.data[..len],
            }),
            Some(Step::Out(port, size, bytes)) => {
                self.data[..bytes.len()].copy_from_slice(&bytes);
                Ok(Exit::PortOut {
                    port,
                    size,
                    data: &self.data[..bytes.len()],
                })
            }
            Some(Step::Shutdown) => Ok(Exit::Shutdown),
            Some(Step::Fail(errno)) => Err(io::Error::from_raw_os_error(errno)),
            None => {
                while !self.interrupted.load(Ordering::SeqCst) {
                    // As KVM_RUN: only a signal ends it.
                    // SAFETY: no descriptors, so no memory is touched.
                    unsafe { libc::poll(std::ptr::null_mut(), 0, -1) };
                }
                Ok(Exit::Interrupted)
            }
        }
    }
    fn snapshot(&self) -> CpuSnapshot {
        CpuSnapshot {
            rip: 0x1234,
            rsp: 0,
            rflags: 2,
            cr0: 1,
            cr3: 0,
            efer: 0,
            cpl: 0,
            sleep: Sleep::Running,
        }
    }
}

/// A port that counts up on reads and resets the machine when 0xfe is written.
struct Port(u8, Arc<Control>);

impl BusDevice for Port {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        for byte in data {
            self.0 += 1;
            *byte = self.0;
        }
    }
    fn write(&mut self, _: u64, data: &[u8]) {
        if data == [0xfe] {
            self.1.notify(GuestEvent::Reset);
        }
    }
}

struct Rig {
    control: Arc<Control>,
    thread: VcpuThread,
    log: Arc<Mutex<Vec<Vec<u8>>>>,
}

fn start(script: Vec<Step>) -> Rig {
    let control = Arc::new(Control::new().unwrap());
    let mut ports = Bus::new();
    ports
        .insert(0x60, 4, Arc::new(Mutex::new(Port(0, control.clone()))))
        .unwrap();
    let shared = Shared {
        ports,
        mmio: Bus::new(),
        ioapic: None,
        control: control.clone(),
    };
    let log = Arc::new(Mutex::new(Vec::new()));
    let vcpu = Scripted {
        script: script.into(),
        data: [0; 8],
        interrupted: Arc::default(),
        log: log.clone(),
    };
    let thread =
        VcpuThread::spawn(Box::new(vcpu), Arc::new(shared), Seat::default(), None).unwrap();
    Rig {
        control,
        thread,
        log,
    }
}

fn stopped(rig: &mut Rig) -> Option<Stop> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !rig.control.stopping() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    rig.thread.join();
    rig.control.reason()
}

#[test]
fn string_port_reads_are_split_into_accesses() {
    let mut rig = start(vec![Step::In(0x60, 2, 6), Step::Shutdown]);
    assert_eq!(stopped(&mut rig), Some(Stop::TripleFault { vcpu: 3 }));
    assert_eq!(rig.log.lock().unwrap()[1], [1, 2, 3, 4, 5, 6, 0, 0]);
    assert_eq!(
        (
            rig.thread.counters.port_in.get(),
            rig.thread.counters.total()
        ),
        (1, 1)
    );
}

#[test]
fn a_reset_ends_the_loop_before_the_next_instruction() {
    let mut rig = start(vec![Step::Out(0x60, 1, vec![0xfe]), Step::Shutdown]);
    assert_eq!(stopped(&mut rig), Some(Stop::Reset));
    assert_eq!(
        rig.log.lock().unwrap().len(),
        1,
        "the guest was not entered again"
    );
}

#[test]
fn a_running_vcpu_answers_questions_and_stops_when_told() {
    let mut rig = start(vec![]);
    assert_eq!(rig.thread.last(), None, "it has not ended");
    for _ in 0..3 {
        let question = rig.thread.ask();
        let deadline = Instant::now() + Duration::from_secs(60);
        let answer = loop {
            match rig.thread.answer(question) {
                None if Instant::now() < deadline => std::thread::yield_now(),
                answer => break answer,
            }
        };
        assert_eq!(answer.map(|s| s.rip), Some(0x1234));
    }
    rig.control.stop(Stop::Requested);
    rig.thread.join();
    assert_eq!(rig.control.reason(), Some(Stop::Requested));
    assert_eq!(
        rig.thread.last().map(|s| s.rip),
        Some(0x1234),
        "the last state is kept"
    );
}

#[test]
fn kicks_arrive_although_the_parent_blocked_their_signal() {
    // SAFETY: plain calls on a set of our own; only this test's thread is concerned.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
    let mut rig = start(vec![]);
    rig.control.stop(Stop::Requested);
    rig.thread.join();
    assert!(rig.thread.last().is_some());
}

#[test]
fn a_vcpu_that_cannot_run_is_named() {
    let mut rig = start(vec![Step::Fail(libc::EFAULT)]);
    assert_eq!(
        stopped(&mut rig),
        Some(Stop::VcpuError {
            vcpu: 3,
            errno: libc::EFAULT
        })
    );
}
