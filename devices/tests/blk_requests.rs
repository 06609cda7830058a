//! virtio-blk through the registers of the MMIO transport: the parts of single requests, and what is wrong with them.

#![allow(clippy::unwrap_used)]

mod blk_common;

use blk_common::*;
use vsc_devices::block::Op;
use vsc_devices::virtio::blk::{BlkSpec, Cache, Discard};

#[test]
fn read_only_disks_offer_nothing_that_writes() {
    let spec = BlkSpec {
        read_only: true,
        ..spec()
    };
    let mut bench = bench(&spec, false);
    let features = bench.driver.start(!0);
    assert_eq!(features & (RO | FLUSH | WCE | DISCARD | WRITE_ZEROES), RO);
    assert_eq!(bench.write(0, &[1; 512]), IOERR);
    for kind in [11, 13] {
        assert_eq!(
            bench.run(&[&header(kind, 0), &range(0, 1, 0)], &[1]).0,
            IOERR
        );
    }
    assert_eq!(bench.run(&[&header(4, 0)], &[1]).0, OK);
    assert!(bench.asked().is_empty());
    let (status, written, data) = bench.run(&[&header(0, 0)], &[512, 1]);
    assert_eq!((status, written, data), (OK, 513, vec![0; 512]));
}

#[test]
fn parts_of_a_request_may_lie_anywhere_in_the_chain() {
    for indirect in [0, !0] {
        let mut bench = bench(&spec(), false);
        bench.driver.start(indirect & !(1 << 29));
        let data: Vec<u8> = (0..1024u32).map(|i| (i * 7) as u8).collect();
        let head = header(1, 2);
        let whole = [&head[..], &data[..]].concat();
        let layouts: &[&[&[u8]]] = &[
            &[&whole],
            &[&head, &data],
            &[
                &head[..1],
                &head[1..8],
                &head[8..],
                &data[..100],
                &data[100..],
            ],
            &[&whole[..17], &whole[17..18], &whole[18..]],
            &[&head[..4], &whole[4..]],
        ];
        for layout in layouts {
            bench.log.lock().unwrap().data.fill(0);
            let (status, written, _) = bench.run(layout, &[1]);
            assert_eq!((status, written), (OK, 1));
            assert!(bench.log.lock().unwrap().data[1024..2048] == data);
        }
        for layout in [
            &[1024, 1][..],
            &[1025],
            &[1, 1023, 1],
            &[1000, 25],
            &[3, 5, 1017],
        ] {
            let (status, written, read) = bench.run(&[&header(0, 2)], layout);
            assert_eq!((status, written), (OK, 1025), "{layout:?}");
            assert!(read == data, "{layout:?}");
        }
    }
}

