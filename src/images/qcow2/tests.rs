use proptest::prelude::*;

use super::*;

/// A header of version 3 as QEMU writes it, with `extensions` behind it.
fn v3(extensions: &[u8]) -> Vec<u8> {
    let mut h = Vec::new();
    h.extend(MAGIC);
    h.extend(3u32.to_be_bytes());
    h.extend(0u64.to_be_bytes()); // backing file: offset
    h.extend(0u32.to_be_bytes()); // and length
    h.extend(16u32.to_be_bytes()); // cluster bits
    h.extend((20u64 << 30).to_be_bytes());
    h.extend(0u32.to_be_bytes()); // encryption
    h.extend([0; 36]); // tables, snapshots
    h.extend(0u64.to_be_bytes()); // incompatible
    h.extend(0u64.to_be_bytes()); // compatible
    h.extend(0u64.to_be_bytes()); // autoclear
    h.extend(4u32.to_be_bytes()); // refcount order
    h.extend(112u32.to_be_bytes()); // length
    h.extend([0; 8]); // compression type, padding
    h.extend(extensions);
    h.resize(4096, 0);
    h
}

fn extension(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut e = kind.to_be_bytes().to_vec();
    e.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    e.extend(data);
    e.resize(e.len().next_multiple_of(8), 0);
    e
}

