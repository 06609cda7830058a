use std::sync::{Arc, Mutex};

use super::*;

/// 2026-11-20 23:59:58.9 UTC, a Friday.
const FRIDAY: Duration = Duration::from_millis(1_795_219_198_900);

struct Guest {
    cmos: Cmos,
    time: Arc<Mutex<Duration>>,
    accesses: usize,
}

impl Guest {
    fn new(low: u64, high: u64) -> Self {
        let time = Arc::new(Mutex::new(FRIDAY));
        let clock = time.clone();
        let clock = Box::new(move || UNIX_EPOCH + *clock.lock().unwrap());
        Self {
            cmos: Cmos::with_clock(low, high, clock),
            time,
            accesses: 0,
        }
    }

    fn advance(&mut self, by: Duration) {
        *self.time.lock().unwrap() += by;
        self.cmos.latched = None;
    }

    fn get(&mut self, index: u8) -> u8 {
        self.accesses += 2;
        let mut data = [0];
        self.cmos.write(0, &[index | 0x80]);
        self.cmos.read(1, &mut data);
        data[0]
    }

    fn set(&mut self, index: u8, value: u8) {
        self.cmos.write(0, &[index]);
        self.cmos.write(1, &[value]);
    }

    fn time(&mut self) -> [u8; 8] {
        [CENTURY, YEAR, MONTH, DAY, WEEK_DAY, HOURS, MINUTES, SECONDS].map(|i| self.get(i))
    }
}

#[test]
fn linux_reads_the_time_in_one_round() {
    let mut guest = Guest::new(1 << 30, 0);
    // mc146818_avoid_UIP around mc146818_get_time_callback.
    let seconds = guest.get(SECONDS);
    assert_eq!(guest.get(REG_A) & 0x80, 0, "UIP");
    assert_eq!(guest.get(SECONDS), seconds);
    let time = guest.time();
    assert_eq!(guest.get(REG_A) & 0x80, 0, "UIP");
    assert_eq!(guest.get(SECONDS), seconds);
    assert_eq!(time, [0x20, 0x26, 0x11, 0x20, 6, 0x23, 0x59, 0x58]);
    assert_eq!(guest.get(REG_D), 0x80);
    assert!(guest.accesses <= 30, "{}", guest.accesses);
}

#[test]
fn a_reading_started_before_midnight_does_not_end_after_it() {
    let mut guest = Guest::new(1 << 30, 0);
    guest.advance(Duration::from_millis(1_099));
    assert_eq!(guest.get(REG_A), A_DEFAULT);
    let torn = guest.get(SECONDS);
    // The host's clock moves on, the guest is still within its 244 µs.
    *guest.time.lock().unwrap() += Duration::from_millis(2);
    let (_, time) = guest.cmos.latched.unwrap();
    guest.cmos.latched = Some((Instant::now() + Duration::from_secs(60), time));
    assert_eq!(
        (torn, guest.get(MINUTES), guest.get(DAY)),
        (0x59, 0x59, 0x20)
    );
    guest.get(REG_A);
    assert_eq!(guest.time(), [0x20, 0x26, 0x11, 0x21, 7, 0x00, 0x00, 0x00]);
}

#[test]
fn formats_follow_register_b() {
    let mut guest = Guest::new(1 << 30, 0);
    guest.set(REG_B, B_24_HOURS | B_BINARY);
    assert_eq!(guest.time(), [20, 26, 11, 20, 6, 23, 59, 58]);
    guest.set(REG_B, 0);
    assert_eq!(guest.get(HOURS), 0x11 | PM);
    for hour in 0..24 {
        for b in [0, B_BINARY, B_24_HOURS, B_24_HOURS | B_BINARY] {
            guest.set(REG_B, b);
            let encoded = guest.cmos.encode_hour(hour);
            assert_eq!(guest.cmos.decode_hour(encoded), hour, "{hour} in mode {b}");
        }
    }
}

