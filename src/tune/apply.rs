//! Doing what is wanted: looked at, decided, written down, done.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use super::change::{Act, Change};
use super::error::{Cannot, TuneError};
use super::hands::{Hands, Seen, expected, made_of};
use super::life::Sign;
use super::report::{Begun, Foreign, Holder, Told, Verdict, wanted};
use super::state::{Before, Got, Holding, Item, Record, Run};
use super::touch;
use super::tuner::{Books, Tuner, holder, shown};

/// What is decided about a change before anything is done.
enum Decision {
    /// To be done and undone.
    Fresh(Before),
    /// To be undone by whoever is last.
    Join(Before, Option<Got>, Holder),
    /// Nothing to do.
    No(Verdict),
}

impl Tuner {
    /// Makes `changes`, in order, for a run of this process called `who`. What dead runs left is put back first.
    /// Nothing is touched where there is nothing to do. `guard` is called before a journal is made or written: it starts
    /// whoever undoes it all, the journal too, should this process die.
    ///
    /// # Errors
    /// [`TuneError`]: nothing stays changed.
    pub fn begin<G>(
        &self,
        changes: &[Change],
        who: &str,
        standing: bool,
        guard: impl FnOnce(&Run) -> std::io::Result<G>,
    ) -> Result<(Begun, Option<G>), TuneError> {
        let boot = self.boot()?;
        let run = Run::current(&self.proc, &boot).ok_or(TuneError::NoProc)?;
        self.begin_as(&run, changes, who, standing, guard)
    }

    pub(super) fn begin_as<G>(
        &self,
        run: &Run,
        changes: &[Change],
        who: &str,
        standing: bool,
        guard: impl FnOnce(&Run) -> std::io::Result<G>,
    ) -> Result<(Begun, Option<G>), TuneError> {
        let hands = self.hands();
        let needed = |lasting| {
            changes.iter().any(|change| {
                change.act.is_lasting() == lasting
                    && hands
                        .look(&change.act)
                        .is_ok_and(|seen| !seen.so && hands.may(&change.act).is_ok())
            })
        };
        let mut replayed = Vec::new();
        let (mut volatile, mut lasting) = (needed(false), needed(true));
        let mut guard = Some(guard);
        let mut kept = None;
        let mut watch = |kept: &mut Option<G>| match guard.take() {
            Some(guard) => guard(run)
                .map(|guard| *kept = Some(guard))
                .map_err(TuneError::Warden),
            None => Ok(()),
        };
        let mut books = loop {
            if volatile || lasting {
                watch(&mut kept)?;
            }
            let mut books = self.books(volatile, lasting, false)?;
            replayed.extend(self.replay_in(&mut books, &run.boot, Foreign::Forget)?);
            // Meanwhile another run may have ended that had it all as it is wanted.
            let more = [false, true].map(|book| books.of(book).is_none() && needed(book));
            if more == [false; 2] {
                break books;
            }
            books.close()?;
            volatile |= more[0];
            lasting |= more[1];
        };
        let mut told = Vec::new();
        let mut items: Vec<Item> = Vec::new();
        let mut fresh = Vec::new();
        let first = books
            .each()
            .flat_map(|(_, journal)| &journal.state.holdings)
            .filter(|holding| holding.run == *run)
            .flat_map(|holding| holding.items.iter().map(|item| item.n + 1))
            .max()
            .unwrap_or(0);
        for (n, change) in (first..).zip(changes) {
            let again = items
                .iter()
                .any(|item| item.change.act.target() == change.act.target());
            let (from, decision) = match hands.look(&change.act) {
                // It comes with the directory that is made before it: a cgroup's files.
                Err(Cannot::Missing(_)) if let Some(before) = within(&items, &change.act) => {
                    (None, Decision::Fresh(before))
                }
                Err(why) => (None, no(why)),
                Ok(seen) => (
                    Some(shown(&seen.now)),
                    self.decide(&books, run, change, seen, again, &items),
                ),
            };
            let mut item = |before, got| {
                items.push(Item {
                    n,
                    change: change.clone(),
                    before,
                    got,
                    undoing: None,
                });
            };
            let verdict = match decision {
                Decision::Fresh(before) => {
                    fresh.push((n, told.len()));
                    item(before, None);
                    Verdict::Done
                }
                Decision::Join(before, got, with) => {
                    item(before, got);
                    Verdict::Joined { with }
                }
                Decision::No(verdict) => verdict,
            };
            told.push(Told {
                what: change.what.clone(),
                target: change.act.target().to_owned(),
                from,
                to: wanted(&change.act),
                verdict,
            });
            if change.required
                && let Some(why) = told.last().and_then(Told::complaint)
            {
                books.close()?;
                return Err(TuneError::Required {
                    what: change.what.clone(),
                    why,
                });
            }
        }
        if items.is_empty() {
            books.close()?;
            let begun = Begun {
                told,
                replayed,
                run: None,
                sign: Sign::default(),
            };
            return Ok((begun, None));
        }
        watch(&mut kept)?;
        let mut sign = Sign::default();
        for lasting in [false, true] {
            let items: Vec<Item> = items
                .iter()
                .filter(|item| item.change.act.is_lasting() == lasting)
                .cloned()
                .collect();
            if !items.is_empty() {
                let signed = match books.of(lasting) {
                    Some(journal) => journal.sign(run).map(|its| sign.add(its)),
                    None => Ok(()),
                };
                let begin = |()| {
                    books.write(
                        lasting,
                        Record::Begin(Holding {
                            run: run.clone(),
                            who: who.to_owned(),
                            standing,
                            complete: false,
                            at: now(),
                            items,
                        }),
                    )
                };
                if let Err(error) = signed.and_then(begin) {
                    // What the other journal says already was not done; the first error is the one to tell.
                    let _ = self.release(&mut books, run, &run.boot, Foreign::Forget);
                    let _ = books.close();
                    return Err(error);
                }
            }
        }
        let holder = Holder {
            who: who.to_owned(),
            pid: run.pid,
            standing,
        };
        let outcome = self.make(&mut books, (run, &holder), &items, &fresh, &mut told);
        if let Err(error) = outcome {
            let undone = self.release(&mut books, run, &run.boot, Foreign::Forget)?;
            let failed: Vec<String> = undone
                .iter()
                .filter(|undone| undone.is_warning())
                .map(ToString::to_string)
                .collect();
            books.close()?;
            return Err(match error {
                TuneError::Required { what, why } if !failed.is_empty() => TuneError::Required {
                    what,
                    why: format!("{why}; and {}", failed.join("; ")),
                },
                error => error,
            });
        }
        let holds = books
            .each()
            .any(|(_, journal)| journal.state.holdings.iter().any(|h| h.run == *run));
        books.close()?;
        let run = holds.then(|| run.clone());
        let begun = Begun {
            told,
            replayed,
            run,
            sign,
        };
        Ok((begun, kept))
    }

