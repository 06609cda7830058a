//! `vsc-helper` and its client, in network and mount namespaces of their own: nothing of the host's is touched.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;
#[path = "common/inside.rs"]
mod inside;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::process::soon;
use common::{TempDir, expect_code, run, skip, text};
use vsc::net::tap::{Request, TapError, request};

/// Whether this is the process inside; if not, runs this test there, once more.
fn inside(test: &str) -> bool {
    let probe = "mount -t sysfs sysfs /sys; ip link add br0 type bridge; test -c /dev/net/tun";
    inside::inside(test, "-nm", probe)
}

/// A host of this test's own: an /etc, a bridge, a /dev/net/tun for everybody.
struct Host(TempDir);

impl Host {
    fn new(name: &str, rules: &str) -> Self {
        let dir = TempDir::new(&format!("helper-{name}"));
        fs::set_permissions(dir.path(""), PermissionsExt::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path("etc")).unwrap();
        fs::create_dir(dir.path("etc/vsc")).unwrap();
        dir.write(
            "etc/passwd",
            "root:x:0:0::/:/bin/sh\nada:x:1000:1000::/:/bin/sh\n",
        );
        dir.write("etc/group", "root:x:0:\nkvm:x:108:\n");
        let rules = dir.write("etc/vsc/helper.conf", rules);
        for path in [&dir.path("etc/vsc"), &dir.path("etc"), &rules] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let helper = dir.path("vsc-helper");
        fs::copy(env!("CARGO_BIN_EXE_vsc-helper"), &helper).unwrap();
        fs::set_permissions(&helper, PermissionsExt::from_mode(0o755)).unwrap();
        let host = Self(dir);
        host.shell("mount -t sysfs sysfs /sys; mount --bind \"$0/etc\" /etc; ip link set lo up; ip link add br0 type bridge; ip link set br0 mtu 4000 up; ip tuntap add dev d0 mode tap");
        host
    }

    /// Runs commands whose `$0` is this host's directory.
    fn shell(&self, script: &str) {
        let output = run(Command::new("sh")
            .arg("-ec")
            .arg(script)
            .arg(self.0.path("")));
        expect_code(&output, 0);
    }

    fn rules(&self, text: &str) {
        fs::write(self.0.path("etc/vsc/helper.conf"), text).unwrap();
    }

    fn helper(&self) -> PathBuf {
        self.0.path("vsc-helper")
    }

    fn ask(&self, bridge: &str) -> Request {
        Request {
            helper: Some(self.helper()),
            ..Request::new(bridge)
        }
    }

    #[track_caller]
    fn refused(&self, bridge: &str, why: &str) {
        match request(&self.ask(bridge)) {
            Err(TapError::Refused { why: told, .. }) => assert!(told.contains(why), "{told}"),
            other => panic!("{why}: {other:?}"),
        }
        assert_eq!(taps(), [""; 0]);
    }
}

fn taps() -> Vec<String> {
    let links = fs::read_dir("/sys/class/net").unwrap();
    let names = links.map(|link| link.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("vsc")).collect()
}

fn said(name: &str, file: &str) -> String {
    let path = Path::new("/sys/class/net").join(name).join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

/// An experimental protocol (IEEE 802, local experimental Ethertype 1).
const PROTOCOL: u16 = 0x88b5;

/// Hears frames of that protocol on an interface.
fn listener(interface: &str) -> OwnedFd {
    let index: i32 = said(interface, "ifindex").parse().unwrap();
    // SAFETY: plain system calls; the address is of the size that is said, all-zero is a valid one.
    unsafe {
        let protocol = PROTOCOL.to_be();
        let fd = libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            i32::from(protocol),
        );
        assert!(fd >= 0, "{}", std::io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address = std::mem::zeroed::<libc::sockaddr_ll>();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol;
        address.sll_ifindex = index;
        let size = std::mem::size_of_val(&address) as u32;
        let bound = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size);
        assert_eq!(bound, 0, "{}", std::io::Error::last_os_error());
        fd
    }
}

fn readable(fd: &OwnedFd) -> bool {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry that outlives the call.
    unsafe { libc::poll(&mut poll, 1, 10_000) == 1 }
}

