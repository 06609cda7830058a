//! Parsers of single values: amounts, times, stream ends, command lines, environments, paths.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use vsc_devices::stream::Endpoint;

/// Why a text is not the value it should be: byte range in the text, and a sentence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) message: String,
}

impl Fault {
    fn at(from: usize, to: usize, message: impl Into<String>) -> Self {
        Fault {
            from,
            to,
            message: message.into(),
        }
    }

    fn all(text: &str, message: impl Into<String>) -> Self {
        Fault::at(0, text.len(), message)
    }
}

type Parsed<T> = Result<T, Fault>;

/// YAML 1.2's two words and YAML 1.1's six.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

/// A whole number: decimal, or 0x and 0o as YAML 1.2 has them. A leading zero is refused: YAML 1.1 and 1.2 disagree
/// on what it means.
pub(crate) fn count(text: &str) -> Option<u64> {
    let plain = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match (plain.strip_prefix("0x"), plain.strip_prefix("0o")) {
        (Some(hex), _) => (hex, 16),
        (_, Some(octal)) => (octal, 8),
        _ if plain.len() > 1 && plain.starts_with('0') => return None,
        _ => (plain, 10),
    };
    let valid = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    if valid {
        u64::from_str_radix(digits, radix).ok()
    } else {
        None
    }
}

/// A decimal number with an optional fraction, and the unit behind it.
fn number_and_unit(text: &str) -> Option<(u64, u64, u64, &str)> {
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let scale = 10u64.pow(u32::try_from(fraction.len()).ok()?);
    Some((
        whole.parse().ok()?,
        fraction.parse().ok()?,
        scale,
        unit.trim_start(),
    ))
}

/// `whole + fraction / scale` times `unit`, exact, or nothing when it is not a whole number or too large.
fn times(whole: u64, fraction: u64, scale: u64, unit: u64) -> Option<u64> {
    let part = fraction.checked_mul(unit)?;
    if part % scale != 0 {
        return None;
    }
    whole.checked_mul(unit)?.checked_add(part / scale)
}

/// An amount of memory in bytes. K, M, G, T and KiB, MiB, GiB, TiB are powers of 1024, as in libvirt and QEMU; KB and
/// MB would be powers of 1000 there and are refused as ambiguous.
pub(crate) fn size(text: &str) -> Parsed<u64> {
    let expected = "an amount of memory, such as 512M, 2G or 768 (MiB)";
    let Some((whole, fraction, scale, unit)) = number_and_unit(text) else {
        return Err(Fault::all(text, format!("expected {expected}")));
    };
    let shift = match unit {
        "" | "M" | "m" | "MiB" | "Mi" => 20,
        "K" | "k" | "KiB" | "Ki" => 10,
        "G" | "g" | "GiB" | "Gi" => 30,
        "T" | "t" | "TiB" | "Ti" => 40,
        "B" | "b" | "bytes" => 0,
        _ => {
            let from = text.len() - unit.len();
            let ambiguous = matches!(unit, "KB" | "MB" | "GB" | "TB" | "kB");
            let message = match ambiguous {
                true => {
                    "1000 or 1024? Write K, M, G, T (or KiB, MiB, GiB, TiB), which are powers of 1024"
                }
                false => "not a unit of memory: K, M, G, T, KiB, MiB, GiB, TiB, or none for MiB",
            };
            return Err(Fault::at(from, text.len(), message));
        }
    };
    times(whole, fraction, scale, 1 << shift)
        .ok_or_else(|| Fault::all(text, "not a whole number of bytes below 2^64"))
}

/// Whether a text is an amount of memory that is only too large.
pub(crate) fn is_beyond(text: &str) -> bool {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    !number.is_empty() && size(text).is_err() && size(&format!("1{unit}")).is_ok()
}

