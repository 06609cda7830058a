//! What a journal says: who did what to the host, and how it was before.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::change::{Act, Change, UnitState};
use super::life::namespace;
use super::report::Holder;
use crate::store::Stat;

/// A run, by the process that it is in: a number is used again, a number with the time of its start and the boot that
/// this time is counted from is not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// Its process.
    pub pid: u32,
    /// When that started, clock ticks after boot: field 22 of /proc/PID/stat.
    pub started: u64,
    /// /proc/sys/kernel/random/boot_id
    pub boot: String,
    /// The PID namespace of the number, by the inode of /proc/self/ns/pid. Journals of earlier versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<u64>,
}

impl Run {
    /// This process; `None` where `proc` does not tell.
    pub(super) fn current(proc: &Path, boot: &str) -> Option<Self> {
        let pid = std::process::id();
        Some(Self {
            pid,
            started: Stat::of(proc, pid)?.started,
            boot: boot.to_owned(),
            namespace: namespace(proc),
        })
    }
}

/// The boot that the host is in.
pub(super) fn boot_id(host: &Path) -> Option<String> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let file = "proc/sys/kernel/random/boot_id";
    let text = read(&host.join(file)).or_else(|| read(&Path::new("/").join(file)))?;
    Some(text.trim().to_owned())
}

/// How something was before it was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Before {
    /// A value, and the text it was in where that is kept as it is written.
    Value {
        value: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        raw: Option<String>,
    },
    /// A counter.
    Count { count: u64 },
    /// A file; none.
    File { file: Option<OldFile> },
    /// A directory, which was not there.
    Directory,
    /// A unit.
    Unit { state: UnitState },
    /// What was there already, by device and inode.
    Inode { id: Option<(u64, u64)> },
}

/// A file that was replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OldFile {
    pub(super) text: String,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Got {
    /// The value that is read back, which may be another form of the one that was written.
    Value { value: String },
    /// How much more the counter has, and what it said then.
    Count { gave: u64, now: u64 },
    /// What was made, by device and inode; of what is no directory also when it was written last, seconds and
    /// nanoseconds, because the number of an inode is used again.
    Inode {
        id: (u64, u64),
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<(i64, i64)>,
    },
    /// What was wanted, exactly.
    Exactly,
}

/// One change of one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Item {
    /// Its place among the run's changes.
    pub(super) n: u32,
    pub(super) change: Change,
    pub(super) before: Before,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) got: Option<Got>,
    /// A counter on its way back: from, to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) undoing: Option<(u64, u64)>,
}

/// A line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Record {
    /// What a run is about to do.
    Begin(Holding),
    /// What came of it.
    Done { run: Run, got: Vec<(u32, Got)> },
    /// Counters that are about to be put back: number, from, to.
    Undoing {
        run: Run,
        counts: Vec<(u32, u64, u64)>,
    },
    /// Merged pages are about to be taken apart, for which `ksm/run` gets another value for a moment.
    Apart(Apart),
    /// It has its own again.
    Together {},
    /// What is no more the run's, and what counters said then.
    Gone {
        run: Run,
        items: Vec<u32>,
        counts: Vec<(PathBuf, u64)>,
    },
}

/// Merged pages that are being taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Apart {
    /// For whom.
    pub(super) holder: Holder,
    /// The boot in which that is.
    pub(super) boot: String,
    /// What `ksm/run` goes back to.
    pub(super) was: String,
}

/// What a run holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Holding {
    pub(super) run: Run,
    /// What it is called: the scenario's name.
    pub(super) who: String,
    /// It outlives its process: `host apply`.
    pub(super) standing: bool,
    /// It was done to its end.
    pub(super) complete: bool,
    /// Seconds since 1970.
    pub(super) at: u64,
    pub(super) items: Vec<Item>,
}

/// All of a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) holdings: Vec<Holding>,
    /// What each counter said after the last thing that was done to it.
    pub(super) counts: BTreeMap<PathBuf, u64>,
    /// Who was at it may have been killed.
    pub(super) apart: Option<Apart>,
}