    fn decide(
        &self,
        books: &Books,
        run: &Run,
        change: &Change,
        seen: Seen,
        again: bool,
        items: &[Item],
    ) -> Decision {
        let act = &change.act;
        let holds = |item: &Item| match (&item.change.act, &seen.now) {
            (Act::Write { .. }, Before::Value { value, .. }) => expected(item) == Some(value),
            (Act::File { new, .. }, Before::File { file }) => {
                file.as_ref().is_some_and(|file| file.text == *new)
            }
            (Act::Directory { .. }, _) => seen.so,
            (Act::Add { .. } | Act::Leftover { .. }, _) => false,
            _ => true,
        };
        let other = books
            .each()
            .filter(|(lasting, _)| *lasting == act.is_lasting())
            .flat_map(|(_, journal)| journal.state.others(run, act))
            .find(|(_, item)| holds(item));
        // The value that is read may be another form of the one that both want.
        let same = |item: &Item| match (&item.change.act, act) {
            // Two texts can be of the same length.
            (Act::File { new, .. }, Act::File { new: other, .. }) => new == other,
            (theirs, _) => wanted(theirs) == wanted(act),
        };
        match (seen.so && !again, other) {
            (so, Some((holding, item))) if so || same(item) => {
                Decision::Join(item.before.clone(), item.got.clone(), holder(holding))
            }
            (_, Some((holding, _))) => Decision::No(Verdict::Held {
                by: holder(holding),
            }),
            (true, None) => Decision::No(Verdict::Already),
            (false, None) if is_within(items, act) => Decision::Fresh(seen.now),
            (false, None) => match self.hands().may(act) {
                Ok(()) => Decision::Fresh(seen.now),
                Err(why) => no(why),
            },
        }
    }

