//! Undoing: a run's own at its end, and what dead runs left.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::change::Act;
use super::error::{Cannot, TuneError, chain};
use super::hands::{Hands, Restored, expected, put_number};
use super::kept::is_for;
use super::report::{Foreign, Holder, How, Undone, Unwound};
use super::state::{Before, Got, Holding, Item, Record, Run};
use super::tuner::{Books, Tuner, holder, shown};

impl Tuner {
    /// Puts back what dead runs left.
    pub(super) fn replay_in(
        &self,
        books: &mut Books,
        boot: &str,
        foreign: Foreign,
    ) -> Result<Vec<Undone>, TuneError> {
        let dead = books.runs(|lasting, journal, holding| {
            self.is_dead(journal, holding, boot) || (!lasting && holding.run.boot != boot)
        });
        let mut undone = Vec::from_iter(self.put_together(books, boot)?);
        for run in dead {
            undone.extend(self.release(books, &run, boot, foreign)?);
        }
        Ok(undone)
    }

    /// The same, on its own. Nothing is touched where there is nothing.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn replay(&self) -> Result<Vec<Undone>, TuneError> {
        if !self.is_used() {
            for place in [&self.volatile, &self.lasting].into_iter().flatten() {
                place.tidy();
            }
            return Ok(Vec::new());
        }
        let boot = self.boot()?;
        let mut books = self.books(false, false, false)?;
        let undone = self.replay_in(&mut books, &boot, Foreign::Forget)?;
        books.close()?;
        Ok(undone)
    }

    /// Ends a run: puts back what it changed and nobody else uses, and what dead runs left.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn end(&self, run: &Run) -> Result<Vec<Undone>, TuneError> {
        let boot = self.boot()?;
        let mut books = self.books(false, false, false)?;
        // First what was cut off in the middle: it reckons with everything else as it was.
        let mut undone = self.replay_in(&mut books, &boot, Foreign::Forget)?;
        undone.extend(self.release(&mut books, run, &boot, Foreign::Forget)?);
        books.close()?;
        Ok(undone)
    }

    /// Ends what was to stay (`host apply`), and what dead runs left. `but`: purposes that have an undoing of their own
    /// ([`Tuner::undo_kept`]). Tells the end of each knob, not the steps to it.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn undo(&self, foreign: Foreign, but: &[&str]) -> Result<Unwound, TuneError> {
        if !self.is_used() {
            return Ok(Unwound::default());
        }
        let boot = self.boot()?;
        let mut books = self.books(false, false, foreign == Foreign::Force)?;
        let mut undone = self.replay_in(&mut books, &boot, foreign)?;
        let apart = |holding: &Holding| but.iter().any(|what| is_for(holding, what));
        for run in books.runs(|_, _, holding| holding.standing && !apart(holding)) {
            undone.extend(self.release(&mut books, &run, &boot, foreign)?);
        }
        let damaged = books.each().map(|(_, journal)| journal.keep_damaged());
        let damaged: Result<Vec<_>, _> = damaged.filter_map(Result::transpose).collect();
        let damaged = damaged?;
        books.close()?;
        Ok(Unwound {
            undone: ends(undone),
            damaged,
        })
    }

    /// Puts back what a run changed and nobody else uses, the last first.
    pub(super) fn release(
        &self,
        books: &mut Books,
        run: &Run,
        boot: &str,
        foreign: Foreign,
    ) -> Result<Vec<Undone>, TuneError> {
        let mut items: Vec<(bool, Holder, Item)> = Vec::new();
        for (lasting, journal) in books.each() {
            for holding in &journal.state.holdings {
                if holding.run == *run {
                    let its = holding.items.iter().cloned();
                    items.extend(its.map(|item| (lasting, holder(holding), item)));
                }
            }
        }
        items.sort_by_key(|(_, _, item)| std::cmp::Reverse(item.n));
        let mut undone = Vec::new();
        let mut gone: [Vec<u32>; 2] = Default::default();
        let mut counts: Vec<(PathBuf, u64)> = Vec::new();
        for (lasting, holder, item) in items {
            let how = if !lasting && run.boot != boot {
                How::Rebooted
            } else if let Act::Add { path, .. } = &item.change.act {
                let coupled = self.coupled(books, path);
                match self.take_back(books, run, &item, path) {
                    Ok((how, now)) => {
                        counts.push((path.clone(), now));
                        self.moved(books, coupled, &mut counts);
                        how
                    }
                    // Unjournalled it is not touched; everything else goes on, on a full disk too.
                    Err(Failure::Journal(error)) => How::Failed { why: chain(&error) },
                    Err(Failure::Host(why)) => failed(&why),
                }
            } else if let Some(by) = self.user(books, run, &item) {
                How::Used { by }
            } else {
                let force = foreign == Foreign::Force;
                let restore = |hands: &Hands<'_>| hands.restore(&item, force);
                let act = &item.change.act;
                let kept = foreign == Foreign::Keep
                    && holder.standing
                    && matches!(act, Act::Write { .. } | Act::File { .. });
                match self.with_merged(books, (&holder, boot), act, restore) {
                    Ok(Restored::Back) => How::Back {
                        to: shown(&item.before),
                    },
                    Ok(Restored::Same) => How::Same,
                    Ok(Restored::Left { now }) => How::Left {
                        now,
                        before: shown(&item.before),
                        kept,
                    },
                    Err(why) => failed(&why),
                }
            };
            let became = Undone {
                holder,
                what: item.change.what,
                target: item.change.act.target().to_owned(),
                how,
            };
            if !became.is_kept() {
                gone[usize::from(lasting)].push(item.n);
            }
            undone.push(became);
        }
        for (lasting, items) in [false, true].into_iter().zip(gone) {
            if !items.is_empty() {
                let (run, counts) = (run.clone(), std::mem::take(&mut counts));
                books.write(lasting, Record::Gone { run, items, counts })?;
            }
        }
        Ok(undone)
    }

    /// What the counters say that change with `path`.
    pub(super) fn coupled(&self, books: &Books, path: &Path) -> Vec<(PathBuf, u64)> {
        let coupled = books.volatile.iter().flat_map(|j| j.state.coupled(path));
        let count = |path: PathBuf| Some((self.hands().count(&path).ok()?, path));
        let pairs = coupled.filter_map(count);
        pairs.map(|(count, path)| (path, count)).collect()
    }

    /// What they are expected to say by now, into `counts`: as much more or less as they have changed since `before`,
    /// which was our doing.
    pub(super) fn moved(
        &self,
        books: &Books,
        before: Vec<(PathBuf, u64)>,
        counts: &mut Vec<(PathBuf, u64)>,
    ) {
        for (path, before) in before {
            let known = counts.iter().rev().find(|(at, _)| *at == path);
            let known = known.map(|(_, count)| *count).or_else(|| {
                let journal = books.volatile.as_ref()?;
                journal.state.counts.get(&path).copied()
            });
            if let (Some(last), Ok(now)) = (known, self.hands().count(&path))
                && now != before
            {
                counts.push((path, last.saturating_add(now).saturating_sub(before)));
            }
        }
    }

    /// Who else uses what a change made, and will put it back.
    fn user(&self, books: &Books, run: &Run, item: &Item) -> Option<Holder> {
        let act = &item.change.act;
        let now = match act {
            Act::Leftover { .. } => return None,
            Act::Write { path, .. } => self.hands().value(path).ok(),
            _ => None,
        };
        books
            .each()
            .filter(|(lasting, _)| *lasting == act.is_lasting())
            .flat_map(|(_, journal)| journal.state.others(run, act))
            .find(|(_, other)| match act {
                Act::Write { .. } => now.is_some() && expected(other) == now.as_deref(),
                _ => true,
            })
            .map(|(holding, _)| holder(holding))
    }

    /// Takes a run's part of a counter back, and tells what it says then.
    fn take_back(
        &self,
        books: &mut Books,
        run: &Run,
        item: &Item,
        path: &Path,
    ) -> Result<(How, u64), Failure> {
        let hands = self.hands();
        let current = hands.count(path)?;
        let journal = books
            .of(false)
            .ok_or(Failure::Journal(TuneError::NoPlace))?;
        let target = match item.undoing {
            // It was on its way already, and may have got there but for the end of its line.
            Some((_, to)) if current == to => {
                put_number(&self.root.at(path), to)?;
                return Ok((How::Same, current));
            }
            Some((from, to)) if (to..=from).contains(&current) => to,
            Some(_) => {
                let now = current.to_string();
                let before = shown(&item.before);
                let kept = false;
                return Ok((How::Left { now, before, kept }, current));
            }
            None => {
                let last = journal.state.counts.get(path).copied().unwrap_or(current);
                let added = journal.state.added(path);
                let gave = match (&item.got, &item.before, &item.change.act) {
                    (Some(Got::Count { gave, .. }), ..) => *gave,
                    // Killed between the write and the note of what came of it.
                    (_, Before::Count { count }, Act::Add { by, .. }) => {
                        current.saturating_sub(*count).min(*by)
                    }
                    _ => 0,
                };
                // Where somebody else took some away, what was there before us is not ours to take.
                let floor = match current < last {
                    true => current.min(last.saturating_sub(added)),
                    false => 0,
                };
                current.saturating_sub(gave).max(floor)
            }
        };
        if target >= current {
            return Ok((How::Same, current));
        }
        if item.undoing.is_none() {
            let run = run.clone();
            let counts = vec![(item.n, current, target)];
            journal
                .write(Record::Undoing { run, counts })
                .map_err(Failure::Journal)?;
        }
        put_number(&self.root.at(path), target)?;
        let now = hands.count(path).unwrap_or(target);
        let to = target.to_string();
        Ok((How::Back { to }, now))
    }
}

/// Of several that had the same thing, the last one: that is how it is now. What failed is told in any case.
fn ends(all: Vec<Undone>) -> Vec<Undone> {
    let is_end = |(n, undone): &(usize, &Undone)| {
        let mut later = all.iter().skip(n + 1);
        matches!(undone.how, How::Failed { .. }) || later.all(|l| l.target != undone.target)
    };
    let ends = all.iter().enumerate().filter(is_end);
    ends.map(|(_, undone)| undone.clone()).collect()
}

/// Why a counter is not put back.
enum Failure {
    Journal(TuneError),
    Host(Cannot),
}

impl From<Cannot> for Failure {
    fn from(why: Cannot) -> Self {
        Failure::Host(why)
    }
}

fn failed(why: &Cannot) -> How {
    match why.is_gone() {
        true => How::Gone,
        false => How::Failed {
            why: why.to_string(),
        },
    }
}
