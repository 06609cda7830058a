//! Pages that KSM has merged, which stand in the way of `merge_across_nodes`.
//!
//! The kernel changes it only while nothing is merged, and answers EBUSY otherwise (mm/ksm.c,
//! merge_across_nodes_store). Writing 2 to `run` takes everything apart before the call returns; then the value can be
//! written, and `run` gets back what it had. That is written down first ([`Tuner::with_merged`]): killed in between,
//! whoever replays the journal gives it back.

#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

use super::change::{Act, value};
use super::error::{Cannot, TuneError, chain};
use super::hands::Hands;
use super::report::{Holder, How, Undone};
use super::state::{Apart, Record};
use super::touch;
use super::tuner::{Books, Tuner};
use crate::facts::Root;

const DIRECTORY: &str = "/sys/kernel/mm/ksm";
/// `run`: stop, and take apart what is merged.
pub(super) const APART: &str = "2";
/// Pages that KSM merges, bytes.
const PAGE: u64 = 4096;

/// Whether `path` is the file that cannot be changed while pages are merged.
pub(super) fn is_rule(path: &Path) -> bool {
    path.strip_prefix(DIRECTORY) == Ok(Path::new("merge_across_nodes"))
}

/// Whether `path` says whether KSM runs.
pub(super) fn is_run(path: &Path) -> bool {
    path.strip_prefix(DIRECTORY) == Ok(Path::new("run"))
}

impl Tuner {
    /// Does `what`, which is about `act`, and has it written down before where pages may have to be taken apart for it.
    pub(super) fn with_merged<T>(
        &self,
        books: &mut Books,
        (holder, boot): (&Holder, &str),
        act: &Act,
        what: impl FnOnce(&Hands<'_>) -> Result<T, Cannot>,
    ) -> Result<T, Cannot> {
        let run = Path::new(DIRECTORY).join("run");
        let was = match act {
            Act::Write { path, .. } if is_rule(path) => self.hands().value(&run).ok(),
            _ => None,
        };
        let Some(was) = was.filter(|was| was != APART) else {
            return what(&self.hands());
        };
        let apart = Apart {
            holder: holder.clone(),
            boot: boot.to_owned(),
            was,
        };
        books
            .write(false, Record::Apart(apart))
            .map_err(|e| Cannot::Note(chain(&e)))?;
        let outcome = what(&self.hands());
        // Otherwise it is found out next time that all is as it should be.
        let _ = books.write(false, Record::Together {});
        outcome
    }

    /// Has merging go on where somebody was killed who had stopped it for a moment.
    pub(super) fn put_together(
        &self,
        books: &mut Books,
        boot: &str,
    ) -> Result<Option<Undone>, TuneError> {
        let apart = books.volatile.as_ref().and_then(|j| j.state.apart.clone());
        let Some(Apart {
            holder,
            boot: then,
            was,
        }) = apart
        else {
            return Ok(None);
        };
        let target = Path::new(DIRECTORY).join("run");
        let at = self.root.at(&target);
        let stopped = touch::read(&at).is_ok_and(|now| value(&now) == APART);
        let how = match then == boot && stopped {
            false => None,
            true => Some(match touch::put(&at, &was) {
                Ok(()) => How::Back { to: was },
                Err(error) => How::Failed {
                    why: error.to_string(),
                },
            }),
        };
        if !matches!(how, Some(How::Failed { .. })) {
            books.write(false, Record::Together {})?;
        }
        Ok(how.map(|how| Undone {
            holder,
            what: "host.ksm_merge_across_nodes".into(),
            target,
            how,
        }))
    }
}

/// Writes the rule once more, with nothing merged.
///
/// # Errors
/// EBUSY where taking pages apart needs more memory than is free; the kernel's otherwise.
pub(super) fn put_apart(root: &Root, path: &Path, text: &str) -> io::Result<()> {
    if !fits(root) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    let run = root.at(DIRECTORY).join("run");
    let now = touch::read(&run)?;
    touch::put(&run, APART)?;
    let outcome = touch::put(&root.at(path), text);
    let back = touch::put(&run, now.trim());
    outcome.and(back)
}

/// Whether there is memory for a page in place of each that is merged.
fn fits(root: &Root) -> bool {
    let text = |path: &str| touch::read(&root.at(path)).ok();
    let merged = text("/sys/kernel/mm/ksm/pages_sharing").and_then(|t| t.trim().parse().ok());
    let memory = text("/proc/meminfo").unwrap_or_default();
    let free = memory.lines().find_map(|line| {
        let kib = line.strip_prefix("MemAvailable:")?.trim();
        kib.strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    let (Some(merged), Some(free)) = (merged, free) else {
        return false;
    };
    u64::saturating_mul(merged, PAGE) <= free.saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    struct Tree(PathBuf);

    impl Drop for Tree {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).ok();
        }
    }

    fn tree(name: &str, sharing: &str) -> Tree {
        let dir = std::env::temp_dir().join(format!("vsc-merged-{}-{name}", std::process::id()));
        for (file, text) in [
            ("sys/kernel/mm/ksm/run", "1\n"),
            ("sys/kernel/mm/ksm/merge_across_nodes", "1\n"),
            ("sys/kernel/mm/ksm/pages_sharing", sharing),
            ("proc/meminfo", "MemTotal: 9 kB\nMemAvailable:    4096 kB\n"),
        ] {
            let file = dir.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        Tree(dir)
    }

    #[test]
    fn merging_goes_on_afterwards() {
        let tree = tree("on", "1024\n");
        let root = Root(tree.0.clone());
        let rule = Path::new("/sys/kernel/mm/ksm/merge_across_nodes");
        assert!(is_rule(rule) && !is_run(rule));
        put_apart(&root, rule, "0").unwrap();
        let text = |name: &str| fs::read_to_string(tree.0.join("sys/kernel/mm/ksm").join(name));
        assert_eq!(text("merge_across_nodes").unwrap().trim(), "0");
        assert_eq!(text("run").unwrap().trim(), "1");
    }

    #[test]
    fn what_does_not_fit_apart_stays_merged() {
        let tree = tree("full", "1025\n");
        let root = Root(tree.0.clone());
        let rule = Path::new("/sys/kernel/mm/ksm/merge_across_nodes");
        let error = put_apart(&root, rule, "0").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
        let text = fs::read_to_string(root.at(rule)).unwrap();
        assert_eq!(text, "1\n");
    }
}