#[test]
fn a_tap_in_a_bridge_carries_frames_and_goes_with_its_descriptor() {
    if !inside("a_tap_in_a_bridge_carries_frames_and_goes_with_its_descriptor") {
        return;
    }
    let host = Host::new("works", "allow br0 root\n");
    // As an uplink has one.
    host.shell("ip link set dev d0 address 52:54:00:00:00:01 master br0");
    let address = said("br0", "address");
    assert_eq!(address, "52:54:00:00:00:01");
    let tap = request(&host.ask("br0")).unwrap();
    assert_eq!(tap.name, "vsc0");
    let master = fs::read_link("/sys/class/net/vsc0/brport/bridge").unwrap();
    assert_eq!(master.file_name().unwrap(), "br0");
    assert_eq!(said("vsc0", "mtu"), "4000");
    let own = said("vsc0", "address");
    assert!(own.starts_with("fe:76:73:63:"), "{own}");
    // IFF_UP; and the flags of the tap: TAP, NO_PI, VNET_HDR.
    let flags =
        |file: &str| u32::from_str_radix(said("vsc0", file).trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags("flags") & 1, 1);
    assert_eq!(flags("tun_flags") & 0x5002, 0x5002);
    assert_eq!(said("br0", "mtu"), "4000");
    assert_eq!(said("br0", "address"), address, "the host keeps its own");

    // From the guest's side to the host's: a header of virtio-net without demands, and a frame to everybody.
    let ear = listener("br0");
    let mut frame = vec![0u8; 10];
    frame.extend([0xff; 6]);
    frame.extend([0x52, 0x54, 0, 0, 0, 1]);
    frame.extend(PROTOCOL.to_be_bytes());
    frame.extend(b"a frame from the guest");
    frame.resize(10 + 60, 0);
    let mut queue = fs::File::from(tap.queues.into_iter().next().unwrap());
    soon(|| said("vsc0", "brport/state") == "3");
    queue.write_all(&frame).unwrap();
    assert!(readable(&ear), "nothing came");
    let mut heard = [0; 100];
    let n = fs::File::from(ear.try_clone().unwrap())
        .read(&mut heard)
        .unwrap();
    assert_eq!(heard[..n], frame[10..]);
    // And back.
    fs::File::from(ear).write_all(&frame[10..]).unwrap();
    let raw = OwnedFd::from(queue);
    loop {
        assert!(readable(&raw), "nothing came back");
        let mut queue = fs::File::from(raw.try_clone().unwrap());
        let n = queue.read(&mut heard).unwrap();
        if heard[22..24] == PROTOCOL.to_be_bytes() {
            assert_eq!(heard[10..n], frame[10..]);
            break;
        }
    }
    assert_eq!(taps(), ["vsc0"]);
    drop(raw);
    soon(|| taps().is_empty());
    // Nobody of ours is left.
    let mut nobody = 0;
    // SAFETY: a plain system call; it waits for nobody.
    assert_eq!(unsafe { libc::waitpid(-1, &mut nobody, libc::WNOHANG) }, -1);
}

#[test]
fn a_tap_with_many_queues_is_one_interface() {
    if !inside("a_tap_with_many_queues_is_one_interface") {
        return;
    }
    let host = Host::new("queues", "allow br0\n");
    let one = request(&host.ask("br0")).unwrap();
    let many = Request {
        queues: 64,
        ..host.ask("br0")
    };
    let many = request(&many).unwrap();
    assert_eq!(
        (&*one.name, &*many.name, many.queues.len()),
        ("vsc0", "vsc1", 64)
    );
    let queues = fs::read_dir("/sys/class/net/vsc1/queues").unwrap();
    let names = queues.map(|q| q.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|q| q.starts_with("tx-")).count(), 64);
    drop((one, many));
    soon(|| taps().is_empty());
}

