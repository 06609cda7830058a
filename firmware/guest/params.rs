//! The command line. A word that is not understood is told and makes the status 64, after which nothing else runs.

/// Tests by name; the order is the order they run in.
pub const TESTS: [&str; 12] = [
    "mem", "cpu", "acpi", "console", "rtc", "timer", "virtio", "rng", "vcon", "blk", "irq", "smp",
];
pub const MODES: [&str; 6] = ["loop", "range", "index", "registers", "storm", "reset"];
pub const BLK_MODES: [&str; 7] = [
    "seqread", "seqwrite", "rand", "rand8", "flush", "verify", "fill",
];
pub const MMIO_DEVICES: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Exit,
    PowerOff,
    Reboot,
    Triple,
    Panic,
    Hang,
    Spin,
    Fault,
}

#[derive(Clone, Copy)]
pub struct Mmio {
    pub base: u64,
    pub size: u64,
    pub gsi: u32,
    /// Level-triggered. Only the DSDT says so.
    pub level: bool,
}

pub struct Params {
    /// Bit n: `TESTS[n]`.
    pub tests: u32,
    /// Bit n: `MODES[n]`.
    pub evil: u32,
    /// Bit n: `BLK_MODES[n]`.
    pub blk: u32,
    /// May the block tests write? Not without `blk=verify`, `fill`, `seqwrite`, `flush`, or `write`.
    pub write: bool,
    pub ending: Ending,
    pub exit: Option<u8>,
    pub silent: bool,
    pub read: bool,
    pub echo: bool,
    pub json: bool,
    pub seed: u64,
    /// Rounds of the evil modes.
    pub rounds: u32,
    /// Bytes a benchmark moves (sequential) and operations it does (random).
    pub bytes: u64,
    pub operations: u32,
    pub depth: u16,
    /// Which block device the benchmarks use.
    pub disk: u8,
    /// The port of virtio-console that is written to and echoed, and how many bytes `vcon` sends there.
    pub port: [u8; 32],
    pub port_length: usize,
    pub send: u64,
    pub mmio: [Mmio; MMIO_DEVICES],
    pub mmio_count: usize,
}

impl Params {
    pub const fn new() -> Self {
        Self {
            tests: 0,
            evil: 0,
            blk: 0,
            write: false,
            ending: Ending::Exit,
            exit: None,
            silent: false,
            read: false,
            echo: false,
            json: false,
            seed: 1,
            rounds: 64,
            bytes: 64 << 20,
            operations: 2000,
            depth: 8,
            disk: 0,
            port: [0; 32],
            port_length: 0,
            send: 0,
            mmio: [Mmio {
                base: 0,
                size: 0,
                gsi: 0,
                level: false,
            }; MMIO_DEVICES],
            mmio_count: 0,
        }
    }

    pub fn has(&self, test: &str) -> bool {
        TESTS
            .iter()
            .position(|&t| t == test)
            .is_some_and(|n| self.tests & 1 << n != 0)
    }
    pub fn port(&self) -> &[u8] {
        &self.port[..self.port_length]
    }

    /// Reads the whole line; `unknown` hears of each word that means nothing.
    pub fn parse(&mut self, line: &[u8], mut unknown: impl FnMut(&[u8])) {
        let mut tests = None;
        for word in line
            .split(|b| b.is_ascii_whitespace())
            .filter(|w| !w.is_empty())
        {
            let (key, value) = match word.iter().position(|&b| b == b'=') {
                Some(at) => (&word[..at], Some(&word[at + 1..])),
                None => (word, None),
            };
            if self.word(key, value, &mut tests).is_none() {
                unknown(word);
            }
        }
        let quiet = self.ending != Ending::Exit
            || self.exit.is_some()
            || self.read
            || self.echo
            || self.evil != 0
            || self.blk != 0
            || self.send != 0;
        // A line that asks for one thing gets that thing; an empty one gets the whole self-test.
        self.tests = tests.unwrap_or(if quiet { 0 } else { (1 << TESTS.len()) - 1 });
    }

