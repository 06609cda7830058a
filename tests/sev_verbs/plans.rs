//! What would be changed, by distribution and boot loader.

use super::*;

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
            "/etc/default/grub",
            "GRUB_CMDLINE_LINUX_DEFAULT=\"$(cat /x)\n\"\n\
             GRUB_CMDLINE_LINUX_DEFAULT=\"$GRUB_CMDLINE_LINUX_DEFAULT mem_encrypt=on kvm_amd.sev=1\"\n"
        )]
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
