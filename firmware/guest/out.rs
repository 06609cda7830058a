//! The serial console and the report: one line per fact, and the same lines once more as JSON when asked for.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU8, Ordering};

use crate::sys::{inb, outb, outsb, pause, tsc};

const COM1: u16 = 0x3f8;
/// Line status register; bit 5: the transmitter holds nothing, bit 0: a byte was received (16550 data sheet, 8.6.3).
const LSR: u16 = COM1 + 5;
const FIFO: usize = 16;

/// A short text built without allocation; what does not fit is cut and marked with `~`. It is a number: the letters
/// are in one of a ring of places, so a text lives until [`SLOTS`] later ones were made. Results that carry texts by
/// value would make this program twice as large.
#[derive(Clone, Copy)]
pub struct Text(u8);

const SLOTS: usize = 16;
const ROOM: usize = 200;
struct Slot {
    bytes: [u8; ROOM],
    length: usize,
}
static mut SLOT: [Slot; SLOTS] = [const {
    Slot {
        bytes: [0; ROOM],
        length: 0,
    }
}; SLOTS];
static NEXT: AtomicU8 = AtomicU8::new(0);

impl Text {
    #[inline(never)]
    pub fn format(arguments: fmt::Arguments<'_>) -> Self {
        let text = Self(NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS as u8);
        text.slot().length = 0;
        // Writing a text cannot fail, and what it shows is not itself.
        let _ = Letters(text).write_fmt(arguments);
        text
    }
    #[allow(clippy::mut_from_ref)]
    fn slot(&self) -> &'static mut Slot {
        // SAFETY: one processor, no interrupt handler comes here, and no reference outlives the call it was made in.
        unsafe { &mut *core::ptr::addr_of_mut!(SLOT[usize::from(self.0)]) }
    }
    pub fn as_bytes(&self) -> &[u8] {
        let slot = self.slot();
        &slot.bytes[..slot.length]
    }
}

struct Letters(Text);
impl Write for Letters {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let slot = self.0.slot();
        for &byte in s.as_bytes() {
            if slot.length < ROOM {
                slot.bytes[slot.length] = byte;
                slot.length += 1;
            } else {
                slot.bytes[ROOM - 1] = b'~';
            }
        }
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.as_bytes() {
            f.write_char(if (32..127).contains(&byte) {
                byte as char
            } else {
                '?'
            })?;
        }
        Ok(())
    }
}

/// Bytes of the guest's surroundings shown as text.
pub struct Ascii<'a>(pub &'a [u8]);
impl fmt::Display for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            f.write_char(if (32..127).contains(&byte) {
                byte as char
            } else {
                '?'
            })?;
        }
        Ok(())
    }
}

macro_rules! text {
    ($($a:tt)*) => { $crate::out::Text::format(format_args!($($a)*)) };
}
pub(crate) use text;

/// Why a test did not pass.
pub enum Problem {
    Fail(Text),
    Skip(Text),
}
/// A test's end: what it saw, or why not.
pub type Outcome = Result<Text, Problem>;

macro_rules! fail {
    ($($a:tt)*) => { return Err($crate::out::Problem::Fail($crate::out::text!($($a)*))) };
}
pub(crate) use fail;
macro_rules! skip {
    ($($a:tt)*) => { return Err($crate::out::Problem::Skip($crate::out::text!($($a)*))) };
}
pub(crate) use skip;
/// `ensure!(condition, "what was expected, with values")`
macro_rules! ensure {
    ($c:expr, $($a:tt)*) => { if !$c { $crate::out::fail!($($a)*) } };
}
pub(crate) use ensure;

const JSON_ROOM: usize = 24 * 1024;
/// The entries as JSON. Apart from `Out`, so that its zeroes take no room in the file.
static mut RECORD: [u8; JSON_ROOM] = [0; JSON_ROOM];

fn record() -> &'static mut [u8; JSON_ROOM] {
    // SAFETY: only methods of the one `Out` come here, and none keeps the reference.
    unsafe { &mut *core::ptr::addr_of_mut!(RECORD) }
}

/// Where everything the program says goes.
pub struct Out {
    pub silent: bool,
    pub json: bool,
    pub passed: u32,
    pub failed: u32,
    pub skipped: u32,
    /// Lines of the report so far.
    pub lines: u32,
    line: [u8; FIFO],
    used: usize,
    fifo: bool,
    recorded: usize,
    lost: bool,
}

impl Out {
    pub const fn new() -> Self {
        Self {
            silent: false,
            json: false,
            passed: 0,
            failed: 0,
            skipped: 0,
            lines: 0,
            line: [0; FIFO],
            used: 0,
            fifo: false,
            recorded: 0,
            lost: false,
        }
    }

