//! What a scenario says, typed; each value knows where it was written.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use vsc_devices::stream::Endpoint;

use super::tree::{Body, Entry, Leaf};
use crate::diag::Spanned;

/// A value that somebody wrote, or nothing.
pub type Given<T> = Option<Spanned<T>>;

/// What a scenario says. `None` is "nobody said".
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scenario {
    /// `name`
    pub name: Given<String>,
    /// `cpu`
    pub cpu: Cpu,
    /// `memory.size`, bytes
    pub memory: Given<u64>,
    /// `memory`, without its size
    pub backing: Backing,
    /// `kernel`
    pub kernel: Kernel,
    /// `root`
    pub root: Root,
    /// `command`
    pub command: Given<Vec<Spanned<String>>>,
    /// `env`
    pub env: Vec<(Spanned<String>, String)>,
    /// `workdir`
    pub workdir: Given<String>,
    /// `disks`
    pub disks: Vec<Spanned<Disk>>,
    /// `serials`
    pub serials: Vec<Spanned<Serial>>,
    /// `consoles`
    pub consoles: Vec<Spanned<ConsolePort>>,
    /// `console`
    pub console: Console,
    /// `rng`
    pub rng: Given<bool>,
    /// `irqchip`
    pub irqchip: Given<&'static str>,
    /// `timers.pit`
    pub pit: Given<bool>,
    /// `iothreads`
    pub iothreads: Given<u64>,
    /// `events`
    pub events: Events,
    /// `limits`
    pub limits: Limits,
    /// `guest.parameters`
    pub guest_parameters: Given<String>,
    /// `control`
    pub control: Given<bool>,
    /// `register`
    pub register: Given<bool>,
    /// `sandbox`
    pub sandbox: Given<bool>,
    /// `locking`
    pub locking: Locking,
}

/// `locking`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Locking {
    /// `locking.driver`
    pub driver: Given<&'static str>,
    /// `locking.file_lockspace_dir`
    pub file: Given<PathBuf>,
    /// `locking.lvm_lockspace_dir`
    pub lvm: Given<PathBuf>,
    /// `locking.scsi_lockspace_dir`
    pub scsi: Given<PathBuf>,
    /// `locking.host_id`
    pub host_id: Given<u64>,
    /// `locking.disk_lease_dir`
    pub leases: Given<PathBuf>,
    /// `locking.io_timeout`
    pub io_timeout: Given<u64>,
}

/// `cpu`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cpu {
    /// `cpu.count`
    pub count: Given<u64>,
    /// `cpu.topology.sockets`
    pub sockets: Given<u64>,
    /// `cpu.topology.cores`
    pub cores: Given<u64>,
    /// `cpu.topology.threads`
    pub threads: Given<u64>,
    /// `cpu.ht`
    pub ht: Given<bool>,
    /// `cpu.nested`
    pub nested: Given<bool>,
    /// `cpu.pin`
    pub pin: Vec<Spanned<Pin>>,
    /// `cpu.emulator_cpus`
    pub emulator_cpus: Given<String>,
    /// `cpu.scheduler`
    pub scheduler: Given<&'static str>,
    /// `cpu.priority`
    pub priority: Given<u64>,
}

/// A member of `cpu.pin`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pin {
    /// `cpu.pin[].vcpu`
    pub vcpu: Given<u64>,
    /// `cpu.pin[].cpus`
    pub cpus: Given<String>,
}

/// What stands behind guest RAM, below `memory`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Backing {
    /// `memory.source`
    pub source: Given<&'static str>,
    /// `memory.hugepages`
    pub hugepages: Given<&'static str>,
    /// `memory.locked`
    pub locked: Given<bool>,
    /// `memory.nosharepages`
    pub nosharepages: Given<bool>,
    /// `memory.allocation`
    pub allocation: Given<&'static str>,
    /// `memory.numa_nodes`
    pub numa_nodes: Given<String>,
    /// `memory.hard_limit`, bytes
    pub hard_limit: Given<u64>,
}

