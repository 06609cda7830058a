//! Networks and storage pools.

use super::network::{Dhcp, Forward, NetworkError, NetworkSpec};
use super::pool::PoolSpec;
use super::{network, pool};

fn net(words: &str) -> Result<String, NetworkError> {
    let words: Vec<&str> = words.split(' ').collect();
    NetworkSpec::parse(&words).and_then(|spec| network::export(&spec))
}

#[test]
fn a_nat_network_with_a_range() {
    let text = net("name=preset bridge=virbr7 address=192.168.77.1/24 dhcp=192.168.77.2-192.168.77.254 forward=nat").unwrap();
    let want = "<network>
  <name>preset</name>
  <forward mode='nat'/>
  <bridge name='virbr7' stp='on' delay='0'/>
  <ip address='192.168.77.1' netmask='255.255.255.0'>
    <dhcp>
      <range start='192.168.77.2' end='192.168.77.254'/>
    </dhcp>
  </ip>
</network>
";
    assert_eq!(text, want);
    assert_eq!(
        network::export(&NetworkSpec::named("preset")).unwrap(),
        want.replace(" name='virbr7'", "")
    );
}

#[test]
fn ranges_follow_any_prefix() {
    for (address, netmask, range) in [
        (
            "10.0.0.1/30",
            "255.255.255.252",
            "'10.0.0.2' end='10.0.0.2'",
        ),
        (
            "10.0.0.6/29",
            "255.255.255.248",
            "'10.0.0.1' end='10.0.0.5'",
        ),
        (
            "10.0.0.65/26",
            "255.255.255.192",
            "'10.0.0.66' end='10.0.0.126'",
        ),
        (
            "10.1.2.3/23",
            "255.255.254.0",
            "'10.1.2.4' end='10.1.3.254'",
        ),
        (
            "172.16.0.1/16",
            "255.255.0.0",
            "'172.16.0.2' end='172.16.255.254'",
        ),
        ("10.0.0.1/8", "255.0.0.0", "'10.0.0.2' end='10.1.0.0'"),
    ] {
        let text =
            net(&format!("name=n address={address}")).unwrap_or_else(|e| panic!("{address}: {e}"));
        assert!(
            text.contains(&format!("netmask='{netmask}'")) && text.contains(range),
            "{address}: {text}"
        );
    }
}

#[test]
fn isolated_routed_and_silent_networks() {
    let isolated = net("name=n forward=isolated dhcp=none domain=vm.example.org").unwrap();
    assert!(
        !isolated.contains("forward") && !isolated.contains("dhcp"),
        "{isolated}"
    );
    assert!(isolated.contains("<domain name='vm.example.org'/>"));
    assert!(
        net("name=n forward=route")
            .unwrap()
            .contains("<forward mode='route'/>")
    );
    let odd = NetworkSpec {
        name: "a'&<b".into(),
        ..NetworkSpec::named("")
    };
    assert!(
        network::export(&odd)
            .unwrap()
            .contains("<name>a'&amp;&lt;b</name>")
    );
    assert_eq!((odd.forward, odd.dhcp), (Forward::Nat, Dhcp::Auto));
}

#[test]
fn networks_that_cannot_be_are_refused_by_key() {
    for (words, said) in [
        ("bridge=virbr7", "needs a name"),
        ("name=a name=b", "`name` is given twice"),
        ("name", "`name` is not of the form key=value"),
        (
            "name=a mtu=9000",
            "`mtu` is no key of a network; there are name, bridge, address, dhcp, forward, domain",
        ),
        ("name=a/b", "name=a/b: 1 to 200 bytes"),
        ("name=", "name=: 1 to 200 bytes"),
        (
            "name=a bridge=averyveryverylongname",
            "bridge=averyveryverylongname: 1 to 15",
        ),
        ("name=a bridge=a/b", "bridge=a/b"),
        ("name=a address=192.168.77.1", "with a prefix"),
        ("name=a address=fd00::1/64", "an IPv4 address"),
        ("name=a address=192.168.77.1/31", "prefix from 8 to 30"),
        ("name=a address=192.168.77.1/7", "prefix from 8 to 30"),
        (
            "name=a address=192.168.77.0/24",
            "first and the last address",
        ),
        (
            "name=a address=192.168.77.255/24",
            "first and the last address",
        ),
        (
            "name=a address=127.0.0.1/8",
            "not an address that a machine",
        ),
        (
            "name=a address=224.0.0.1/24",
            "not an address that a machine",
        ),
        ("name=a dhcp=192.168.77.9-192.168.77.2", "above the last"),
        (
            "name=a dhcp=192.168.77.0-192.168.77.9",
            "both must be from 192.168.77.1 to 192.168.77.254",
        ),
        ("name=a dhcp=192.168.77.2-192.168.78.9", "both must be from"),
        (
            "name=a dhcp=192.168.77.1-192.168.77.9",
            "192.168.77.1 is the host's own address",
        ),
        ("name=a dhcp=192.168.77.2", "FIRST-LAST, auto or none"),
        (
            "name=a address=10.0.0.1/8 dhcp=10.0.0.2-10.9.0.0",
            "at most 65535",
        ),
        ("name=a forward=magic", "one of nat, route, isolated"),
        ("name=a domain=a..b", "a DNS name"),
    ] {
        let error = net(words).unwrap_err().to_string();
        assert!(error.contains(said), "{words}: {error}");
    }
}

