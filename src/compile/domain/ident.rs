//! Identities derived from names: the same each time, on every host, and different for different machines.

#![forbid(unsafe_code)]

/// 128-bit FNV-1a over the parts, each ended by a NUL (draft-eastlake-fnv, offset basis and prime for 128 bits).
fn hash(parts: &[&str]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = BASIS;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
    hash
}

/// A UUID of version 8, whose bits are for its maker to choose (RFC 9562, 5.8).
pub(super) fn uuid(parts: &[&str]) -> String {
    let bits = hash(parts) & !(0xf000 << 64) & !(0xc000 << 48) | (0x8000 << 64) | (0x8000 << 48);
    let hex = format!("{bits:032x}");
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )
}

/// A hardware address: 52:54, whose first byte says locally administered and unicast (IEEE 802, 8.4), then 32 bits of
/// the name's hash.
pub(super) fn mac(machine: &str, card: usize) -> String {
    let hash = hash(&["mac", machine, &card.to_string()]);
    let byte = |shift: u32| (hash >> shift) as u8;
    format!(
        "52:54:{:02x}:{:02x}:{:02x}:{:02x}",
        byte(24),
        byte(16),
        byte(8),
        byte(0)
    )
}

/// Whether a text is a hardware address of one machine.
pub(super) fn is_mac(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    parts.len() == 6
        && parts
            .iter()
            .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()))
        && parts
            .first()
            .and_then(|p| u8::from_str_radix(p, 16).ok())
            .is_some_and(|b| b & 1 == 0)
        && parts.iter().any(|p| *p != "00")
}

/// Whether a text is a UUID, with its dashes.
pub(super) fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn identities_are_stable_well_formed_and_different() {
        assert_eq!(uuid(&["lab"]), uuid(&["lab"]));
        assert_eq!(mac("lab", 0), mac("lab", 0));
        let names: Vec<String> = (0..3000).map(|n| format!("vm{n}")).collect();
        let uuids: HashSet<String> = names.iter().map(|n| uuid(&["domain", n])).collect();
        let macs: HashSet<String> = names.iter().flat_map(|n| [mac(n, 0), mac(n, 1)]).collect();
        assert_eq!((uuids.len(), macs.len()), (3000, 6000));
        for uuid in &uuids {
            assert!(
                is_uuid(uuid) && uuid.as_bytes().get(14) == Some(&b'8'),
                "{uuid}"
            );
            assert!(
                matches!(uuid.as_bytes().get(19), Some(b'8' | b'9' | b'a' | b'b')),
                "{uuid}"
            );
        }
        assert!(
            macs.iter()
                .all(|mac| is_mac(mac)
                    && u8::from_str_radix(&mac[..2], 16).is_ok_and(|b| b & 3 == 2))
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in [
            "",
            "52:54:00:00:00",
            "52:54:00:00:00:0g",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "5254.0000.0001",
            "52:54:00:00:00:001",
        ] {
            assert!(!is_mac(bad), "{bad}");
        }
        assert!(!is_uuid("6f1c2b1a9d0e4c519c3f0a4d5e6f7a8b") && !is_uuid("g"));
    }
}
