//! What the user has set: an ordered list of keys with values, as `-o KEY=VALUE` takes them, and what only the shell
//! knows.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde_json::Value;
use vsc::scenario::keys::{self, KEYS, Kind};
use vsc::scenario::{Layer, Override};

/// Commands of virt-scenario's shell that stand for one key of ours.
pub(super) const COMMANDS: [(&str, &str); 14] = [
    ("scenario", "preset"),
    ("name", "name"),
    ("vcpu", "cpu.count"),
    ("memory", "memory.size"),
    ("machine", "machine"),
    ("bootdev", "boot.devices"),
    ("vnet", "nets.0.source"),
    ("diskpath", "storage.dir"),
    ("capacity", "storage.size"),
    ("format", "storage.format"),
    ("encryption", "storage.encryption"),
    ("cache", "storage.cache"),
    ("hvconf", "hosts"),
    ("hvselect", "on"),
];

/// Settings that are no keys of a scenario.
pub(super) const OWN: [&str; 6] = ["cdrom", "vmimage", "mode", "overwrite", "force_sev", "conf"];

/// What a setting is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// The value of a key.
    Key,
    /// A network of libvirt: what `source` of the first card means then.
    Vnet,
    /// A CD in the drive.
    Cdrom,
    /// The image of the first disk, with its format where the file's name says it.
    Image(Option<&'static str>),
    /// A matter of the shell.
    Shell,
}

/// One thing that the user has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// A key's canonical path, or a word of [`OWN`].
    pub(super) id: String,
    pub(super) value: String,
    pub(super) what: What,
}

impl Setting {
    /// What it is called: virt-scenario's word where it has one.
    pub(super) fn label(&self) -> &str {
        label(&self.id)
    }
}

/// virt-scenario's word for a key.
pub(super) fn label(id: &str) -> &str {
    let of = COMMANDS.iter().find(|(_, key)| *key == id);
    of.map_or(id, |(command, _)| command)
}

/// Everything the user has set, in the order of setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings(pub(super) Vec<Setting>);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Assignment {
    key: String,
    value: String,
    /// The user gave this value by a command of its own.
    said: bool,
}

impl Assignment {
    pub(super) fn new(key: &str, value: &str) -> Self {
        let (key, value) = (key.to_owned(), value.to_owned());
        let said = true;
        Self { key, value, said }
    }

    /// What follows from another setting.
    fn implied(key: &str, value: &str) -> Self {
        let said = false;
        Self {
            said,
            ..Self::new(key, value)
        }
    }

    /// As `-o` takes it.
    pub(super) fn word(&self) -> String {
        format!("{}={}", self.key, self.value)
    }

    /// As the compiler takes it; messages show the command by which it was said.
    pub(super) fn layer(&self) -> Layer {
        let mut commands = COMMANDS.iter().filter(|_| self.said);
        match commands.find(|(_, key)| *key == self.key) {
            Some((command, key)) => Layer::Flag(Override::flag(command, key, &self.value)),
            None => Layer::Option(Override::option(&self.word())),
        }
    }
}

impl Settings {
    /// Sets something; what was set of it before goes.
    pub(super) fn put(&mut self, id: &str, value: impl Into<String>, what: What) {
        self.0.retain(|s| s.id != id);
        self.0.push(Setting {
            id: id.to_owned(),
            value: value.into(),
            what,
        });
    }

    pub(super) fn get(&self, id: &str) -> Option<&str> {
        let found = self.0.iter().find(|s| s.id == id);
        found.map(|s| s.value.as_str())
    }

    pub(super) fn is_on(&self, id: &str) -> bool {
        self.get(id) == Some("on")
    }

    /// Takes out a setting and everything below it; returns how many went.
    pub(super) fn remove(&mut self, id: &str) -> usize {
        let before = self.0.len();
        self.0.retain(|s| {
            let below = s.id.strip_prefix(id);
            !below.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        });
        before - self.0.len()
    }

