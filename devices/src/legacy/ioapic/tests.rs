use super::*;

type Message = (u64, u32);

#[derive(Default)]
struct Apics {
    sent: Mutex<Vec<Message>>,
    routes: Mutex<Vec<(u8, Option<Message>)>>,
}

impl MsiSink for Apics {
    fn send(&self, address: u64, data: u32) {
        self.sent.lock().unwrap().push((address, data));
    }
    fn route(&self, pin: u8, message: Option<(u64, u32)>) {
        self.routes.lock().unwrap().push((pin, message));
    }
}

struct Guest {
    chip: IoApic,
    apics: Arc<Apics>,
}

impl Guest {
    fn new(extended: bool) -> Self {
        let apics = Arc::new(Apics::default());
        Self {
            chip: IoApic::new(apics.clone(), extended),
            apics,
        }
    }
    fn get(&mut self, register: u8) -> u32 {
        let mut data = [0; 4];
        self.chip.write(IOREGSEL, &[register, 0, 0, 0]);
        self.chip.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }
    fn set(&mut self, register: u8, value: u32) {
        self.chip.write(IOREGSEL, &[register, 0, 0, 0]);
        self.chip.write(IOWIN, &value.to_le_bytes());
    }
    fn entry(&mut self, pin: u8, entry: u64) {
        self.set(REG_TABLE + 2 * pin + 1, (entry >> 32) as u32);
        self.set(REG_TABLE + 2 * pin, entry as u32);
    }
    fn sent(&self) -> Vec<(u64, u32)> {
        std::mem::take(&mut *self.apics.sent.lock().unwrap())
    }
    fn remote_irr(&mut self, pin: u8) -> bool {
        u64::from(self.get(REG_TABLE + 2 * pin)) & REMOTE_IRR != 0
    }
}

#[test]
fn it_presents_itself_as_linux_expects() {
    let mut guest = Guest::new(false);
    assert_eq!(guest.get(REG_VERSION), 0x0017_0020);
    for pin in 0..PINS as u8 {
        assert_eq!(guest.get(REG_TABLE + 2 * pin), MASKED as u32);
    }
    guest.set(REG_ID, 0xff00_0000);
    assert_eq!(
        (guest.get(REG_ID), guest.get(REG_ARBITRATION)),
        (0x0f00_0000, 0x0f00_0000)
    );
    guest.set(REG_VERSION, 0);
    assert_eq!(guest.get(REG_VERSION), 0x0017_0020);
    assert_eq!((guest.get(0x40), guest.get(0xff)), (0, 0));
    assert!(guest.chip.line(24).is_none());
}

#[test]
fn edges_are_sent_once_each_and_lost_while_masked() {
    let mut guest = Guest::new(false);
    let line = guest.chip.line(4).unwrap();
    line.pulse();
    assert_eq!(guest.sent(), []);
    guest.entry(4, 0x31 | 3 << DESTINATION_SHIFT);
    assert_eq!(guest.sent(), [], "the masked edge is gone");
    line.pulse();
    line.pulse();
    assert_eq!(guest.sent(), [(0xfee0_3000, 0x31), (0xfee0_3000, 0x31)]);
    assert!(!guest.remote_irr(4));
    line.set_level(true);
    line.set_level(true);
    assert_eq!(guest.sent().len(), 1, "a level that stays is no edge");
}

#[test]
fn a_level_is_sent_again_only_after_eoi_and_only_while_high() {
    let mut guest = Guest::new(false);
    let line = guest.chip.line(9).unwrap();
    guest.entry(9, 0x51 | LEVEL);
    line.set_level(true);
    assert_eq!(guest.sent(), [(0xfee0_0000, 0x51 | 0xc000)]);
    assert!(guest.remote_irr(9));
    line.set_level(false);
    line.set_level(true);
    assert_eq!(guest.sent(), [], "not before EOI");
    guest.chip.eoi(0x50);
    assert_eq!(guest.sent(), [], "another vector");
    guest.chip.eoi(0x51);
    assert_eq!(guest.sent().len(), 1, "still high");
    line.set_level(false);
    guest.chip.write(EOI, &[0x51, 0, 0, 0]);
    assert_eq!(guest.sent(), []);
    assert!(!guest.remote_irr(9));
}

#[test]
fn a_high_level_waits_for_the_unmasking_and_sources_are_ored() {
    let mut guest = Guest::new(false);
    let (a, b) = (guest.chip.line(10).unwrap(), guest.chip.line(10).unwrap());
    guest.entry(10, 0x61 | LEVEL | MASKED);
    a.set_level(true);
    b.set_level(true);
    b.set_level(true);
    assert_eq!(guest.sent(), []);
    guest.entry(10, 0x61 | LEVEL);
    assert_eq!(guest.sent().len(), 1);
    a.set_level(false);
    guest.chip.eoi(0x61);
    assert_eq!(guest.sent().len(), 1, "b still holds it");
    drop(b);
    guest.chip.eoi(0x61);
    assert_eq!(guest.sent(), [], "a source that goes away lets go");
}