fn set(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn a_plain_header_is_told() {
    let header = Header::parse(&v3(&[])).unwrap();
    assert_eq!((header.version, header.virtual_size), (3, 20 << 30));
    assert_eq!(
        (header.cluster_size, header.compression_type),
        (65536, "zlib")
    );
    assert!(header.incompatible_features.is_empty() && !header.lazy_refcounts);
    assert_eq!((header.encryption, header.backing_file), (None, None));
    assert_eq!(header.data_file, None);
}

#[test]
fn names_and_features_are_told() {
    let mut names = vec![0, 9];
    names.extend(b"moon phase");
    names.resize(48, 0);
    names.extend([1, 0]); // compatible: not asked for
    names.resize(96, b'x');
    let extensions = [
        extension(BACKING_FORMAT, b"raw"),
        extension(FEATURE_NAMES, &names),
        extension(0x2385_2875, &[0; 24]), // bitmaps: nothing to us
        extension(DATA_FILE, b"data\x1b[31m.raw"),
    ];
    let mut bytes = v3(&extensions.concat());
    set(&mut bytes, 8, &2048u64.to_be_bytes());
    set(&mut bytes, 16, &11u32.to_be_bytes());
    set(&mut bytes, 2048, b"/etc/shadow");
    set(&mut bytes, 32, &2u32.to_be_bytes());
    set(
        &mut bytes,
        72,
        &(1u64 << 40 | 1 << 9 | 1 << 3 | 1 << 2).to_be_bytes(),
    );
    set(&mut bytes, 80, &1u64.to_be_bytes());
    set(&mut bytes, 104, &[1]);
    let header = Header::parse(&bytes).unwrap();
    assert_eq!(header.backing_file.as_deref(), Some("/etc/shadow"));
    assert_eq!(header.backing_format.as_deref(), Some("raw"));
    assert_eq!(header.data_file.as_deref(), Some("data\\u{1b}[31m.raw"));
    assert_eq!(
        (header.encryption, header.compression_type),
        (Some("luks"), "zstd")
    );
    assert!(header.lazy_refcounts);
    assert_eq!(
        header.incompatible_features,
        [
            "external data file",
            "compression type",
            "moon phase",
            "bit 40"
        ]
    );
}

#[test]
fn what_is_wrong_is_said() {
    let cases: [(usize, &[u8], &str); 9] = [
        (0, b"QFI?", "begin"),
        (4, &4u32.to_be_bytes(), "version 4"),
        (20, &8u32.to_be_bytes(), "2^8"),
        (20, &22u32.to_be_bytes(), "2^22"),
        (32, &3u32.to_be_bytes(), "method 3"),
        (100, &103u32.to_be_bytes(), "103 bytes"),
        (100, &70000u32.to_be_bytes(), "70000 bytes"),
        (104, &[7], "type 7"),
        (8, &u64::MAX.to_be_bytes(), "backing"),
    ];
    for (at, value, says) in cases {
        let mut bytes = v3(&[]);
        set(&mut bytes, at, value);
        let error = Header::parse(&bytes).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    let mut bytes = v3(&[]);
    set(&mut bytes, 8, &104u64.to_be_bytes());
    set(&mut bytes, 16, &1024u32.to_be_bytes());
    assert!(matches!(Header::parse(&bytes), Err(BadHeader::BackingName)));
    let bytes = v3(&[0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff]);
    assert!(matches!(Header::parse(&bytes), Err(BadHeader::Extension)));
    for length in [0, 3, 4, 71, 100, 103] {
        assert!(Header::parse(&v3(&[])[..length]).is_err(), "{length}");
    }
}

#[test]
fn version_2_has_no_features() {
    let mut bytes = v3(&[]);
    set(&mut bytes, 4, &2u32.to_be_bytes());
    // What would be feature bits and a compression type in version 3 is an extension here, and an end.
    set(&mut bytes, 72, &extension(BACKING_FORMAT, b"qcow2"));
    set(&mut bytes, 88, &[0; 24]);
    let header = Header::parse(&bytes).unwrap();
    assert_eq!((header.version, header.compression_type), (2, "zlib"));
    assert!(header.incompatible_features.is_empty());
    assert_eq!(header.backing_format.as_deref(), Some("qcow2"));
}

proptest! {
    #[test]
    fn no_bytes_are_too_much(mut bytes in prop::collection::vec(any::<u8>(), 0..600), version in 2u32..=3) {
        let _ = Header::parse(&bytes);
        if bytes.len() >= 24 {
            set(&mut bytes, 0, &MAGIC);
            set(&mut bytes, 4, &version.to_be_bytes());
            set(&mut bytes, 20, &16u32.to_be_bytes());
        }
        let _ = Header::parse(&bytes);
    }

    #[test]
    fn a_damaged_header_is_told_or_refused(at in 0usize..400, value in any::<[u8; 8]>()) {
        let mut bytes = v3(&extension(FEATURE_NAMES, &[0; 144]));
        set(&mut bytes, at, &value);
        if let Ok(header) = Header::parse(&bytes) {
            prop_assert!(header.cluster_size.is_power_of_two() && header.cluster_size <= 2 << 20);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is believed is within bounds, whatever the bytes are.
    #[test]
    fn headers_to_be_believed_are_anybodys_bytes(
        changes in prop::collection::vec((0usize..256, any::<u8>()), 0..16),
        length in 0u64..(1 << 45),
    ) {
        let mut bytes = v3(&extension(BACKING_FORMAT, b"raw"));
        set(&mut bytes, 36, &40u32.to_be_bytes());
        set(&mut bytes, 40, &0x30000u64.to_be_bytes());
        set(&mut bytes, 48, &0x10000u64.to_be_bytes());
        set(&mut bytes, 56, &1u32.to_be_bytes());
        prop_assert!(checks::check(&bytes, 1 << 20).is_ok());
        for (at, byte) in changes {
            set(&mut bytes, at, &[byte]);
        }
        if let Ok(checked) = checks::check(&bytes, length) {
            let tables = u64::from(u32_at(&bytes, 36).unwrap()) * 8;
            prop_assert!(tables <= 32 << 20);
            prop_assert!(checked.backing.is_none_or(|name| name.len() <= NAME_MAX));
            prop_assert!(u64_at(&bytes, 72).unwrap() & !0x1f == 0 || checked.header.version == 2);
        }
    }
}

#[test]
fn what_qemu_does_not_read_is_no_extension() {
    let mut bytes = v3(&extension(FEATURE_NAMES, &[0; 48]));
    set(&mut bytes, 36, &40u32.to_be_bytes());
    set(&mut bytes, 40, &0x30000u64.to_be_bytes());
    set(&mut bytes, 48, &0x10000u64.to_be_bytes());
    set(&mut bytes, 56, &1u32.to_be_bytes());
    // The name begins where the extension with its format does: QEMU stops before it.
    let end = 112 + 8 + 48;
    set(&mut bytes, 8, &(end as u64).to_be_bytes());
    set(&mut bytes, 16, &4u32.to_be_bytes());
    set(&mut bytes, end, &extension(BACKING_FORMAT, b"raw"));
    let checked = checks::check(&bytes, 1 << 20).unwrap();
    assert!(checked.backing.is_some() && checked.backing_format.is_none());
}