    /// What is said of keys; not of the preset where another scenario was named.
    pub(super) fn keys(&self, preset: bool) -> Vec<Assignment> {
        let mut out = Vec::new();
        for setting in self.0.iter().filter(|s| preset || s.id != "preset") {
            if setting.what == What::Vnet {
                out.push(Assignment::implied("nets.0.type", "network"));
            }
            if matches!(setting.what, What::Key | What::Vnet) {
                out.push(Assignment::new(&setting.id, &setting.value));
            }
        }
        out
    }

    /// Whether it depends on a scenario's disks what the settings mean.
    pub(super) fn has_media(&self) -> bool {
        let media = |s: &Setting| matches!(s.what, What::Cdrom | What::Image(_));
        self.0.iter().any(media)
    }

    /// What image and CD are, on top of [`Settings::keys`] and of a scenario with these disks.
    pub(super) fn media(&self, disks: &[Value]) -> Vec<Assignment> {
        let say = |key: String, value: &str| Assignment::implied(&key, value);
        let device = |disk: &Value| {
            let device = disk.get("device").and_then(Value::as_str);
            device.unwrap_or("disk").to_owned()
        };
        let mut out = Vec::new();
        let mut length = disks.len();
        // A preset's disk is there as long as nobody names one; this names it.
        let implied = |at: usize| disks.get(at).is_some_and(|d| d.get("device").is_none());
        for (at, _) in disks.iter().enumerate().filter(|(at, _)| implied(*at)) {
            out.push(say(format!("disks.{at}.device"), "disk"));
        }
        for setting in &self.0 {
            if let What::Image(by_name) = setting.what {
                let at = disks.iter().position(|d| device(d) == "disk");
                let at = at.unwrap_or(length);
                length = length.max(at + 1);
                out.push(say(format!("disks.{at}.path"), &setting.value));
                let format = self.get("storage.format").or(by_name);
                out.extend(format.map(|format| say(format!("disks.{at}.format"), format)));
            }
        }
        if let Some(cdrom) = self.0.iter().find(|s| s.what == What::Cdrom) {
            let at = disks.iter().position(|d| device(d) == "cdrom");
            let at = at.unwrap_or(length);
            out.push(say(format!("disks.{at}.device"), "cdrom"));
            out.push(say(format!("disks.{at}.path"), &cdrom.value));
            if self.get("boot.devices").is_none() {
                out.push(say("boot.devices".into(), "[cdrom, hd]"));
            }
        }
        out
    }

    /// The block that stands above the prompt; nothing where nothing is set.
    pub(super) fn block(&self) -> String {
        let widths = self.0.iter().map(|s| s.label().chars().count());
        let width = widths.max().unwrap_or(0);
        let lines = self.0.iter().map(|s| {
            let value = vsc::diag::shown(&s.value);
            format!("  {:width$}  {value}\n", s.label())
        });
        match self.0.is_empty() {
            true => String::new(),
            false => format!("User Settings\n{}", lines.collect::<String>()),
        }
    }
}

/// The path of a key in canonical names: aliases resolved, `disks.cache` as `disks.0.cache`, `memory` with a single
/// value as `memory.size`. `None`: there is no such key.
pub(super) fn canonical(path: &str, value: &str) -> Option<String> {
    let mut keys = KEYS;
    let mut out: Vec<String> = Vec::new();
    let mut words = path.split('.').peekable();
    while let Some(word) = words.next() {
        let key = keys::find(keys, word)?;
        if let Kind::Alias(target) = key.kind {
            let rest = words.map(str::to_owned);
            let full: Vec<String> = target.iter().map(|w| (*w).to_owned()).chain(rest).collect();
            return canonical(&full.join("."), value);
        }
        out.push(key.name.to_owned());
        match key.kind {
            Kind::Map {
                keys: below,
                scalar,
            } => {
                keys = below;
                if let (None, Some(scalar), false) = (words.peek(), scalar, value.starts_with('{'))
                {
                    out.push(scalar.to_owned());
                }
            }
            Kind::List { keys: below, .. } => {
                keys = below;
                let is_index = |w: &&str| w.bytes().all(|b| b.is_ascii_digit()) && !w.is_empty();
                match words.next_if(is_index) {
                    Some(index) => out.push(index.to_owned()),
                    None if words.peek().is_some() => out.push("0".into()),
                    None => {}
                }
            }
            _ => return words.next().is_none().then(|| out.join(".")),
        }
    }
    Some(out.join("."))
}