/// `kernel`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kernel {
    /// `kernel.path`
    pub path: Given<PathBuf>,
    /// `kernel.initrd`
    pub initrd: Vec<Spanned<PathBuf>>,
    /// `kernel.cmdline`
    pub cmdline: Given<String>,
    /// `kernel.prolog`
    pub prolog: Given<String>,
    /// `kernel.epilog`
    pub epilog: Given<String>,
    /// `kernel.format`
    pub format: Given<&'static str>,
    /// `kernel.entry`
    pub entry: Given<&'static str>,
    /// `kernel.console`
    pub console: Given<&'static str>,
    /// `kernel.devices_on_cmdline`
    pub devices_on_cmdline: Given<&'static str>,
}

/// `root`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Root {
    /// `root.device`
    pub device: Given<String>,
    /// `root.fstype`
    pub fstype: Given<String>,
    /// `root.options`
    pub options: Given<String>,
}

/// A member of `disks`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Disk {
    /// `disks[].path`
    pub path: Given<PathBuf>,
    /// `disks[].id`
    pub id: Given<String>,
    /// `disks[].format`
    pub format: Given<&'static str>,
    /// `disks[].read_only`
    pub read_only: Given<bool>,
    /// `disks[].cache`
    pub cache: Given<&'static str>,
    /// `disks[].direct_io`
    pub direct_io: Given<bool>,
    /// `disks[].sync`
    pub sync: Given<&'static str>,
    /// `disks[].discard`
    pub discard: Given<&'static str>,
    /// `disks[].block_size`
    pub block_size: Given<u64>,
    /// `disks[].device`
    pub device: Given<&'static str>,
    /// `disks[].size`, bytes
    pub size: Given<u64>,
    /// `disks[].shareable`
    pub shareable: Given<bool>,
    /// `disks[].encryption`
    pub encryption: Given<&'static str>,
}

/// A member of `serials`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Serial {
    /// `serials[].to`
    pub to: Given<Endpoint>,
    /// `serials[].log`
    pub log: Given<bool>,
}

/// A member of `consoles`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConsolePort {
    /// `consoles[].name`
    pub name: Given<String>,
    /// `consoles[].in`
    pub input: Given<Endpoint>,
    /// `consoles[].out`
    pub output: Given<Endpoint>,
    /// `consoles[].tty`
    pub tty: Given<Endpoint>,
}

/// `console`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Console {
    /// `console.log`
    pub log: Given<PathBuf>,
    /// `console.implicit`
    pub implicit: Given<bool>,
}

/// `events`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Events {
    /// `events.on_poweroff`
    pub on_poweroff: Given<&'static str>,
    /// `events.on_reboot`
    pub on_reboot: Given<&'static str>,
    /// `events.on_crash`
    pub on_crash: Given<&'static str>,
    /// `events.on_lockfailure`
    pub on_lockfailure: Given<&'static str>,
    /// `events.max_restarts`
    pub max_restarts: Given<u64>,
}

/// `limits`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// `limits.timeout`
    pub timeout: Given<Option<Duration>>,
    /// `limits.boot_deadline`
    pub boot_deadline: Given<Option<Duration>>,
    /// `limits.stop_grace`
    pub stop_grace: Given<Option<Duration>>,
    /// `limits.memory_max`, bytes
    pub memory_max: Given<u64>,
    /// `limits.memory_high`, bytes
    pub memory_high: Given<u64>,
    /// `limits.cpu_max`
    pub cpu_max: Given<String>,
    /// `limits.pids_max`
    pub pids_max: Given<u64>,
    /// `limits.io_max`
    pub io_max: Vec<Spanned<IoMax>>,
    /// `limits.slice`
    pub slice: Given<String>,
}

/// A member of `limits.io_max`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IoMax {
    /// `limits.io_max[].disk`
    pub disk: Given<u64>,
    /// `limits.io_max[].rbps`, bytes a second
    pub rbps: Given<u64>,
    /// `limits.io_max[].wbps`, bytes a second
    pub wbps: Given<u64>,
    /// `limits.io_max[].riops`, requests a second
    pub riops: Given<u64>,
    /// `limits.io_max[].wiops`, requests a second
    pub wiops: Given<u64>,
}

/// Reads typed values out of a tree.
pub(super) struct Reader<'a>(pub(super) &'a Entry);

