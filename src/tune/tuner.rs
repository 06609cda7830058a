//! Doing and undoing, journalled.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::change::Act;
use super::error::TuneError;
use super::hands::{Hands, Seen, expected};
use super::journal::Journal;
use super::place::Place;
use super::report::{Active, Holder, unit, wanted};
use super::state::{Before, Got, Holding, Item, Record, Run, boot_id};
use super::unit::{Systemctl, Units};
use crate::facts::Root;

/// Whoever changes a host and puts it back.
#[derive(Debug)]
pub struct Tuner {
    pub(super) root: Root,
    /// Where processes are looked for.
    pub(super) proc: PathBuf,
    /// For what a reboot undoes.
    pub(super) volatile: Option<Place>,
    /// For what outlives one.
    pub(super) lasting: Option<Place>,
    pub(super) units: Box<dyn Units>,
}

/// The journals, open and locked; always in this order.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) volatile: Option<Journal>,
    pub(super) lasting: Option<Journal>,
}

impl Books {
    pub(super) fn of(&mut self, lasting: bool) -> Option<&mut Journal> {
        match lasting {
            true => self.lasting.as_mut(),
            false => self.volatile.as_mut(),
        }
    }

    pub(super) fn each(&self) -> impl Iterator<Item = (bool, &Journal)> {
        let both = [(false, &self.volatile), (true, &self.lasting)];
        both.into_iter()
            .filter_map(|(lasting, journal)| Some((lasting, journal.as_ref()?)))
    }

    pub(super) fn write(&mut self, lasting: bool, record: Record) -> Result<(), TuneError> {
        match self.of(lasting) {
            Some(journal) => journal.write(record),
            None => Err(TuneError::NoPlace),
        }
    }

    pub(super) fn close(self) -> Result<(), TuneError> {
        let lasting = self.lasting.map_or(Ok(()), Journal::close);
        self.volatile.map_or(Ok(()), Journal::close).and(lasting)
    }

    /// Every run in them, the latest first, but before all those that were cut off while they put a counter back: they
    /// reckon with what it says.
    pub(super) fn runs(&self, wanted: impl Fn(bool, &Journal, &Holding) -> bool) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for (lasting, journal) in self.each() {
            for holding in &journal.state.holdings {
                if wanted(lasting, journal, holding) && !runs.contains(&holding.run) {
                    runs.push(holding.run.clone());
                }
            }
        }
        runs.reverse();
        let cut = |run: &Run| {
            let all = self.each().flat_map(|(_, journal)| &journal.state.holdings);
            let mut items = all.filter(|h| h.run == *run).flat_map(|h| &h.items);
            items.any(|item| item.undoing.is_some())
        };
        runs.sort_by_key(|run| !cut(run));
        runs
    }
}

pub(super) fn holder(holding: &Holding) -> Holder {
    Holder {
        who: holding.who.clone(),
        pid: holding.run.pid,
        standing: holding.standing,
    }
}

/// A state before, in a word.
pub(super) fn shown(before: &Before) -> String {
    match before {
        Before::Value { value, .. } => value.clone(),
        Before::Count { count } => count.to_string(),
        Before::File { file: Some(file) } => format!("{} bytes", file.text.len()),
        Before::File { file: None } | Before::Directory | Before::Inode { .. } => "nothing".into(),
        Before::Unit { state } => unit(state.active, state.enabled),
    }
}

impl Tuner {
    /// For the host below `root`, by this process's user. Root's journals are in /run and /var/lib, those of others
    /// in $XDG_RUNTIME_DIR (or /run/user/UID) and $XDG_STATE_HOME (XDG Base Directory Specification); of a tree that stands in for the
    /// host, in that tree's /run and /var/lib.
    pub fn new(root: &Root) -> Self {
        let path = |name: &str| {
            let path = PathBuf::from(std::env::var_os(name)?);
            path.is_absolute().then_some(path)
        };
        let root = Root(std::path::absolute(&root.0).unwrap_or_else(|_| root.0.clone()));
        let (volatile, lasting) = match root == Root::default() && !crate::sys::is_system() {
            false => (Some(root.at("/run")), Some(root.at("/var/lib"))),
            true => {
                let home = || Some(path("HOME")?.join(".local/state"));
                let state = path("XDG_STATE_HOME").or_else(home);
                // Without a directory that goes with the session, the boot is told by the journal's own lines.
                let runtime = path("XDG_RUNTIME_DIR").or_else(crate::runs::of_session);
                (
                    runtime.or_else(|| Some(state.as_ref()?.join("vsc/volatile"))),
                    state,
                )
            }
        };
        Self {
            proc: PathBuf::from("/proc"),
            volatile: volatile.map(|above| Place::new(above, true).within(&root)),
            lasting: lasting.map(|above| Place::new(above, false).within(&root)),
            units: Box::new(Systemctl::new(root.clone())),
            root,
        }
    }