    /// The greeting. Its first byte goes out unasked: a transmitter after reset is empty, and this is the earliest
    /// sign of life there can be.
    pub fn greet(&mut self) {
        if !self.silent {
            outb(COM1, b'v');
            self.put(b"sc guest\n");
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        if self.silent {
            return;
        }
        for &byte in bytes {
            self.line[self.used] = byte;
            self.used += 1;
            if self.used == FIFO || byte == b'\n' {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if self.used == 0 {
            return;
        }
        if !self.fifo {
            // FCR: enable and clear both FIFOs. From here an empty transmitter takes 16 bytes.
            outb(COM1 + 2, 7);
            self.fifo = true;
        }
        // 16 bytes take 1.4 ms at 115200 baud; a UART that is not ready after a long time is written to anyway.
        for _ in 0..10_000 {
            if inb(LSR) & 0x20 != 0 {
                break;
            }
            pause();
        }
        outsb(COM1, &self.line[..self.used]);
        self.used = 0;
    }

    /// A byte from the serial line; `None` after about `cycles` of the TSC.
    pub fn receive(&mut self, cycles: u64) -> Option<u8> {
        let start = tsc();
        while tsc().wrapping_sub(start) < cycles {
            if inb(LSR) & 1 != 0 {
                return Some(inb(COM1));
            }
            pause();
        }
        None
    }

    /// Sends bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.put(bytes);
        if !self.silent {
            self.flush();
        }
    }

    fn entry(&mut self, kind: &str, name: &Text, detail: &Text) {
        self.lines += 1;
        let space = if detail.as_bytes().is_empty() {
            ""
        } else {
            " "
        };
        let _ = writeln!(Serial(self), "{kind} {name}{space}{detail}");
        if !self.json {
            return;
        }
        let before = self.recorded;
        let comma = if before == 0 { "" } else { "," };
        let whole = write!(
            Record(self),
            "{comma}{{\"kind\":\"{kind}\",\"name\":\"{}\",\"text\":\"{}\"}}",
            Quoted(name.as_bytes()),
            Quoted(detail.as_bytes())
        );
        if whole.is_err() {
            self.recorded = before;
            self.lost = true;
        }
    }

    pub fn info(&mut self, name: &str, detail: Text) {
        self.entry("info", &text!("{name}"), &detail);
    }
    /// A measurement: `bench NAME VALUE UNIT`.
    pub fn bench(&mut self, name: Text, value: u64, unit: &str) {
        self.entry("bench", &name, &text!("{value} {unit}"));
    }
    pub fn result(&mut self, name: Text, outcome: Outcome) -> bool {
        match outcome {
            Ok(detail) => {
                self.passed += 1;
                self.entry("ok", &name, &detail);
                return true;
            }
            Err(Problem::Fail(detail)) => {
                self.failed += 1;
                self.entry("FAIL", &name, &detail);
            }
            Err(Problem::Skip(detail)) => {
                self.skipped += 1;
                self.entry("skip", &name, &detail);
            }
        }
        false
    }

    /// The JSON line, when asked for, and the last line.
    pub fn end(&mut self, status: u8) {
        let (passed, failed, skipped, lost) = (self.passed, self.failed, self.skipped, self.lost);
        if self.json {
            self.put(b"json {\"vsc_guest\":1,\"entries\":[");
            self.put(&record()[..self.recorded]);
            let _ = writeln!(
                Serial(self),
                "],\"truncated\":{lost},\"passed\":{passed},\"failed\":{failed},\"skipped\":{skipped},\"status\":{status}}}"
            );
        }
        let _ = writeln!(
            Serial(self),
            "end status={status} passed={passed} failed={failed} skipped={skipped}"
        );
    }

    /// A line outside the report: crashes.
    pub fn shout(&mut self, arguments: fmt::Arguments<'_>) {
        let _ = Serial(self).write_fmt(arguments);
        self.put(b"\n");
    }
}

struct Serial<'a>(&'a mut Out);
impl Write for Serial<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.0.put(s.as_bytes());
        Ok(())
    }
}

struct Record<'a>(&'a mut Out);
impl Write for Record<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let end = self.0.recorded + s.len();
        let room = record().get_mut(self.0.recorded..end).ok_or(fmt::Error)?;
        room.copy_from_slice(s.as_bytes());
        self.0.recorded = end;
        Ok(())
    }
}

struct Quoted<'a>(&'a [u8]);
impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            match byte {
                b'"' | b'\\' => write!(f, "\\{}", byte as char)?,
                32..127 => f.write_char(byte as char)?,
                _ => f.write_char('?')?,
            }
        }
        Ok(())
    }
}
