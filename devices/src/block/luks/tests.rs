//! Headers that are anybody's bytes; the splitter.

use proptest::prelude::*;

use super::crypt::Hash;
use super::{luks1, luks2};

#[test]
fn a_key_that_was_taken_apart_comes_together_again() {
    for hash in [
        Hash::Sha1,
        Hash::Sha224,
        Hash::Sha256,
        Hash::Sha512,
        Hash::Ripemd160,
    ] {
        for len in [32, 48, 64] {
            let key: Vec<u8> = (0..len).collect();
            let mut stripes = vec![0; 10 * key.len()];
            crate::secret::random(&mut stripes).unwrap();
            let (mut sum, mut back) = (vec![0; key.len()], vec![0; key.len()]);
            hash.split(&key, &mut stripes, &mut sum);
            hash.merge(&stripes, &mut back);
            assert_eq!(back, key, "{hash:?}");
            stripes[3] ^= 1;
            hash.merge(&stripes, &mut back);
            assert_ne!(back, key, "{hash:?}");
        }
    }
}

/// A header of version 1 that is good, with one slot.
fn good() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(0, &super::MAGIC);
    put(6, &[0, 1]);
    put(8, b"aes");
    put(40, b"xts-plain64");
    put(72, b"sha256");
    put(104, &4096u32.to_be_bytes());
    put(108, &64u32.to_be_bytes());
    put(164, &1000u32.to_be_bytes());
    for slot in 0..8 {
        put(208 + slot * 48, &luks1::DISABLED.to_be_bytes());
    }
    put(208, &luks1::ENABLED.to_be_bytes());
    put(212, &1000u32.to_be_bytes());
    put(248, &8u32.to_be_bytes());
    put(252, &4000u32.to_be_bytes());
    bytes
}

const JSON: &str = r#"{"keyslots":{"0":{"type":"luks2","key_size":64,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},
"area":{"type":"raw","offset":"32768","size":"258048","encryption":"aes-xts-plain64","key_size":64},
"kdf":{"type":"argon2id","time":4,"memory":65536,"cpus":2,"salt":"+KCV/KQo9JlFMxrl9POGh5GRoXhAD+OrvKnmAhYFlx4="}}},
"tokens":{},"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0",
"encryption":"aes-xts-plain64","sector_size":4096}},"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],
"hash":"sha256","iterations":1000,"salt":"F1HUue3XN9dxgOnjhD9ec2UljkkZz+ISIlvygmqFu+4=",
"digest":"ZPFiFuMeJAdq3MPmXaHw2+elbDREui/AUjllfR7hveQ="}},"config":{"json_size":"12288","keyslots_size":"16744448"}}"#;

const END: u64 = 64 << 20;

#[test]
fn a_description_is_refused_where_it_is_wrong() {
    let parse = |json: &str| luks2::Header::parse(json.as_bytes(), END).map(|h| h.layout);
    let layout = parse(JSON).unwrap();
    assert_eq!(
        (layout.sector, layout.offset, layout.key_bits),
        (4096, 16 << 20, 512)
    );
    for (from, to, why) in [
        ("\"stripes\":4000", "\"stripes\":1", "stripes"),
        ("\"32768\"", "\"0\"", "place of a key"),
        ("\"32768\"", "\"16777215\"", "place of a key"),
        ("\"32768\"", "\"18446744073709551615\"", "place of a key"),
        ("\"258048\"", "\"1\"", "place of a key"),
        (
            "\"memory\":65536",
            "\"memory\":4294967295",
            "over 4294967295 KiB",
        ),
        ("\"time\":4", "\"time\":4097", "4097 passes of Argon2"),
        ("\"cpus\":2", "\"cpus\":0", "Argon2"),
        ("argon2id", "scrypt", "description is wrong"),
        ("\"16777216\"", "\"-1\"", "number in its description"),
        ("\"16777216\"", "\"9223372036854775296\"", "beyond the end"),
        ("\"16777216\"", "\"512\"", "within the header"),
        ("\"dynamic\"", "\"x\"", "number in its description"),
        (
            "\"sector_size\":4096",
            "\"sector_size\":513",
            "size of its sectors",
        ),
        ("\"sector_size\":4096", "\"integrity\":{}", "authenticated"),
        (
            "\"sector_size\":4096",
            "\"flags\":[\"in-reencryption\"]",
            "in-reencryption",
        ),
        ("\"type\":\"crypt\"", "\"type\":\"linear\"", "linear"),
        ("\"iterations\":1000", "\"iterations\":0", "rounds"),
        (
            "\"iterations\":1000",
            "\"iterations\":200000001",
            "200000001 rounds",
        ),
        (
            "ZPFiFuMeJAdq3MPmXaHw2+elbDREui/AUjllfR7hveQ=",
            "ZA==",
            "digest",
        ),
        (
            "\"key_size\":64,\"af\"",
            "\"key_size\":4294967295,\"af\"",
            "key size",
        ),
        (
            "\"segments\":[\"0\"]",
            "\"segments\":[]",
            "digest of its key",
        ),
        ("\"keyslots\":[\"0\"]", "\"keyslots\":[\"7\"]", "not there"),
        (
            "\"config\":{",
            "\"config\":{\"requirements\":{\"mandatory\":[\"online-reencrypt\"]},",
            "online-reencrypt",
        ),
        ("F1HUue3XN9dxgOnjhD9ec2UljkkZz+ISIlvygmqFu+4=", "!", "salt"),
    ] {
        let json = JSON.replacen(from, to, 1);
        assert_ne!(json, JSON, "{from}");
        let said = parse(&json).unwrap_err().to_string();
        assert!(said.contains(why), "{from} to {to}: {said}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// What is understood stays within the image, whatever the bytes are.
    #[test]
    fn headers_of_version_1_are_anybodys_bytes(
        changes in prop::collection::vec((0usize..592, any::<u8>()), 0..12),
        end in 0u64..(1 << 40),
    ) {
        let mut bytes = good();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(header) = luks1::Header::parse(&bytes, end) {
            prop_assert!(header.layout.offset <= end);
            prop_assert!(matches!(header.layout.key_bits, 256 | 384 | 512));
            if let Ok(size) = header.layout.size(end) {
                prop_assert!(header.layout.offset + size <= end);
            }
        }
    }

    #[test]
    fn descriptions_of_version_2_are_anybodys_bytes(
        changes in prop::collection::vec((0..JSON.len(), any::<u8>()), 0..12),
        end in 0u64..(1 << 40),
    ) {
        let mut bytes = JSON.as_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Ok(header) = luks2::Header::parse(&bytes, end) {
            prop_assert!(header.layout.offset <= end);
            if let Ok(size) = header.layout.size(end) {
                prop_assert!(header.layout.offset + size <= end && size > 0);
            }
        }
    }
}