fn storage(words: &str) -> Result<String, pool::PoolError> {
    let words: Vec<&str> = words.split(' ').collect();
    PoolSpec::parse(&words).and_then(|spec| pool::export(&spec))
}

#[test]
fn an_iscsi_pool_names_its_volumes_by_path() {
    let text = storage("type=iscsi name=san host=192.0.2.7 port=3260 iqn=iqn.2026-11.org.example:target initiator=iqn.2026-11.org.example:me").unwrap();
    let want = "<pool type='iscsi'>
  <name>san</name>
  <source>
    <host name='192.0.2.7' port='3260'/>
    <device path='iqn.2026-11.org.example:target'/>
    <initiator>
      <iqn name='iqn.2026-11.org.example:me'/>
    </initiator>
  </source>
  <target>
    <path>/dev/disk/by-path</path>
  </target>
</pool>
";
    assert_eq!(text, want);
}

#[test]
fn the_other_pools() {
    let dir = storage("name=d path=/var/lib/a&b").unwrap();
    assert!(
        dir.starts_with("<pool type='dir'>")
            && dir.contains("<path>/var/lib/a&amp;b</path>")
            && !dir.contains("source")
    );
    let fs = storage("type=fs name=f device=/dev/sdb1 path=/mnt format=ext4").unwrap();
    assert!(fs.contains("<device path='/dev/sdb1'/>") && fs.contains("<format type='ext4'/>"));
    let netfs =
        storage("type=netfs name=f host=nas.example.org dir=/export path=/mnt format=nfs").unwrap();
    assert!(
        netfs.contains("<host name='nas.example.org'/>") && netfs.contains("<dir path='/export'/>")
    );
    let lvm = storage("type=logical name=l group=vg0 devices=/dev/sdb,/dev/sdc").unwrap();
    assert!(
        lvm.contains("<device path='/dev/sdc'/>")
            && lvm.contains("<name>vg0</name>")
            && lvm.contains("<path>/dev/vg0</path>")
    );
}

#[test]
fn no_message_carries_control_characters() {
    let bad = "a\u{1b}[31m";
    for words in [
        format!("name={bad}"),
        bad.into(),
        format!("{bad}=1"),
        format!("name=a bridge={bad}"),
    ] {
        let error = net(&words).unwrap_err().to_string();
        assert!(
            !error.contains('\u{1b}') && error.contains("u{1b}"),
            "{error}"
        );
        let error = storage(&words).unwrap_err().to_string();
        assert!(!error.contains('\u{1b}'), "{error}");
    }
}

#[test]
fn pools_that_cannot_be_are_refused_by_key() {
    for (words, said) in [
        ("type=zfs name=a", "one of dir, fs, netfs, logical, iscsi"),
        ("name=a", "a pool of type dir needs path=…"),
        ("path=/a", "needs name=…"),
        ("name=a path=a", "an absolute path"),
        (
            "name=a path=/a host=b",
            "`host` is no key of a pool of type dir; there are type, name, path",
        ),
        ("name=a name=b path=/a", "given twice"),
        ("junk", "not of the form"),
        ("type=iscsi name=a host=h iqn=x", "an iSCSI name"),
        (
            "type=iscsi name=a host=h;id iqn=iqn.2026-11.a",
            "a host name",
        ),
        (
            "type=iscsi name=a host=h port=0 iqn=iqn.2026-11.a",
            "a port from 1 to 65535",
        ),
        (
            "type=fs name=a device=/dev/a path=/a format=ntfs",
            "not a format",
        ),
        (
            "type=logical name=a group=../x",
            "the name of a volume group",
        ),
        (
            "type=logical name=a group=vg devices=sdb",
            "an absolute path",
        ),
        ("name=a/b path=/a", "without `/`"),
    ] {
        let error = storage(words).unwrap_err().to_string();
        assert!(error.contains(said), "{words}: {error}");
    }
}