#[test]
fn who_is_not_allowed_gets_nothing() {
    if !inside("who_is_not_allowed_gets_nothing") {
        return;
    }
    let host = Host::new(
        "refused",
        "allow br1\ndeny br0 root\nallow br0\nallow d0\nallow nosuch\n",
    );
    host.refused(
        "br0",
        "user 0 may not have a tap in br0: /etc/vsc/helper.conf:2 denies it",
    );
    host.refused("d0", "d0 is no bridge of this host");
    host.refused("nosuch", "nosuch is no bridge of this host");
    host.refused("lo", "has no line that allows it");
    host.rules("allow br0\nallow br0 @nobody-knows\n");
    host.refused("br0", "/etc/vsc/helper.conf:2: there is no group");
    host.rules("allow br0\n");
    let conf = host.0.path("etc/vsc/helper.conf");
    fs::set_permissions(&conf, PermissionsExt::from_mode(0o666)).unwrap();
    host.refused("br0", "others may write to it");
    fs::remove_file(&conf).unwrap();
    host.refused("br0", "does not exist, so nobody may have a tap");
    symlink(host.0.write("real.conf", "allow br0\n"), &conf).unwrap();
    host.refused("br0", "it is a link");
    // What the client does not let through, the helper does not believe either.
    for arguments in [
        &["../br0", "1"][..],
        &["br0", "0"],
        &["br0", "65"],
        &["br0"],
        &["br0", "1", "x"],
    ] {
        let output = run(Command::new(host.helper()).args(arguments));
        expect_code(&output, 1);
        assert!(
            text(&output.stderr).contains("usage: vsc-helper"),
            "{}",
            text(&output.stderr)
        );
    }
    // Nobody to pass a tap to.
    fs::remove_file(&conf).unwrap();
    host.rules("allow br0\n");
    let output = run(Command::new(host.helper())
        .args(["br0", "1"])
        .stdin(Stdio::null()));
    expect_code(&output, 1);
    assert_eq!(taps(), [""; 0]);
    // And who is told no is told what it is about.
    let told = request(&host.ask("d0")).unwrap_err().to_string();
    assert!(
        told.contains(
            "ip link set dev vsc0 master d0 up; without any rights: `nets: [{type: user}]`"
        ),
        "{told}"
    );
}

#[test]
fn plan_shows_the_commands_and_who_would_do_them() {
    if !inside("plan_shows_the_commands_and_who_would_do_them") {
        return;
    }
    let host = Host::new("plan", "allow br0\ndeny br1\n");
    host.shell("ip link add br1 type bridge");
    // Programs are found beside each other.
    let program = host.0.path("vsc-run");
    fs::copy(env!("CARGO_BIN_EXE_vsc-run"), &program).unwrap();
    let scenario = host.0.write(
        "s.yaml",
        "nets: [{type: bridge, source: br0, queues: 2}, {type: user}, {type: bridge, source: br1}]\n",
    );
    let plan = |json: &[&str]| {
        let output = run(Command::new(&program)
            .args(["net", "plan"])
            .arg(&scenario)
            .args(json));
        expect_code(&output, 0);
        text(&output.stdout)
    };
    let want = format!(
        "nets[0]: a tap in br0, which stands for\n  \
         ip tuntap add dev vsc0 mode tap vnet_hdr multi_queue\n  \
         ip link set dev vsc0 address fe:76:73:63:XX:XX mtu 4000\n  \
         ip link set dev vsc0 master br0 up\n  \
         by hand: sudo sh -c 'ip tuntap add dev vsc0 mode tap vnet_hdr multi_queue user 0 && \
         n=$(cat /sys/class/net/vsc0/ifindex) && ip link set dev vsc0 address \
         fe:76:73:63:$(printf %02x:%02x $((n >> 8 & 255)) $((n & 255))) mtu 4000 && \
         ip link set dev vsc0 master br0 up'\n  \
         done by {}\n\
         nets[2]: a tap in br1, which stands for\n  \
         ip tuntap add dev vsc0 mode tap vnet_hdr\n  \
         ip link set dev vsc0 address fe:76:73:63:XX:XX mtu 1500\n  \
         ip link set dev vsc0 master br1 up\n  \
         by hand: sudo sh -c 'ip tuntap add dev vsc0 mode tap vnet_hdr user 0 && \
         n=$(cat /sys/class/net/vsc0/ifindex) && ip link set dev vsc0 address \
         fe:76:73:63:$(printf %02x:%02x $((n >> 8 & 255)) $((n & 255))) mtu 1500 && \
         ip link set dev vsc0 master br1 up'\n  \
         not as things are: user 0 may not have a tap in br1: /etc/vsc/helper.conf:2 denies it\n  \
         without any rights: `nets: [{{type: user}}]`\n",
        host.helper().display()
    );
    assert_eq!(plan(&[]), want);
    let answer: serde_json::Value = serde_json::from_str(&plan(&["--json"])).unwrap();
    assert_eq!(answer["cards"][0]["obstacle"], serde_json::Value::Null);
    assert_eq!(answer["cards"][1]["key"], "nets[2]");
    // The commands are right: root, by hand.
    for command in answer["cards"][0]["commands"].as_array().unwrap() {
        host.shell(&command.as_str().unwrap().replace("XX:XX", "00:01"));
    }
    let master = fs::read_link("/sys/class/net/vsc0/brport/bridge").unwrap();
    assert_eq!(master.file_name().unwrap(), "br0");
    assert_eq!(taps(), ["vsc0"]);
    // And so is the line for people, as it stands.
    host.shell("ip link delete dev vsc0");
    let line = answer["cards"][0]["sudo"].as_str().unwrap();
    host.shell(line.strip_prefix("sudo ").unwrap());
    let number: u32 = said("vsc0", "ifindex").parse().unwrap();
    let address = format!("fe:76:73:63:{:02x}:{:02x}", number >> 8 & 255, number & 255);
    assert_eq!(said("vsc0", "address"), address);
    assert_eq!(said("vsc0", "mtu"), "4000");
    assert_eq!(said("vsc0", "operstate"), "down", "nobody has it open");
    let master = fs::read_link("/sys/class/net/vsc0/brport/bridge").unwrap();
    assert_eq!(master.file_name().unwrap(), "br0");
}

