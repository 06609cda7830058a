//! Open images that outlive their machine, locks included: one that starts again finds the very file that it had, and
//! nobody got at it in between.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// The open file of one image. Clones are about the same one; the default keeps nothing.
#[derive(Debug, Clone, Default)]
pub struct Keep(Option<Arc<Mutex<Option<File>>>>);

impl Keep {
    /// One that keeps what it is given.
    pub fn over_restarts() -> Self {
        Self(Some(Arc::default()))
    }

    /// Waits until what was written is on the storage; nothing, where it keeps nothing.
    ///
    /// # Errors
    /// The system's reason.
    pub fn sync(&self) -> io::Result<()> {
        let Some(slot) = &self.0 else { return Ok(()) };
        let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map_or(Ok(()), File::sync_data)
    }

    /// What it has, as a descriptor of the same open file.
    pub(super) fn get(&self) -> io::Result<Option<File>> {
        let Some(slot) = &self.0 else { return Ok(None) };
        let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().map(File::try_clone).transpose()
    }

    /// Keeps `file`, which has its locks, if it keeps anything.
    pub(super) fn put(&self, file: &File) -> io::Result<()> {
        let Some(slot) = &self.0 else { return Ok(()) };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(file.try_clone()?);
        }
        Ok(())
    }
}
