use super::*;

#[test]
fn finds_like_windows_does() {
    let hay: Vec<u8> = (0..300)
        .map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 29) as u8)
        .collect();
    for len in [1, 2, 3, 5, 40] {
        for start in (0..hay.len() - len).step_by(7) {
            let needle = &hay[start..start + len];
            assert_eq!(
                find(&hay, needle),
                hay.windows(len).position(|window| window == needle)
            );
        }
    }
    assert_eq!(find(b"abc", b"abcd"), None);
    assert_eq!(find(b"", b"a"), None);
    assert_eq!(find(b"a", b""), None);
}

#[test]
fn finds_versions() {
    assert_eq!(
        version_in(b"xxLinux version 6.1.0-x (me)\n").as_deref(),
        Some("6.1.0-x")
    );
    assert_eq!(
        version_in(b"Linux version %s Linux version 5.4 ").as_deref(),
        Some("5.4")
    );
    assert_eq!(version_in(b"Linux version "), None);
    assert_eq!(version_in(b"Linux versio"), None);
}