    pub(super) fn hands(&self) -> Hands<'_> {
        Hands {
            root: &self.root,
            units: self.units.as_ref(),
        }
    }

    pub(super) fn boot(&self) -> Result<String, TuneError> {
        boot_id(&self.root.0).ok_or(TuneError::NoProc)
    }

    /// Opens what there is, and makes what is needed. `force`: damaged ones too, as far as they go.
    pub(super) fn books(
        &self,
        volatile: bool,
        lasting: bool,
        force: bool,
    ) -> Result<Books, TuneError> {
        let open = |place: &Option<Place>, needed: bool| match place {
            Some(place) if needed || place.is_used() => match force {
                true => Journal::salvage(place, needed),
                false => Journal::open(place, needed),
            },
            None if needed => Err(TuneError::NoPlace),
            _ => Ok(None),
        };
        Ok(Books {
            volatile: open(&self.volatile, volatile)?,
            lasting: open(&self.lasting, lasting)?,
        })
    }

    /// Whether there is anything in any journal, for all that can be told without opening one.
    pub fn is_used(&self) -> bool {
        [&self.volatile, &self.lasting]
            .into_iter()
            .flatten()
            .any(Place::is_used)
    }

    pub(super) fn is_dead(&self, journal: &Journal, holding: &Holding, boot: &str) -> bool {
        let signed = |byte| journal.is_signed(byte);
        match holding.standing && holding.complete {
            true => false,
            false => !holding.run.lives(&self.proc, boot, signed),
        }
    }

    /// How much runs have added to a counter: those that live may not have used it yet, and what those added that were
    /// killed is about to go. What `host apply` added is there for everybody.
    pub fn claimed(&self, path: &Path) -> u64 {
        if !self.is_used() {
            return 0;
        }
        let Ok(books) = self.books(false, false, false) else {
            return 0;
        };
        let part = |item: &Item| match (&item.change.act, &item.got) {
            (Act::Add { path: at, .. }, Some(Got::Count { gave, .. })) if at == path => *gave,
            (Act::Add { path: at, by }, None) if at == path => *by,
            _ => 0,
        };
        let claimed = books
            .each()
            .flat_map(|(_, journal)| &journal.state.holdings)
            .filter(|holding| !(holding.standing && holding.complete))
            .flat_map(|holding| &holding.items)
            .map(part)
            .sum();
        // Nothing was written: there is nothing that could fail to be.
        drop(books);
        claimed
    }

    /// What is in force, and whose it is.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn status(&self) -> Result<Vec<Active>, TuneError> {
        if !self.is_used() {
            return Ok(Vec::new());
        }
        let boot = self.boot()?;
        let books = self.books(false, false, false)?;
        let hands = self.hands();
        let mut active = Vec::new();
        for (lasting, journal) in books.each() {
            for holding in &journal.state.holdings {
                for item in &holding.items {
                    let act = &item.change.act;
                    let seen = hands.look(act).ok();
                    let ours = match (act, &seen) {
                        (Act::Write { .. }, Some(Seen { now, .. })) => {
                            matches!(now, Before::Value { value, .. } if Some(value.as_str()) == expected(item))
                        }
                        (Act::Add { path, .. }, Some(Seen { now, .. })) => {
                            let last = journal.state.counts.get(path);
                            matches!(now, Before::Count { count } if Some(count) == last)
                        }
                        (Act::Leftover { .. }, _) => true,
                        (_, seen) => seen.as_ref().is_some_and(|seen| seen.so),
                    };
                    let value = match &item.got {
                        Some(Got::Count { gave, .. }) => format!("+{gave}"),
                        Some(Got::Value { value }) => value.clone(),
                        _ => wanted(act),
                    };
                    active.push(Active {
                        holder: holder(holding),
                        since: holding.at,
                        dead: self.is_dead(journal, holding, &boot)
                            || (!lasting && holding.run.boot != boot),
                        what: item.change.what.clone(),
                        target: act.target().to_owned(),
                        before: shown(&item.before),
                        value,
                        now: seen.map(|seen| match (act, seen.now) {
                            (Act::Directory { .. }, _) if seen.so => "a directory".into(),
                            (Act::Leftover { .. }, Before::Inode { id: Some(_) }) => {
                                "a file".into()
                            }
                            (_, now) => shown(&now),
                        }),
                        ours,
                        lasting,
                        rebooted: !lasting && holding.run.boot != boot,
                    });
                }
            }
        }
        books.close()?;
        Ok(active)
    }
}
