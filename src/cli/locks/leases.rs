//! sanlock's part of `vsc-run locks`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use vsc::diag::shown;
use vsc::facts::Facts;
use vsc::locks::sanlock::{Daemon, LOCKSPACE, SanlockError, sweep as sweep_leases};
use vsc::locks::{Holders, keys};

use super::AllSwept;
use crate::cli::Common;
use crate::say;

/// How long the daemon may look for other hosts that have a lease.
const LIMIT: Duration = Duration::from_secs(30);

/// A lease that a machine has.
#[derive(Debug, Serialize)]
pub(super) struct Held {
    /// Its file.
    file: PathBuf,
    /// The process; none: of another host.
    pid: Option<u32>,
    /// Its name.
    vm: Option<String>,
    /// The other hosts.
    hosts: Vec<String>,
    /// Others may have it too.
    shared: bool,
    /// The image, where it is known.
    image: Option<PathBuf>,
}

impl Held {
    /// As a row of `locks list`.
    pub(super) fn row(&self) -> Vec<String> {
        let dash = || "-".to_owned();
        let file = self.image.as_ref().unwrap_or(&self.file);
        vec![
            self.pid.map_or_else(dash, |pid| pid.to_string()),
            self.vm.as_deref().map_or_else(dash, shown),
            match self.hosts.is_empty() {
                true => "sanlock".to_owned(),
                false => shown(&self.hosts.join(", ")),
            },
            dash(),
            if self.shared { "shared" } else { "alone" }.to_owned(),
            "lease".to_owned(),
            shown(&file.display().to_string()),
        ]
    }
}

/// The daemon, where one listens on this host itself.
fn daemon(facts: &dyn Facts, common: &Common) -> Option<Result<Daemon, SanlockError>> {
    let socket = Daemon::socket_in(&facts.sanlock());
    let here = common.host_root == Path::new("/");
    (here && facts.exists(&socket)).then(|| Daemon::connect(&socket))
}

/// What `locks drivers` says of it.
pub(super) fn state(facts: &dyn Facts, common: &Common) -> String {
    match daemon(facts, common) {
        Some(Ok(daemon)) => format!("available; its daemon {} runs", daemon.version()),
        Some(Err(SanlockError::Absent(_))) | None => "its daemon does not run".to_owned(),
        Some(Err(SanlockError::Denied(_))) => {
            "its daemon runs and listens to others only".to_owned()
        }
        Some(Err(e)) => format!(
            "its daemon cannot be used: {}",
            shown(&crate::run::chain(&e))
        ),
    }
}

/// The leases of this host, or those on `image` of all.
pub(super) fn list(
    image: Option<&Path>,
    locked: &Holders,
    facts: &dyn Facts,
    common: &Common,
) -> Vec<Held> {
    let mut daemon = match daemon(facts, common) {
        Some(Ok(daemon)) => daemon,
        // Whoever may not ask may not have leases either.
        Some(Err(SanlockError::Absent(_) | SanlockError::Denied(_))) | None => return Vec::new(),
        Some(Err(e)) => {
            say::warning(&crate::run::chain(&e));
            return Vec::new();
        }
    };
    let status = match daemon.status() {
        Ok(status) => status,
        Err(e) => {
            say::warning(&crate::run::chain(&e));
            return Vec::new();
        }
    };
    let paths: Vec<PathBuf> = image
        .into_iter()
        .flat_map(|image| [std::path::absolute(image).ok(), image.canonicalize().ok()])
        .flatten()
        .collect();
    let names: Vec<String> = paths.iter().map(|path| keys::lease_name(path)).collect();
    let mut held: Vec<Held> = Vec::new();
    for lease in &status.leases {
        if lease.lockspace != LOCKSPACE || (image.is_some() && !names.contains(&lease.name)) {
            continue;
        }
        let of_it = |path: &&PathBuf| keys::lease_name(path) == lease.name;
        let locked = locked.seen.iter().filter(|holder| holder.pid == lease.pid);
        let mut known = paths.iter().chain(locked.map(|holder| &holder.path));
        held.push(Held {
            file: lease.path.clone(),
            pid: Some(lease.pid),
            vm: status.name_of(lease.pid).map(str::to_owned),
            hosts: Vec::new(),
            shared: lease.shared,
            image: known.find(of_it).cloned(),
        });
    }
    for directory in status.directories() {
        let host_id = status.host_id(&directory.join(LOCKSPACE)).unwrap_or(0);
        for (name, path) in names.iter().zip(&paths) {
            let file = directory.join(name);
            if held.iter().any(|held| held.file == file) || !file.exists() {
                continue;
            }
            let hosts = daemon.others(host_id, name, &file, LIMIT);
            if !hosts.is_empty() {
                held.push(Held {
                    file,
                    pid: None,
                    vm: None,
                    hosts,
                    shared: false,
                    image: Some(path.clone()),
                });
            }
        }
    }
    held
}

/// Removes leases that nobody has, in `directory` or where the daemon has some.
pub(super) fn sweep(
    directory: Option<&Path>,
    dry: bool,
    facts: &dyn Facts,
    common: &Common,
) -> AllSwept {
    let socket = Daemon::socket_in(&facts.sanlock());
    let directories = match directory {
        Some(directory) => {
            let absolute = std::path::absolute(directory);
            vec![absolute.map_err(|e| format!("{}: {e}", directory.display()))?]
        }
        None => match daemon(facts, common) {
            Some(Ok(daemon)) => {
                let status = daemon.status().map_err(|e| crate::run::chain(&e))?;
                status.directories()
            }
            Some(Err(SanlockError::Absent(_) | SanlockError::Denied(_))) | None => Vec::new(),
            Some(Err(e)) => return Err(crate::run::chain(&e)),
        },
    };
    let mut all = Vec::new();
    for directory in directories {
        let swept = sweep_leases(&socket, &directory, dry);
        all.extend(swept.map_err(|e| crate::run::chain(&e))?);
    }
    Ok(all)
}
