//! `vsc-run sev` on made-up hosts: nobody here has the hardware.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "sev_verbs/check.rs"]
mod check;
mod common;
#[path = "sev_verbs/enable.rs"]
mod enable;
#[path = "sev_verbs/plans.rs"]
mod plans;
#[path = "sev_verbs/stack.rs"]
mod stack;

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Output;

use common::{TempDir, expect_code, json, program, run, text, vsc};
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
        (output.status.code().unwrap(), json(&output))
    }
}

fn finding<'a>(report: &'a Value, id: &str) -> &'a Value {
    let list = report["findings"].as_array().unwrap();
    list.iter().find(|f| f["id"] == id).unwrap_or(&Value::Null)
}

const ALL_FLAGS: &str = "svm sme sev sev_es sev_snp";

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
        for (name, said) in said {
            self.file(name, said);
            program(&self.0.path("usr/bin").join(name), PROGRAM);
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
        let report = json(&output);
        (code, report["stack"].clone(), text(&output.stderr))
    }

    fn words(&self) -> Vec<String> {
        let words = fs::read_to_string(self.0.path("words")).unwrap_or_default();
        words.lines().map(str::to_owned).collect()
    }
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
    json(&output)
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
