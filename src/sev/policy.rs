//! Launch policies: what the owner of an encrypted guest lets the host do with it, as bits and as words.
//!
//! SEV and SEV-ES: SEV API 0.24 (AMD 55766), table 2. SEV-SNP: SNP firmware ABI 1.55 (AMD 56860), table 9.

#![forbid(unsafe_code)]

use serde::Serialize;

use super::Level;

/// The host may not decrypt the guest's memory for debugging.
pub const NODBG: u64 = 1;
/// The guest's keys are not shared with other guests.
pub const NOKS: u64 = 1 << 1;
/// The state of the processors is encrypted too (SEV-ES).
pub const ES: u64 = 1 << 2;
/// The bit of an SNP policy that must be one.
pub const SNP_ONE: u64 = 1 << 17;
/// SNP: the host may decrypt the guest's memory for debugging.
pub const SNP_DEBUG: u64 = 1 << 19;

/// What a machine gets that says nothing: NODBG, NOKS, DOMAIN, SEV.
pub const SEV_DEFAULT: u64 = 0x33;
/// The same of SNP: SMT, and the bit that must be one.
pub const SNP_DEFAULT: u64 = SNP_ONE | 1 << 16;

/// A bit of a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bit {
    /// Its number.
    pub bit: u32,
    /// Its name in AMD's documents.
    pub name: &'static str,
    /// What holds when it is one.
    pub meaning: &'static str,
}

const fn bit(bit: u32, name: &'static str, meaning: &'static str) -> Bit {
    Bit { bit, name, meaning }
}

/// Bits of SEV and SEV-ES; 16 to 23 and 24 to 31 are the least version of the firmware's API.
pub const SEV_BITS: &[Bit] = &[
    bit(
        0,
        "NODBG",
        "the host may not decrypt the guest's memory for debugging",
    ),
    bit(
        1,
        "NOKS",
        "the guest's keys are not shared with other guests",
    ),
    bit(
        2,
        "ES",
        "the state of the processors is encrypted too: SEV-ES",
    ),
    bit(3, "NOSEND", "the guest is not sent to another platform"),
    bit(
        4,
        "DOMAIN",
        "the guest is sent to platforms of its domain only",
    ),
    bit(
        5,
        "SEV",
        "the guest is sent to platforms that have SEV only",
    ),
];

/// Bits of SEV-SNP; 0 to 7 and 8 to 15 are the least version (minor, major) of the firmware's ABI.
pub const SNP_BITS: &[Bit] = &[
    bit(
        16,
        "SMT",
        "cores may have hyperthreads that run something else",
    ),
    bit(17, "RESERVED_ONE", "must be one"),
    bit(
        18,
        "MIGRATE_MA",
        "the guest may be bound to a migration agent",
    ),
    bit(
        19,
        "DEBUG",
        "the host may decrypt the guest's memory for debugging",
    ),
    bit(
        20,
        "SINGLE_SOCKET",
        "the guest runs on one socket of the platform only",
    ),
    bit(21, "CXL_ALLOW", "CXL devices and memory may be there"),
    bit(22, "MEM_AES_256_XTS", "memory is encrypted by AES-256-XTS"),
    bit(23, "RAPL_DIS", "the power meter (RAPL) is off"),
    bit(
        24,
        "CIPHERTEXT_HIDING_DRAM",
        "the host does not see the guest's ciphertext in DRAM",
    ),
    bit(
        25,
        "PAGE_SWAP_DISABLE",
        "the host may not move or swap the guest's pages",
    ),
];

/// Bits 6 to 15 of SEV, which must be zero.
const SEV_RESERVED: u64 = 0xffc0;
/// Bits 26 to 63 of SNP, which must be zero.
const SNP_RESERVED: u64 = !0 << 26;
/// The greatest major version that a firmware of SEV's API has had.
const SEV_API_MAJOR: u64 = 1;

/// Why a policy is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Illegal {
    /// What is wrong.
    pub message: String,
    /// What to say instead.
    pub help: String,
    /// It is one, but not of the kind that was asked for.
    pub other_kind: bool,
}

fn illegal(message: impl Into<String>, help: impl Into<String>) -> Illegal {
    Illegal {
        message: message.into(),
        help: help.into(),
        other_kind: false,
    }
}

/// The bits that a policy of this level has.
pub fn bits(level: Level) -> &'static [Bit] {
    match level {
        Level::SevSnp => SNP_BITS,
        _ => SEV_BITS,
    }
}

/// The kind of guest that a policy is for, by the bit that all of SNP have and no firmware of SEV asks for.
pub fn kind(policy: u64) -> Level {
    match policy {
        p if p & SNP_ONE != 0 => Level::SevSnp,
        p if p & ES != 0 => Level::SevEs,
        _ => Level::Sev,
    }
}

