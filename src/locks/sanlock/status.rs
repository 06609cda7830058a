//! What a daemon keeps.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::LOCKSPACE;

/// What the daemon keeps: itself, clients, lockspaces, leases.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// The name by which other hosts know this one.
    pub host: String,
    /// Processes that hold leases or may: number and name.
    pub clients: Vec<(u32, String)>,
    /// Lockspaces: name, this host's number in it, file.
    pub lockspaces: Vec<(String, u64, PathBuf)>,
    /// Leases of processes of this host.
    pub leases: Vec<LeaseOf>,
}

impl Status {
    /// This host's number in a lockspace of images, if it is in it.
    pub fn host_id(&self, lockspace: &Path) -> Option<u64> {
        let is_it =
            |(name, _, path): &&(String, u64, PathBuf)| name == LOCKSPACE && path == lockspace;
        self.lockspaces.iter().find(is_it).map(|(_, id, _)| *id)
    }

    /// The directories of leases of images.
    pub fn directories(&self) -> Vec<PathBuf> {
        let of_images = self
            .lockspaces
            .iter()
            .filter(|(name, ..)| name == LOCKSPACE);
        of_images
            .filter_map(|(_, _, path)| Some(path.parent()?.to_owned()))
            .collect()
    }

    /// What the daemon calls a process: a machine of libvirt's or ours by its name.
    pub fn name_of(&self, pid: u32) -> Option<&str> {
        let client = self.clients.iter().find(|(client, _)| *client == pid);
        client
            .map(|(_, name)| name.as_str())
            .filter(|n| !n.is_empty())
    }

    /// The process of this host that has a lease, for people.
    pub fn holder(&self, name: &str) -> Option<String> {
        let has = |lease: &&LeaseOf| lease.lockspace == LOCKSPACE && lease.name == name;
        let pid = self.leases.iter().find(has)?.pid;
        Some(match self.name_of(pid) {
            Some(name) => format!("'{name}', pid {pid}"),
            None => format!("pid {pid}"),
        })
    }
}

/// A lease that a process of this host has.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LeaseOf {
    /// The lockspace.
    pub lockspace: String,
    /// The lease's name.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// Others may share it.
    pub shared: bool,
    /// Its file.
    pub path: PathBuf,
}
