//! `vsc-run sev` on made-up hosts: nobody here has the hardware.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Output;

use common::{TempDir, expect_code, run, text, vsc};
use serde_json::{Value, json};

/// CPUID 0x8000001F: EAX, EBX, ECX, EDX.
type Leaf = [u32; 4];
/// An EPYC of the first generation: SEV and SEV-ES, C-bit 47.
const NAPLES: Leaf = [0b0000_1111, 47 | 5 << 6, 15, 5];
/// One of the third: SNP too, C-bit 51.
const MILAN: Leaf = [0b0001_1111, 51 | 5 << 6, 509, 100];
/// One whose firmware gave no numbers to SEV-ES.
const NO_ES: Leaf = [0b0000_1111, 47 | 5 << 6, 509, 1];

/// A host below a directory.
struct Host(TempDir);

impl Host {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let host = Host(TempDir::new(&format!("sev-{name}")));
        for (path, content) in files {
            host.file(path, content);
        }
        host
    }

    /// An AMD host with these flags, parameters of kvm_amd, /dev/sev, and a processor that answers.
    fn amd(name: &str, flags: &str, parameters: &[(&str, &str)], leaf: Option<Leaf>) -> Self {
        let cpu = format!("processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu {flags}\n");
        let host = Host::new(name, &[("proc/cpuinfo", &cpu), ("dev/sev", "")]);
        for (parameter, value) in parameters {
            host.file(
                &format!("sys/module/kvm_amd/parameters/{parameter}"),
                &format!("{value}\n"),
            );
        }
        if let Some(leaf) = leaf {
            host.cpuid(leaf);
        }
        host
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.0.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// As /dev/cpu/0/cpuid answers: 16 bytes at the number of the leaf.
    fn cpuid(&self, leaf: Leaf) {
        self.file("dev/cpu/0/cpuid", "");
        let file = fs::File::options()
            .write(true)
            .open(self.0.path("dev/cpu/0/cpuid"))
            .unwrap();
        file.write_all_at(&0x8000_0028u32.to_le_bytes(), 0x8000_0000)
            .unwrap();
        let bytes: Vec<u8> = leaf.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.write_all_at(&bytes, 0x8000_001f).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run(vsc()
            .arg("sev")
            .args(arguments)
            .arg("--host-root")
            .arg(self.0.path(""))
            .env_remove("container"))
    }

    fn check(&self) -> (i32, Value) {
        let output = self.run(&["check", "--json"]);
        (output.status.code().unwrap(), value(&output))
    }
}

fn value(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", text(&output.stdout)))
}

fn finding<'a>(report: &'a Value, id: &str) -> &'a Value {
    let list = report["findings"].as_array().unwrap();
    list.iter().find(|f| f["id"] == id).unwrap_or(&Value::Null)
}

const ALL_FLAGS: &str = "svm sme sev sev_es sev_snp";