/// A span of time; `None` for `none`.
pub(crate) fn time(text: &str) -> Parsed<Option<Duration>> {
    if matches!(text, "none" | "never") {
        return Ok(None);
    }
    let Some((whole, fraction, scale, unit)) = number_and_unit(text) else {
        return Err(Fault::all(
            text,
            "expected a time, such as 1500ms, 10s, 2m or 1h, or none",
        ));
    };
    let micros = match unit {
        "us" | "µs" => 1,
        "ms" => 1000,
        "" | "s" | "sec" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        _ => {
            return Err(Fault::at(
                text.len() - unit.len(),
                text.len(),
                "not a unit of time: us, ms, s, m, h, or none for seconds",
            ));
        }
    };
    match times(whole, fraction, scale, micros) {
        Some(0) => Err(Fault::all(
            text,
            "a time of nothing at all: write none for no limit",
        )),
        Some(n) if n <= 3_600_000_000 * 24 * 366 => Ok(Some(Duration::from_micros(n))),
        _ => Err(Fault::all(text, "a time between 1us and a year")),
    }
}

/// A name that is safe in file names, serial numbers and XML.
pub(crate) fn name(text: &str, max: usize) -> Parsed<String> {
    if text.is_empty() || text.len() > max {
        return Err(Fault::all(
            text,
            format!("{} bytes long; a name has 1 to {max}", text.len()),
        ));
    }
    let odd = text
        .char_indices()
        .find(|(_, c)| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.' | '+' | ':'));
    if let Some((at, c)) = odd {
        let message = format!(
            "{} may not stand in a name: letters, digits, `-`, `_`, `.`, `+`, `:`",
            crate::diag::quoted(&c.to_string())
        );
        return Err(Fault::at(at, at + c.len_utf8(), message));
    }
    if text.chars().all(|c| c == '.') {
        return Err(Fault::all(text, "a name needs more than dots"));
    }
    Ok(text.to_owned())
}

/// What relative paths and `~` stand for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Base {
    pub(crate) dir: PathBuf,
    pub(crate) home: Option<PathBuf>,
}

/// A path of the host.
pub(crate) fn path(text: &str, base: &Base) -> Parsed<PathBuf> {
    if text.is_empty() {
        return Err(Fault::all(text, "an empty file name"));
    }
    let Some(rest) = text.strip_prefix('~') else {
        return Ok(if base.dir.as_os_str().is_empty() {
            PathBuf::from(text)
        } else {
            base.dir.join(text)
        });
    };
    match (&base.home, rest.is_empty() || rest.starts_with('/')) {
        (Some(home), true) => Ok(home.join(rest.trim_start_matches('/'))),
        (None, true) => Err(Fault::at(0, 1, "`~` needs $HOME, which is not set")),
        (_, false) => Err(Fault::all(
            text,
            "`~user` is not understood: write the directory, or ./~… for a file of that name",
        )),
    }
}

/// A host end of a byte stream. The path in it is resolved as [`path`] does.
pub(crate) fn endpoint(text: &str, base: &Base) -> Parsed<Endpoint> {
    let forms = "stdio, stdin, stdout, stderr, null, file:PATH, unix:PATH or fd:NUMBER";
    let inner = |at: usize| -> Parsed<PathBuf> {
        let name = text.get(at..).unwrap_or_default();
        path(name, base).map_err(|f| Fault::at(at + f.from, at + f.to, f.message))
    };
    Ok(match text {
        "null" | "none" => Endpoint::Null,
        "stdio" => Endpoint::Stdio,
        "stdin" => Endpoint::Stdin,
        "stdout" => Endpoint::Stdout,
        "stderr" => Endpoint::Stderr,
        _ => match text.split_once(':') {
            Some(("file", _)) => Endpoint::File(inner(5)?),
            Some(("unix", socket)) => {
                let path = inner(5)?;
                // sockaddr_un holds 108 bytes with the NUL (linux/un.h, UNIX_PATH_MAX).
                if path.as_os_str().len() > 107 {
                    return Err(Fault::at(
                        5,
                        5 + socket.len(),
                        format!(
                            "the socket's path {} is longer than the 107 bytes a socket may have",
                            path.display()
                        ),
                    ));
                }
                Endpoint::Unix(path)
            }
            Some(("fd", number)) => match count(number) {
                Some(n) if n <= 1 << 20 && !number.starts_with('+') => {
                    Endpoint::Given(format!("fd:{n}"))
                }
                _ => return Err(Fault::at(3, text.len(), "not the number of a descriptor")),
            },
            _ => return Err(Fault::all(text, format!("expected {forms}"))),
        },
    })
}