impl Reader<'_> {
    fn entry(&self, path: &[&str]) -> Option<&Entry> {
        path.iter().try_fold(self.0, |entry, name| entry.get(name))
    }

    fn leaf<T>(&self, path: &[&str], pick: impl Fn(&Leaf) -> Option<T>) -> Given<T> {
        let entry = self.entry(path)?;
        match &entry.body {
            Body::Leaf(leaf) => pick(leaf).map(|value| Spanned::new(value, entry.span)),
            _ => None,
        }
    }

    fn bool(&self, path: &[&str]) -> Given<bool> {
        self.leaf(path, |l| {
            if let Leaf::Bool(b) = l {
                Some(*b)
            } else {
                None
            }
        })
    }

    fn count(&self, path: &[&str]) -> Given<u64> {
        self.leaf(path, |l| {
            if let Leaf::Count(n) | Leaf::Bytes(n) = l {
                Some(*n)
            } else {
                None
            }
        })
    }

    fn text(&self, path: &[&str]) -> Given<String> {
        self.leaf(path, |l| {
            if let Leaf::Text(t) = l {
                Some(t.clone())
            } else {
                None
            }
        })
    }

    fn path(&self, path: &[&str]) -> Given<PathBuf> {
        self.leaf(path, |l| {
            if let Leaf::Path(p) = l {
                Some(p.clone())
            } else {
                None
            }
        })
    }

    fn word(&self, path: &[&str]) -> Given<&'static str> {
        self.leaf(path, |l| {
            if let Leaf::Word(w) = l {
                Some(*w)
            } else {
                None
            }
        })
    }

    fn time(&self, path: &[&str]) -> Given<Option<Duration>> {
        self.leaf(path, |l| {
            if let Leaf::Time(t) = l {
                Some(*t)
            } else {
                None
            }
        })
    }

    fn end(&self, path: &[&str]) -> Given<Endpoint> {
        self.leaf(path, |l| {
            if let Leaf::Endpoint(e) = l {
                Some(e.clone())
            } else {
                None
            }
        })
    }

    fn members<T>(&self, path: &[&str], read: impl Fn(Reader<'_>) -> T) -> Vec<Spanned<T>> {
        match self.entry(path).map(|e| &e.body) {
            // A member with a wrong value would be blamed for what it lacks, too.
            Some(Body::List(members)) => members
                .iter()
                .filter(|m| !m.broken())
                .map(|m| Spanned::new(read(Reader(m)), m.span))
                .collect(),
            _ => Vec::new(),
        }
    }

    pub(super) fn scenario(&self) -> Scenario {
        Scenario {
            name: self.text(&["name"]),
            cpu: Cpu {
                count: self.count(&["cpu", "count"]),
                sockets: self.count(&["cpu", "topology", "sockets"]),
                cores: self.count(&["cpu", "topology", "cores"]),
                threads: self.count(&["cpu", "topology", "threads"]),
                ht: self.bool(&["cpu", "ht"]),
                nested: self.bool(&["cpu", "nested"]),
                pin: self.members(&["cpu", "pin"], |r| Pin {
                    vcpu: r.count(&["vcpu"]),
                    cpus: r.text(&["cpus"]),
                }),
                emulator_cpus: self.text(&["cpu", "emulator_cpus"]),
                scheduler: self.word(&["cpu", "scheduler"]),
                priority: self.count(&["cpu", "priority"]),
            },
            memory: self.count(&["memory", "size"]),
            backing: Backing {
                source: self.word(&["memory", "source"]),
                hugepages: self.word(&["memory", "hugepages"]),
                locked: self.bool(&["memory", "locked"]),
                nosharepages: self.bool(&["memory", "nosharepages"]),
                allocation: self.word(&["memory", "allocation"]),
                numa_nodes: self.text(&["memory", "numa_nodes"]),
                hard_limit: self.count(&["memory", "hard_limit"]),
            },
            kernel: Kernel {
                path: self.path(&["kernel", "path"]),
                initrd: self
                    .leaf(&["kernel", "initrd"], |l| {
                        if let Leaf::Paths(p) = l {
                            Some(p.clone())
                        } else {
                            None
                        }
                    })
                    .map(|paths| paths.value)
                    .unwrap_or_default(),
                cmdline: self.text(&["kernel", "cmdline"]),
                prolog: self.text(&["kernel", "prolog"]),
                epilog: self.text(&["kernel", "epilog"]),
                format: self.word(&["kernel", "format"]),
                entry: self.word(&["kernel", "entry"]),
                console: self.word(&["kernel", "console"]),
                devices_on_cmdline: self.word(&["kernel", "devices_on_cmdline"]),
            },
            root: Root {
                device: self.text(&["root", "device"]),
                fstype: self.text(&["root", "fstype"]),
                options: self.text(&["root", "options"]),
            },
            command: self.leaf(&["command"], |l| {
                if let Leaf::Words(w) = l {
                    Some(w.clone())
                } else {
                    None
                }
            }),
            env: self
                .leaf(&["env"], |l| {
                    if let Leaf::Env(e) = l {
                        Some(e.clone())
                    } else {
                        None
                    }
                })
                .map(|env| env.value)
                .unwrap_or_default(),
            workdir: self.text(&["workdir"]),
            disks: self.members(&["disks"], |r| Disk {
                path: r.path(&["path"]),
                id: r.text(&["id"]),
                format: r.word(&["format"]),
                read_only: r.bool(&["read_only"]),
                cache: r.word(&["cache"]),
                direct_io: r.bool(&["direct_io"]),
                sync: r.word(&["sync"]),
                discard: r.word(&["discard"]),
                block_size: r.count(&["block_size"]),
                device: r.word(&["device"]),
                size: r.count(&["size"]),
                shareable: r.bool(&["shareable"]),
                encryption: r.word(&["encryption"]),
            }),
            serials: self.members(&["serials"], |r| Serial {
                to: r.end(&["to"]),
                log: r.bool(&["log"]),
            }),
            consoles: self.members(&["consoles"], |r| ConsolePort {
                name: r.text(&["name"]),
                input: r.end(&["in"]),
                output: r.end(&["out"]),
                tty: r.end(&["tty"]),
            }),
            console: Console {
                log: self.path(&["console", "log"]),
                implicit: self.bool(&["console", "implicit"]),
            },
            // Who says how it works wants one.
            rng: self.bool(&["rng", "enabled"]).or_else(|| {
                let entry = self.entry(&["rng"])?;
                matches!(&entry.body, Body::Map(keys) if !keys.is_empty())
                    .then(|| Spanned::new(true, entry.span))
            }),
            irqchip: self.word(&["irqchip"]),
            pit: self.bool(&["timers", "pit"]),
            iothreads: self.count(&["iothreads"]),
            events: Events {
                on_poweroff: self.word(&["events", "on_poweroff"]),
                on_reboot: self.word(&["events", "on_reboot"]),
                on_crash: self.word(&["events", "on_crash"]),
                on_lockfailure: self.word(&["events", "on_lockfailure"]),
                max_restarts: self.count(&["events", "max_restarts"]),
            },
            limits: Limits {
                timeout: self.time(&["limits", "timeout"]),
                boot_deadline: self.time(&["limits", "boot_deadline"]),
                stop_grace: self.time(&["limits", "stop_grace"]),
                memory_max: self.count(&["limits", "memory_max"]),
                memory_high: self.count(&["limits", "memory_high"]),
                cpu_max: self.text(&["limits", "cpu_max"]),
                pids_max: self.count(&["limits", "pids_max"]),
                io_max: self.members(&["limits", "io_max"], |r| IoMax {
                    disk: r.count(&["disk"]),
                    rbps: r.count(&["rbps"]),
                    wbps: r.count(&["wbps"]),
                    riops: r.count(&["riops"]),
                    wiops: r.count(&["wiops"]),
                }),
                slice: self.text(&["limits", "slice"]),
            },
            guest_parameters: self.text(&["guest", "parameters"]),
            locking: Locking {
                driver: self.word(&["locking", "driver"]),
                file: self.path(&["locking", "file_lockspace_dir"]),
                lvm: self.path(&["locking", "lvm_lockspace_dir"]),
                scsi: self.path(&["locking", "scsi_lockspace_dir"]),
                host_id: self.count(&["locking", "host_id"]),
                leases: self.path(&["locking", "disk_lease_dir"]),
                io_timeout: self.count(&["locking", "io_timeout"]),
            },
            control: self.bool(&["control"]),
            register: self.bool(&["register"]),
            sandbox: self.bool(&["sandbox"]),
        }
    }
}