#[test]
fn four_verdicts_are_told_apart() {
    let on = |names: &[&'static str]| names.iter().map(|n| (*n, "Y")).collect::<Vec<_>>();
    for (name, flags, parameters, leaf, level, processor) in [
        ("none", "svm", vec![], Some([0; 4]), "none", "none"),
        ("intel", "vmx", vec![], None, "none", "none"),
        // Whole words: sev_es alone is not sev.
        (
            "words",
            "svm sev_es sevx xsev",
            on(&["sev", "sev_es"]),
            Some(NAPLES),
            "none",
            "none",
        ),
        (
            "sev",
            "svm sev",
            vec![("sev", "1")],
            Some([2, 47 | 5 << 6, 15, 1]),
            "sev",
            "sev",
        ),
        (
            "es",
            "svm sme sev sev_es",
            vec![("sev", "1"), ("sev_es", "Y")],
            Some(NAPLES),
            "sev-es",
            "sev-es",
        ),
        (
            "snp",
            ALL_FLAGS,
            on(&["sev", "sev_es", "sev_snp"]),
            Some(MILAN),
            "sev-snp",
            "sev-snp",
        ),
        // Without CPUID the flags count.
        (
            "flags",
            ALL_FLAGS,
            on(&["sev", "sev_es", "sev_snp"]),
            None,
            "sev-snp",
            "sev-snp",
        ),
        // The processor could do more than the kernel has on.
        (
            "half",
            ALL_FLAGS,
            vec![("sev", "Y"), ("sev_es", "N"), ("sev_snp", "N")],
            Some(MILAN),
            "sev",
            "sev-snp",
        ),
        (
            "off",
            "svm sev sev_es",
            vec![("sev", "N"), ("sev_es", "Y")],
            Some(NAPLES),
            "none",
            "sev-es",
        ),
        // CPUID has the last word on what flags say.
        (
            "less",
            ALL_FLAGS,
            on(&["sev", "sev_es", "sev_snp"]),
            Some(NAPLES),
            "sev-es",
            "sev-es",
        ),
    ] {
        let host = Host::amd(name, flags, &parameters, leaf);
        let (code, report) = host.check();
        let usable = level != "none";
        assert_eq!(
            (
                code,
                &report["level"],
                &report["processor"],
                &report["usable"]
            ),
            (
                i32::from(!usable),
                &json!(level),
                &json!(processor),
                &json!(usable)
            ),
            "{name}: {report:#}"
        );
        let said = text(&host.run(&["check"]).stdout);
        let last = said.lines().last().unwrap();
        assert!(last.starts_with(&format!("{level}: ")), "{name}: {last}");
        for f in report["findings"].as_array().unwrap() {
            assert_eq!(
                f["works"] == false,
                f["remedy"].is_string(),
                "{name}: what does not work has its remedy: {f}"
            );
        }
    }
}

#[test]
fn the_c_bit_is_the_processors() {
    for (name, leaf, cbitpos) in [("47", NAPLES, 47), ("51", MILAN, 51)] {
        let host = Host::amd(&format!("cbit-{name}"), "sev", &[("sev", "1")], Some(leaf));
        let (_, report) = host.check();
        assert_eq!(
            (&report["cbitpos"], &report["reduced_phys_bits"]),
            (&json!(cbitpos), &json!(5))
        );
        // The compiler has the same from the same place.
        let info = run(vsc()
            .args(["info", "--json", "--host-root"])
            .arg(host.0.path("")));
        assert_eq!(value(&info)["sev"]["enabled"]["cbitpos"], cbitpos);
    }
    let unknown = Host::amd("cbit-unknown", "sev", &[("sev", "1")], None);
    assert_eq!(unknown.check().1["cbitpos"], Value::Null);
    // A directory is no host: this machine's own processor does not answer for it.
    let info = run(vsc()
        .args(["info", "--json", "--host-root"])
        .arg(unknown.0.path("")));
    assert_eq!(value(&info)["sev"]["enabled"], Value::Null);
}

#[test]
fn each_obstacle_has_its_own_remedy() {
    let remedy = |host: &Host, id: &str| {
        let report = host.check().1;
        finding(&report, id)["remedy"]
            .as_str()
            .unwrap_or_else(|| panic!("{id}: {report:#}"))
            .to_owned()
    };
    // Firmware that hides what the processor has.
    let hidden = Host::amd("hidden", "svm", &[("sev", "N")], Some(NAPLES));
    assert!(remedy(&hidden, "cpu-flags").contains("SMEE"));
    // The module is off, or not there.
    let off = Host::amd("module-off", "sev", &[("sev", "0")], Some(NAPLES));
    assert_eq!(remedy(&off, "kvm-sev"), "sudo vsc-run sev enable");
    assert_eq!(off.check().0, 1);
    let away = Host::amd("module-away", "sev", &[], Some(NAPLES));
    assert_eq!(remedy(&away, "kvm-sev"), "sudo modprobe kvm_amd");
    // SEV-ES without numbers, SNP on an old kernel, SNP without translated addresses.
    let numbers = Host::amd(
        "numbers",
        "sev sev_es",
        &[("sev", "Y"), ("sev_es", "N")],
        Some(NO_ES),
    );
    assert!(remedy(&numbers, "kvm-sev-es").contains("ASID"));
    let old = Host::amd(
        "old",
        ALL_FLAGS,
        &[("sev", "Y"), ("sev_es", "Y")],
        Some(MILAN),
    );
    assert!(remedy(&old, "kvm-sev-snp").contains("6.11"));
    assert!(remedy(&old, "iommu").contains("IOMMU"));
    old.file("sys/class/iommu/ivhd0/x", "");
    assert_eq!(finding(&old.check().1, "iommu")["works"], true);
    old.file("proc/cmdline", "root=/dev/sda iommu=pt mem_encrypt=on\n");
    assert!(remedy(&old, "iommu").contains("iommu=pt"));
    assert_eq!(finding(&old.check().1, "mem-encrypt")["works"], true);
    // The last one counts.
    old.file("proc/cmdline", "mem_encrypt=on mem_encrypt=off\n");
    assert_eq!(finding(&old.check().1, "mem-encrypt")["works"], false);
    // No device.
    fs::remove_file(off.0.path("dev/sev")).unwrap();
    off.file("sys/module/kvm_amd/parameters/sev", "Y\n");
    assert!(remedy(&off, "dev-sev").contains("modprobe ccp"));
    assert_eq!(off.check().1["level"], "none");
}

#[test]
fn who_may_open_the_device_is_said() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    let host = Host::amd("device", "sev", &[("sev", "1")], Some(NAPLES));
    host.file("etc/group", "root:x:0:\nkvm:x:105:\n");
    host.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n");
    let device = host.0.path("dev/sev");
    let mode = |mode| fs::set_permissions(&device, fs::Permissions::from_mode(mode)).unwrap();
    mode(0o600);
    if fs::metadata(&device).unwrap().uid() != 0 {
        return common::skip("to give files away one must be root");
    }
    let detail = || {
        finding(&host.check().1, "dev-sev")["detail"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(detail(), "root:root 0600: its owner may open it");
    std::os::unix::fs::chown(&device, Some(0), Some(105)).unwrap();
    mode(0o660);
    assert_eq!(
        detail(),
        "root:kvm 0660: its owner and the group kvm may open it"
    );
    // Somebody else may not, and is told how to.
    let program = host.0.path("vsc-run");
    fs::copy(env!("CARGO_BIN_EXE_vsc-run"), &program).unwrap();
    let output = run(std::process::Command::new(program)
        .args(["sev", "check", "--json", "--host-root"])
        .arg(host.0.path(""))
        .stdin(std::process::Stdio::null())
        .uid(65534)
        .gid(65534));
    expect_code(&output, 1);
    let report = value(&output);
    assert_eq!(
        (&report["level"], &report["usable"]),
        (&json!("sev"), &json!(false))
    );
    let told = finding(&report, "dev-sev")["remedy"].as_str().unwrap();
    assert!(told.contains("udev"), "{told}");
    // A directory in its place is none.
    fs::remove_file(&device).unwrap();
    fs::create_dir(&device).unwrap();
    assert_eq!(host.check().1["level"], "none");
}

/// Programs that say what files below the directory of this name say.
const PROGRAM: &str = r#"#!/bin/sh
here=$(dirname "$0")/../..
name=$(basename "$0")
echo "$name $*" >>"$here/words"
case "$name $*" in
*"domcapabilities"*)
    if [ -e "$here/away" ]; then
        echo "error: failed to connect to the hypervisor" >&2
        exit 1
    fi
    mkdir -p "$here/var/cache/libvirt/qemu/capabilities"
    [ ! -e "$here/after" ] || [ -e "$here/var/cache/libvirt/qemu/capabilities/a.xml" ] || cp "$here/after" "$here/domcaps"
    cat "$here/domcaps" ;;
*) cat "$here/$name" ;;
esac
"#;

