//! The kernel command line: put together, checked, and read for mistakes.
//!
//! Source: Linux `Documentation/admin-guide/kernel-parameters.rst`, `lib/cmdline.c` (`next_arg`: a `"` switches whether
//! spaces separate), `init/main.c` (everything after `--` belongs to init).

#![forbid(unsafe_code)]

use std::ops::Range;

/// Most bytes Linux on x86 keeps, without the NUL: `COMMAND_LINE_SIZE` is 2048 (`arch/x86/include/asm/setup.h`). What is
/// beyond is cut off silently by the kernel; so it is refused here.
pub const LINUX_MAX: usize = 2047;

/// The parts of a command line in their order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts<'a> {
    /// Before everything.
    pub prolog: &'a str,
    /// What the program adds by itself.
    pub defaults: &'a str,
    /// What the user asked for.
    pub user: &'a str,
    /// After everything. With `--` in an earlier part it belongs to init, as everything behind that does.
    pub epilog: &'a str,
}

/// A command line that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CmdlineError {
    /// Longer than Linux keeps.
    #[error(
        "The kernel command line is {len} bytes long, and Linux on x86 keeps {max} (COMMAND_LINE_SIZE 2048 with its NUL): \
         shorten it by {} bytes",
        len - max
    )]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// Most bytes allowed.
        max: usize,
    },
    /// A character that is not printable ASCII.
    #[error(
        "The kernel command line has the character {character:?} at byte {at} of its {part} part: only printable ASCII can be passed"
    )]
    BadCharacter {
        /// "prolog", "default", "user" or "epilog".
        part: &'static str,
        /// Byte offset in that part.
        at: usize,
        /// The character.
        character: char,
    },
    /// A quotation mark without its partner.
    #[error(
        "The kernel command line has an unpaired quotation mark at byte {at} of its {part} part: everything behind it would be one word"
    )]
    UnpairedQuote {
        /// "prolog", "default", "user" or "epilog".
        part: &'static str,
        /// Byte offset of the last quotation mark in that part.
        at: usize,
    },
}

/// The consoles a machine has, for [`lint`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Consoles {
    /// Serial ports: bit 0 = ttyS0 .. bit 3 = ttyS3.
    pub serial: u8,
    /// Number of virtio consoles (hvc0 ..).
    pub hvc: u8,
    /// There is a screen (tty0, tty1 ..).
    pub vga: bool,
}

/// Something in a command line that is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lint {
    /// Stable code: `W-CONSOLE`, `W-ROOT`, `W-INIT`, `W-DUPLICATE` or `W-CMDLINE-LENGTH`.
    pub code: &'static str,
    /// What and why.
    pub message: String,
    /// Byte range in the text given.
    pub span: Range<usize>,
}

/// Joins the parts with single spaces and checks the result: printable ASCII, paired quotation marks in each part,
/// at most [`LINUX_MAX`] bytes. White space around a part goes away.
pub fn assemble(parts: &Parts<'_>) -> Result<String, CmdlineError> {
    let named = [
        ("prolog", parts.prolog),
        ("default", parts.defaults),
        ("user", parts.user),
        ("epilog", parts.epilog),
    ];
    let mut line = String::new();
    for (part, text) in named {
        let leading = text.len() - text.trim_start().len();
        let text = text.trim();
        if let Some((at, character)) = text.char_indices().find(|(_, c)| !matches!(c, ' '..='~')) {
            return Err(CmdlineError::BadCharacter {
                part,
                at: leading + at,
                character,
            });
        }
        if text.matches('"').count() % 2 != 0 {
            let at = leading + text.rfind('"').unwrap_or(0);
            return Err(CmdlineError::UnpairedQuote { part, at });
        }
        if !text.is_empty() && !line.is_empty() {
            line.push(' ');
        }
        line.push_str(text);
    }
    if line.len() > LINUX_MAX {
        return Err(CmdlineError::TooLong {
            len: line.len(),
            max: LINUX_MAX,
        });
    }
    Ok(line)
}