/// The key that a canonical path leads to.
pub(super) fn key_at(id: &str) -> Option<&'static keys::Key> {
    let names: Vec<&str> = id
        .split('.')
        .filter(|w| w.parse::<u32>().is_err())
        .collect();
    keys::at(&names)
}

/// A file name of the user as an absolute path; `~` is the home directory.
///
/// # Errors
/// One sentence.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let home = || {
        let home = vsc::facts::Variables::of_process().home;
        home.ok_or("there is no home directory: $HOME is not set".to_owned())
    };
    let path = match text.strip_prefix('~') {
        Some("") => home()?,
        Some(rest) if rest.starts_with('/') => home()?.join(rest.trim_start_matches('/')),
        _ => PathBuf::from(text),
    };
    let path = std::path::absolute(path).map_err(|e| e.to_string())?;
    // `./a.iso` and `a.iso` are the same; what `..` means is for the file system to say.
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_have_one_spelling() {
        for (path, value, id) in [
            ("memory", "2G", Some("memory.size")),
            ("mem", "{size: 2G}", Some("memory")),
            ("vcpu", "2", Some("cpu.count")),
            ("cpu", "2", Some("cpu.count")),
            ("disk.cache", "none", Some("disks.0.cache")),
            ("disks.1.cache", "none", Some("disks.1.cache")),
            ("disks", "[a.img]", Some("disks")),
            ("vnet", "lab", Some("nets.0.source")),
            ("bootdev", "hd", Some("boot.devices")),
            ("name.x", "1", None),
            ("nonsense", "1", None),
            ("", "1", None),
        ] {
            assert_eq!(canonical(path, value).as_deref(), id, "{path}");
        }
        for (command, key) in COMMANDS {
            assert_eq!(canonical(key, "x").as_deref(), Some(key), "{command}");
            assert!(key_at(key).is_some(), "{command}");
        }
    }

    fn words(list: Vec<Assignment>) -> Vec<String> {
        list.iter().map(Assignment::word).collect()
    }

    #[test]
    fn what_is_set_again_is_set_once_and_last() {
        let mut settings = Settings::default();
        settings.put("memory.size", "1G", What::Key);
        settings.put("name", "a", What::Key);
        settings.put("memory.size", "2G", What::Key);
        assert_eq!(words(settings.keys(true)), ["name=a", "memory.size=2G"]);
        assert_eq!(
            settings.block(),
            "User Settings\n  name    a\n  memory  2G\n"
        );
        settings.put("memory.locked", "true", What::Key);
        assert_eq!(
            (settings.remove("memory"), settings.remove("memory")),
            (2, 0)
        );
        assert_eq!(words(settings.keys(true)), ["name=a"]);
        assert_eq!(Settings::default().block(), "");
    }

    #[test]
    fn media_go_where_the_scenario_has_room_for_them() {
        let mut settings = Settings::default();
        settings.put("cdrom", "/a.iso", What::Cdrom);
        let implied = [json!({"format": "qcow2"})];
        assert_eq!(
            words(settings.media(&implied)),
            [
                "disks.0.device=disk",
                "disks.1.device=cdrom",
                "disks.1.path=/a.iso",
                "boot.devices=[cdrom, hd]"
            ]
        );
        let own = [
            json!({"device": "cdrom", "path": "/b.iso"}),
            json!({"device": "disk"}),
        ];
        assert_eq!(
            words(settings.media(&own))[..2],
            ["disks.0.device=cdrom", "disks.0.path=/a.iso"]
        );
        settings.put("vmimage", "/c.img", What::Image(Some("raw")));
        settings.put("boot.devices", "hd", What::Key);
        assert_eq!(
            words(settings.media(&own)),
            [
                "disks.1.path=/c.img",
                "disks.1.format=raw",
                "disks.0.device=cdrom",
                "disks.0.path=/a.iso"
            ]
        );
        settings.put("storage.format", "qcow2", What::Key);
        assert_eq!(
            words(settings.media(&[])),
            [
                "disks.0.path=/c.img",
                "disks.0.format=qcow2",
                "disks.1.device=cdrom",
                "disks.1.path=/a.iso"
            ]
        );
    }
}