/// The word for an [`Endpoint`], as [`endpoint`] reads it.
pub(crate) fn endpoint_text(end: &Endpoint) -> String {
    match end {
        Endpoint::Null => "null".into(),
        Endpoint::Stdio => "stdio".into(),
        Endpoint::Stdin => "stdin".into(),
        Endpoint::Stdout => "stdout".into(),
        Endpoint::Stderr => "stderr".into(),
        Endpoint::File(path) => format!("file:{}", path.display()),
        Endpoint::Unix(path) => format!("unix:{}", path.display()),
        Endpoint::Given(name) => name.clone(),
    }
}

/// Splits as a shell does: blanks, single and double quotes, backslashes. Nothing is expanded; what a shell would
/// treat specially (`|`, `;`, `$`, …) is an ordinary character.
pub(crate) fn words(text: &str) -> Parsed<Vec<String>> {
    let mut out = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => out.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some((_, '\'')) => break,
                        Some((_, c)) => word.push(c),
                        None => return Err(Fault::at(at, at + 1, "this quote is not closed")),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some((_, '"')) => break,
                        Some((_, '\\')) => match chars.next() {
                            Some((_, c @ ('"' | '\\' | '$' | '`'))) => word.push(c),
                            Some((_, '\n')) => {}
                            Some((_, c)) => word.extend(['\\', c]),
                            None => return Err(Fault::at(at, at + 1, "this quote is not closed")),
                        },
                        Some((_, c)) => word.push(c),
                        None => return Err(Fault::at(at, at + 1, "this quote is not closed")),
                    }
                }
            }
            '\\' => match chars.next() {
                Some((_, '\n')) => {}
                Some((_, c)) => word.get_or_insert_default().push(c),
                None => return Err(Fault::at(at, at + 1, "nothing follows this backslash")),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    out.extend(word);
    Ok(out)
}

/// Whether `text` can be the name of an environment variable.
pub(crate) fn variable(text: &str) -> bool {
    !text.is_empty() && !text.contains(['=', '\0']) && !text.chars().any(char::is_whitespace)
}

/// Permission bits in octal, as four digits.
pub(crate) fn mode(text: &str) -> Option<String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let bits = u32::from_str_radix(digits, 8).ok()?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit());
    (plain && bits <= 0o777).then(|| format!("{bits:04o}"))
}