/// One parameter of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word<'a> {
    /// The whole word as written, quotation marks included.
    pub text: &'a str,
    /// Up to the first `=`, without quotation marks around the word.
    pub key: &'a str,
    /// After the first `=`, without quotation marks around it.
    pub value: Option<&'a str>,
    /// Where it is.
    pub span: Range<usize>,
}

/// The kernel's own parameters: words up to a lone `--`.
pub fn words(cmdline: &str) -> impl Iterator<Item = Word<'_>> {
    let mut at = 0;
    let mut over = false;
    std::iter::from_fn(move || {
        if over {
            return None;
        }
        at += cmdline[at..].len() - cmdline[at..].trim_start().len();
        let start = at;
        let mut quoted = false;
        let end = cmdline[start..]
            .char_indices()
            .find(|&(_, c)| {
                quoted ^= c == '"';
                c.is_whitespace() && !quoted
            })
            .map_or(cmdline.len(), |(n, _)| start + n);
        at = end;
        let text = &cmdline[start..end];
        if text.is_empty() || text == "--" {
            over = true;
            return None;
        }
        let inner = text
            .strip_prefix('"')
            .map_or(text, |inner| inner.strip_suffix('"').unwrap_or(inner));
        let (key, value) = match inner.split_once('=') {
            Some((key, value)) => (key, Some(value.strip_prefix('"').unwrap_or(value))),
            None => (inner, None),
        };
        let value = value.map(|value| value.strip_suffix('"').unwrap_or(value));
        Some(Word {
            text,
            key,
            value,
            span: start..end,
        })
    })
}

/// Looks for mistakes: consoles that do not exist, parameters that contradict each other, lengths that are cut off.
/// `initrd`: the guest gets one.
pub fn lint(cmdline: &str, consoles: &Consoles, initrd: bool) -> Vec<Lint> {
    let words: Vec<_> = words(cmdline).collect();
    let mut lints = Vec::new();
    lint_consoles(&words, consoles, &mut lints);
    for key in ["root", "init", "rdinit", "rootfstype"] {
        let all: Vec<_> = words.iter().filter(|word| word.key == key).collect();
        if let [first, .., last] = all[..] {
            let code = if key == "root" {
                "W-ROOT"
            } else {
                "W-DUPLICATE"
            };
            let message = format!(
                "{key}= is given {} times: only the last, {}, counts (not {})",
                all.len(),
                last.text,
                first.text
            );
            lints.push(Lint {
                code,
                message,
                span: first.span.clone(),
            });
        }
    }
    let find = |key: &str| words.iter().rfind(|word| word.key == key);
    if let Some(word) = find("rdinit").filter(|_| !initrd) {
        let message = format!(
            "{} has no effect without an initrd: use init= for the root file system's init",
            word.text
        );
        lints.push(Lint {
            code: "W-INIT",
            message,
            span: word.span.clone(),
        });
    }
    if let (true, Some(word), None, None) = (initrd, find("init"), find("root"), find("rdinit")) {
        let message = format!(
            "{} names the init of the root file system, but there is an initrd and no root=: the kernel starts the \
             initrd's /init; use rdinit= to choose another there",
            word.text
        );
        lints.push(Lint {
            code: "W-INIT",
            message,
            span: word.span.clone(),
        });
    }
    for word in words
        .iter()
        .filter(|word| matches!(word.key, "init" | "rdinit"))
    {
        if !word.value.is_some_and(|value| value.starts_with('/')) {
            let message = format!(
                "{} is not an absolute path: the kernel cannot run it",
                word.text
            );
            lints.push(Lint {
                code: "W-INIT",
                message,
                span: word.span.clone(),
            });
        }
    }
    if cmdline.len() > LINUX_MAX {
        let message = format!(
            "the command line has {} bytes; Linux on x86 cuts it off after {LINUX_MAX}",
            cmdline.len()
        );
        lints.push(Lint {
            code: "W-CMDLINE-LENGTH",
            message,
            span: LINUX_MAX..cmdline.len(),
        });
    }
    lints
}

