//! What the host has to give for a guest's network: a tap in a bridge, from the one small program that may make it.
//!
//! The monitor needs no rights for this. `vsc-helper` does one thing, which these commands stand for: it makes a tap,
//! puts it into a bridge that `/etc/vsc/helper.conf` allows this user, sets it up, passes its descriptor on, and ends.
//! The tap is not persistent: it goes with the descriptor, however whoever holds it ends.

#![forbid(unsafe_code)]

pub mod policy;
pub mod tap;

/// The kernel replaces `%d` by the first free number (drivers/net/tun.c, dev_alloc_name).
pub const TEMPLATE: &str = "vsc%d";
/// Most queues of a tap (MAX_TAP_QUEUES of drivers/net/tun.c).
pub const QUEUES_MAX: u16 = 256;
/// Most queues that one request may ask for: their descriptors travel in one message (SCM_MAX_FD of
/// include/net/scm.h is 253).
pub const QUEUES_OF_A_REQUEST: u16 = 64;
/// First word of an answer that comes with descriptors; the name of the interface follows.
pub const GRANTED: &str = "tap ";
/// First word of an answer without; the reason follows.
pub const REFUSED: &str = "refused ";
/// Longest answer, bytes.
pub const ANSWER_MAX: usize = 1024;

/// Whether a name can be that of a network interface (dev_valid_name of net/core/dev.c).
pub fn can_be_interface(name: &str) -> bool {
    // IFNAMSIZ of include/uapi/linux/if.h is 16 with the end.
    (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && !name
            .bytes()
            .any(|b| matches!(b, b'/' | b':' | 0x0b) || b.is_ascii_whitespace())
}

/// The same, and it can be written without quotes.
pub fn is_interface_name(name: &str) -> bool {
    can_be_interface(name)
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// First bytes of a tap's hardware address; the number of the interface follows. A bridge takes the lowest address of
/// its ports for its own (br_stp_recalculate_bridge_id of net/bridge/br_stp_if.c), so that of a tap must be high.
pub const ADDRESS: [u8; 4] = [0xfe, 0x76, 0x73, 0x63];

/// The commands of iproute2 that a request stands for. `dev` is how the interface will be called, `mtu` the bridge's,
/// which a tap must not lower.
pub fn commands(dev: &str, bridge: &str, queues: u16, mtu: Option<u32>) -> Vec<String> {
    let multi = if queues > 1 { " multi_queue" } else { "" };
    let mtu = mtu.map_or_else(String::new, |mtu| format!(" mtu {mtu}"));
    let [a, b, c, d] = ADDRESS;
    vec![
        format!("ip tuntap add dev {dev} mode tap vnet_hdr{multi}"),
        format!("ip link set dev {dev} address {a:02x}:{b:02x}:{c:02x}:{d:02x}:XX:XX{mtu}"),
        format!("ip link set dev {dev} master {bridge} up"),
    ]
}

/// The same as one line that can be typed as it is: as root, and the tap stays until `ip link delete dev` of it. `user`
/// may open it then.
pub fn sudo_line(dev: &str, bridge: &str, queues: u16, mtu: Option<u32>, user: u32) -> String {
    let lines = commands(dev, bridge, queues, mtu);
    // The last two bytes of the address are the number of the interface, which is known once it is there.
    let number = "$(printf %02x:%02x $((n >> 8 & 255)) $((n & 255)))";
    let lines: Vec<String> = lines
        .iter()
        .enumerate()
        .map(|(at, line)| match at {
            0 => format!("{line} user {user} && n=$(cat /sys/class/net/{dev}/ifindex)"),
            _ => line.replace("XX:XX", number),
        })
        .collect();
    format!("sudo sh -c '{}'", lines.join(" && "))
}

/// What polkit calls the action of starting `vsc-helper` by pkexec(1).
pub const ACTION: &str = "io.github.vsc.helper";

/// The action for polkit(8), to be installed as [`ACTION`]`.policy` in /usr/share/polkit-1/actions: whoever starts
/// `helper` by pkexec is asked for an administrator's password, and shown what they allow. Which bridges a user may have
/// stays with /etc/vsc/helper.conf. `None`: the path cannot be written in XML.
pub fn polkit_policy(helper: &std::path::Path) -> Option<String> {
    let path = helper.to_str()?;
    // Characters that XML 1.0 does not have.
    if path.chars().any(|c| c.is_control()) || path.contains(['\u{fffe}', '\u{ffff}']) {
        return None;
    }
    let path = path
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let stands_for = commands("vsc0", "BRIDGE", 1, None).join("; ");
    Some(format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD PolicyKit Policy Configuration 1.0//EN" "http://www.freedesktop.org/standards/PolicyKit/1/policyconfig.dtd">
<policyconfig>
  <action id="{ACTION}">
    <description>Connect a virtual machine to a bridge</description>
    <message>A virtual machine is to be connected to a bridge. `$(command_line)` (the bridge, and how many queues) does what these do: {stands_for}</message>
    <defaults>
      <allow_any>auth_admin</allow_any>
      <allow_inactive>auth_admin</allow_inactive>
      <allow_active>auth_admin</allow_active>
    </defaults>
    <annotate key="org.freedesktop.policykit.exec.path">{path}</annotate>
  </action>
</policyconfig>
"#
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_interfaces_are_told_from_paths_and_words() {
        for good in ["br0", "virbr0-nic", "a", "fifteen-letters", "br0.100"] {
            assert!(is_interface_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "a/b",
            "br 0",
            "sixteen-letters-",
            "br0\n",
            "../br0",
            "br%d",
            "bŕ0",
        ] {
            assert!(!is_interface_name(bad), "{bad:?}");
        }
    }
}