/// A size as people write it: the largest unit that divides it.
pub(crate) fn size_text(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// An amount of memory as a scenario has it: `1G`.
pub(crate) fn size_word(bytes: u64) -> String {
    for (shift, unit) in [(40, 'T'), (30, 'G'), (20, 'M'), (10, 'K')] {
        if bytes > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

/// A time as people write it.
pub(crate) fn time_text(time: Option<Duration>) -> String {
    match time {
        None => "none".into(),
        Some(t) if t.subsec_nanos() == 0 => format!("{}s", t.as_secs()),
        Some(t) if t.subsec_nanos() % 1_000_000 == 0 => format!("{}ms", t.as_millis()),
        Some(t) => format!("{}us", t.as_micros()),
    }
}

/// The directory that relative paths of the scenario `file` start from.
pub(crate) fn directory_of(file: &Path) -> PathBuf {
    file.parent().map(Path::to_owned).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("256", 256 << 20),
            ("256M", 256 << 20),
            ("256 MiB", 256 << 20),
            ("1024k", 1 << 20),
            ("1.5G", 3 << 29),
            ("2GiB", 2 << 30),
            ("1T", 1 << 40),
            ("4096B", 4096),
            ("0", 0),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "M",
            "1.G",
            "-1",
            "1e3",
            "99999999999999999999",
            "20000000T",
            "0.0001K",
            "1..5G",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(size("12MB").map_err(|f| (f.from, f.to)), Err((2, 4)));
        assert_eq!(size("12 apples").map_err(|f| (f.from, f.to)), Err((3, 9)));
    }

    #[test]
    fn times_and_counts() {
        assert_eq!(time("1500ms"), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(time("2m"), Ok(Some(Duration::from_secs(120))));
        assert_eq!(time("1.5"), Ok(Some(Duration::from_millis(1500))));
        assert_eq!(time("none"), Ok(None));
        for text in ["", "0", "0s", "5 days", "-1s", "400000h", "s"] {
            assert!(time(text).is_err(), "{text}");
        }
        assert_eq!(
            (
                count("12"),
                count("0x10"),
                count("0o17"),
                count("+3"),
                count("0")
            ),
            (Some(12), Some(16), Some(15), Some(3), Some(0))
        );
        assert!(
            [
                "",
                "012",
                "1.0",
                "-1",
                "0x",
                "+",
                "1_000",
                "0x+1",
                "18446744073709551616"
            ]
            .iter()
            .all(|t| count(t).is_none())
        );
    }

    #[test]
    fn command_lines_split_as_a_shell_does() {
        let split = |t| words(t).unwrap();
        assert_eq!(
            split(r#"sh -c 'echo "a  b"; exit 3'"#),
            ["sh", "-c", "echo \"a  b\"; exit 3"]
        );
        assert_eq!(split(r#"a"b c"d\ e "" "\$x\n""#), ["ab cd e", "", "$x\\n"]);
        assert_eq!(split("  "), [""; 0]);
        for text in ["'a", "\"a", "a\\", "\"a\\"] {
            assert!(words(text).is_err(), "{text}");
        }
    }

    #[test]
    fn stream_ends_read_back() {
        let base = Base {
            dir: "/lab".into(),
            home: Some("/root".into()),
        };
        for (text, back) in [
            ("stdio", "stdio"),
            ("null", "null"),
            ("unix:s.sock", "unix:/lab/s.sock"),
            ("file:~/x", "file:/root/x"),
            ("file:/a:b", "file:/a:b"),
            ("fd:3", "fd:3"),
        ] {
            assert_eq!(
                endpoint(text, &base).map(|e| endpoint_text(&e)),
                Ok(back.to_owned()),
                "{text}"
            );
        }
        for text in ["", "tcp:1", "file:", "unix:", "fd:", "fd:x", "STDIO"] {
            assert!(endpoint(text, &base).is_err(), "{text}");
        }
        assert!(endpoint(&format!("unix:{}", "a".repeat(108)), &base).is_err());
    }

    #[test]
    fn paths_are_relative_to_the_scenario() {
        let base = Base {
            dir: "lab".into(),
            home: None,
        };
        assert_eq!(path("a", &base), Ok("lab/a".into()));
        assert_eq!(path("/a", &base), Ok("/a".into()));
        assert!(
            path("~/a", &base).is_err()
                && path("~bob/a", &base).is_err()
                && path("", &base).is_err()
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>()) {
            let base = Base::default();
            let ranges = [size(&text).err(), time(&text).err(), name(&text, 20).err(), path(&text, &base).err(), endpoint(&text, &base).err(), words(&text).err()];
            for fault in ranges.into_iter().flatten() {
                prop_assert!(fault.from <= fault.to && fault.to <= text.len());
            }
            let _ = (count(&text), boolean(&text));
        }

        #[test]
        fn quoted_words_come_back(list in proptest::collection::vec("[^\0]{0,8}", 0..6)) {
            let line: Vec<String> = list.iter().map(|w| format!("'{}'", w.replace('\'', r"'\''"))).collect();
            prop_assert_eq!(words(&line.join(" ")), Ok(list));
        }
    }
}