impl State {
    /// Adds a line.
    ///
    /// # Errors
    /// What it is about is not in the lines before it.
    pub(super) fn add(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Begin(holding) => {
                for item in &holding.items {
                    match (&item.before, &item.change.act) {
                        (Before::Count { count }, Act::Add { path, .. }) => {
                            self.counts.insert(path.clone(), *count);
                        }
                        // Somebody else had changed it meanwhile: that is what everybody goes back to.
                        (before @ Before::Value { .. }, Act::Write { path, .. }) => {
                            let path = path.clone();
                            self.items_of(&path)
                                .for_each(|other| other.before = before.clone());
                        }
                        _ => {}
                    }
                }
                match self.holding(&holding.run) {
                    Some(old) => {
                        old.complete = holding.complete;
                        old.items.extend(holding.items);
                    }
                    None => self.holdings.push(holding),
                }
            }
            Record::Done { run, got } => {
                let mut counts = Vec::new();
                let holding = self.holding(&run).ok_or("it is about an unknown run")?;
                holding.complete = true;
                for (n, got) in got {
                    let item = holding.items.iter_mut().find(|item| item.n == n);
                    let item = item.ok_or("it is about an unknown change")?;
                    if let Got::Count { now, .. } = got {
                        counts.push((item.change.act.target().to_owned(), now));
                    }
                    item.got = Some(got);
                }
                self.counts.extend(counts);
            }
            Record::Undoing { run, counts } => {
                let holding = self.holding(&run).ok_or("it is about an unknown run")?;
                for (n, from, to) in counts {
                    let item = holding.items.iter_mut().find(|item| item.n == n);
                    item.ok_or("it is about an unknown change")?.undoing = Some((from, to));
                }
            }
            Record::Apart(apart) => self.apart = Some(apart),
            Record::Together {} => self.apart = None,
            Record::Gone { run, items, counts } => {
                if !items.is_empty() {
                    let holding = self.holding(&run).ok_or("it is about an unknown run")?;
                    holding.items.retain(|item| !items.contains(&item.n));
                }
                self.holdings.retain(|holding| !holding.items.is_empty());
                self.counts.extend(counts);
                let held: Vec<PathBuf> = self.adding().map(|(path, _)| path.to_owned()).collect();
                self.counts.retain(|path, _| held.contains(path));
            }
        }
        Ok(())
    }

    pub(super) fn holding(&mut self, run: &Run) -> Option<&mut Holding> {
        self.holdings.iter_mut().find(|h| h.run == *run)
    }

    pub(super) fn has(&self, run: &Run) -> bool {
        self.holdings.iter().any(|h| h.run == *run)
    }

    fn items_of<'a>(&'a mut self, path: &'a Path) -> impl Iterator<Item = &'a mut Item> {
        self.holdings
            .iter_mut()
            .flat_map(|h| &mut h.items)
            .filter(move |item| item.change.act.target() == path)
    }

    /// Who holds what this change is about, except `run`.
    pub(super) fn others<'a>(
        &'a self,
        run: &'a Run,
        act: &'a Act,
    ) -> impl Iterator<Item = (&'a Holding, &'a Item)> {
        let same = |a: &Act, b: &Act| {
            std::mem::discriminant(a) == std::mem::discriminant(b) && a.target() == b.target()
        };
        self.holdings
            .iter()
            .filter(move |holding| holding.run != *run)
            .flat_map(|holding| holding.items.iter().map(move |item| (holding, item)))
            .filter(move |(_, item)| same(&item.change.act, act))
    }

    fn adding(&self) -> impl Iterator<Item = (&Path, &Item)> {
        self.holdings
            .iter()
            .flat_map(|h| &h.items)
            .filter_map(|item| match &item.change.act {
                Act::Add { path, .. } => Some((path.as_path(), item)),
                _ => None,
            })
    }

    /// What all runs together added to a counter.
    pub(super) fn added(&self, path: &Path) -> u64 {
        self.adding()
            .filter(|(at, _)| *at == path)
            .map(|(_, item)| match item.got {
                Some(Got::Count { gave, .. }) => gave,
                _ => 0,
            })
            .sum()
    }

    /// Counters in use whose numbers change with that of `path`: of huge pages, the pool of a node with that of the
    /// host (Documentation/admin-guide/mm/hugetlbpage.rst).
    pub(super) fn coupled(&self, path: &Path) -> Vec<PathBuf> {
        let is_whole = |path: &Path| path.starts_with("/sys/kernel/mm/hugepages");
        // hugepages-2048kB/nr_hugepages
        let size = |path: &Path| path.parent().and_then(Path::file_name).map(OsStr::to_owned);
        let is_coupled = |other: &&PathBuf| {
            is_whole(other) != is_whole(path)
                && size(other) == size(path)
                && other.file_name() == path.file_name()
        };
        self.counts.keys().filter(is_coupled).cloned().collect()
    }

    /// The shortest journal that says the same.
    pub(super) fn records(&self) -> Vec<Record> {
        let begins = self.holdings.iter().cloned().map(Record::Begin);
        let counts = self.holdings.first().map(|first| Record::Gone {
            run: first.run.clone(),
            items: Vec::new(),
            counts: self.counts.clone().into_iter().collect(),
        });
        let apart = self.apart.clone().map(Record::Apart);
        begins.chain(counts).chain(apart).collect()
    }
}
