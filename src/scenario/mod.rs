//! Scenarios: YAML text and `-o key=value` flags to one typed tree in which every value knows where it was written.
//!
//! Nothing here touches the host: the caller hands in bytes, and paths are only joined.

#![forbid(unsafe_code)]

pub mod keys;
pub(crate) mod suggest;
mod tree;
pub(crate) mod value;
mod yaml;

pub(crate) use yaml::MAX_BYTES;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};
use vsc_devices::stream::Endpoint;

use crate::diag::{Diagnostic, Origin, Sources, Span, Spanned};
use tree::{Body, Decoder, Entry, Leaf};

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
    pub disks: Vec<Disk>,
    /// `serials`
    pub serials: Vec<Serial>,
    /// `consoles`
    pub consoles: Vec<ConsolePort>,
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
    /// Where the member starts.
    pub span: Span,
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
}

/// A member of `serials`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Serial {
    /// Where the member starts.
    pub span: Span,
    /// `serials[].to`
    pub to: Given<Endpoint>,
    /// `serials[].log`
    pub log: Given<bool>,
}

/// A member of `consoles`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ConsolePort {
    /// Where the member starts.
    pub span: Span,
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
}

/// One option of the command line that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    text: String,
    key: (usize, usize),
    value: usize,
}

impl Override {
    /// `-o key=value`. A text without `=` is kept and reported by [`parse`].
    pub fn option(assignment: &str) -> Self {
        let text = format!("-o {assignment}");
        let end = text.find('=').unwrap_or(text.len());
        Override {
            key: (3, end),
            value: (end + 1).min(text.len()),
            text,
        }
    }

    /// An option of its own, such as `--memory 2G`, that stands for a key.
    pub fn flag(flag: &str, key: &'static str, value: &str) -> Flag {
        Flag {
            text: format!("{flag} {value}"),
            key,
            value: flag.len() + 1,
        }
    }
}

/// An option such as `--memory 2G` that stands for a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    text: String,
    key: &'static str,
    value: usize,
}

/// One thing that goes on top of the file, in the order of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layer {
    /// `-o key=value`
    Option(Override),
    /// `--memory 2G`
    Flag(Flag),
    /// `-- CMD ARG…`
    Command(Vec<String>),
}

/// Everything that [`parse`] reads.
#[derive(Debug, Clone, Default)]
pub struct Input<'a> {
    /// The scenario file: its name as the user gave it, and its content.
    pub file: Option<(&'a Path, &'a [u8])>,
    /// What the command line adds; later wins.
    pub layers: Vec<Layer>,
    /// `$HOME`, for `~`.
    pub home: Option<PathBuf>,
}

/// A parsed scenario with what was found wrong in it.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// What it says. Where a value was wrong it is left out here.
    pub scenario: Scenario,
    /// What is wrong, in the order of discovery.
    pub problems: Vec<Diagnostic>,
    /// The texts that spans point into.
    pub sources: Arc<Sources>,
    /// The file, as the user named it.
    pub file: Option<PathBuf>,
    pub(crate) tree: Arc<Entry>,
}

/// Parses a scenario and everything on top of it. All that is wrong is found in one pass.
pub fn parse(input: &Input<'_>) -> Parsed {
    let mut sources = Sources::default();
    let mut problems = Vec::new();
    let mut tree = tree::empty();
    if let Some((path, bytes)) = input.file {
        let name = path.display().to_string();
        let base = value::Base {
            dir: value::directory_of(path),
            home: input.home.clone(),
        };
        match yaml::decode(bytes) {
            Err((shown, problem)) => {
                problems.push(problem.diagnostic(sources.add_file(&name, shown)))
            }
            Ok(text) => {
                let source = sources.add_file(&name, text.clone());
                if let Some(node) = yaml::parse(&text, source, 0, &mut problems) {
                    tree = Decoder {
                        base: &base,
                        problems: &mut problems,
                    }
                    .file(&node);
                }
            }
        }
    }
    let base = value::Base {
        dir: PathBuf::new(),
        home: input.home.clone(),
    };
    for layer in &input.layers {
        if let Some(over) = decode_layer(layer, &base, &mut sources, &mut problems) {
            tree::merge(&mut tree, over, &mut problems);
        }
    }
    let file = input.file.map(|(path, _)| path.to_owned());
    let scenario = Reader(&tree).scenario();
    Parsed {
        scenario,
        problems,
        sources: Arc::new(sources),
        file,
        tree: Arc::new(tree),
    }
}