#[test]
fn the_guest_can_set_the_time_and_it_goes_on_from_there() {
    let mut guest = Guest::new(1 << 30, 0);
    guest.set(REG_B, B_24_HOURS | B_SET);
    let values = [0x20, 0x24, 0x02, 0x28, 0x23, 0x59, 0x59];
    for (index, value) in [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS]
        .into_iter()
        .zip(values)
    {
        guest.set(index, value);
    }
    guest.advance(Duration::from_secs(5));
    assert_eq!(
        guest.get(SECONDS),
        0x59,
        "the clock stands while SET is set"
    );
    guest.set(REG_B, B_24_HOURS);
    guest.advance(Duration::from_secs(1));
    assert_eq!(guest.time(), [0x20, 0x24, 0x02, 0x29, 5, 0, 0, 0]);
    guest.set(SECONDS, 0x30);
    assert_eq!(guest.get(SECONDS), 0x30, "also without SET");
    guest.cmos.set_offset(-3600);
    assert_eq!(guest.get(HOURS), 0x23);
}

#[test]
fn register_c_tells_what_passed_since_it_was_read() {
    let mut guest = Guest::new(1 << 30, 0);
    guest.set(REG_A, 0x20);
    guest.set(HOURS_ALARM, 0xff);
    guest.set(MINUTES_ALARM, 0x00);
    guest.set(SECONDS_ALARM, 0x00);
    assert_eq!(guest.get(REG_C), 0);
    guest.advance(Duration::from_millis(200));
    assert_eq!(guest.get(REG_C), C_UPDATE);
    assert_eq!(guest.get(REG_C), 0, "reading clears");
    guest.advance(Duration::from_secs(1));
    assert_eq!(guest.get(REG_C), C_UPDATE | C_ALARM);
    guest.set(REG_A, A_DEFAULT);
    guest.advance(Duration::from_millis(1));
    assert_eq!(guest.get(REG_C), C_PERIODIC, "1024 Hz");
    guest.advance(Duration::from_secs(400 * 86_400));
    assert_eq!(guest.get(REG_C), C_UPDATE | C_ALARM | C_PERIODIC);
}

#[test]
fn memory_sizes_and_free_bytes() {
    let mut guest = Guest::new(3 << 30, 5 << 30);
    let mut word = |at: u8| u16::from_le_bytes([guest.get(at), guest.get(at + 1)]);
    assert_eq!(word(0x15), 640);
    assert_eq!((word(0x17), word(0x30)), (0xffff, 0xffff));
    assert_eq!(u64::from(word(0x34)) << 16, (3 << 30) - (16 << 20));
    assert_eq!(u64::from(word(0x5b)) << 16, (5u64 << 30) & 0xffff_ffff);
    assert_eq!(guest.get(0x5d), 1);
    let mut small = Guest::new(8 << 20, 0);
    assert_eq!(
        [0x17, 0x18, 0x34, 0x5b].map(|i| small.get(i)),
        [0, 0x1c, 0, 0]
    );
    small.set(0x0f, 0x0a);
    small.set(0x40, 0x5a);
    assert_eq!((small.get(0x0f), small.get(0x40)), (0x0a, 0x5a));
    Guest::new(u64::MAX, u64::MAX);
    Guest::new(0, 0);
}

#[test]
fn dates_convert_both_ways() {
    for (seconds, text) in [
        (0, (1970, 1, 1, 5)),
        (951_782_400, (2000, 2, 29, 3)),
        (4_107_542_400, (2100, 3, 1, 2)),
        (-1, (1969, 12, 31, 4)),
    ] {
        let date = DateTime::from_seconds(seconds);
        assert_eq!((date.year, date.month, date.day, date.week_day()), text);
    }
    for day in (-719_528..2_932_896).step_by(13) {
        let seconds = day * 86_400 + 86_399;
        assert_eq!(DateTime::from_seconds(seconds).to_seconds(), seconds);
    }
    assert_eq!(DateTime::from_seconds(i64::MIN).year, 0);
    assert_eq!(DateTime::from_seconds(i64::MAX).year, 9999);
}

#[test]
fn no_write_can_make_it_panic() {
    let mut guest = Guest::new(1 << 30, 0);
    let mut x = 1u32;
    for _ in 0..200_000 {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        guest.set((x >> 8) as u8 & 0x3f, (x >> 16) as u8);
        guest.get((x >> 24) as u8);
    }
    guest.cmos.read(0, &mut [0; 4]);
    guest.cmos.write(0, &[0xff; 4]);
}
