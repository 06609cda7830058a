//! One life of a machine as the main thread sees it: signals, the terminal, init's words, the time limits.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use vsc::locks::sanlock::Leases;
use vsc_vmm::resources::LockAction;
use vsc_vmm::vm::{Report, Vm};

use serde_json::{Value, json};

use super::control::{Request, Watch};
use super::ending::Ending;
use super::guest::{GuestControl, Said};
use super::leases::LockFailure;
use super::poll::{Poll, Ready};
use super::result::Moments;
use super::terminal::{self, Escape};
use super::typist::Typist;
use super::{Host, Job};
use crate::say;

/// A second signal within this time is not one more message for the command: it insists.
const INSISTENCE: Duration = Duration::from_secs(2);
/// How long init has to end the machine once it is told to.
const INIT_GRACE: Duration = Duration::from_secs(1);
/// Errors of init that are shown.
const COMPLAINTS: u32 = 20;
/// What the control socket calls a machine that runs, and one that has stopped while its output is on its way.
const RUNNING: &str = "running";
const PAUSED: &str = "paused";
const ENDING: &str = "ending";
/// Lines of the console that it shows, and characters of each.
const TAIL: usize = 20;
const LINE_CHARS: usize = 400;

pub(super) struct Session<'a, 'b> {
    job: &'a Job<'a>,
    vm: Vm,
    control: Option<GuestControl>,
    typist: Option<Typist>,
    /// The command's end, once init has told.
    status: Option<Ending>,
    /// The last signal to us, and when it came.
    asked: Option<(i32, Instant)>,
    /// When asking is over.
    insist_at: Option<Instant>,
    told_to_power_off: bool,
    limit: Option<Instant>,
    timed_out: bool,
    quit: bool,
    /// The machine was ended without regard for what it had to say.
    forced: bool,
    /// The signal that came while the last output was on its way.
    cut: Option<i32>,
    /// Errors that init reported.
    complaints: u32,
    /// It stands still: its leases are lost.
    paused: bool,
    /// Why it ended, when it did for lost leases.
    lost: Option<&'static str>,
    moments: &'b mut Moments,
}

impl<'a, 'b> Session<'a, 'b> {
    /// A machine that has just been started.
    pub(super) fn new(
        job: &'a Job<'a>,
        vm: Vm,
        control: Option<GuestControl>,
        typist: Option<Typist>,
        moments: &'b mut Moments,
    ) -> Self {
        let limit = job.resources.limits.timeout;
        Self {
            job,
            vm,
            control,
            typist,
            status: None,
            asked: None,
            insist_at: None,
            told_to_power_off: false,
            limit: limit.map(|limit| job.started + limit),
            timed_out: false,
            quit: false,
            forced: false,
            cut: None,
            complaints: 0,
            paused: false,
            lost: None,
            moments,
        }
    }

    /// The main loop: until the machine has stopped.
    pub(super) fn attend(&mut self, host: &mut Host) -> io::Result<()> {
        loop {
            let now = Instant::now();
            self.enforce(now);
            self.tell_ready(host);
            let Some(look) = self.vm.check(now) else {
                return Ok(());
            };
            let limit = self.limit.filter(|_| self.status.is_none());
            let until = [Some(look), limit, self.insist_at]
                .into_iter()
                .flatten()
                .min();
            let mut poll = Poll::new();
            poll.read(self.vm.wake());
            let signal = poll.read(host.signals.fd());
            let orphaned = host
                .parent
                .fd()
                .filter(|_| !self.forced)
                .map(|fd| poll.read(fd));
            let control = self
                .control
                .as_ref()
                .and_then(GuestControl::fd)
                .map(|fd| poll.read(fd));
            let typed = self
                .typist
                .as_ref()
                .and_then(Typist::input)
                .map(|fd| poll.read(fd));
            let untyped = self
                .typist
                .as_ref()
                .and_then(Typist::output)
                .map(|fd| poll.write(fd));
            let watch = host.control.as_ref().map(|c| c.watch(&mut poll));
            let leases = host
                .leases
                .as_ref()
                .map(|l| poll.read(l.as_fd().as_raw_fd()));
            // Nothing is done about it here: the round that follows sees the life that it is about.
            if let Some(ready) = &host.ready {
                poll.read(ready.fd());
            }
            let ready = poll.wait(until)?;
            if control.is_some_and(|c| ready.is(c)) {
                self.listen();
            }
            if ready.is(signal) {
                while let Some(signal) = host.signals.next() {
                    self.on_signal(signal, host);
                }
            }
            if orphaned.is_some_and(|o| ready.is(o)) {
                self.on_signal(libc::SIGHUP, host);
            }
            if leases.is_some_and(|l| ready.is(l)) {
                // It says nothing unasked: it has gone, and nobody renews them.
                host.leases = None;
                self.lose(host, "sanlock's daemon has gone");
            }
            if let Some(watch) = watch {
                let state = if self.paused { PAUSED } else { RUNNING };
                self.serve(&watch, &ready, host, state);
            }
            if let Some(typist) = self
                .typist
                .as_mut()
                .filter(|_| untyped.is_some_and(|u| ready.is(u)))
            {
                typist.write();
            }
            if let Some(typist) = self
                .typist
                .as_mut()
                .filter(|_| typed.is_some_and(|t| ready.is(t)))
            {
                for escape in typist.read() {
                    self.on_escape(escape, host);
                }
            }
        }
    }