impl Consoles {
    /// Kernel names of the consoles there are.
    fn names(&self) -> Vec<String> {
        let serial = (0..4)
            .filter(|n| self.serial & 1 << n != 0)
            .map(|n| format!("ttyS{n}"));
        let hvc = (0..self.hvc).map(|n| format!("hvc{n}"));
        let vga = self.vga.then(|| "tty0".to_owned());
        serial.chain(hvc).chain(vga).collect()
    }

    /// `None`: not a device that a machine has or has not (`null`, `netcon0` …).
    fn has(&self, device: &str) -> Option<bool> {
        let number = |prefix: &str| {
            device
                .strip_prefix(prefix)
                .map(|rest| rest.parse::<u8>().ok())
        };
        if let Some(n) = number("ttyS") {
            return Some(n.is_some_and(|n| n < 8 && self.serial & 1 << n != 0));
        }
        if let Some(n) = number("hvc") {
            return Some(n.is_some_and(|n| n < self.hvc));
        }
        if let Some(n) = number("tty") {
            return n.map(|_| self.vga);
        }
        None
    }
}

/// Consoles that exist without hardware of the machine, or whose hardware is none of ours to know.
const OTHER_CONSOLES: [&str; 7] = [
    "null", "ttynull", "netcon", "uart", "uart8250", "ttyUSB", "brl",
];

fn lint_consoles(words: &[Word<'_>], consoles: &Consoles, lints: &mut Vec<Lint>) {
    let given: Vec<_> = words.iter().filter(|word| word.key == "console").collect();
    let device = |word: &Word<'_>| {
        word.value
            .unwrap_or("")
            .split(',')
            .next()
            .unwrap_or("")
            .to_owned()
    };
    let works = given
        .iter()
        .any(|word| consoles.has(&device(word)) != Some(false) && known(&device(word)));
    let names = consoles.names();
    let there = match &names[..] {
        [] => "there is no console at all".to_owned(),
        [only] => format!("the only console is {only}"),
        [rest @ .., last] => format!("the consoles are {} and {last}", rest.join(", ")),
    };
    for word in &given {
        let name = device(word);
        if name.is_empty() || (consoles.has(&name) != Some(false) && known(&name)) {
            continue;
        }
        let consequence = if works {
            "this one is ignored"
        } else {
            "kernel log would be lost"
        };
        let mut message = format!("console={name} but {there}; {consequence}");
        if let Some(meant) = names
            .iter()
            .find(|there| !known(&name) && one_typo(there, &name))
        {
            message += &format!(" (did you mean {meant}?)");
        }
        lints.push(Lint {
            code: "W-CONSOLE",
            message,
            span: word.span.clone(),
        });
    }
}

/// Is it spelled like a console of any machine?
fn known(device: &str) -> bool {
    let stem = device.trim_end_matches(|c: char| c.is_ascii_digit());
    matches!(stem, "ttyS" | "hvc" | "tty") || OTHER_CONSOLES.contains(&stem)
}

/// Are the words one insertion, deletion, change or swap of neighbours apart (case not counted)?
fn one_typo(a: &str, b: &str) -> bool {
    let (a, b) = (
        a.to_ascii_lowercase().into_bytes(),
        b.to_ascii_lowercase().into_bytes(),
    );
    let prefix = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[prefix..], &b[prefix..]);
    match (a, b) {
        ([], []) => true,
        ([_, rest @ ..], _) if rest == b => true,
        (_, [_, rest @ ..]) if rest == a => true,
        ([_, a @ ..], [_, b @ ..]) if a == b => true,
        ([a0, a1, a @ ..], [b0, b1, b @ ..]) => (a0, a1) == (b1, b0) && a == b,
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