impl Host {
    /// Scripts in the place of programs, with what they say.
    fn programs(&self, said: &[(&str, &str)]) {
        use std::io::Write;
        for (name, said) in said {
            self.file(name, said);
            fs::create_dir_all(self.0.path("usr/bin")).unwrap();
            // Written by another process: one that a sibling test starts meanwhile would keep it open, and busy.
            let mut writer = std::process::Command::new("sh")
                .args([
                    "-c",
                    &format!("cat >usr/bin/{name} && chmod +x usr/bin/{name}"),
                ])
                .current_dir(self.0.path(""))
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            writer
                .stdin
                .take()
                .unwrap()
                .write_all(PROGRAM.as_bytes())
                .unwrap();
            assert!(writer.wait().unwrap().success());
        }
    }

    fn stack(&self, arguments: &[&str]) -> (i32, Value, String) {
        let output = run(vsc()
            .args(["sev", "check", "--stack", "--json"])
            .args(arguments)
            .arg("--host-root")
            .arg(self.0.path(""))
            .env(
                "PATH",
                format!("{}:/usr/bin:/bin", self.0.path("usr/bin").display()),
            )
            .env_remove("container"));
        let code = output.status.code().unwrap();
        let report = value(&output);
        (code, report["stack"].clone(), text(&output.stderr))
    }

    fn words(&self) -> Vec<String> {
        let words = fs::read_to_string(self.0.path("words")).unwrap_or_default();
        words.lines().map(str::to_owned).collect()
    }
}

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