#[test]
fn remote_irr_is_read_only_and_cleared_by_switching_to_edge() {
    let mut guest = Guest::new(false);
    let line = guest.chip.line(11).unwrap();
    guest.entry(11, 0x71 | LEVEL | REMOTE_IRR | DELIVERY_STATUS);
    assert!(!guest.remote_irr(11));
    line.set_level(true);
    guest.entry(11, 0x71 | LEVEL);
    assert!(guest.remote_irr(11), "a write does not clear it");
    assert_eq!(guest.sent().len(), 1);
    guest.entry(11, 0x71 | MASKED);
    guest.entry(11, 0x71 | LEVEL);
    assert_eq!(guest.sent().len(), 1, "sent anew");
}

#[test]
fn a_masked_level_stays_routed_so_that_its_eoi_is_reported() {
    let mut guest = Guest::new(false);
    let line = guest.chip.line(11).unwrap();
    let message = Some((0xfee0_0000, 0x71 | 0xc000));
    let route = |guest: &Guest| guest.apics.routes.lock().unwrap().last().copied();
    guest.entry(11, 0x71 | LEVEL);
    assert_eq!(route(&guest), Some((11, message)));
    line.set_level(true);
    // Linux masks a level-triggered pin whose handler runs in a thread, before the EOI.
    guest.entry(11, 0x71 | LEVEL | MASKED);
    assert_eq!(
        route(&guest),
        Some((11, message)),
        "the EOI is still to come"
    );
    line.set_level(false);
    guest.chip.eoi(0x71);
    assert!(!guest.remote_irr(11));
    guest.entry(11, MASKED);
    assert_eq!(route(&guest), Some((11, None)), "an edge needs no EOI");
}

#[test]
fn no_pulse_is_lost_among_others_of_the_same_source() {
    const PULSES: usize = 20_000;
    let mut guest = Guest::new(false);
    guest.entry(5, 0x41);
    let line = guest.chip.line(5).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..PULSES).for_each(|_| line.pulse()));
        }
    });
    assert_eq!(guest.sent().len(), 2 * PULSES);
}

#[test]
fn messages_carry_destination_and_mode() {
    for (extended, entry, address, data) in [
        (false, 0x42 | 0xab << 56, 0xfeea_b000, 0x42),
        (
            false,
            0x42 | LOGICAL | 1 << DELIVERY_SHIFT | 1 << 56,
            0xfee0_100c,
            0x142,
        ),
        (false, 0x42 | 0x7f << 49, 0xfee0_0000, 0x42),
        (true, 0x42 | 0xff << 56 | 0x7f << 49, 0xfeef_ffe0, 0x42),
        (false, 4 << DELIVERY_SHIFT, 0xfee0_0000, 0x400),
    ] {
        let mut guest = Guest::new(extended);
        guest.entry(2, entry);
        guest.chip.line(2).unwrap().pulse();
        assert_eq!(guest.sent(), [(address, data)], "{entry:#x}");
        let routes = guest.apics.routes.lock().unwrap();
        assert_eq!(routes.last(), Some(&(2, Some((address, data)))));
    }
    let mut guest = Guest::new(false);
    guest.entry(0, EXT_INT << DELIVERY_SHIFT);
    guest.chip.line(0).unwrap().pulse();
    assert_eq!(guest.sent(), []);
    guest.entry(0, MASKED);
    assert_eq!(guest.apics.routes.lock().unwrap().last(), Some(&(0, None)));
}

#[test]
fn an_nmi_by_level_needs_no_eoi() {
    let mut guest = Guest::new(false);
    guest.entry(3, 4 << DELIVERY_SHIFT | LEVEL);
    guest.chip.line(3).unwrap().set_level(true);
    assert!(!guest.remote_irr(3));
    assert_eq!(guest.sent().len(), 1);
}

#[test]
fn no_access_can_make_it_panic() {
    let mut guest = Guest::new(true);
    let lines: Vec<_> = (0..24).map(|pin| guest.chip.line(pin).unwrap()).collect();
    let mut x = 7u64;
    for i in 0..200_000usize {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let bytes = x.to_le_bytes();
        let offset = [IOREGSEL, IOWIN, EOI, u64::from(bytes[7])][i % 4];
        guest.chip.write(offset, &bytes[..1 << (bytes[6] % 4)]);
        guest.chip.read(offset, &mut [0; 8][..1 << (bytes[6] % 4)]);
        lines[i % 24].set_level(bytes[5] & 1 != 0);
        guest.apics.sent.lock().unwrap().clear();
        guest.apics.routes.lock().unwrap().clear();
    }
}
