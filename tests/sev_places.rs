//! `sev plan` and `sev enable` on hosts whose owners have done as they like: files that only a shell understands, images
//! with a built-in command line, modprobe told otherwise, links that lead out of the tree.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::{TempDir, expect_code, run, text, vsc};
use serde_json::Value;

const GRUB: &str = "etc/default/grub";
const LINE: &str = "mem_encrypt=on kvm_amd.sev=1";

/// A host with SEV switched off.
struct Host(TempDir);

impl Host {
    fn new(name: &str, id: &str, files: &[(&str, &str)]) -> Self {
        let host = Host(TempDir::new(&format!("place-{name}")));
        let cpu = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu svm sev\n";
        for (path, content) in [
            ("proc/cpuinfo", cpu),
            ("proc/cmdline", "root=/dev/sda1 ro\n"),
            ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
            ("proc/sys/kernel/random/boot_id", "a-boot\n"),
            ("sys/module/kvm_amd/parameters/sev", "N\n"),
            ("etc/os-release", &format!("ID={id}\n")),
        ]
        .into_iter()
        .chain(files.iter().copied())
        {
            host.file(path, content);
        }
        for directory in ["run", "var/lib"] {
            fs::create_dir_all(host.at(directory)).unwrap();
        }
        host
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.0.path("root").join(path)
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> Output {
        run(vsc()
            .arg("sev")
            .args(arguments)
            .arg("--host-root")
            .arg(self.0.path("root"))
            .env_remove("container"))
    }

    fn plan(&self, more: &[&str]) -> Value {
        let output = self.run(&[&["plan", "--json"], more].concat());
        expect_code(&output, 0);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// What is said where there is no plan.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        expect_code(&output, 125);
        text(&output.stderr)
    }

    /// What a shell makes of GRUB's files: all words of a normal entry.
    fn words(&self) -> String {
        let script = "for f in ./grub grub.d/*.cfg; do [ ! -e \"$f\" ] || . \"$f\"; done; \
            echo $GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT";
        let output = Command::new("sh")
            .args(["-c", script])
            .current_dir(self.at("etc/default"))
            .output()
            .unwrap();
        assert_eq!(
            text(&output.stderr),
            "",
            "{:?}",
            fs::read_to_string(self.at(GRUB))
        );
        text(&output.stdout).trim().to_owned()
    }
}

fn edits(plan: &Value) -> Vec<(&str, &str)> {
    let list = plan["edits"].as_array().unwrap();
    list.iter()
        .map(|e| (e["path"].as_str().unwrap(), e["new"].as_str().unwrap()))
        .collect()
}

fn commands(plan: &Value) -> Vec<String> {
    let words = |c: &Value| {
        let words = c.as_array().unwrap().iter();
        words
            .map(|w| w.as_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    };
    plan["commands"]
        .as_array()
        .unwrap()
        .iter()
        .map(words)
        .collect()
}

/// Nothing that was on the command line goes: a host whose disk is named there would not boot.
#[test]
fn a_shell_finds_the_words_and_what_was_there_before() {
    for (name, grub) in [
        (
            "one-line",
            "GRUB_TIMEOUT=1; GRUB_CMDLINE_LINUX_DEFAULT=\"quiet cryptdevice=x\"\n",
        ),
        (
            "readonly",
            "readonly GRUB_TIMEOUT=1 GRUB_X=2\nexport GRUB_CMDLINE_LINUX_DEFAULT=quiet\n",
        ),
        (
            "and",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n[ -d / ] && GRUB_CMDLINE_LINUX_DEFAULT=\"loud resume=x\"\n",
        ),
        (
            "if",
            "if true; then\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nelse\nGRUB_CMDLINE_LINUX_DEFAULT=\"loud\"\nfi\n",
        ),
        (
            "case",
            "case $(uname) in\nLinux)\nGRUB_CMDLINE_LINUX=\"quiet\"\n;;\n*) GRUB_CMDLINE_LINUX=\"x\";;\nesac\n",
        ),
        (
            "function",
            "f() {\nGRUB_CMDLINE_LINUX_DEFAULT=\"$1\"\n}\nf quiet\n",
        ),
        (
            "inner",
            "GRUB_X=\"\nGRUB_CMDLINE_LINUX_DEFAULT=no\n\"\nGRUB_CMDLINE_LINUX_DEFAULT=quiet",
        ),
        (
            "goes-on",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet \\\n splash\"\nGRUB_CMDLINE_LINUX=\"a\"\n",
        ),
        (
            "command",
            "GRUB_CMDLINE_LINUX=$(echo root=x)\nGRUB_CMDLINE_LINUX_DEFAULT=`echo quiet`\n",
        ),
        ("joined", "GRUB_CMDLINE_LINUX_DEFAULT=\"qu\"'iet'\n"),
        (
            "off",
            "GRUB_CMDLINE_LINUX=\"$(echo mem_encrypt=off)\"\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n",
        ),
        (
            "comment",
            "# it's \"mine\"\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\" # don't\n",
        ),
    ] {
        for id in ["debian", "arch", "opensuse"] {
            let host = Host::new(&format!("{name}-{id}"), id, &[(GRUB, grub)]);
            let before = host.words();
            assert_ne!(before, "", "{name}");
            expect_code(&host.run(&["enable"]), 0);
            let mut after = host.words();
            for word in LINE.split(' ') {
                let (front, back) = after
                    .rsplit_once(word)
                    .unwrap_or_else(|| panic!("{name}: no {word} in {after}"));
                after = format!("{} {}", front.trim(), back.trim())
                    .trim()
                    .to_owned();
            }
            assert_eq!(after, before, "{name} on {id}");
            // Once is enough.
            let again = host.plan(&[]);
            assert_eq!(edits(&again), [], "{name} on {id}");
            assert_eq!(commands(&again).len(), 0, "{name} on {id}");
            expect_code(&host.run(&["enable", "--undo"]), 0);
            assert_eq!(
                fs::read_to_string(host.at(GRUB)).unwrap(),
                grub,
                "{name} on {id}"
            );
        }
    }
}

#[test]
fn what_has_the_last_word_is_named() {
    let files = [
        (GRUB, "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n"),
        (
            "etc/default/grub.d/50-cloud.cfg",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"console=ttyS0\"\n",
        ),
    ];
    let host = Host::new("drop-in", "ubuntu", &files);
    let notes = host.plan(&[])["notes"].to_string();
    assert!(
        notes.contains("/etc/default/grub.d/50-cloud.cfg"),
        "{notes}"
    );
    expect_code(&host.run(&["enable"]), 0);
    assert_eq!(host.words(), format!("console=ttyS0 {LINE}"));
    assert_eq!(commands(&host.plan(&[])).len(), 0);
    // A file after ours would throw its words away.
    let host = Host::new("last", "ubuntu", &files);
    host.file(
        "etc/default/grub.d/zzz.cfg",
        "GRUB_CMDLINE_LINUX_DEFAULT=\"mine\"\n",
    );
    let said = host.refused(&["enable"]);
    assert!(said.contains("/etc/default/grub.d/zzz.cfg"), "{said}");
    // What does not end is not added to.
    for grub in ["GRUB_X=\"\n", "cat <<E\nGRUB_CMDLINE_LINUX_DEFAULT=x\nE\n"] {
        let said = Host::new("open", "debian", &[(GRUB, grub)]).refused(&["plan"]);
        assert!(said.contains("by hand") && said.contains(LINE), "{said}");
    }
}

/// It used to say that the files had the words already.
#[test]
fn a_command_line_in_the_kernels_image_is_told() {
    let loader = ("boot/efi/loader/loader.conf", "timeout 3\n");
    let host = Host::new("uki", "fedora", &[loader]);
    for arguments in [&["plan"][..], &["enable"]] {
        let said = host.refused(arguments);
        assert!(said.contains("built into the kernel's image"), "{said}");
        assert!(
            said.contains("/etc/kernel/cmdline") && said.contains(LINE),
            "{said}"
        );
    }
    // The distribution's own is what the owner's begins with.
    host.file("usr/lib/kernel/cmdline", "root=LABEL=x ro\n");
    let plan = host.plan(&[]);
    assert_eq!(
        edits(&plan),
        [(
            "/etc/kernel/cmdline",
            format!("root=LABEL=x ro {LINE}\n").as_str()
        )]
    );
    expect_code(&host.run(&["enable"]), 0);
    expect_code(&host.run(&["enable", "--undo"]), 0);
    assert!(!host.at("etc/kernel/cmdline").exists());
}

#[test]
fn each_maker_of_images_has_its_command() {
    let line = ("etc/kernel/cmdline", "root=x rw\n");
    for (name, more, command) in [
        (
            "arch",
            (
                "etc/mkinitcpio.d/linux.preset",
                "default_uki=\"/efi/EFI/Linux/a.efi\"\n",
            ),
            "mkinitcpio -P",
        ),
        (
            "proxmox",
            ("etc/kernel/proxmox-boot-uuids", "ABCD\n"),
            "proxmox-boot-tool refresh",
        ),
        (
            "debian",
            ("boot/vmlinuz-6.1.0-18-amd64", ""),
            "kernel-install add 6.1.0-18-amd64 /boot/vmlinuz-6.1.0-18-amd64",
        ),
    ] {
        let plan = Host::new(&format!("maker-{name}"), name, &[line, more]).plan(&[]);
        assert_eq!(
            edits(&plan),
            [(
                "/etc/kernel/cmdline",
                format!("root=x rw {LINE}\n").as_str()
            )]
        );
        assert_eq!(commands(&plan), [command], "{name}");
    }
    let entry = (
        "boot/loader/entries/nixos-1.conf",
        "title N\nlinux /v\noptions init=/nix/x\n",
    );
    let said = Host::new("nixos", "nixos", &[entry]).refused(&["enable"]);
    assert!(
        said.contains("boot.kernelParams") && said.contains(LINE),
        "{said}"
    );
}

#[test]
fn another_systems_loader_gets_no_words() {
    let host = Host::new(
        "entries",
        "fedora",
        &[
            (GRUB, "GRUB_CMDLINE_LINUX=\"\"\nGRUB_ENABLE_BLSCFG=true\n"),
            ("boot/loader/entries/a.conf", "title A\nlinux /v\n"),
            (
                "boot/loader/entries/w.conf",
                "title W\nefi /EFI/Microsoft/Boot/bootmgfw.efi\noptions x\n",
            ),
        ],
    );
    let plan = host.plan(&[]);
    let paths: Vec<&str> = edits(&plan).iter().map(|(path, _)| *path).collect();
    assert_eq!(paths, ["/boot/loader/entries/a.conf", "/etc/default/grub"]);
    assert_eq!(
        edits(&plan)[0].1,
        format!("title A\nlinux /v\noptions {LINE}\n")
    );
}

#[test]
fn what_modprobe_is_told_elsewhere_counts() {
    let grub = (GRUB, "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n");
    let how = ["plan", "--how", "modprobe"];
    let notes = |host: &Host, more: &[&str]| host.plan(more)["notes"].to_string();
    let later = Host::new(
        "later",
        "debian",
        &[
            grub,
            ("run/modprobe.d/zz.conf", "options kvm_amd \\\n sev=0\n"),
        ],
    );
    let said = later.refused(&how);
    assert!(
        said.contains("/run/modprobe.d/zz.conf says `sev=0`"),
        "{said}"
    );
    // modprobe adds what the kernel's command line says last.
    let said = notes(&later, &[]);
    assert!(
        said.contains("which the kernel's command line overrules"),
        "{said}"
    );
    let earlier = Host::new(
        "earlier",
        "debian",
        &[
            grub,
            ("usr/lib/modprobe.d/a.conf", "options kvm-amd sev=N\n"),
        ],
    );
    let said = notes(&earlier, &how[1..]);
    assert!(
        said.contains("which /etc/modprobe.d/vsc-sev.conf overrules"),
        "{said}"
    );
    // The owner's file of the same name stands for the distribution's.
    earlier.file("etc/modprobe.d/a.conf", "");
    assert!(!notes(&earlier, &[]).contains("a.conf"));
    let built = Host::new(
        "built",
        "debian",
        &[
            grub,
            (
                "lib/modules/6.1.0-18-amd64/modules.builtin",
                "kernel/arch/x86/kvm/kvm.ko\nkernel/arch/x86/kvm/kvm-amd.ko\n",
            ),
        ],
    );
    let said = built.refused(&how);
    assert!(said.contains("built into this kernel"), "{said}");
    built.plan(&[]);
    let black = Host::new(
        "black",
        "debian",
        &[
            grub,
            ("etc/modprobe.d/b.conf", "blacklist kvm-amd\n"),
            ("proc/cmdline", "ro module_blacklist=x,kvm_amd\n"),
        ],
    );
    let said = notes(&black, &[]);
    assert!(
        said.contains("/etc/modprobe.d/b.conf keeps kvm_amd from being loaded by itself"),
        "{said}"
    );
    assert!(
        said.contains("module_blacklist= on the kernel's command line"),
        "{said}"
    );
    // Where it is not loaded, the check says who sees to that.
    let instead = Host::new(
        "instead",
        "debian",
        &[("usr/lib/modprobe.d/i.conf", "install kvm_amd /bin/false\n")],
    );
    fs::remove_dir_all(instead.at("sys/module")).unwrap();
    let output = instead.run(&["check"]);
    expect_code(&output, 1);
    let said = text(&output.stdout);
    assert!(
        said.contains("/usr/lib/modprobe.d/i.conf does `/bin/false` instead"),
        "{said}"
    );
    assert!(
        said.contains("take `install kvm_amd` out of /usr/lib/modprobe.d/i.conf"),
        "{said}"
    );
}

#[test]
fn the_other_way_begins_with_an_undo() {
    let grub = (GRUB, "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\n");
    let host = Host::new("ways", "debian", &[grub]);
    expect_code(&host.run(&["enable", "--how", "modprobe"]), 0);
    let said = host.refused(&["enable"]);
    assert!(said.contains("`vsc-run sev enable --undo` first"), "{said}");
    assert_eq!(host.words(), "quiet mem_encrypt=on");
    expect_code(&host.run(&["enable", "--undo"]), 0);
    // The directory that was made for the file goes with it.
    assert!(!host.at("etc/modprobe.d").exists());
    expect_code(&host.run(&["enable"]), 0);
    assert_eq!(host.words(), format!("quiet {LINE}"));
}
