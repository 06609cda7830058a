//! Versions of programs, as they say them.

#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::fmt;

use serde::Serialize;

/// Numbers with points between them. What is not said is zero.
#[derive(Debug, Clone, Serialize)]
#[serde(into = "String")]
pub struct Version(pub(super) Vec<u32>);

impl Version {
    /// The first version in what a program says of itself. At most four numbers are of interest.
    pub fn find(text: &str) -> Option<Self> {
        let mut words = text.split(|c: char| !c.is_ascii_digit() && c != '.' && c != '-');
        let word =
            words.find(|w| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit()))?;
        let numbers: Vec<u32> = word
            .split(['.', '-'])
            .map_while(|n| n.parse().ok())
            .take(4)
            .collect();
        (numbers.len() > 1).then_some(Version(numbers))
    }

    pub(super) fn is_before(&self, least: &[u32]) -> bool {
        let longest = self.0.len().max(least.len());
        let at = |list: &[u32], n: usize| list.get(n).copied().unwrap_or(0);
        (0..longest)
            .map(|n| at(&self.0, n).cmp(&at(least, n)))
            .find(|order| *order != Ordering::Equal)
            == Some(Ordering::Less)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_and_compared() {
        for (text, wanted) in [
            ("9.0.0\n", "9.0.0"),
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)",
                "7.2.22",
            ),
            ("QEMU emulator version 10.0.2", "10.0.2"),
            ("3.14.2-40.fc29", "3.14.2.40"),
            ("38.1.35-2.el9_4.2", "38.1.35.2"),
            ("libvirtd (libvirt) 4.5.0-rc1", "4.5.0"),
        ] {
            assert_eq!(
                Version::find(text).map(|v| v.to_string()).as_deref(),
                Some(wanted),
                "{text}"
            );
        }
        assert!(Version::find("no version").is_none());
        assert!(Version::find("package selinux-policy is not installed").is_none());
        for (a, b, before) in [
            ("2.11.2", &[2, 12][..], true),
            ("2.12", &[2, 12, 0], false),
            ("10.0", &[9, 1], false),
            ("4.5.0", &[5, 1, 0], true),
            ("3.14.2.39", &[3, 14, 2, 40], true),
            ("3.14.2.40", &[3, 14, 2, 40], false),
            ("3.14.3", &[3, 14, 2, 40], false),
        ] {
            assert_eq!(Version::find(a).unwrap().is_before(b), before, "{a} {b:?}");
        }
    }
}