fn decode_layer(
    layer: &Layer,
    base: &value::Base,
    sources: &mut Sources,
    problems: &mut Vec<Diagnostic>,
) -> Option<Entry> {
    match layer {
        Layer::Command(words) => {
            let mut text = String::from("--");
            let mut places = Vec::with_capacity(words.len());
            for word in words {
                text.push(' ');
                places.push((text.len(), text.len() + word.len()));
                text.push_str(word);
            }
            let whole = (3.min(text.len()), text.len());
            let source = sources.add_flag(text.into());
            let words = words
                .iter()
                .zip(places)
                .map(|(w, (a, b))| Spanned::new(w.clone(), Span::new(source, a, b)));
            let key = keys::at(&["command"])?;
            let span = Span::new(source, whole.0, whole.1);
            let body = Body::Leaf(Leaf::Words(words.collect()));
            let mut root = tree::empty();
            root.body = Body::Map(vec![Entry {
                key,
                key_span: span,
                span,
                body,
            }]);
            Some(root)
        }
        Layer::Option(Override { text, key, value }) => {
            let source = sources.add_flag(text.as_str().into());
            let name = text.get(key.0..key.1).unwrap_or_default();
            if *value == text.len() && !text.ends_with('=') {
                let d = Diagnostic::error(
                    "E-OPTION",
                    Span::new(source, key.0, key.1),
                    "This option has no `=`",
                );
                problems.push(d.help("Write `-o key=value`, for example `-o memory=2G`"));
                return None;
            }
            let mut from = key.0;
            let mut path = Vec::new();
            for word in name.split('.') {
                path.push(Spanned::new(
                    word,
                    Span::new(source, from, from + word.len()),
                ));
                from += word.len() + 1;
            }
            flag_value(text, *value, source, &path, base, problems)
        }
        Layer::Flag(Flag { text, key, value }) => {
            let source = sources.add_flag(text.as_str().into());
            let span = Span::new(source, 0, value.saturating_sub(1));
            let path: Vec<Spanned<&str>> = key
                .split('.')
                .map(|word| Spanned::new(word, span))
                .collect();
            flag_value(text, *value, source, &path, base, problems)
        }
    }
}

fn flag_value(
    text: &str,
    at: usize,
    source: u16,
    path: &[Spanned<&str>],
    base: &value::Base,
    problems: &mut Vec<Diagnostic>,
) -> Option<Entry> {
    let value = text.get(at..).unwrap_or_default();
    let node = if value.starts_with(['[', '{', '"', '\'']) {
        yaml::parse(value, source, at, problems)?
    } else {
        yaml::plain(value, Span::new(source, at, text.len()))
    };
    Decoder { base, problems }.flag(path, &node)
}

/// Reads typed values out of a tree.
struct Reader<'a>(&'a Entry);

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

    fn members<T>(&self, name: &str, read: impl Fn(Reader<'_>, Span) -> T) -> Vec<T> {
        match self.entry(&[name]).map(|e| &e.body) {
            // A member with a wrong value would be blamed for what it lacks, too.
            Some(Body::List(members)) => members
                .iter()
                .filter(|m| !m.broken())
                .map(|m| read(Reader(m), m.span))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn scenario(&self) -> Scenario {
        Scenario {
            name: self.text(&["name"]),
            cpu: Cpu {
                count: self.count(&["cpu", "count"]),
                sockets: self.count(&["cpu", "topology", "sockets"]),
                cores: self.count(&["cpu", "topology", "cores"]),
                threads: self.count(&["cpu", "topology", "threads"]),
                ht: self.bool(&["cpu", "ht"]),
                nested: self.bool(&["cpu", "nested"]),
            },
            memory: self.count(&["memory", "size"]),
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
            disks: self.members("disks", |r, span| Disk {
                span,
                path: r.path(&["path"]),
                id: r.text(&["id"]),
                format: r.word(&["format"]),
                read_only: r.bool(&["read_only"]),
                cache: r.word(&["cache"]),
                direct_io: r.bool(&["direct_io"]),
                sync: r.word(&["sync"]),
                discard: r.word(&["discard"]),
                block_size: r.count(&["block_size"]),
            }),
            serials: self.members("serials", |r, span| Serial {
                span,
                to: r.end(&["to"]),
                log: r.bool(&["log"]),
            }),
            consoles: self.members("consoles", |r, span| ConsolePort {
                span,
                name: r.text(&["name"]),
                input: r.end(&["in"]),
                output: r.end(&["out"]),
                tty: r.end(&["tty"]),
            }),
            console: Console {
                log: self.path(&["console", "log"]),
                implicit: self.bool(&["console", "implicit"]),
            },
            rng: self.bool(&["rng"]),
            irqchip: self.word(&["irqchip"]),
            pit: self.bool(&["timers", "pit"]),
            iothreads: self.count(&["iothreads"]),
            events: Events {
                on_poweroff: self.word(&["events", "on_poweroff"]),
                on_reboot: self.word(&["events", "on_reboot"]),
                on_crash: self.word(&["events", "on_crash"]),
                max_restarts: self.count(&["events", "max_restarts"]),
            },
            limits: Limits {
                timeout: self.time(&["limits", "timeout"]),
                boot_deadline: self.time(&["limits", "boot_deadline"]),
                stop_grace: self.time(&["limits", "stop_grace"]),
            },
            guest_parameters: self.text(&["guest", "parameters"]),
        }
    }
}

/// A word of the key table as the type that a spec has for it.
pub(crate) fn word<T: for<'de> Deserialize<'de>>(given: Given<&'static str>) -> Option<T> {
    let word: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        given?.value.into_deserializer();
    T::deserialize(word).ok()
}

/// One value with its origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its path, such as `disks[0].cache`.
    pub key: String,
    /// The value, as it could be written in a scenario.
    pub value: String,
    /// Where it came from.
    pub origin: Origin,
}

impl Parsed {
    /// Every value that was written, and the default of every key of the table that has one.
    pub fn settings(&self) -> Vec<Setting> {
        let mut out = Vec::new();
        tree::settings(&self.tree, String::new(), &mut |key, value, span| {
            out.push(Setting {
                key,
                value,
                origin: self.sources.origin(span),
            });
        });
        out
    }
}

#[cfg(test)]
mod tests;