    /// Whoever waits for the guest's first sign of life is told once.
    fn tell_ready(&self, host: &mut Host) {
        let limits = &self.job.resources.limits;
        // A guest from which none is expected has nothing to be waited for.
        if (self.vm.alive() || limits.boot_deadline.is_none())
            && let Some(ready) = host.ready.take()
        {
            ready.tell();
        }
    }

    /// What the guest wrote is the host's to read, however slowly; only the user, or the time limit, cuts it off.
    pub(super) fn drain(&mut self, host: &mut Host) -> io::Result<()> {
        const SLICE: Duration = Duration::from_millis(100);
        self.vm.stop();
        while !self.forced && !self.vm.drain(SLICE) {
            let now = Instant::now();
            if self.limit.is_some_and(|at| now >= at) {
                self.timed_out = true;
                break;
            }
            // Whoever asked for the end gets it, read or not.
            let grace = self.job.resources.limits.stop_grace;
            if let Some((signal, _)) = self
                .asked
                .filter(|(_, at)| host.told_to_end && now >= *at + grace)
            {
                self.cut = Some(signal);
                break;
            }
            // A vCPU that waits for the reader is not waited for by the call above.
            let mut poll = Poll::new();
            let told = poll.read(host.signals.fd());
            let orphaned = host.parent.fd().map(|fd| poll.read(fd));
            let watch = host.control.as_ref().map(|c| c.watch(&mut poll));
            let ready = poll.wait(Some(now + SLICE / 5))?;
            if let Some(watch) = watch {
                self.serve(&watch, &ready, host, ENDING);
            }
            if orphaned.is_some_and(|o| ready.is(o)) {
                host.told_to_end = true;
                self.cut = Some(libc::SIGHUP);
                return Ok(());
            }
            if !ready.is(told) {
                continue;
            }
            while let Some(signal) = host.signals.next() {
                if signal != libc::SIGWINCH {
                    host.told_to_end = true;
                    self.cut = Some(signal);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn enforce(&mut self, now: Instant) {
        if self.status.is_none() && self.limit.is_some_and(|at| now >= at) {
            self.timed_out = true;
            self.force();
        }
        if self.insist_at.is_some_and(|at| now >= at) {
            self.insist_at = None;
            match self
                .control
                .as_mut()
                .filter(|_| self.status.is_none() && !self.told_to_power_off)
            {
                // The command did not end: now its init is told to end the machine.
                Some(control) => {
                    control.power_off();
                    self.told_to_power_off = true;
                    self.insist_at =
                        Some(now + self.job.resources.limits.stop_grace.min(INIT_GRACE));
                }
                // Its status is known: the machine has had its time, its output has as much as its reader takes.
                None if self.status.is_some() => self.vm.stop(),
                None => self.force(),
            }
        }
    }

    /// Ends the machine and whatever waits for it.
    fn force(&mut self) {
        self.forced = true;
        self.vm.stop();
        self.vm.abandon();
    }

    fn listen(&mut self) {
        let said = self
            .control
            .as_mut()
            .map(GuestControl::read)
            .unwrap_or_default();
        for said in said {
            let end = match said {
                Said::Ready => {
                    self.moments.ready.get_or_insert_with(Instant::now);
                    continue;
                }
                Said::Started(_) => {
                    self.moments.command.get_or_insert_with(Instant::now);
                    continue;
                }
                Said::Error(text) => {
                    self.complaints += 1;
                    match self.complaints {
                        ..COMPLAINTS => say::note(&format!("guest: {}", text.escape_debug())),
                        COMPLAINTS => say::note("guest: more errors, which are not shown"),
                        _ => {}
                    }
                    continue;
                }
                Said::Exit(status) => Ending::Exited { status },
                Said::Signal(signal) => Ending::Signalled { signal },
                Said::NoExec(errno, path) => Ending::NotExecuted { errno, path },
            };
            self.status.get_or_insert(end);
            // Init powers off next; a guest that cannot is not waited for.
            self.insist_at = Some(Instant::now() + self.job.resources.limits.stop_grace);
        }
    }

    /// By our init where it runs. The device's own message is for other guests only: which of its numbers comes
    /// first depends on the kernel (Linux before 6.15, from 6.17, and its stable branches differ).
    pub(super) fn tell_size(&mut self) {
        if let Some((rows, columns)) = terminal::size() {
            match &mut self.control {
                Some(control) => control.winsize(rows, columns),
                None => self.vm.resize_consoles(rows, columns),
            }
        }
    }

    fn on_signal(&mut self, signal: i32, host: &mut Host) {
        if signal == libc::SIGWINCH {
            self.tell_size();
            return;
        }
        if signal == super::leases::SIGNAL {
            return self.lose(host, "sanlock wants them back");
        }
        let now = Instant::now();
        let again = self
            .asked
            .replace((signal, now))
            .is_some_and(|(_, before)| now - before < INSISTENCE);
        // Who stands still hears nothing.
        if signal == libc::SIGHUP || again || self.paused {
            host.told_to_end = true;
            self.force();
            return;
        }
        let running = self.moments.command.is_some();
        match self.init() {
            // An interrupt is the command's to handle, whatever comes of it; another one soon after insists.
            Some(control) if running && signal == libc::SIGINT => control.signal(signal),
            Some(control) => {
                host.told_to_end = true;
                control.signal(signal);
                self.insist_at
                    .get_or_insert(now + self.job.resources.limits.stop_grace);
            }
            None => {
                host.told_to_end = true;
                if self.vm.press_power_button() {
                    self.insist_at
                        .get_or_insert(now + self.job.resources.limits.stop_grace);
                } else {
                    self.force();
                }
            }
        }
    }

    /// The leases of the images are lost, or will be soon.
    fn lose(&mut self, host: &mut Host, why: &'static str) {
        let action = self.job.resources.events.on_lockfailure;
        let word = action.map_or("none, which is as SIGTERM", LockAction::word);
        say::error(&format!(
            "E-LOCK-LOST: the leases of this machine's images are lost: {why}; on_lockfailure: {word}"
        ));
        let times = host.lock_failure.map_or(0, |failure| failure.times);
        let mut failure = LockFailure {
            action,
            released: false,
            recovered: false,
            times: times + 1,
        };
        match action {
            None => self.on_signal(libc::SIGTERM, host),
            Some(LockAction::Poweroff) => {
                host.told_to_end = true;
                self.lost = Some(why);
                self.force();
            }
            // Its images are closed first: `super::lives` gives the leases up.
            Some(LockAction::Restart) => {
                host.reclaim = true;
                self.lost = Some(why);
                self.force();
            }
            Some(LockAction::Pause) => {
                self.paused = true;
                failure.released = self.stand_still(host);
            }
            Some(LockAction::Ignore) => failure.released = give_up(host),
        }
        host.lock_failure = Some(failure);
    }

    /// Nothing of the machine touches its images any more, and then the leases go. Otherwise sanlock ends this
    /// process.
    fn stand_still(&mut self, host: &mut Host) -> bool {
        if !self.vm.pause(super::leases::PATIENCE) {
            say::error(
                "the machine has not come to a stop: its disks do not answer; its leases stay",
            );
            return false;
        }
        for image in &host.images {
            if let Err(e) = image.sync() {
                say::error(&format!(
                    "what was written to an image is not on its storage: {e}; the leases stay"
                ));
                return false;
            }
        }
        give_up(host)
    }

    /// A machine that stands still goes on, if it gets its leases.
    fn resume(&mut self, host: &mut Host) -> Value {
        if !self.paused {
            return json!({"ok": false, "error": "the machine does not stand still"});
        }
        let Some(leases) = &mut host.leases else {
            return json!({"ok": false, "error": "sanlock's daemon has gone: this run cannot have leases again"});
        };
        if let Err(e) = leases.take_again(&mut say::note) {
            return json!({"ok": false, "error": super::chain(&e)});
        }
        self.paused = false;
        self.vm.resume();
        if let Some(failure) = &mut host.lock_failure {
            failure.recovered = true;
        }
        say::note("the leases are back: the machine goes on");
        json!({"ok": true})
    }

    /// Our init, if it is the guest's: an image without it has nobody at the control port.
    fn init(&mut self) -> Option<&mut GuestControl> {
        let heard = self.job.command || self.moments.ready.is_some();
        self.control.as_mut().filter(|_| heard)
    }

    /// Presses the power button. Returns whether the guest listens to it.
    fn power_button(&mut self) -> bool {
        let listens = self.vm.press_power_button();
        // Linux leaves it to a program what to do about the button, and our init is none of those that look at it.
        match self.init() {
            Some(init) => {
                init.power_off();
                true
            }
            None => listens,
        }
    }

    /// Does what the clients of the control socket ask for, and answers.
    fn serve(&mut self, watch: &Watch, ready: &Ready, host: &mut Host, state: &str) {
        let asked = host.control.as_mut().map(|c| c.requests(watch, ready));
        for (client, request) in asked.unwrap_or_default() {
            let answer = match &request {
                Err(why) => json!({"ok": false, "error": why}),
                Ok(request) => self.obey(*request, host, state),
            };
            if let Some(control) = &mut host.control {
                control.answer(client, &answer);
                if request == Ok(Request::Wait) {
                    control.will_wait(client);
                }
            }
        }
    }

    fn obey(&mut self, request: Request, host: &mut Host, state: &str) -> Value {
        match request {
            Request::Status => return self.status(host, state),
            Request::Powerdown => return json!({"ok": true, "heard": self.power_button()}),
            // Its machine has stopped: there is nothing left to ask.
            Request::Stop if state == ENDING => {
                host.told_to_end = true;
                self.cut = Some(libc::SIGTERM);
                self.force();
            }
            Request::Stop => {
                self.on_signal(libc::SIGTERM, host);
                let grace = self.job.resources.limits.stop_grace;
                return match self.forced {
                    true => json!({"ok": true, "forced": true}),
                    false => json!({"ok": true, "grace_seconds": grace.as_secs_f64()}),
                };
            }
            Request::Kill => {
                self.asked = Some((libc::SIGKILL, Instant::now()));
                host.told_to_end = true;
                self.force();
            }
            Request::Resume => return self.resume(host),
            Request::Wait => {}
        }
        json!({"ok": true})
    }

    fn status(&self, host: &Host, state: &str) -> Value {
        let tail = self.vm.console().last_lines(TAIL);
        json!({
            "ok": true,
            "id": host.control.as_ref().map(|control| control.id()),
            "name": self.job.resources.name,
            "pid": std::process::id(),
            "state": state,
            "uptime_seconds": self.job.started.elapsed().as_secs_f64(),
            "alive": self.vm.alive(),
            "exits": self.vm.exits(),
            "restarts": host.restarts,
            "console_tail": tail.iter().map(|line| shortened(line)).collect::<Vec<_>>(),
        })
    }

    fn on_escape(&mut self, escape: Escape, host: &mut Host) {
        match escape {
            Escape::Quit => {
                host.told_to_end = true;
                self.quit = true;
                self.force();
            }
            Escape::PowerButton if self.power_button() => {}
            Escape::PowerButton => {
                say::err_raw("\r\nvsc-run: the guest does not listen to the power button\r\n")
            }
            Escape::Help => say::err_raw(&format!("\r\n{}\r\n", terminal::KEYS)),
        }
    }

    /// The machine has stopped: who said what, and in which order it counts.
    pub(super) fn end(mut self) -> (Ending, Report) {
        let report = self.vm.finish();
        // The last lines may still be in the socket.
        self.listen();
        self.moments.note_end(&self.vm);
        let machine = Ending::of_machine(&report, self.job.command);
        let asked = self
            .asked
            .filter(|_| self.forced || self.insist_at.is_some() || self.told_to_power_off);
        let interrupted = |signal: i32| Ending::Interrupted {
            signal: signal as u8,
        };
        let ending = match (self.status, asked) {
            _ if self.quit => Ending::Quit,
            _ if self.timed_out => Ending::TimedOut {
                seconds: self
                    .job
                    .resources
                    .limits
                    .timeout
                    .unwrap_or(Duration::ZERO)
                    .as_secs_f64(),
            },
            _ if self.lost.is_some() => Ending::LeasesLost {
                why: self.lost.unwrap_or_default().to_owned(),
            },
            _ if self.cut.is_some() => self.cut.map_or(machine, interrupted),
            // Its init killed it because we had to insist: the signal that we were sent is what ended it.
            (Some(Ending::Signalled { .. }), Some((signal, _))) if self.told_to_power_off => {
                interrupted(signal)
            }
            (Some(status), _) => status,
            (None, Some((signal, _)))
                if !matches!(machine, Ending::Panicked { .. } | Ending::Failed { .. }) =>
            {
                interrupted(signal)
            }
            (None, _) => machine,
        };
        (ending, report)
    }
}

/// Gives the leases up; whether they are.
fn give_up(host: &mut Host) -> bool {
    match host.leases.as_mut().map(Leases::give_up) {
        Some(Ok(())) => true,
        Some(Err(e)) => {
            say::error(&super::chain(&e));
            false
        }
        None => false,
    }
}

fn shortened(line: &str) -> String {
    line.chars().take(LINE_CHARS).collect()
}
