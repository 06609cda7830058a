//! Changes of one purpose that were made to stay: looked at, and undone apart from all others.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use super::change::Act;
use super::error::TuneError;
use super::hands::old_file;
use super::report::{Foreign, Undone};
use super::state::{Before, Holding};
use super::tuner::Tuner;

/// A file that was made or replaced to stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFile {
    /// The file, as the host names it.
    pub path: PathBuf,
    /// Its text before; `None`: there was none.
    pub before: Option<String>,
    /// Its text after.
    pub after: String,
    /// Its text now; `None`: there is none, or it cannot be read.
    pub now: Option<String>,
}

impl KeptFile {
    /// Somebody else has changed it since.
    pub fn is_changed(&self) -> bool {
        self.now.as_ref() != Some(&self.after) && self.now != self.before
    }
}

/// Whether all that it holds was made to stay for this purpose.
pub(super) fn is_for(holding: &Holding, what: &str) -> bool {
    holding.standing && holding.items.iter().all(|item| item.change.what == what)
}

impl Tuner {
    /// The files that are kept for this purpose.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn kept(&self, what: &str) -> Result<Vec<KeptFile>, TuneError> {
        if !self.is_used() {
            return Ok(Vec::new());
        }
        let books = self.books(false, false, false)?;
        let mut kept = Vec::new();
        for (_, journal) in books.each() {
            let holdings = journal.state.holdings.iter().filter(|h| is_for(h, what));
            for item in holdings.flat_map(|h| &h.items) {
                let (Act::File { path, new, .. }, Before::File { file }) =
                    (&item.change.act, &item.before)
                else {
                    continue;
                };
                let now = old_file(&self.root.at(path)).ok().flatten();
                kept.push(KeptFile {
                    path: path.clone(),
                    before: file.as_ref().map(|f| f.text.clone()),
                    after: new.clone(),
                    now: now.map(|f| f.text),
                });
            }
        }
        books.close()?;
        Ok(kept)
    }

    /// Undoes what is kept for this purpose, and what dead runs left. `foreign`: what becomes of what somebody else has
    /// changed since.
    ///
    /// # Errors
    /// [`TuneError`].
    pub fn undo_kept(&self, what: &str, foreign: Foreign) -> Result<Vec<Undone>, TuneError> {
        if !self.is_used() {
            return Ok(Vec::new());
        }
        let boot = self.boot()?;
        let mut books = self.books(false, false, false)?;
        let mut undone = self.replay_in(&mut books, &boot, Foreign::Forget)?;
        for run in books.runs(|_, _, holding| is_for(holding, what)) {
            undone.extend(self.release(&mut books, &run, &boot, foreign)?);
        }
        books.close()?;
        Ok(undone)
    }
}
