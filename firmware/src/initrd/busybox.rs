//! Which commands a busybox binary answers to, without running it.

/// The table of applet names (`applet_names` of busybox's include/applet_tables.h): sorted, each ended by a NUL, the
/// whole by an empty one. It begins with the two names of test(1), wherever that is built in.
const START: &[u8] = b"\0[\0[[\0";

/// The commands, or none if the table cannot be found.
pub(crate) fn applets(binary: &[u8]) -> Vec<String> {
    let Some(start) = binary
        .windows(START.len())
        .position(|window| window == START)
    else {
        return Vec::new();
    };
    let valid = |name: &&[u8]| {
        !name.is_empty()
            && name.len() < 32
            && name
                .iter()
                .all(|byte| byte.is_ascii_graphic() && *byte != b'/')
    };
    binary[start + 1..]
        .split(|&byte| byte == 0)
        .take_while(valid)
        .filter_map(|name| String::from_utf8(name.to_vec()).ok())
        .collect()
}