    /// Makes what is new, and notes what came of it.
    fn make(
        &self,
        books: &mut Books,
        (run, holder): (&Run, &Holder),
        items: &[Item],
        fresh: &[(u32, usize)],
        told: &mut [Told],
    ) -> Result<(), TuneError> {
        let hands = self.hands();
        let mut got: [Vec<(u32, Got)>; 2] = Default::default();
        let mut failed: [Vec<u32>; 2] = Default::default();
        let mut moved: Vec<(PathBuf, u64)> = Vec::new();
        let mut outcome = Ok(());
        for item in items {
            let Item { n, change, .. } = item;
            let book = usize::from(change.act.is_lasting());
            let Some((_, at)) = fresh.iter().find(|(fresh, _)| fresh == n) else {
                continue;
            };
            let coupled = match &change.act {
                Act::Add { path, .. } => self.coupled(books, path),
                _ => Vec::new(),
            };
            let perform = |hands: &Hands<'_>| hands.perform(&change.act, &item.before);
            let whose = (holder, run.boot.as_str());
            let verdict = match self.with_merged(books, whose, &change.act, perform) {
                Ok(result) => {
                    let verdict = less(&hands, &change.act, &result);
                    got[book].push((*n, result));
                    verdict
                }
                Err(why) => {
                    failed[book].push(*n);
                    let why = why.to_string();
                    Some(Verdict::Skipped { why })
                }
            };
            self.moved(books, coupled, &mut moved);
            let (Some(verdict), Some(told)) = (verdict, told.get_mut(*at)) else {
                continue;
            };
            told.verdict = verdict;
            if change.required {
                let (what, why) = (change.what.clone(), told.complaint().unwrap_or_default());
                outcome = Err(TuneError::Required { what, why });
                break;
            }
        }
        for (lasting, (got, items)) in [false, true].into_iter().zip(got.into_iter().zip(failed)) {
            let journal = books.of(lasting);
            let Some(journal) = journal.filter(|j| j.state.has(run)) else {
                continue;
            };
            let run = run.clone();
            journal.write(Record::Done {
                run: run.clone(),
                got,
            })?;
            let counts = match lasting {
                true => Vec::new(),
                false => std::mem::take(&mut moved),
            };
            if !items.is_empty() || !counts.is_empty() {
                // What was not made is not undone: by now it may be somebody else's.
                journal.write(Record::Gone { run, items, counts })?;
            }
        }
        outcome
    }

    /// Notes which files the leftovers of `run` are, as far as they are there by now: then only those very files are
    /// removed.
    ///
    /// # Errors
    /// [`TuneError`].
    pub(super) fn pin(&self, run: &Run) -> Result<(), TuneError> {
        let mut books = self.books(false, false, false)?;
        if let Some(journal) = &mut books.volatile {
            let items = journal.state.holding(run).map(|holding| &holding.items);
            let left = items.into_iter().flatten().filter_map(|item| {
                let Act::Leftover { path } = &item.change.act else {
                    return None;
                };
                let metadata = touch::metadata(&self.root.at(path)).ok()??;
                let made = made_of(&metadata);
                (item.got.as_ref() != Some(&made)).then_some((item.n, made))
            });
            let got: Vec<_> = left.collect();
            if !got.is_empty() {
                let run = run.clone();
                journal.write(Record::Done { run, got })?;
            }
        }
        books.close()
    }
}

/// Whether something lies in a directory that `items` make.
fn is_within(items: &[Item], act: &Act) -> bool {
    let target = act.target();
    items.iter().any(|item| {
        matches!(&item.change.act, Act::Directory { path } if target != path && target.starts_with(path))
    })
}

/// How a file is before its directory, which `items` make, is there.
fn within(items: &[Item], act: &Act) -> Option<Before> {
    let Act::Write { old, .. } = act else {
        return None;
    };
    is_within(items, act).then(|| Before::Value {
        value: old.clone(),
        raw: None,
    })
}

fn no(why: Cannot) -> Decision {
    Decision::No(Verdict::Skipped {
        why: why.to_string(),
    })
}

/// Whether a counter got less than was asked for.
fn less(hands: &Hands<'_>, act: &Act, got: &Got) -> Option<Verdict> {
    let (Act::Add { path, by }, Got::Count { gave, .. }) = (act, got) else {
        return None;
    };
    (gave < by).then(|| Verdict::Less {
        got: *gave,
        why: Cannot::Less {
            gave: *gave,
            by: *by,
            free: hands.free(path),
        }
        .to_string(),
    })
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}