#[test]
fn the_serial_number_fills_what_room_there_is() {
    let mut bench = bench(&spec(), false);
    bench.driver.start(!0);
    let serial = b"serial-of-this-disk!";
    let (status, written, data) = bench.run(&[&header(8, 0)], &[20, 1]);
    assert_eq!((status, written, &data[..]), (OK, 21, &serial[..]));
    let (status, written, data) = bench.run(&[&header(8, 0)], &[7, 2]);
    assert_eq!((status, written, &data[..]), (OK, 9, &serial[..8]));
    let (status, written, data) = bench.run(&[&header(8, 0)], &[30]);
    assert_eq!((status, written, &data[..20]), (OK, 20, &serial[..]));
    assert!(data[20..].iter().all(|&b| b == 0xee));
    assert_eq!(bench.run(&[&header(8, 0)], &[1]).0, OK);

    let mut bench = self::bench(
        &BlkSpec {
            id: "vda".into(),
            ..spec()
        },
        false,
    );
    bench.driver.start(!0);
    let (_, _, data) = bench.run(&[&header(8, 0)], &[20, 1]);
    assert_eq!(data, b"vda\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn wrong_requests_get_an_error_and_never_reach_the_disk() {
    let mut bench = bench(&spec(), false);
    bench.driver.start(!0);
    let sectors = SIZE / 512;
    let sector = [0; 512];
    for (what, at) in [
        ("end", sectors),
        ("past it", u64::MAX),
        ("wrapping", u64::MAX / 512 + 1),
    ] {
        assert_eq!(bench.write(at, &sector), IOERR, "{what}");
        assert_eq!(bench.run(&[&header(0, at)], &[512, 1]).0, IOERR, "{what}");
    }
    assert_eq!(bench.write(sectors - 1, &[0; 1024]), IOERR);
    assert_eq!(bench.write(0, &[0; 511]), IOERR);
    assert_eq!(bench.write(0, &[0; 513]), IOERR);
    assert_eq!(bench.run(&[&header(0, 0)], &[511, 1]).0, IOERR);
    assert_eq!(
        bench.run(&[&header(0, 0)[..15]], &[512, 1]).0,
        IOERR,
        "a short header"
    );
    assert_eq!(bench.run(&[], &[512, 1]).0, IOERR, "no header");
    let (status, written, data) = bench.run(&[&header(0, sectors)], &[512, 1]);
    assert_eq!(
        (status, written),
        (IOERR, 0),
        "nothing of the data was written"
    );
    assert!(data.iter().all(|&b| b == 0xee));
    // SCSI, secure erase, zones, barriers, and what nobody has thought of.
    for kind in [2, 3, 5, 9, 14, 15, 16, 0x8000_0000, u32::MAX] {
        assert_eq!(
            bench.run(&[&header(kind, 0), &sector], &[1]).0,
            UNSUPP,
            "{kind}"
        );
    }
    assert!(bench.asked().is_empty());
    assert_eq!(
        bench.run(&[&header(0, 0)], &[1]).0,
        OK,
        "nothing is read, which is possible"
    );
    assert!(bench.asked().is_empty());
    assert!(!bench.driver.needs_reset() && bench.notes.lock().unwrap().is_empty());

    bench.driver.submit(0, &[&header(1, 0), &sector], &[]);
    assert_eq!(bench.driver.poll(0), None);
    assert!(
        bench.driver.needs_reset(),
        "an error could not even be reported"
    );
    assert!(
        bench
            .driver
            .log()
            .concat()
            .contains("has no room for its status")
    );
    bench.driver.start(!0);
    assert_eq!(bench.write(0, &sector), OK);
}

#[test]
fn discards_and_zeroes_are_checked_range_by_range() {
    let mut bench = bench(&spec(), false);
    bench.driver.start(!0);
    let sectors = SIZE / 512;
    let run = |bench: &mut Bench, kind, ranges: &[Vec<u8>]| {
        let ranges = ranges.concat();
        let parts: &[&[u8]] = &[&header(kind, 0), &ranges];
        let status = bench
            .run(&parts[..1 + usize::from(!ranges.is_empty())], &[1])
            .0;
        (status, bench.asked())
    };
    let zeroes = |unmap| Op::WriteZeroes {
        unmap,
        durable: false,
    };
    assert_eq!(
        run(
            &mut bench,
            13,
            &[range(1, 2, 0), range(8, 1, 1), range(0, 0, 0)]
        ),
        (
            OK,
            vec![
                (zeroes(false), 512, 1024),
                (zeroes(true), 4096, 512),
                (zeroes(false), 0, 0)
            ]
        )
    );
    assert_eq!(
        run(&mut bench, 11, &[range(sectors - 1, 1, 0)]),
        (OK, vec![(Op::Discard, SIZE - 512, 512)])
    );
    let many = vec![range(0, 1, 0); 16];
    assert_eq!(run(&mut bench, 11, &many).1.len(), 16);

    let refused = |status| (status, vec![]);
    assert_eq!(run(&mut bench, 11, &[]), refused(IOERR));
    assert_eq!(
        run(&mut bench, 11, &vec![range(0, 1, 0); 17]),
        refused(IOERR)
    );
    assert_eq!(
        run(&mut bench, 11, &[range(0, 1, 0)[..15].to_vec()]),
        refused(IOERR)
    );
    for kind in [11, 13] {
        assert_eq!(
            run(&mut bench, kind, &[range(0, 1, 0), range(sectors, 1, 0)]),
            refused(IOERR)
        );
        assert_eq!(
            run(&mut bench, kind, &[range(u64::MAX, 1, 0)]),
            refused(IOERR)
        );
        assert_eq!(
            run(&mut bench, kind, &[range(0, u32::MAX, 0)]),
            refused(IOERR)
        );
        assert_eq!(
            run(&mut bench, kind, &[range(0, 1, 2)]),
            refused(UNSUPP),
            "an unknown flag"
        );
    }
    assert_eq!(
        run(&mut bench, 11, &[range(0, 1, 1)]),
        refused(UNSUPP),
        "unmap is not for discards"
    );

    bench.driver.start(!(DISCARD | WRITE_ZEROES));
    for kind in [11, 13] {
        assert_eq!(
            run(&mut bench, kind, &[range(0, 1, 0)]),
            refused(UNSUPP),
            "not negotiated"
        );
    }
    let ignore = BlkSpec {
        discard: Discard::Ignore,
        ..spec()
    };
    let mut bench = self::bench(&ignore, false);
    assert_eq!(
        bench.driver.start(!0) & (DISCARD | WRITE_ZEROES),
        WRITE_ZEROES
    );
    assert_eq!(
        (
            bench.config(0x24, 4),
            bench.config(0x28, 4),
            bench.config(0x38, 1)
        ),
        (0, 0, 0)
    );
    let through = BlkSpec {
        cache: Cache::Writethrough,
        ..spec()
    };
    let mut bench = self::bench(&through, false);
    bench.driver.start(!0);
    let durable = Op::WriteZeroes {
        unmap: true,
        durable: true,
    };
    assert_eq!(
        run(&mut bench, 13, &[range(0, 1, 1)]),
        (OK, vec![(durable, 0, 512)])
    );
}

#[test]
fn ranges_of_one_request_run_one_after_the_other() {
    let mut bench = bench(&spec(), true);
    bench.driver.start(!0);
    let ranges = [range(0, 1, 0), range(4, 1, 0), range(8, 1, 0)].concat();
    bench.driver.submit(0, &[&header(11, 0), &ranges], &[1]);
    for n in 1..=3 {
        assert_eq!(bench.driver.poll(0), None);
        assert_eq!(bench.log.lock().unwrap().asked.len(), n);
        bench.ready.write(1).unwrap();
    }
    assert_eq!(bench.driver.wait(0).data, [OK]);

    bench.driver.submit(0, &[&header(11, 0), &ranges], &[1]);
    assert_eq!(bench.driver.poll(0), None);
    bench.log.lock().unwrap().fail = Some(libc::EIO);
    bench.ready.write(1).unwrap();
    assert_eq!(
        bench.driver.wait(0).data,
        [IOERR],
        "the first failure ends the request"
    );
    assert_eq!(bench.asked().len(), 3 + 1);
}

#[test]
fn failures_of_the_host_are_errors_to_the_guest_counted_and_said_once() {
    for (errno, text) in [
        (libc::ENOSPC, "No space left"),
        (libc::EIO, "Input/output error"),
    ] {
        for held in [false, true] {
            let spec = spec();
            let mut bench = bench(&spec, held);
            bench.driver.start(!0);
            bench.log.lock().unwrap().fail = Some(errno);
            for i in 0..3 {
                bench.driver.submit(0, &[&header(1, i), &[0; 512]], &[1]);
                bench.driver.run();
                bench.ready.write(1).unwrap();
                assert_eq!(bench.driver.wait(0).data, [IOERR]);
            }
            let notes = bench.notes.lock().unwrap().clone();
            assert_eq!(notes.len(), 1);
            assert!(
                notes[0].starts_with("disk0: the host failed a write at byte 0: "),
                "{notes:?}"
            );
            assert!(notes[0].contains(text));
            bench.log.lock().unwrap().fail = None;
            assert!(!bench.driver.needs_reset());
        }
    }
}