#[test]
fn the_action_for_polkit_is_one_by_its_own_document_type() {
    // Of the package polkitd.
    let dtd = Path::new("/usr/share/polkit-1/policyconfig-1.dtd");
    let xmllint = Command::new("xmllint").arg("--version").output();
    if !dtd.exists() || xmllint.is_err() {
        return skip("no xmllint, or no document type of polkit");
    }
    let dir = TempDir::new("helper-polkit");
    let odd = "/opt/a&b <c>/vsc-helper";
    let output = run(common::vsc().args(["net", "polkit", "--helper", odd]));
    expect_code(&output, 0);
    let policy = text(&output.stdout);
    assert!(policy.contains("`$(command_line)`"), "{policy}");
    assert!(
        policy.contains("ip link set dev vsc0 master BRIDGE up"),
        "{policy}"
    );
    let file = dir.write("p.policy", &policy);
    let lint = |words: &[&str]| {
        let mut command = Command::new("xmllint");
        let output = run(command.args(["--nonet"]).args(words).arg(&file));
        expect_code(&output, 0);
        text(&output.stdout)
    };
    lint(&["--noout", "--dtdvalid", dtd.to_str().unwrap()]);
    let path = "string(//annotate[@key='org.freedesktop.policykit.exec.path'])";
    assert_eq!(lint(&["--xpath", path]).trim_end(), odd);
    for allow in ["allow_any", "allow_inactive", "allow_active"] {
        assert_eq!(
            lint(&["--xpath", &format!("string(//{allow})")]).trim_end(),
            "auth_admin"
        );
    }
}

/// What another user's process does: asks, tells, and keeps what it got until it is killed.
#[test]
fn as_another_user() {
    let Some(helper) = std::env::var_os("VSC_TEST_CLIENT") else {
        return;
    };
    let mut ask = Request::new("br0");
    ask.helper = Some(helper.into());
    let answer = request(&ask);
    let told = match &answer {
        Ok(tap) => format!("got {}", tap.name),
        Err(e) => format!("error {e}"),
    };
    let _ = std::io::stdout().write_all(format!("\n{told}\n").as_bytes());
    let _ = std::io::stdin().read(&mut [0]);
}

