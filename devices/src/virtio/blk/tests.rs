use serde::Deserialize as _;
use serde::de::value::{Error, MapDeserializer};

use super::*;

fn parse(fields: &[(&str, &str)]) -> Result<BlkSpec, Error> {
    BlkSpec::deserialize(MapDeserializer::new(fields.iter().copied()))
}

#[test]
fn keys_are_spelled_as_libvirt_and_libkrun_do() {
    let spec = parse(&[
        ("path", "/x"),
        ("cache", "directsync"),
        ("discard", "ignore"),
    ])
    .unwrap();
    let expected = BlkSpec {
        cache: Cache::Directsync,
        discard: Discard::Ignore,
        ..BlkSpec::new("/x")
    };
    assert_eq!(spec, expected);
    assert_eq!(parse(&[("path", "/x")]), Ok(BlkSpec::new("/x")));
    let qcow2 = parse(&[("path", "/x"), ("format", "qcow2"), ("id", "root")]).unwrap();
    assert_eq!((qcow2.format, qcow2.id.as_str()), (Format::Qcow2, "root"));
    for wrong in [
        ("cashe", "none"),
        ("cache", "write-back"),
        ("format", "vhd"),
    ] {
        assert!(parse(&[("path", "/x"), wrong]).is_err(), "{wrong:?}");
    }
}

#[test]
fn cache_modes_mean_what_qemu_says_and_single_keys_override_them() {
    let policy = |cache, direct_io, sync_mode| {
        let spec = BlkSpec {
            cache,
            direct_io,
            sync_mode,
            ..BlkSpec::new("/x")
        };
        let Policy {
            direct,
            writeback,
            no_flush,
        } = spec.policy();
        (direct, writeback, no_flush)
    };
    // qemu-system(1), -drive cache=: cache.direct, cache.writeback, cache.no-flush.
    assert_eq!(policy(Cache::None, None, None), (true, true, false));
    assert_eq!(policy(Cache::Writeback, None, None), (false, true, false));
    assert_eq!(
        policy(Cache::Writethrough, None, None),
        (false, false, false)
    );
    assert_eq!(policy(Cache::Directsync, None, None), (true, false, false));
    assert_eq!(policy(Cache::Unsafe, None, None), (false, true, true));

    assert_eq!(
        policy(Cache::Writeback, Some(true), None),
        (true, true, false)
    );
    assert_eq!(policy(Cache::None, Some(false), None), (false, true, false));
    let none = Some(SyncMode::None);
    assert_eq!(policy(Cache::Writeback, None, none), (false, true, true));
    for honoured in [SyncMode::Relaxed, SyncMode::Full] {
        assert_eq!(
            policy(Cache::Unsafe, None, Some(honoured)),
            (false, true, false)
        );
    }
}

#[test]
fn specs_out_of_range_are_refused_by_field() {
    let said = |change: fn(&mut BlkSpec)| {
        let mut spec = BlkSpec::new("/x");
        change(&mut spec);
        spec.validate().map_err(|e| e.to_string())
    };
    assert_eq!(said(|_| {}), Ok(()));
    assert_eq!(said(|s| s.id = "x".repeat(20)), Ok(()));
    let long = format!(
        "Disk id `{}` is not 0 to 20 printable ASCII characters",
        "x".repeat(21)
    );
    assert_eq!(said(|s| s.id = "x".repeat(21)), Err(long));
    assert!(said(|s| s.id = "ümlaut".into()).is_err());
    assert!(said(|s| s.id = "a\nb".into()).is_err());
    let format = "Disk /x: format qcow2 is not in this build yet; `qemu-img convert -O raw` makes a raw image";
    assert_eq!(said(|s| s.format = Format::Qcow2), Err(format.into()));
    assert!(said(|s| s.format = Format::Vmdk).is_err());
    let size = "Disk /x: queue_size is 100, must be a power of two from 4 to 1024";
    assert_eq!(said(|s| s.queue_size = 100), Err(size.into()));
    for wrong in [0, 2, 2048, 32768] {
        let spec = BlkSpec {
            queue_size: wrong,
            ..BlkSpec::new("/x")
        };
        assert!(spec.validate().is_err(), "{wrong}");
    }
    assert!(said(|s| s.num_queues = 0).is_err());
    assert!(said(|s| s.num_queues = 65).is_err());
    assert!(said(|s| s.logical_block_size = 1024).is_err());
    assert!(said(|s| s.seg_max = Some(0)).is_err());
    assert!(said(|s| s.seg_max = Some(1023)).is_err());
    assert_eq!(said(|s| s.seg_max = Some(1022)), Ok(()));
}