/// Whether firmware takes this policy for a guest of this level.
///
/// # Errors
/// Why not.
pub fn check(level: Level, policy: u64) -> Result<(), Illegal> {
    match level {
        Level::SevSnp if policy & SNP_ONE == 0 => Err(illegal(
            "Bit 17 of an SNP policy must be one",
            "For example `policy: 0x30000`",
        )),
        Level::SevSnp if policy & SNP_RESERVED != 0 => Err(illegal(
            format!("{policy:#x} is no SNP policy: bits 26 to 63 must be zero"),
            "For example `policy: 0x30000`",
        )),
        Level::SevSnp => Ok(()),
        _ if policy > u64::from(u32::MAX) || policy & SEV_RESERVED != 0 => Err(illegal(
            format!("{policy:#x} is no SEV policy"),
            "Bits 0 to 5 (NODBG 1, NOKS 2, ES 4, NOSEND 8, DOMAIN 0x10, SEV 0x20), the least API version in bits 16 to 31",
        )),
        _ if policy >> 16 & 0xff > SEV_API_MAJOR => Err(illegal(
            format!(
                "{policy:#x} asks for version {} of SEV's API, which no firmware has",
                policy >> 16 & 0xff
            ),
            "Bits 16 to 23 are its major version, 0 or 1; an SNP policy is for `sev-snp`",
        )),
        Level::SevEs if policy & ES == 0 => Err(Illegal {
            other_kind: true,
            ..illegal(
                "The policy lacks the ES bit (0x4), and the type is sev-es",
                format!("Say `policy: {:#06x}`", policy | ES),
            )
        }),
        _ => Ok(()),
    }
}

/// How a policy protects less than the level could; `None`: it does not.
pub fn weakness(level: Level, policy: u64) -> Option<&'static str> {
    match level {
        Level::SevSnp if policy & SNP_DEBUG != 0 => {
            Some("the host may decrypt its memory (bit 19, DEBUG)")
        }
        Level::SevSnp => None,
        _ if policy & NODBG == 0 => Some("the host may decrypt its memory (bit 0, NODBG, is off)"),
        _ if policy & NOKS == 0 => {
            Some("its keys may be shared with other guests (bit 1, NOKS, is off)")
        }
        _ => None,
    }
}

/// What is left of a policy that says more than once what it says, or that KVM does not start; for people.
pub fn notes(level: Level, policy: u64) -> Vec<&'static str> {
    let has = |bit: u32| policy >> bit & 1 == 1;
    let mut notes = Vec::new();
    match level {
        Level::SevSnp => {
            if !has(16) {
                notes.push("without SMT (bit 16) it starts only where hyperthreads are off, and Linux 6.12 refuses it");
            }
            if has(20) {
                notes.push("Linux's KVM refuses SINGLE_SOCKET (bit 20)");
            }
            if has(18) || policy >> 21 & 0x1f != 0 {
                notes.push("Linux 6.12's KVM takes no bits but SMT, 17 and DEBUG");
            }
        }
        _ => {
            if has(3) && (has(4) || has(5)) {
                notes.push(
                    "a guest that is never sent (NOSEND) needs no limits on where to (DOMAIN, SEV)",
                );
            }
        }
    }
    notes
}

/// The names of the bits that are one, without the one that always is.
pub fn names(level: Level, policy: u64) -> Vec<&'static str> {
    let set = bits(level)
        .iter()
        .filter(|b| policy >> b.bit & 1 == 1 && (level != Level::SevSnp || 1 << b.bit != SNP_ONE));
    set.map(|b| b.name).collect()
}

/// The least version of the firmware's interface that a policy asks for, major and minor; `None`: any.
pub fn version(level: Level, policy: u64) -> Option<(u64, u64)> {
    let (major, minor) = match level {
        Level::SevSnp => (policy >> 8 & 0xff, policy & 0xff),
        _ => (policy >> 16 & 0xff, policy >> 24 & 0xff),
    };
    (major | minor != 0).then_some((major, minor))
}

