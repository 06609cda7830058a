use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::event::EventSink;
use crate::irq::IrqLine;

/// Remembers events.
pub(crate) struct Events(Mutex<Vec<GuestEvent>>);

impl Events {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Vec::new())))
    }
    pub(crate) fn take(&self) -> Vec<GuestEvent> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl EventSink for Events {
    fn notify(&self, event: GuestEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// Remembers the level and counts edges.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) pulses: AtomicUsize,
    pub(crate) high: AtomicUsize,
    pub(crate) changes: AtomicUsize,
}

impl IrqLine for Wire {
    fn pulse(&self) {
        self.pulses.fetch_add(1, Ordering::SeqCst);
    }
    fn set_level(&self, high: bool) {
        self.high.store(usize::from(high), Ordering::SeqCst);
        self.changes.fetch_add(1, Ordering::SeqCst);
    }
}

fn read<const N: usize>(pm: &mut AcpiPm, offset: u64) -> [u8; N] {
    let mut data = [0; N];
    pm.read(offset, &mut data);
    data
}

#[test]
fn the_power_button_holds_sci_until_its_status_is_cleared() {
    let wire = Arc::new(Wire::default());
    let button = AcpiPm::new(wire.clone(), Events::new());
    let mut pm = button.clone();

    button.press_power_button();
    assert_eq!(wire.changes.load(Ordering::SeqCst), 0, "not enabled yet");
    assert!(!button.listens());
    pm.write(2, &0xffffu16.to_le_bytes());
    assert!(button.listens());
    assert_eq!(
        read::<2>(&mut pm, 2),
        ENABLE_MASK.to_le_bytes(),
        "only real enable bits stick"
    );
    assert_eq!(
        wire.high.load(Ordering::SeqCst),
        1,
        "the press was not forgotten"
    );

    button.press_power_button();
    assert_eq!(
        wire.changes.load(Ordering::SeqCst),
        1,
        "a level, not an edge"
    );
    pm.write(0, &0x00ffu16.to_le_bytes());
    assert_eq!(
        wire.high.load(Ordering::SeqCst),
        1,
        "other bits do not clear it"
    );
    assert_eq!(read::<2>(&mut pm, 0), POWER_BUTTON.to_le_bytes());
    pm.write(1, &[1]);
    assert_eq!(read::<2>(&mut pm, 0), [0, 0]);
    assert_eq!(wire.high.load(Ordering::SeqCst), 0);
}

#[test]
fn only_s5_powers_off_and_sci_en_always_reads_one() {
    let events = Events::new();
    let mut pm = AcpiPm::new(Arc::new(Wire::default()), events.clone());
    assert_eq!(read::<2>(&mut pm, 4), [1, 0]);
    // What acpi_hw_legacy_sleep does: first SLP_TYP alone, then with SLP_EN.
    pm.write(4, &(S5 << 10 | 1).to_le_bytes());
    assert_eq!(events.take(), []);
    assert_eq!(read::<2>(&mut pm, 4), (S5 << 10 | 1).to_le_bytes());
    pm.write(4, &(S5 << 10 | SLP_EN | 1).to_le_bytes());
    assert_eq!(events.take(), [GuestEvent::PowerOff]);
    assert_eq!(
        read::<2>(&mut pm, 4),
        (S5 << 10 | 1).to_le_bytes(),
        "SLP_EN reads 0"
    );
    pm.write(4, &(3 << 10 | SLP_EN).to_le_bytes());
    assert_eq!(events.take(), [], "S3 does not exist");
    pm.write(5, &[((S5 << 10 | SLP_EN) >> 8) as u8]);
    assert_eq!(
        events.take(),
        [GuestEvent::PowerOff],
        "a byte access is enough"
    );
}

#[test]
fn the_timer_runs_at_its_rate_and_wraps_at_32_bits() {
    let mut pm = AcpiPm::new(Arc::new(Wire::default()), Events::new());
    let before = Instant::now();
    let first = u32::from_le_bytes(read(&mut pm, 8));
    let inner_span = Instant::now();
    while inner_span.elapsed() < Duration::from_millis(20) {
        std::hint::spin_loop();
    }
    let least = inner_span.elapsed();
    let second = u32::from_le_bytes(read(&mut pm, 8));
    let most = before.elapsed();
    let ticks = u128::from(second.wrapping_sub(first));
    let expected = |t: Duration| t.as_nanos() * u128::from(TIMER_HZ) / 1_000_000_000;
    assert!(
        ticks >= expected(least) - 1 && ticks <= expected(most) + 1,
        "{ticks}"
    );

    let Some(inner) = Arc::get_mut(&mut pm.inner) else {
        panic!("one handle")
    };
    // 2^32 ticks take 1199.86 s.
    inner.start = Instant::now() - Duration::from_secs(1200);
    let wrapped = u32::from_le_bytes(read(&mut pm, 8));
    assert!(wrapped < TIMER_HZ as u32, "{wrapped}");
}

#[test]
fn the_reset_register_resets_when_bit_two_is_set() {
    let events = Events::new();
    let mut register = ResetRegister::new(events.clone());
    // native_machine_emergency_restart, BOOT_CF9_FORCE.
    register.write(0, &[0x02]);
    assert_eq!(events.take(), []);
    let mut data = [0];
    register.read(0, &mut data);
    assert_eq!(data, [0x02]);
    register.write(0, &[RESET_VALUE]);
    register.write(0, &[0x0e]);
    assert_eq!(events.take(), [GuestEvent::Reset, GuestEvent::Reset]);
}

#[test]
fn accesses_over_the_edge_of_the_block_harm_nothing() {
    let mut pm = AcpiPm::new(Arc::new(Wire::default()), Events::new());
    for offset in 0..LEN {
        for len in [1, 2, 4, 8] {
            pm.write(offset, &[0xff; 8][..len]);
            pm.read(offset, &mut [0; 8][..len]);
        }
    }
}
