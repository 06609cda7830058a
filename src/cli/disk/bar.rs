//! How far a long preallocation is, on standard error: one line that changes on a terminal, seldom a line elsewhere.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::say;

/// How often a terminal's line changes.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a line is written to what is no terminal.
const LINE: Duration = Duration::from_secs(10);
/// What the rate is measured over.
const WINDOW: Duration = Duration::from_secs(5);
/// Widest bar, characters.
const BAR: usize = 30;
/// Width of a terminal that does not tell.
const COLUMNS: usize = 80;

/// The line.
#[derive(Debug)]
pub(super) struct Bar {
    name: String,
    terminal: bool,
    /// When it was last shown; at first, when the work began.
    shown: Instant,
    drawn: bool,
    samples: VecDeque<(Instant, u64)>,
}

impl Bar {
    pub(super) fn new(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self {
            name: vsc::diag::shown(&name),
            terminal: io::stderr().is_terminal(),
            shown: Instant::now(),
            drawn: false,
            samples: VecDeque::new(),
        }
    }

    /// Notes how far it is, and shows it when it is time.
    pub(super) fn advance(&mut self, done: u64, total: u64) {
        let now = Instant::now();
        let interval = if self.terminal { REDRAW } else { LINE };
        if now.duration_since(self.shown) < interval {
            return;
        }
        self.shown = now;
        self.sample(now, done);
        let rate = self.rate();
        if self.terminal {
            let columns = rustix::termios::tcgetwinsize(io::stderr())
                .map_or(COLUMNS, |size| usize::from(size.ws_col));
            // The last column stays free: some terminals wrap when it is written.
            let room = if columns == 0 { COLUMNS } else { columns } - 1;
            say::err_raw(&format!(
                "\r\x1b[K{}",
                line(&self.name, done, total, rate, room)
            ));
            self.drawn = true;
        } else {
            let said = line(&self.name, done, total, rate, 0);
            say::note_unkept(&said);
        }
    }

    fn sample(&mut self, now: Instant, done: u64) {
        self.samples.push_back((now, done));
        while let [(first, _), _, _, ..] = self.samples.make_contiguous()
            && now.duration_since(*first) > WINDOW
        {
            self.samples.pop_front();
        }
    }

    /// Bytes per second, once there is something to compare.
    fn rate(&self) -> Option<u64> {
        let ((start, from), (end, to)) = (self.samples.front()?, self.samples.back()?);
        let seconds = end.duration_since(*start).as_secs_f64();
        let bytes = to.saturating_sub(*from);
        (seconds > 0.0 && bytes > 0).then_some((bytes as f64 / seconds) as u64)
    }

    /// Removes the line from a terminal.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            say::err_raw("\r\x1b[K");
        }
    }
}

/// The text: with a bar and cut to `room` characters, or without either for a `room` of 0.
fn line(name: &str, done: u64, total: u64, rate: Option<u64>, room: usize) -> String {
    let part = |of: u64| u128::from(done.min(total)) * u128::from(of) / u128::from(total.max(1));
    let mut text = format!("{:3} %  {} of {}", part(100), amount(done), amount(total));
    if let Some(rate) = rate {
        let left = total.saturating_sub(done).div_ceil(rate.max(1));
        text += &format!("  {}/s  ETA {}", amount(rate), time(left));
    }
    if room == 0 {
        return format!("{name}:{text}");
    }
    let width = room
        .saturating_sub(name.chars().count() + text.len() + 6)
        .min(BAR);
    let bar = match width {
        0..5 => String::new(),
        _ => {
            let full = usize::try_from(part(width as u64)).unwrap_or(width);
            format!("[{}{}]  ", "#".repeat(full), "-".repeat(width - full))
        }
    };
    let all = format!("{name}  {bar}{text}");
    all.chars().take(room).collect()
}

/// Bytes in the largest unit that leaves a whole part, with a decimal where it is not exact.
pub(super) fn amount(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = (bytes.max(1).ilog2() / 10) as usize;
    let unit = 1u64 << (10 * power);
    let name = UNITS.get(power).unwrap_or(&"bytes");
    let tenths = u128::from(bytes % unit) * 10 / u128::from(unit);
    if bytes.is_multiple_of(unit) {
        format!("{} {name}", bytes / unit)
    } else {
        format!("{}.{tenths} {name}", bytes / unit)
    }
}

fn time(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s:02}s"),
        (h, m, _) => format!("{h}h{m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let at = |done, rate, room| line("d.raw", done, 20 << 30, rate, room);
        assert_eq!(
            at(5 << 30, Some(512 << 20), 99),
            "d.raw  [#######-----------------------]   25 %  5 GiB of 20 GiB  512 MiB/s  ETA 30s"
        );
        assert_eq!(
            at(0, None, 50),
            "d.raw  [---------------]    0 %  0 bytes of 20 GiB"
        );
        assert_eq!(
            at(20 << 30, Some(1), 0),
            "d.raw:100 %  20 GiB of 20 GiB  1 bytes/s  ETA 0s"
        );
        for room in 1..120 {
            let text = line("naïve.raw", 7, 1 << 40, Some(3), room);
            assert!(text.chars().count() <= room, "{room}: {text}");
        }
        // Nothing of nothing, and more than all, are no reason to stop.
        assert!(line("d", 0, 0, None, 60).contains("0 %"));
        assert!(line("d", 9 << 20, 8 << 20, Some(1), 60).contains("100 %"));
    }

    #[test]
    fn amounts_and_times() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1536, "1.5 KiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(amount(bytes), text);
        }
        assert_eq!(
            (time(59), time(61), time(7260)),
            ("59s".into(), "1m01s".into(), "2h01m".into())
        );
    }

    #[test]
    fn the_rate_is_the_recent_one() {
        let mut bar = Bar::new(Path::new("d"));
        let start = Instant::now();
        assert_eq!(bar.rate(), None);
        for second in 0..20u64 {
            let done = if second < 10 {
                second * 1000
            } else {
                9000 + (second - 9) * 10
            };
            bar.sample(start + Duration::from_secs(second), done);
        }
        assert_eq!(bar.rate(), Some(10));
    }
}