/// A policy from words such as `nodbg,noks,es`, with `api=0.24` for the least version of the firmware's interface.
/// `level`: the kind of guest, where it is said; else the words tell it.
///
/// # Errors
/// A word that is none, or words of two kinds.
pub fn from_words(text: &str, level: Option<Level>) -> Result<(Level, u64), Illegal> {
    let (mut sev, mut snp) = (0, 0);
    let mut version = None;
    let (mut of_sev, mut of_snp) = (None, None);
    for word in text.split([',', ' ']).filter(|w| !w.is_empty()) {
        let upper = word.to_ascii_uppercase();
        let named = |bits: &'static [Bit]| bits.iter().find(|b| b.name == upper);
        if let Some(text) = upper.strip_prefix("API=") {
            let pair = text
                .split_once('.')
                .and_then(|(a, b)| Some((a.parse::<u8>().ok()?, b.parse::<u8>().ok()?)));
            let pair = pair.ok_or_else(|| {
                illegal(
                    format!("{word:?} is no version of an interface"),
                    "For example `api=1.55`",
                )
            })?;
            if version.replace(pair).is_some() {
                return Err(illegal(
                    "There is more than one `api=`",
                    "Say the greatest of them",
                ));
            }
        } else if let Some(bit) = named(SEV_BITS) {
            sev |= 1 << bit.bit;
            of_sev.get_or_insert(bit.name);
        } else if let Some(bit) = named(SNP_BITS) {
            snp |= 1 << bit.bit;
            of_snp.get_or_insert(bit.name);
        } else {
            let known = |bits: &[Bit]| bits.iter().map(|b| b.name).collect::<Vec<_>>().join(", ");
            return Err(illegal(
                format!("{word:?} is no bit of a policy"),
                format!("SEV: {}; SNP: {}", known(SEV_BITS), known(SNP_BITS)),
            ));
        }
    }
    let told = match (of_sev, of_snp) {
        (Some(a), Some(b)) => {
            return Err(illegal(
                format!("{a} is of SEV and SEV-ES, {b} of SEV-SNP"),
                "SNP always has what NODBG and NOKS ask for; DEBUG takes it away",
            ));
        }
        (_, Some(_)) => Level::SevSnp,
        (Some(_), None) => kind(sev & ES),
        (None, None) => level.unwrap_or(Level::Sev),
    };
    if let Some(level) = level
        && (level == Level::SevSnp) != (told == Level::SevSnp)
    {
        return Err(illegal(
            format!("{text:?} is no policy for {}", level.word()),
            format!(
                "It has {}",
                bits(level)
                    .iter()
                    .map(|b| b.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        ));
    }
    let level = level.unwrap_or(told);
    let (major, minor) = version.map_or((0, 0), |(a, b)| (u64::from(a), u64::from(b)));
    let policy = match level {
        Level::SevSnp => snp | SNP_ONE | major << 8 | minor,
        _ => sev | major << 16 | minor << 24,
    };
    check(level, policy)?;
    Ok((level, policy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_have_their_names() {
        for (level, policy, words) in [
            (Level::Sev, 0x3, "NODBG, NOKS"),
            (Level::SevEs, 0x7, "NODBG, NOKS, ES"),
            (Level::SevEs, 0x37, "NODBG, NOKS, ES, DOMAIN, SEV"),
            (Level::Sev, 0x8, "NOSEND"),
            (Level::SevSnp, 0x30000, "SMT"),
            (Level::SevSnp, 0xb0000, "SMT, DEBUG"),
            (Level::SevSnp, 0x16_0000, "MIGRATE_MA, SINGLE_SOCKET"),
        ] {
            assert_eq!(kind(policy), level, "{policy:#x}");
            assert_eq!(names(level, policy).join(", "), words, "{policy:#x}");
            assert_eq!(check(level, policy), Ok(()), "{policy:#x}");
            assert_eq!(
                from_words(&words.to_lowercase(), None),
                Ok((level, policy)),
                "{words}"
            );
        }
    }

    #[test]
    fn what_no_firmware_takes_is_refused() {
        for (level, policy) in [
            (Level::Sev, 0x40),
            (Level::Sev, 0x8000),
            (Level::Sev, 1 << 32),
            (Level::Sev, 0x30000),
            (Level::SevEs, 0x3),
            (Level::SevEs, 0x47),
            (Level::SevSnp, 0x10000),
            (Level::SevSnp, 0x3),
            (Level::SevSnp, 0x20000 | 1 << 26),
            (Level::SevSnp, 0x20000 | 1 << 63),
        ] {
            assert!(check(level, policy).is_err(), "{level:?} {policy:#x}");
        }
        for words in [
            "nodbg,smt",
            "debug noks",
            "nodbug",
            "api=1",
            "api=1.256",
            "api=0.1,api=0.2",
            "api=2.0,nodbg",
        ] {
            assert!(from_words(words, None).is_err(), "{words}");
        }
        assert!(from_words("noks", Some(Level::SevSnp)).is_err());
        assert!(from_words("nodbg", Some(Level::SevEs)).is_err());
        assert!(from_words("smt", Some(Level::Sev)).is_err());
    }

    #[test]
    fn versions_go_into_their_bytes_and_come_out() {
        let (level, policy) = from_words("nodbg,noks,api=0.24", None).unwrap();
        assert_eq!((level, policy), (Level::Sev, 0x1800_0003));
        assert_eq!(version(level, policy), Some((0, 24)));
        let (level, policy) = from_words("smt,api=1.55", None).unwrap();
        assert_eq!((level, policy), (Level::SevSnp, 0x3_0137));
        assert_eq!(version(level, policy), Some((1, 55)));
        assert_eq!(version(Level::Sev, 0x3), None);
        assert_eq!(from_words("", None), Ok((Level::Sev, 0)));
        assert_eq!(
            from_words("", Some(Level::SevSnp)),
            Ok((Level::SevSnp, SNP_ONE))
        );
    }
}
