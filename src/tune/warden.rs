//! The warden: a small process that puts the host back when the run is over, however that comes.
//!
//! It is this program once more, started before anything is changed. It has nothing of the run's but one socket, whose
//! other end only the run has: that closes when the run is killed. On a normal end the run says so there, and waits
//! for the answer. So the run itself needs no right to undo anything.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::apart::set_apart;
use super::change::Change;
use super::error::TuneError;
use super::killed;
use super::life::Sign;
use super::place::Place;
use super::report::{Begun, Undone};
use super::state::Run;
use super::tuner::Tuner;
use crate::facts::Root;
use crate::sys;

/// The word by which this program knows that it is to be a warden, in the place of a verb. Nobody needs to type it.
pub const WARDEN: &str = "__host-warden";
/// How long the end of a run waits for the host to be put back. Taking many huge pages apart may take a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the warden waits for others while the run waits for it: less, so that its answer is heard.
const PATIENCE_WITH_OTHERS: Duration = Duration::from_secs(15);
/// The run is over.
const END: &str = "end";
/// Nothing was changed after all.
const LEAVE: &str = "leave";
/// What the run would leave is there now.
const MADE: &str = "made";

/// Longest word of a run to its warden, bytes.
const WORD_MAX: u64 = 16;

/// What a warden has to know.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Orders {
    root: PathBuf,
    volatile: Option<PathBuf>,
    lasting: Option<PathBuf>,
    run: Run,
    /// The run's cgroup.
    cgroup: Option<PathBuf>,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Undone(Vec<Undone>),
    Failed(String),
}

/// Whether something is left that may be possible once the run's process is gone.
fn needs_end(answer: &Answer) -> bool {
    match answer {
        Answer::Undone(undone) => undone.iter().any(Undone::is_kept),
        Answer::Failed(_) => true,
    }
}

/// The run's end of a warden. Without another word from the run it does nothing when this is dropped.
#[derive(Debug)]
struct Post {
    socket: UnixStream,
    child: Child,
    /// It has been told what to do.
    told: bool,
}

impl Post {
    fn start(tuner: &Tuner, run: &Run, changes: &[Change]) -> io::Result<Self> {
        let cgroup = killed::cgroup(changes);
        let (mut ours, its) = UnixStream::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("vsc-run")
            .args([WARDEN, &run.pid.to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(its)))
            .stdout(Stdio::null())
            .stderr(match cgroup {
                // For a last word on a run that is killed for its limit.
                Some(_) => Stdio::inherit(),
                None => Stdio::null(),
            });
        set_apart(&mut command);
        let above = |place: &Option<Place>| Some(place.as_ref()?.above.clone());
        let orders = Orders {
            root: tuner.root.0.clone(),
            volatile: above(&tuner.volatile),
            lasting: above(&tuner.lasting),
            run: run.clone(),
            cgroup: cgroup.map(Path::to_owned),
        };
        // Before there is anybody to read it: then it has them whenever this process is killed.
        let orders = serde_json::to_string(&orders)? + "\n";
        ours.write_all(orders.as_bytes())?;
        Ok(Self {
            child: command.spawn()?,
            socket: ours,
            told: false,
        })
    }

    fn tell(&mut self, word: &str) -> io::Result<()> {
        self.told = true;
        self.socket.write_all(format!("{word}\n").as_bytes())
    }

    /// Tells it that the run is over. `None`: it is not there any more.
    fn end(mut self) -> Option<Answer> {
        self.tell(END).ok()?;
        let until = Instant::now() + PATIENCE;
        let mut answer = Vec::new();
        loop {
            if !sys::wait_readable(&self.socket, Some(until)).ok()? {
                let late = format!(
                    "it takes longer than {} s; process {} is still at it",
                    PATIENCE.as_secs(),
                    self.child.id()
                );
                return Some(Answer::Failed(late));
            }
            let mut part = [0; 4096];
            match self.socket.read(&mut part).ok()? {
                0 => break,
                n => answer.extend_from_slice(part.get(..n)?),
            }
            if answer.ends_with(b"\n") {
                break;
            }
        }
        let answer = serde_json::from_slice(&answer).ok()?;
        if !needs_end(&answer) {
            self.child.wait().ok()?;
        }
        Some(answer)
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        if !self.told {
            // One that is not there any more need not be told.
            let _ = self.tell(LEAVE);
            let _ = self.child.wait();
        }
    }
}

