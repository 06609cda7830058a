//! libvirt and QEMU of the host, and what libvirt remembers.

use super::*;

const YES: &str = "<domainCapabilities><features><sev supported='yes'><cbitpos>47</cbitpos>\
    <reducedPhysBits>1</reducedPhysBits></sev></features></domainCapabilities>";
const NO: &str =
    "<domainCapabilities><features><sev supported='no'/></features></domainCapabilities>";
const QEMU: &str = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\n";

/// A host that has SEV, with libvirt and QEMU of these versions.
fn stacked(name: &str, libvirt: &str, qemu: &str, domcaps: &str) -> Host {
    let host = Host::amd(
        &format!("stack-{name}"),
        "sev sev_es",
        &[("sev", "1"), ("sev_es", "1")],
        Some(NAPLES),
    );
    host.programs(&[("virsh", libvirt), ("qemu-system-x86_64", qemu)]);
    host.file("domcaps", domcaps);
    host
}

#[test]
fn versions_of_the_stack_are_judged() {
    for (name, libvirt, qemu, works) in [
        ("new", "9.0.0\n", QEMU, [true, true]),
        (
            "first",
            "4.5.0\n",
            "QEMU emulator version 2.12.0\n",
            [true, true],
        ),
        (
            "old",
            "4.4.9\n",
            "QEMU emulator version 2.11.2\n",
            [false, false],
        ),
        ("mute", "x\n", "\n", [false, false]),
    ] {
        let host = stacked(name, libvirt, qemu, YES);
        let (code, stack, _) = host.stack(&[]);
        assert_eq!(code, 0, "{stack:#}");
        assert_eq!(
            ["libvirt", "qemu"].map(|id| finding(&stack, id)["works"].as_bool().unwrap()),
            works,
            "{name}: {stack:#}"
        );
        let said = finding(&stack, "domcapabilities")["detail"]
            .as_str()
            .unwrap();
        assert_eq!(said, "sev supported: yes cbitpos=47 reducedPhysBits=1");
        assert_eq!(stack["answers"]["domain"]["cbitpos"], 47);
        assert_eq!(
            stack["answers"]["libvirt"]["error"].is_string(),
            name == "mute"
        );
        let equal = finding(&stack, "domcapabilities-cpuid");
        assert_eq!(equal["works"], true, "{equal}");
    }
    let other = stacked("other", "9.0.0\n", QEMU, &YES.replace("47", "51"));
    assert_eq!(
        finding(&other.stack(&[]).1, "domcapabilities-cpuid")["works"],
        false
    );
    // Nothing is asked without --stack.
    let quiet = stacked("quiet", "9.0.0\n", QEMU, YES);
    quiet.check();
    assert_eq!(quiet.words(), [""; 0]);
}

#[test]
fn what_libvirt_remembers_is_renewed() {
    let host = stacked("stale", "9.0.0\n", QEMU, NO);
    host.file("var/cache/libvirt/qemu/capabilities/a.xml", "<qemuCaps/>");
    let three = json!([
        "sudo systemctl stop libvirtd.service",
        "sudo sh -c 'rm -f /var/cache/libvirt/qemu/capabilities/*'",
        "sudo systemctl start libvirtd.service",
    ]);
    let (code, stack, _) = host.stack(&[]);
    assert_eq!(
        (code, &stack["cause"], &stack["commands"]),
        (1, &json!("stale-cache"), &three)
    );
    // Without a terminal and without --yes nothing is done.
    host.programs(&[("systemctl", "")]);
    let (code, stack, said) = host.stack(&["--fix"]);
    assert_eq!(
        (code, &stack["cause"]),
        (1, &json!("stale-cache")),
        "{said}"
    );
    assert!(said.contains("--yes"), "{said}");
    assert!(!host.words().iter().any(|w| w.starts_with("systemctl")));
    // What is in the cache goes, between a stop and a start, and the answer is a new one.
    host.file("after", YES);
    let (code, stack, said) = host.stack(&["--fix", "--yes"]);
    assert_eq!((code, &stack["cause"]), (0, &json!("none")), "{said}");
    let orders: Vec<String> = host
        .words()
        .into_iter()
        .filter(|w| w.starts_with("systemctl"))
        .collect();
    assert_eq!(
        orders,
        [
            "systemctl stop libvirtd.service",
            "systemctl start libvirtd.service"
        ]
    );
    assert!(
        !host
            .0
            .path("var/cache/libvirt/qemu/capabilities/a.xml")
            .exists()
    );
    // There is nothing to fix then.
    let (code, _, said) = host.stack(&["--fix", "--yes"]);
    assert_eq!(code, 0);
    assert!(said.contains("nothing to fix"), "{said}");
    assert_eq!(
        orders.len(),
        host.words()
            .iter()
            .filter(|w| w.starts_with("systemctl"))
            .count()
    );
}