#[test]
fn policies_are_read_and_written() {
    let policy = |arguments: &[&str]| {
        let output = run(vsc().args(["sev", "policy"]).args(arguments));
        (
            output.status.code().unwrap(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let first = |arguments: &[&str]| {
        let (code, out, err) = policy(arguments);
        assert_eq!(code, 0, "{err}");
        out.lines().next().unwrap().to_owned()
    };
    assert_eq!(first(&["0x0003"]), "0x0003  sev  NODBG,NOKS");
    assert_eq!(first(&["3"]), "0x0003  sev  NODBG,NOKS");
    assert_eq!(first(&["0x7"]), "0x0007  sev-es  NODBG,NOKS,ES");
    assert_eq!(
        first(&["0x3f"]),
        "0x003f  sev-es  NODBG,NOKS,ES,NOSEND,DOMAIN,SEV"
    );
    assert_eq!(first(&["nodbg,noks,es"]), "0x0007  sev-es  NODBG,NOKS,ES");
    assert_eq!(first(&["0xb0000"]), "0xb0000  sev-snp  SMT,DEBUG");
    assert_eq!(first(&["smt"]), "0x30000  sev-snp  SMT");
    assert_eq!(first(&["0"]), "0x0000  sev  nothing");
    let (_, _, err) = policy(&["0x2"]);
    assert!(err.contains("may decrypt its memory"), "{err}");
    for illegal in [
        &["0x40"][..],
        &["0x100000000"],
        &["0x30000", "--type", "sev"],
        &["0x3", "--type", "sev-es"],
        &["0x10000", "--type", "sev-snp"],
        &["0x8000000000020000"],
        &["nodbg,smt"],
        &["nodbug"],
        &["12x"],
        &["0x"],
    ] {
        let (code, out, err) = policy(illegal);
        assert_eq!((code, out.as_str()), (125, ""), "{illegal:?}: {err}");
        assert!(err.starts_with("vsc-run: "), "{err}");
    }
    let told = run(vsc().args(["sev", "policy", "0x18000007", "--json"]));
    let told = value(&told);
    assert_eq!(
        (
            &told["type"],
            &told["least_version"],
            &told["names"],
            &told["bits"][2]["set"]
        ),
        (
            &json!("sev-es"),
            &json!("0.24"),
            &json!(["NODBG", "NOKS", "ES"]),
            &json!(true)
        )
    );
}

#[test]
fn doctor_matches_whole_words() {
    for (flags, wanted) in [
        (
            "sev_es pse36 pdpe1gbx sev_snpx",
            [false, false, false, true, false],
        ),
        ("pse pdpe1gb", [true, true, false, false, false]),
        ("sev", [false, false, true, false, false]),
        ("pse pdpe1gb sev sev_es sev_snp", [true; 5]),
    ] {
        let host = Host::new(
            "doctor",
            &[("proc/cpuinfo", &format!("processor: 0\nflags\t: {flags}\n"))],
        );
        let output = run(vsc()
            .args(["doctor", "--json", "--host-root"])
            .arg(host.0.path("")));
        let report = value(&output);
        let works = |id: &str| {
            let checks = report["checks"].as_array().unwrap();
            let check = checks.iter().find(|c| c["id"] == id).unwrap();
            check["works"].as_bool().unwrap()
        };
        let found = [
            "flag-pse",
            "flag-pdpe1gb",
            "flag-sev",
            "flag-sev-es",
            "flag-sev-snp",
        ]
        .map(works);
        assert_eq!(found, wanted, "{flags}");
    }
}

#[test]
fn what_is_not_there_is_no_host() {
    let output = run(vsc().args(["sev", "check", "--json", "--host-root", "/nonexistent"]));
    expect_code(&output, 125);
    assert!(text(&output.stderr).contains("there is no directory /nonexistent"));
    let empty = TempDir::new("sev-empty");
    let mut command = vsc();
    command.args(["sev", "check", "--json", "--host-root"]);
    let output = run(command.arg(empty.path("")));
    expect_code(&output, 1);
    assert_eq!(value(&output)["level"], "none");
}
const DEBIAN: &str = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n";
const UBUNTU: &str = "PRETTY_NAME=\"Ubuntu 24.04 LTS\"\nID=ubuntu\nID_LIKE=debian\n";
const FEDORA: &str = "PRETTY_NAME=\"Fedora Linux 41\"\nID=fedora\n";
const SUSE: &str =
    "PRETTY_NAME=\"openSUSE Leap 15.6\"\nID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n";
/// Debian's own file, shortened.
const GRUB_DEBIAN: &str = "# If you change this file, run 'update-grub' afterwards to update\n\
    GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\n\
    GRUB_DISTRIBUTOR=`( . /etc/os-release && echo ${NAME} )`\n\
    GRUB_CMDLINE_LINUX_DEFAULT=\"quiet  splash\"\nGRUB_CMDLINE_LINUX=\"\"\n\
    #GRUB_TERMINAL=console\n";
const GRUB_FEDORA: &str =
    "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"rhgb quiet\"\nGRUB_ENABLE_BLSCFG=true\n";
const ENTRY: &str = "title Fedora Linux (6.11.4) 41\nversion 6.11.4\nlinux /vmlinuz-6.11.4\n\
    options root=UUID=1234 ro rhgb quiet $tuned_params\ngrub_class fedora\n";
const LINE: &str = "mem_encrypt=on kvm_amd.sev=1";

/// A host that has SEV switched off, with the files of a distribution.
fn off(name: &str, release: &str, files: &[(&str, &str)]) -> Host {
    let host = Host::amd(
        &format!("plan-{name}"),
        "sev",
        &[("sev", "N")],
        Some([3, 47 | 5 << 6, 15, 1]),
    );
    host.file("etc/os-release", release);
    host.file("proc/cmdline", "root=/dev/sda1 quiet\n");
    for (path, text) in files {
        host.file(path, text);
    }
    host
}

fn plan(host: &Host, arguments: &[&str]) -> Value {
    let output = host.run(&[&["plan", "--json"], arguments].concat());
    expect_code(&output, 0);
    value(&output)
}

/// Paths of the files that change, and their texts.
fn edits(plan: &Value) -> Vec<(&str, &str)> {
    let list = plan["edits"].as_array().unwrap();
    list.iter()
        .map(|e| (e["path"].as_str().unwrap(), e["new"].as_str().unwrap()))
        .collect()
}

fn commands(plan: &Value) -> Vec<String> {
    let list = plan["commands"].as_array().unwrap();
    let words = |c: &Value| {
        c.as_array()
            .unwrap()
            .iter()
            .map(|w| w.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    list.iter().map(|c| words(c).join(" ")).collect()
}

#[test]
fn grub_of_each_distribution_gets_the_words_once() {
    let grub = ("etc/default/grub", GRUB_DEBIAN);
    let wanted = GRUB_DEBIAN.replace("quiet  splash", &format!("quiet  splash {LINE}"));
    for (name, release, more, command) in [
        ("debian", DEBIAN, None, "update-grub"),
        ("ubuntu", UBUNTU, None, "update-grub"),
        (
            "suse",
            SUSE,
            Some("boot/grub2/grub.cfg"),
            "grub2-mkconfig -o /boot/grub2/grub.cfg",
        ),
        (
            "rhel7",
            "ID=\"rhel\"\n",
            Some("boot/efi/EFI/redhat/grub.cfg"),
            "grub2-mkconfig -o /boot/efi/EFI/redhat/grub.cfg",
        ),
        (
            "arch",
            "ID=arch\n",
            None,
            "grub-mkconfig -o /boot/grub/grub.cfg",
        ),
    ] {
        let host = off(name, release, &[grub]);
        if let Some(path) = more {
            host.file(path, "");
        }
        let plan = plan(&host, &[]);
        assert_eq!(
            edits(&plan),
            [("/etc/default/grub", wanted.as_str())],
            "{name}"
        );
        assert_eq!(commands(&plan), [command], "{name}");
        assert_eq!(
            (&plan["reboot"], &plan["words"]),
            (&json!(true), &json!(LINE))
        );
        // What is planned is not done, and a second plan is empty.
        let path = host.0.path("etc/default/grub");
        assert_eq!(fs::read_to_string(&path).unwrap(), GRUB_DEBIAN);
        fs::write(&path, &wanted).unwrap();
        host.file("proc/cmdline", &format!("quiet {LINE}\n"));
        let again = self::plan(&host, &[]);
        assert_eq!(
            (edits(&again).len(), commands(&again).len()),
            (0, 0),
            "{again:#}"
        );
        assert_eq!(again["reboot"], false);
    }
}

#[test]
fn words_that_are_there_stay_where_they_are() {
    for (before, after) in [
        (
            "GRUB_CMDLINE_LINUX_DEFAULT=\"kvm-amd.sev=0 x\"\n",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"kvm_amd.sev=1 x mem_encrypt=on\"\n",
        ),
        (
            "GRUB_CMDLINE_LINUX=\"mem_encrypt=on\"\nGRUB_CMDLINE_LINUX_DEFAULT='quiet'\n",
            "GRUB_CMDLINE_LINUX=\"mem_encrypt=on\"\nGRUB_CMDLINE_LINUX_DEFAULT='quiet kvm_amd.sev=1'\n",
        ),
        (
            "GRUB_CMDLINE_LINUX=mem_encrypt=off\n",
            "GRUB_CMDLINE_LINUX=\"mem_encrypt=on kvm_amd.sev=1\"\n",
        ),
        (
            "GRUB_TIMEOUT=1",
            "GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX_DEFAULT=\"mem_encrypt=on kvm_amd.sev=1\"\n",
        ),
    ] {
        let host = off("there", DEBIAN, &[("etc/default/grub", before)]);
        assert_eq!(
            edits(&plan(&host, &[])),
            [("/etc/default/grub", after)],
            "{before}"
        );
    }
}

#[test]
fn debian_has_files_that_say_more() {
    let own = |text: &str| {
        let host = off(
            "later",
            UBUNTU,
            &[
                ("etc/default/grub", GRUB_DEBIAN),
                ("etc/default/grub.d/50-cloud.cfg", text),
            ],
        );
        let plan = plan(&host, &[]);
        edits(&plan)[0].0 == "/etc/default/grub.d/zz-vsc-sev.cfg"
    };
    assert!(own("GRUB_CMDLINE_LINUX_DEFAULT=\"console=ttyS0\"\n"));
    assert!(own(
        "GRUB_CMDLINE_LINUX_DEFAULT=\"$GRUB_CMDLINE_LINUX_DEFAULT mem_encrypt=off\"\n"
    ));
    assert!(!own(
        "GRUB_CMDLINE_LINUX_DEFAULT=\"$GRUB_CMDLINE_LINUX_DEFAULT console=ttyS0\"\n"
    ));
    assert!(!own("GRUB_TIMEOUT=0\n"));
    let shell = off(
        "shell",
        DEBIAN,
        &[(
            "etc/default/grub",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"$(cat /x)\n\"\n",
        )],
    );
    let plan = plan(&shell, &[]);
    assert_eq!(
        edits(&plan),
        [(
            "/etc/default/grub.d/zz-vsc-sev.cfg",
            "# vsc-run sev enable; vsc-run sev enable --undo removes this file.\n\
             GRUB_CMDLINE_LINUX_DEFAULT=\"$GRUB_CMDLINE_LINUX_DEFAULT mem_encrypt=on kvm_amd.sev=1\"\n"
        )]
    );
    // A shell takes it as it is meant.
    shell.file("x", "");
    let said = std::process::Command::new("sh")
        .args([
            "-eu",
            "-c",
            "GRUB_CMDLINE_LINUX_DEFAULT=quiet; . \"$0\"; echo \"$GRUB_CMDLINE_LINUX_DEFAULT\"",
        ])
        .arg(shell.0.write("drop.cfg", edits(&plan)[0].1))
        .output()
        .unwrap();
    assert_eq!(text(&said.stdout), format!("quiet {LINE}\n"));
    // Elsewhere there is no such directory, and what is not understood is not touched.
    let arch = off(
        "shell-arch",
        "ID=arch\n",
        &[(
            "etc/default/grub",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"$(cat /x)\n\"\n",
        )],
    );
    let output = arch.run(&["plan"]);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("by hand"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn entries_of_fedora_get_the_words() {
    let host = off(
        "fedora",
        FEDORA,
        &[
            ("etc/default/grub", GRUB_FEDORA),
            ("etc/kernel/cmdline", "root=UUID=1234 ro rhgb quiet\n"),
            ("boot/loader/entries/a-6.11.4.conf", ENTRY),
            (
                "boot/loader/entries/a-6.10.1.conf",
                &ENTRY.replace("quiet", "quiet mem_encrypt=off"),
            ),
            ("boot/loader/entries/a-0-rescue.conf", ENTRY),
        ],
    );
    let fedora = plan(&host, &[]);
    assert_eq!(fedora["loader"], "grub-bls");
    let with = ENTRY.replace("$tuned_params", &format!("$tuned_params {LINE}"));
    let instead = ENTRY.replace(
        "quiet $tuned_params",
        "quiet mem_encrypt=on $tuned_params kvm_amd.sev=1",
    );
    assert_eq!(
        edits(&fedora),
        [
            ("/boot/loader/entries/a-6.10.1.conf", instead.as_str()),
            ("/boot/loader/entries/a-6.11.4.conf", with.as_str()),
            (
                "/etc/kernel/cmdline",
                "root=UUID=1234 ro rhgb quiet mem_encrypt=on kvm_amd.sev=1\n"
            ),
            (
                "/etc/default/grub",
                GRUB_FEDORA
                    .replace("rhgb quiet", &format!("rhgb quiet {LINE}"))
                    .as_str()
            ),
        ]
    );
    let notes = fedora["notes"].to_string();
    assert!(
        notes.contains("grubby --update-kernel=ALL") && notes.contains("rescue"),
        "{notes}"
    );
    assert_eq!(commands(&fedora), [""; 0]);
    // RHEL 8: a variable of GRUB's.
    let host = off(
        "rhel8",
        "ID=\"rhel\"\nID_LIKE=\"fedora\"\n",
        &[
            ("etc/default/grub", GRUB_FEDORA),
            (
                "boot/loader/entries/a-4.18.conf",
                "title RHEL\noptions $kernelopts $tuned_params\n",
            ),
        ],
    );
    let rhel = plan(&host, &[]);
    assert_eq!(edits(&rhel).len(), 1);
    assert_eq!(commands(&rhel), ["grub2-mkconfig -o /boot/grub2/grub.cfg"]);
}

#[test]
fn systemd_boot_and_images_have_their_own_ways() {
    let host = off(
        "systemd",
        "ID=debian\n",
        &[
            ("etc/kernel/cmdline", "root=/dev/sda2"),
            ("boot/vmlinuz-6.1.0-18-amd64", ""),
            ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
        ],
    );
    let systemd = plan(&host, &[]);
    assert_eq!(
        edits(&systemd),
        [(
            "/etc/kernel/cmdline",
            "root=/dev/sda2 mem_encrypt=on kvm_amd.sev=1"
        )]
    );
    assert_eq!(
        commands(&systemd),
        ["kernel-install add 6.1.0-18-amd64 /boot/vmlinuz-6.1.0-18-amd64"]
    );
    // GRUB's files are there, and systemd-boot is what runs.
    host.file("etc/default/grub", GRUB_DEBIAN);
    assert_eq!(plan(&host, &[])["loader"], "grub");
    let info: String = "x\0x\0systemd-boot 252"
        .chars()
        .flat_map(|c| [c, '\0'])
        .skip(4)
        .collect();
    host.file(
        "sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f",
        &info,
    );
    assert_eq!(plan(&host, &[])["loader"], "systemd-boot");
    // openSUSE with boot loader entries.
    let suse = off(
        "suse-bls",
        SUSE,
        &[
            ("etc/default/grub", GRUB_DEBIAN),
            (
                "etc/sysconfig/bootloader",
                "## Path: System\nLOADER_TYPE=\"grub2-bls\"\n",
            ),
            ("etc/kernel/cmdline", "quiet\n"),
            ("usr/bin/sdbootutil", ""),
        ],
    );
    let suse = plan(&suse, &[]);
    assert_eq!(
        edits(&suse),
        [("/etc/kernel/cmdline", format!("quiet {LINE}\n").as_str())]
    );
    assert_eq!(commands(&suse), ["sdbootutil update-all-entries"]);
    // Entries without anything that says what new kernels get.
    let arch = off(
        "entries",
        "ID=arch\n",
        &[(
            "efi/loader/entries/arch.conf",
            "title Arch\nlinux /v\noptions root=/dev/x rw\n",
        )],
    );
    assert_eq!(
        edits(&plan(&arch, &[])),
        [(
            "/efi/loader/entries/arch.conf",
            "title Arch\nlinux /v\noptions root=/dev/x rw mem_encrypt=on kvm_amd.sev=1\n"
        )]
    );
    let ostree = off("ostree", FEDORA, &[("run/ostree-booted", "")]);
    assert_eq!(
        commands(&plan(&ostree, &[])),
        ["rpm-ostree kargs --append-if-missing=mem_encrypt=on --append-if-missing=kvm_amd.sev=1"]
    );
    let none = off("no-loader", DEBIAN, &[]);
    let output = none.run(&["plan"]);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains(LINE),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn an_epyc_has_its_plan() {
    for (name, flags, leaf, cbitpos) in [
        ("naples", "sme sev sev_es", NAPLES, 47),
        ("milan", ALL_FLAGS, MILAN, 51),
    ] {
        let host = Host::amd(&format!("epyc-{name}"), flags, &[("sev", "N")], Some(leaf));
        host.file("etc/os-release", DEBIAN);
        host.file("etc/default/grub", GRUB_DEBIAN);
        host.file(
            "etc/modprobe.d/sev.conf",
            "options mem_encrypt=on kvm_amd sev=1 sev_es=1\n",
        );
        let plan = plan(&host, &["--how", "modprobe"]);
        assert_eq!(
            (
                &plan["guests"]["cbitpos"],
                &plan["guests"]["reduced_phys_bits"],
                &plan["guests"]["policy"]
            ),
            (&json!(cbitpos), &json!(5), &json!(0x37))
        );
        let wanted = GRUB_DEBIAN.replace("quiet  splash", "quiet  splash mem_encrypt=on");
        let found = edits(&plan);
        assert_eq!(found[0], ("/etc/default/grub", wanted.as_str()));
        assert_eq!(found[1].0, "/etc/modprobe.d/vsc-sev.conf");
        let lines: Vec<&str> = found[1].1.lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(lines, ["options kvm_amd sev=1 sev_es=1"]);
        let notes = plan["notes"].to_string();
        assert!(
            notes.contains("/etc/modprobe.d/sev.conf has no effect"),
            "{notes}"
        );
        assert!(notes.contains("command line only"), "{notes}");
        // With everything on the command line SEV-ES is there too, and modprobe is the other way.
        let output = host.run(&["plan"]);
        expect_code(&output, 0);
        let said = text(&output.stdout);
        for line in [
            "  - GRUB_CMDLINE_LINUX_DEFAULT=\"quiet  splash\"",
            "  + GRUB_CMDLINE_LINUX_DEFAULT=\"quiet  splash mem_encrypt=on kvm_amd.sev=1 kvm_amd.sev_es=1\"",
            "  sudo update-grub",
            "A reboot is needed.",
            "  + options kvm_amd sev=1 sev_es=1",
            &format!(
                "Guests: cbitpos {cbitpos}, reducedPhysBits 5, policy 0x0037 (NODBG,NOKS,ES,DOMAIN,SEV)"
            ),
        ] {
            assert!(said.lines().any(|l| l == line), "{line}\n{said}");
        }
    }
    let intel = Host::amd("epyc-none", "vmx", &[], Some([0; 4]));
    intel.file("etc/default/grub", GRUB_DEBIAN);
    let output = intel.run(&["plan"]);
    expect_code(&output, 125);
    assert!(
        text(&output.stderr).contains("no SEV"),
        "{}",
        text(&output.stderr)
    );
}

/// Everything below a directory but the tuner's own: names, bytes, permissions, owners.
fn picture(host: &Host) -> Vec<(String, u32, u32, Vec<u8>)> {
    use std::os::unix::fs::MetadataExt;
    let root = host.0.path("");
    let mut found = Vec::new();
    let mut places = vec![root.clone()];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path
                .strip_prefix(&root)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if name.starts_with("var/lib/vsc") || name.starts_with("run/vsc") || name == "dev" {
                continue;
            }
            let bytes = match meta.is_file() {
                true => fs::read(&path).unwrap(),
                false => Vec::new(),
            };
            if meta.is_dir() && !["var", "var/lib", "run"].contains(&name.as_str()) {
                places.push(path);
            }
            if !["var", "var/lib", "run"].contains(&name.as_str()) {
                found.push((name, meta.mode(), meta.uid(), bytes));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_enabled_is_undone_byte_for_byte() {
    use std::os::unix::fs::PermissionsExt;
    // No newline at the end, blanks, a carriage return: all of it comes back.
    let odd = "GRUB_TIMEOUT=5\r\n\tX=1\n\nGRUB_CMDLINE_LINUX_DEFAULT='quiet  '  # mine\nLAST=1";
    for (name, release, files, how) in [
        (
            "debian",
            DEBIAN,
            vec![("etc/default/grub", GRUB_DEBIAN)],
            "cmdline",
        ),
        ("odd", DEBIAN, vec![("etc/default/grub", odd)], "modprobe"),
        (
            "drop",
            UBUNTU,
            vec![
                ("etc/default/grub", GRUB_DEBIAN),
                ("etc/default/grub.d/1.cfg", "GRUB_CMDLINE_LINUX_DEFAULT=x\n"),
            ],
            "cmdline",
        ),
        (
            "fedora",
            FEDORA,
            vec![
                ("etc/default/grub", GRUB_FEDORA),
                ("boot/loader/entries/a.conf", ENTRY),
                ("boot/loader/entries/b.conf", ENTRY),
            ],
            "modprobe",
        ),
        (
            "suse",
            SUSE,
            vec![("etc/default/grub", GRUB_DEBIAN)],
            "modprobe",
        ),
    ] {
        let host = off(&format!("round-{name}"), release, &files);
        fs::create_dir_all(host.0.path("etc/modprobe.d")).unwrap();
        for (path, _) in &files {
            fs::set_permissions(host.0.path(path), fs::Permissions::from_mode(0o640)).unwrap();
        }
        let before = picture(&host);
        let planned = plan(&host, &["--how", how]);
        let same = value(&host.run(&["enable", "--plan", "--json", "--how", how]));
        assert_eq!(
            (picture(&host), &same),
            (before.clone(), &planned),
            "a plan changes nothing"
        );

        let output = host.run(&["enable", "--json", "--how", how]);
        expect_code(&output, 0);
        let done = value(&output);
        assert!(
            done["done"]
                .as_array()
                .unwrap()
                .iter()
                .all(|d| d["verdict"]["verdict"] == "done"),
            "{done:#}"
        );
        for (path, new) in edits(&planned) {
            let path = host.0.path(&path[1..]);
            assert_eq!(fs::read_to_string(&path).unwrap(), new);
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            let wanted = if path.ends_with("vsc-sev.conf") || path.ends_with("zz-vsc-sev.cfg") {
                0o644
            } else {
                0o640
            };
            assert_eq!(mode, wanted, "{path:?}");
        }
        // Twice is once.
        let again = value(&host.run(&["enable", "--json", "--how", how]));
        assert_eq!(
            (edits(&again).len(), again["done"].as_array().unwrap().len()),
            (0, 0),
            "{again:#}"
        );

        // That is not what `host apply` did.
        let enabled = picture(&host);
        let output = run(vsc()
            .args(["host", "undo", "--host-root"])
            .arg(host.0.path("")));
        expect_code(&output, 0);
        assert_eq!(picture(&host), enabled, "{name}");
        assert!(text(&output.stderr).contains("`vsc-run sev enable --undo`"));
        let output = run(vsc()
            .args(["host", "status", "--host-root"])
            .arg(host.0.path("")));
        let shown = text(&output.stdout);
        assert!(
            shown.contains("`sev enable`") && !shown.contains("host apply"),
            "{shown}"
        );

        let output = host.run(&["enable", "--undo", "--json"]);
        expect_code(&output, 0);
        assert_eq!(picture(&host), before, "{name}");
        assert_eq!(
            commands(&value(&output)),
            commands(&plan(&host, &[])),
            "{name}"
        );
        // There is nothing more to undo.
        let output = host.run(&["enable", "--undo"]);
        expect_code(&output, 0);
        assert!(
            text(&output.stdout).contains("Nothing"),
            "{}",
            text(&output.stdout)
        );
        assert_eq!(picture(&host), before);
    }
}

#[test]
fn a_file_that_somebody_changed_is_not_undone_unasked() {
    let host = off(
        "meanwhile",
        DEBIAN,
        &[
            ("etc/default/grub", GRUB_DEBIAN),
            ("etc/modprobe.d/x.conf", ""),
        ],
    );
    expect_code(&host.run(&["enable", "--how", "modprobe"]), 0);
    let path = host.0.path("etc/default/grub");
    let theirs = fs::read_to_string(&path)
        .unwrap()
        .replace("GRUB_TIMEOUT=5", "GRUB_TIMEOUT=9");
    fs::write(&path, &theirs).unwrap();
    let changed = picture(&host);
    for _ in 0..2 {
        let output = host.run(&["enable", "--undo"]);
        expect_code(&output, 125);
        let said = text(&output.stderr);
        assert!(
            said.contains("  - GRUB_TIMEOUT=5\n  + GRUB_TIMEOUT=9"),
            "{said}"
        );
        // Nothing at all is undone, and it is not forgotten.
        assert_eq!(picture(&host), changed);
    }
    expect_code(&host.run(&["enable", "--undo", "--force"]), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), GRUB_DEBIAN);
    assert!(!host.0.path("etc/modprobe.d/vsc-sev.conf").exists());
    // Put back by hand is put back.
    expect_code(&host.run(&["enable"]), 0);
    fs::write(&path, GRUB_DEBIAN).unwrap();
    expect_code(&host.run(&["enable", "--undo"]), 0);
    assert_eq!(fs::read_to_string(&path).unwrap(), GRUB_DEBIAN);
}

#[test]
fn a_file_behind_a_link_is_the_one_that_changes() {
    let host = off(
        "link",
        SUSE,
        &[("etc/sysconfig/grub", GRUB_DEBIAN), ("etc/default/x", "")],
    );
    std::os::unix::fs::symlink("/etc/sysconfig/grub", host.0.path("etc/default/grub")).unwrap();
    expect_code(&host.run(&["enable"]), 0);
    assert!(
        fs::symlink_metadata(host.0.path("etc/default/grub"))
            .unwrap()
            .is_symlink()
    );
    let new = fs::read_to_string(host.0.path("etc/sysconfig/grub")).unwrap();
    assert!(new.contains(LINE), "{new}");
    expect_code(&host.run(&["enable", "--undo"]), 0);
    assert_eq!(
        fs::read_to_string(host.0.path("etc/sysconfig/grub")).unwrap(),
        GRUB_DEBIAN
    );
}

#[test]
fn who_may_not_write_changes_nothing() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    let host = off("denied", DEBIAN, &[("etc/default/grub", GRUB_DEBIAN)]);
    if fs::metadata(host.0.path("etc")).unwrap().uid() != 0 {
        return common::skip("to be nobody one must be root");
    }
    let program = host.0.path("vsc-run");
    fs::copy(env!("CARGO_BIN_EXE_vsc-run"), &program).unwrap();
    for directory in ["run", "var/lib"] {
        fs::create_dir_all(host.0.path(directory)).unwrap();
        fs::set_permissions(host.0.path(directory), fs::Permissions::from_mode(0o777)).unwrap();
    }
    let output = run(std::process::Command::new(program)
        .args(["sev", "enable", "--host-root"])
        .arg(host.0.path(""))
        .stdin(std::process::Stdio::null())
        .uid(65534)
        .gid(65534));
    expect_code(&output, 125);
    let said = text(&output.stderr);
    assert!(
        said.contains("nothing was changed") && said.contains("as root"),
        "{said}"
    );
    assert_eq!(
        fs::read_to_string(host.0.path("etc/default/grub")).unwrap(),
        GRUB_DEBIAN
    );
}