/// What a run changed, and whoever will put it back. Dropped, it is put back.
#[derive(Debug)]
pub struct Guard {
    tuner: Tuner,
    run: Run,
    post: Option<Post>,
    _sign: Sign,
}

/// Why the host could not be put back at the end of a run.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The warden says why not.
    #[error("{0}")]
    Warden(String),
    /// There is no warden any more, and this process may not do it itself.
    #[error(
        "the process that was to do it has been killed, and this one could not: `vsc-run gc` does it"
    )]
    Killed(#[source] TuneError),
}

impl Tuner {
    /// [`Tuner::begin`] for as long as the guard lives, or this process.
    ///
    /// # Errors
    /// [`TuneError`]: nothing stays changed.
    pub fn guarded(
        self,
        changes: &[Change],
        who: &str,
    ) -> Result<(Begun, Option<Guard>), TuneError> {
        let (mut begun, post) =
            self.begin(changes, who, false, |run| Post::start(&self, run, changes))?;
        let guard = begun.run.clone().map(|run| Guard {
            tuner: self,
            run,
            post,
            _sign: std::mem::take(&mut begun.sign),
        });
        Ok((begun, guard))
    }
}

/// Has a warden look which files those are that the run would leave ([`super::Act::Leftover`]): then only those are
/// removed, and none that takes their place. It works in a confined process too.
#[derive(Debug)]
pub struct Witness(UnixStream);

impl Witness {
    /// They are there, or are others than before.
    pub fn made(&self) {
        // Without a warden whoever removes them knows less of them.
        let _ = (&self.0).write_all(format!("{MADE}\n").as_bytes());
    }
}

impl Guard {
    /// Whom to tell what was made; `None`: nobody would listen.
    pub fn witness(&self) -> Option<Witness> {
        let socket = self.post.as_ref()?.socket.try_clone();
        socket.ok().map(Witness)
    }