#[test]
fn a_daemon_that_does_not_stop_keeps_its_cache() {
    let host = stacked("stuck", "9.0.0\n", QEMU, NO);
    host.file("var/cache/libvirt/qemu/capabilities/a.xml", "<qemuCaps/>");
    host.file("usr/lib/systemd/system/virtqemud.service", "");
    host.programs(&[("systemctl", "")]);
    // The script has nothing to say, and fails.
    fs::remove_file(host.0.path("systemctl")).unwrap();
    let (code, stack, said) = host.stack(&["--fix", "--yes"]);
    assert_eq!((code, &stack["cause"]), (1, &json!("stale-cache")));
    assert!(said.contains("systemctl stop virtqemud.service"), "{said}");
    assert!(
        host.0
            .path("var/cache/libvirt/qemu/capabilities/a.xml")
            .exists()
    );
}

#[test]
fn a_no_that_stays_has_a_cause() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |host: &Host, mode| {
        fs::set_permissions(host.0.path("dev/sev"), fs::Permissions::from_mode(mode)).unwrap();
    };
    let detail = |host: &Host| {
        let stack = host.stack(&[]).1;
        let detail = finding(&stack, "domcapabilities")["detail"]
            .as_str()
            .unwrap()
            .to_owned();
        (stack["cause"].as_str().unwrap().to_owned(), detail)
    };
    // (a) the host, (a) QEMU; nothing is remembered in any of these.
    let host = stacked("lacks-host", "9.0.0\n", QEMU, NO);
    host.file("sys/module/kvm_amd/parameters/sev", "0\n");
    let (cause, said) = detail(&host);
    assert!(
        cause == "host-lacks" && said.contains("(a)"),
        "{cause}: {said}"
    );
    let host = stacked(
        "lacks-qemu",
        "9.0.0\n",
        "QEMU emulator version 2.11.2\n",
        NO,
    );
    let (cause, said) = detail(&host);
    assert!(
        cause == "qemu-lacks" && said.contains("(a)"),
        "{cause}: {said}"
    );
    let host = stacked("without", "9.0.0\n", QEMU, NO);
    mode(&host, 0o600);
    assert_eq!(detail(&host).0, "qemu-lacks");
    // (b) libvirt before 5.1.0 asks QEMU as a user who may not open it, unless everybody may.
    let host = stacked("permission", "5.0.0\n", QEMU, NO);
    mode(&host, 0o600);
    let (cause, said) = detail(&host);
    assert!(
        cause == "permission" && said.contains("(b)"),
        "{cause}: {said}"
    );
    mode(&host, 0o666);
    assert_eq!(detail(&host).0, "qemu-lacks");
    // Remembered since the daemon was started: it found that out itself.
    host.file("run/libvirtd.pid", "1");
    host.file("var/cache/libvirt/qemu/capabilities/a.xml", "");
    assert_eq!(detail(&host).0, "qemu-lacks");
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    let file = fs::File::options()
        .write(true)
        .open(host.0.path("var/cache/libvirt/qemu/capabilities/a.xml"));
    file.unwrap().set_modified(old).unwrap();
    assert_eq!(detail(&host).0, "stale-cache");
    // Nobody answers.
    host.file("away", "");
    assert_eq!(detail(&host).0, "no-answer");
}

#[test]
fn selinux_has_a_hint() {
    let host = stacked("selinux", "9.0.0\n", QEMU, NO);
    host.programs(&[("rpm", "3.14.2-39.fc29\n")]);
    let selinux = |host: &Host| {
        let stack = host.stack(&[]).1;
        (stack["cause"].clone(), finding(&stack, "selinux").clone())
    };
    assert_eq!(selinux(&host).1, Value::Null);
    host.file("sys/fs/selinux/enforce", "0");
    assert_eq!(selinux(&host).1, Value::Null);
    host.file("sys/fs/selinux/enforce", "1");
    let (cause, found) = selinux(&host);
    assert_eq!(
        (&cause, &found["works"]),
        (&json!("selinux"), &json!(false))
    );
    let remedy = found["remedy"].as_str().unwrap();
    for word in ["update", "audit2allow", "discouraged", "setenforce 0"] {
        assert!(remedy.contains(word), "{remedy}");
    }
    host.programs(&[("rpm", "3.14.2-40.fc29\n")]);
    let (cause, found) = selinux(&host);
    assert_eq!(
        (&cause, &found["works"]),
        (&json!("qemu-lacks"), &json!(true))
    );
    // Who does not know says so.
    fs::remove_file(host.0.path("rpm")).unwrap();
    let (_, found) = selinux(&host);
    assert!(
        found["detail"].as_str().unwrap().contains("does not tell"),
        "{found}"
    );
}