/// Starts that as user 1000.
fn client(host: &Host, groups: &[u32]) -> (Child, String) {
    let test = host.0.path("client");
    if !test.exists() {
        fs::copy(std::env::current_exe().unwrap(), &test).unwrap();
        fs::set_permissions(&test, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new(test);
    command
        .args(["--exact", "as_another_user", "--nocapture"])
        .env("VSC_TEST_CLIENT", host.helper())
        .env("SUDO_UID", "0")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let groups = groups.to_vec();
    let become_user = move || {
        // SAFETY: plain system calls, the list is as long as is said.
        let done = unsafe {
            libc::setgroups(groups.len(), groups.as_ptr()) == 0
                && libc::setgid(1000) == 0
                && libc::setuid(1000) == 0
        };
        if done {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: only system calls, and what they need is there already.
    unsafe { command.pre_exec(become_user) };
    let mut child = command.spawn().unwrap();
    let mut told = String::new();
    let mut chunk = [0; 512];
    while !told
        .lines()
        .any(|l| (l.starts_with("got ") || l.starts_with("error ")) && told.ends_with('\n'))
    {
        let n = child.stdout.as_mut().unwrap().read(&mut chunk).unwrap();
        assert!(n > 0, "{told}");
        told += &text(&chunk[..n]);
    }
    let line = told
        .lines()
        .find(|l| l.starts_with("got ") || l.starts_with("error "));
    let line = line.unwrap().to_owned();
    (child, line)
}

fn killed(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn installed_with_rights_it_serves_those_who_have_none() {
    if !inside("installed_with_rights_it_serves_those_who_have_none") {
        return;
    }
    let host = Host::new("setuid", "allow br0 @kvm\n");
    let other = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    if other.split_ascii_whitespace().nth(2) == Some("1") {
        return skip("this user has one user only");
    }
    host.shell("mount -t tmpfs -o mode=755 tmpfs /dev/net; mknod -m 666 /dev/net/tun c 10 200");
    // Without rights it says what to do.
    let (process, told) = client(&host, &[108]);
    assert!(
        told.contains("it has no CAP_NET_ADMIN; root gives it: setcap cap_net_admin+ep vsc-helper"),
        "{told}"
    );
    killed(process);
    for install in [
        "chmod 4755 \"$0/vsc-helper\"",
        "chmod 755 \"$0/vsc-helper\"; setcap cap_net_admin+ep \"$0/vsc-helper\"",
    ] {
        host.shell(install);
        // The group is the user's own, not what the environment says of sudo.
        let (process, told) = client(&host, &[]);
        assert!(
            told.contains("user 1000 may not have a tap in br0"),
            "{install}: {told}"
        );
        killed(process);
        let (process, told) = client(&host, &[108]);
        assert_eq!(told, "got vsc0", "{install}");
        assert_eq!(taps(), ["vsc0"]);
        // Whoever has it is killed: it goes.
        killed(process);
        soon(|| taps().is_empty());
        // It reads as the user reads: rights to read what root keeps to itself are gone by then.
        let conf = host.0.path("etc/vsc/helper.conf");
        fs::set_permissions(&conf, PermissionsExt::from_mode(0o600)).unwrap();
        let (process, told) = client(&host, &[108]);
        assert!(
            told.contains("cannot read /etc/vsc/helper.conf: Permission denied"),
            "{told}"
        );
        killed(process);
        fs::set_permissions(&conf, PermissionsExt::from_mode(0o644)).unwrap();
    }
}

#[test]
fn what_was_inherited_is_gone_before_anything_is_done() {
    if !inside("what_was_inherited_is_gone_before_anything_is_done") {
        return;
    }
    let host = Host::new("inherited", "allow br0\n");
    let trace = host.0.path("trace");
    let wrapper = host.0.write("wrapper", format!(
        "#!/bin/sh\nexec 7</etc/passwd 9>/dev/null\ntrap '' ALRM TERM\nexec strace -f -o {} {} \"$@\"\n",
        trace.display(), host.helper().display()
    ));
    fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755)).unwrap();
    let found = Command::new("strace")
        .arg("-V")
        .stdout(Stdio::null())
        .status();
    if !found.is_ok_and(|status| status.success()) {
        return skip("no strace");
    }
    let ask = Request {
        helper: Some(wrapper),
        ..Request::new("br0")
    };
    let tap = request(&ask).unwrap();
    let trace = fs::read_to_string(&trace).unwrap();
    let at = |what: &str| {
        trace
            .find(what)
            .unwrap_or_else(|| panic!("{what} in {trace}"))
    };
    // The time limit first, then rights, then what others may have written.
    let order = [
        "alarm(10",
        "close_range(3,",
        "capset(",
        "PR_SET_NO_NEW_PRIVS",
        "/etc/vsc",
        "/dev/net/tun",
        "sendmsg(",
    ];
    let places: Vec<usize> = order.iter().map(|what| at(what)).collect();
    assert!(places.is_sorted(), "{places:?} in {trace}");
    assert!(trace.contains("SIGALRM, {sa_handler=SIG_DFL"), "{trace}");
    let settled = &trace[at("PR_SET_NO_NEW_PRIVS")..];
    assert!(
        !settled.contains("execve(") && !settled.contains("clone"),
        "{settled}"
    );
    assert!(
        trace.contains("effective=1<<CAP_NET_ADMIN, permitted=1<<CAP_NET_ADMIN, inheritable=0"),
        "{trace}"
    );
    drop(tap);
    soon(|| taps().is_empty());
}
