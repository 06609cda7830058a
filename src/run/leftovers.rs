//! What a run makes besides its output, and what therefore must go with it, however it ends: the directory of its
//! state, and the sockets that it listens on.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use vsc::runs;
use vsc::tune::{Act, Change};
use vsc_devices::stream::Endpoint;
use vsc_vmm::resources::VmResources;

/// Whether nothing is in the place of any of them yet. Who removes them later cannot always tell what a dead run left
/// from what took its place: the number of a file is used again.
pub(crate) fn are_new(all: &[Change]) -> bool {
    all.iter().all(|change| match &change.act {
        Act::Leftover { path } => path.symlink_metadata().is_err(),
        _ => true,
    })
}

/// What there will be of a machine, and of its control socket's place. What contains others comes first: it goes last.
pub(crate) fn of(resources: &VmResources, control_in: Option<&(PathBuf, String)>) -> Vec<Change> {
    let change = |what: &str, path: &Path| Change {
        what: what.to_owned(),
        act: Act::Leftover {
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
        },
        required: false,
    };
    let mut all = Vec::new();
    if let Some((base, id)) = control_in {
        let directory = base.join(id);
        all.push(change("control", &directory));
        for name in [runs::RECORD, runs::SOCKET] {
            all.push(change("control", &directory.join(name)));
        }
    }
    let sockets = sockets(resources).into_iter();
    all.extend(sockets.map(|path| change("socket", path)));
    all
}

/// Host ends of all streams.
pub(super) fn endpoints(resources: &VmResources) -> impl Iterator<Item = &Endpoint> {
    let serials = resources.serials.iter().map(|s| &s.endpoint);
    let ports = resources.consoles.iter().flat_map(|c| &c.ports);
    serials.chain(ports.flat_map(|p| [&p.input, &p.output]))
}

/// Sockets that streams listen on, each once.
pub(crate) fn sockets(resources: &VmResources) -> Vec<&Path> {
    let mut sockets: Vec<&Path> = endpoints(resources)
        .filter_map(|end| match end {
            Endpoint::Unix(path) => Some(path.as_path()),
            _ => None,
        })
        .collect();
    sockets.sort_unstable();
    sockets.dedup();
    sockets
}