    fn word(&mut self, key: &[u8], value: Option<&[u8]>, tests: &mut Option<u32>) -> Option<()> {
        match (key, value) {
            (b"test", Some(list)) => {
                let mut bits = tests.unwrap_or(0);
                for name in list.split(|&b| b == b',') {
                    bits |= match name {
                        b"all" => (1 << TESTS.len()) - 1,
                        b"none" | b"hello" => 0,
                        _ => 1 << TESTS.iter().position(|t| t.as_bytes() == name)?,
                    };
                }
                *tests = Some(bits);
            }
            (b"evil", Some(list)) => {
                self.evil |= names(list, &MODES)?;
                self.write = true;
            }
            (b"blk", Some(list)) => {
                self.blk |= names(list, &BLK_MODES)?;
                // seqwrite, flush, verify, fill
                self.write |= self.blk & 0x72 != 0;
            }
            (b"write", None) => self.write = true,
            (b"exit", Some(n)) => self.exit = Some(number(n)?.try_into().ok()?),
            (b"poweroff", None) => self.ending = Ending::PowerOff,
            (b"reboot", None) => self.ending = Ending::Reboot,
            (b"triple", None) => self.ending = Ending::Triple,
            (b"panic", None) => self.ending = Ending::Panic,
            (b"hang", None) => self.ending = Ending::Hang,
            (b"spin", None) => self.ending = Ending::Spin,
            (b"fault", None) => self.ending = Ending::Fault,
            (b"silent", None) => self.silent = true,
            (b"read", None) => self.read = true,
            (b"echo", None) => self.echo = true,
            (b"report", Some(b"json")) => self.json = true,
            (b"report", Some(b"text")) => self.json = false,
            (b"seed", Some(n)) => self.seed = number(n)?,
            (b"rounds", Some(n)) => self.rounds = number(n)?.try_into().ok()?,
            (b"bytes", Some(n)) => self.bytes = number(n)?,
            (b"ops", Some(n)) => self.operations = number(n)?.try_into().ok()?,
            (b"depth", Some(n)) => {
                self.depth = number(n)?
                    .try_into()
                    .ok()
                    .filter(|n| (1..=64).contains(n))?
            }
            (b"disk", Some(n)) => self.disk = number(n)?.try_into().ok()?,
            (b"send", Some(n)) => self.send = number(n)?,
            (b"port", Some(name)) => {
                self.port.get_mut(..name.len())?.copy_from_slice(name);
                self.port_length = name.len();
            }
            (b"virtio_mmio.device", Some(text)) => {
                // Linux, Documentation/admin-guide/kernel-parameters.txt: size@base:irq[:id]
                let at = text.iter().position(|&b| b == b'@')?;
                let mut rest = text[at + 1..].split(|&b| b == b':');
                let device = Mmio {
                    size: number(&text[..at])?,
                    base: number(rest.next()?)?,
                    gsi: number(rest.next()?)?.try_into().ok()?,
                    level: false,
                };
                if device.base % 4 != 0 || device.base >= 1 << 39 {
                    return None;
                }
                *self.mmio.get_mut(self.mmio_count)? = device;
                self.mmio_count += 1;
            }
            _ => return None,
        }
        Some(())
    }
}

fn names(list: &[u8], known: &[&str]) -> Option<u32> {
    let mut bits = 0;
    for name in list.split(|&b| b == b',') {
        bits |= match name {
            b"all" => (1 << known.len()) - 1,
            _ => 1 << known.iter().position(|t| t.as_bytes() == name)?,
        };
    }
    Some(bits)
}

/// Decimal or 0x hexadecimal, with K, M or G (powers of 1024).
pub fn number(text: &[u8]) -> Option<u64> {
    let (text, shift) = match text.split_last()? {
        (b'K' | b'k', rest) => (rest, 10),
        (b'M' | b'm', rest) => (rest, 20),
        (b'G' | b'g', rest) => (rest, 30),
        _ => (text, 0),
    };
    let (digits, radix) = match text {
        [b'0', b'x' | b'X', digits @ ..] => (digits, 16),
        digits => (digits, 10),
    };
    if digits.is_empty() {
        return None;
    }
    let mut value = 0_u64;
    for &digit in digits {
        value = value
            .checked_mul(radix)?
            .checked_add((digit as char).to_digit(radix as u32)?.into())?;
    }
    value.checked_shl(shift).filter(|v| v >> shift == value)
}