    /// Puts back what this run changed and nobody else uses, and returns when that is done.
    ///
    /// # Errors
    /// [`EndError`]; what is in the journal is put back by the next run, or by `vsc-run gc`.
    pub fn end(mut self) -> Result<Vec<Undone>, EndError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<Vec<Undone>, EndError> {
        match self.post.take().and_then(Post::end) {
            Some(Answer::Undone(undone)) => Ok(undone),
            Some(Answer::Failed(why)) => Err(EndError::Warden(why)),
            // Somebody killed it: then this process does it, if it still may.
            None => self.tuner.end(&self.run).map_err(EndError::Killed),
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.post.is_some() {
            // Nobody is there to be told; the journal keeps what could not be done.
            let _ = self.finish();
        }
    }
}

/// Is a warden: to be called first thing by a process that was started as one. Returns when there is no more to do.
/// `last_word` is called when the run has ended, with why the host's kernel killed it, if that is so; nothing is said
/// after it, so that whoever reads the run's messages need not wait for what comes then.
///
/// # Errors
/// It was not started by a run, or cannot put the host back; nobody reads why but whoever tries it by hand.
pub fn warden(last_word: impl FnOnce(Option<String>)) -> io::Result<()> {
    // Of those that may be killed for want of memory, it comes last where it is allowed to say so.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut reader = BufReader::new(socket.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let orders: Orders = serde_json::from_str(&line)?;
    let root = Root(orders.root);
    // The run is told in time who is in the way.
    let place = |above, shared| Place {
        patience: Some(PATIENCE_WITH_OTHERS),
        ..Place::new(above, shared)
    };
    let mut tuner = Tuner {
        volatile: orders.volatile.map(|above| place(above, true)),
        lasting: orders.lasting.map(|above| place(above, false)),
        ..Tuner::new(&root)
    };
    let run = orders.run;
    let process = process_of(&tuner, &run);
    // Others may have a copy of the run's end of the socket for a moment longer than it lives.
    // The end of a short run comes with the orders.
    loop {
        let gone = reader.buffer().is_empty() && wait_for_word(&socket, process.as_ref())?;
        line.clear();
        if !gone {
            // Whoever writes may not be the run any more that this process trusts. One that gets no end of it is as
            // good as gone.
            let _ = (&mut reader).take(WORD_MAX).read_line(&mut line);
        }
        if line.trim() != MADE {
            break;
        }
        // What cannot be noted is known by its place only.
        let _ = tuner.pin(&run);
    }
    let cgroup = orders.cgroup.filter(|_| line.trim().is_empty());
    last_word(cgroup.and_then(|cgroup| killed::why(&root.at(cgroup))));
    match line.trim() {
        LEAVE => return Ok(()),
        END => {
            if process.is_some() {
                move_out(&tuner.root, &run);
            }
            let answer = match tuner.end(&run) {
                Ok(undone) => Answer::Undone(undone),
                Err(e) => Answer::Failed(super::error::chain(&e)),
            };
            let again = needs_end(&answer);
            let text = serde_json::to_string(&answer)? + "\n";
            // Whether or not anybody still reads it.
            let _ = (&socket).write_all(text.as_bytes());
            if !again {
                return Ok(());
            }
        }
        _ => {}
    }
    // Killed, or what it holds can go only with it. What it had open, memory among it, is not free before it is gone.
    drop((socket, reader));
    if let Some(process) = process {
        sys::wait_readable(&process, None)?;
    }
    // Nobody else will do it: now it waits for others as long as they take.
    for place in [&mut tuner.volatile, &mut tuner.lasting] {
        place.iter_mut().for_each(|place| place.patience = None);
    }
    tuner.end(&run).map(drop).map_err(io::Error::other)
}

/// Takes the run's processes out of the cgroup that was made for it, so that it can be removed, to that of this
/// process, which was started where the run came from. The run itself keeps nothing with which it could do that.
fn move_out(root: &Root, run: &Run) {
    let processes = |of: &str| -> Option<PathBuf> {
        let text = fs::read_to_string(root.at(format!("/proc/{of}/cgroup"))).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        Some(root.at("/sys/fs/cgroup").join(path).join("cgroup.procs"))
    };
    let (Some(theirs), Some(ours)) = (processes(&run.pid.to_string()), processes("self")) else {
        return;
    };
    let name = theirs.parent().and_then(Path::file_name);
    let made = name
        .and_then(OsStr::to_str)
        .is_some_and(|name| name.starts_with("vsc-") && name.ends_with(&format!("-{}", run.pid)));
    if !made || theirs == ours {
        return;
    }
    // Where it may not, the cgroup is removed after the run's process.
    let members = fs::read_to_string(&theirs).unwrap_or_default();
    for process in members.lines() {
        let _ = fs::write(&ours, process);
    }
}

/// A handle on a run's process. `None`: it is gone, or this kernel has none (before 5.3): then its end of the socket
/// tells.
fn process_of(tuner: &Tuner, run: &Run) -> Option<OwnedFd> {
    let process = sys::pidfd_open(run.pid).ok()?;
    // Looked at after the handle was had: what has the number now keeps it.
    let boot = tuner.boot().ok()?;
    // Its number is of this namespace.
    let lives = run.lives(&tuner.proc, &boot, |_| false);
    lives.then_some(process)
}

/// Waits until the run says something or closes its end of the socket; true: until it is gone without either.
fn wait_for_word(socket: &UnixStream, process: Option<&OwnedFd>) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
    fds.extend(process.map(|process| PollFd::new(process, PollFlags::IN)));
    loop {
        match poll(&mut fds, None) {
            Ok(_) => return Ok(fds.first().is_some_and(|fd| fd.revents().is_empty())),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
