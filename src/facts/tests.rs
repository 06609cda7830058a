use super::*;

pub(in crate::facts) struct Fake(pub(in crate::facts) PathBuf);

impl Fake {
    pub(in crate::facts) fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let root = std::env::temp_dir().join(format!("vsc-facts-{}-{name}", std::process::id()));
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Fake(root)
    }

    fn facts(&self) -> LiveFacts {
        let home = Some(PathBuf::from("/home/u"));
        LiveFacts::new(
            Root(self.0.clone()),
            Variables {
                home,
                ..Variables::default()
            },
        )
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

#[test]
fn reads_a_host_below_a_directory() {
    let fake = Fake::new(
        "all",
        &[
            (
                "proc/meminfo",
                "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    500 kB\n",
            ),
            (
                "proc/cpuinfo",
                "processor : 0\nflags\t\t: fpu svm hypervisor\n",
            ),
            ("sys/devices/system/cpu/online", "0-3,8\n"),
            ("sys/module/kvm_amd/parameters/nested", "1\n"),
            ("dev/kvm", ""),
            (".dockerenv", ""),
            ("boot/vmlinuz-6.1.0-2-amd64", ""),
            ("boot/vmlinuz-6.12.0-1-amd64", ""),
            ("boot/vmlinuz-6.12.0-1-amd64.old", ""),
            ("boot/config-6.12.0-1-amd64", ""),
            ("home/u/.local/share/vsc/kernels/vmlinux-cpl3", ""),
        ],
    );
    let facts = HostFacts::of(&fake.facts());
    assert_eq!(
        facts.memory,
        Some(HostMemory {
            total: 1_024_000,
            available: 512_000
        })
    );
    assert_eq!(
        (facts.online_cpus, facts.nested, facts.host_kind),
        (Some(5), true, HostKind::Hardware)
    );
    assert_eq!(facts.container.as_deref(), Some("docker"));
    let kernels: Vec<_> = facts
        .kernels
        .iter()
        .map(|k| (k.path.strip_prefix(&fake.0).unwrap(), k.ours))
        .collect();
    let path = Path::new;
    assert_eq!(
        kernels,
        [
            (path("home/u/.local/share/vsc/kernels/vmlinux-cpl3"), true),
            (path("boot/vmlinuz-6.12.0-1-amd64"), false),
            (path("boot/vmlinuz-6.1.0-2-amd64"), false),
        ]
    );
    assert_eq!(fake.facts().cpu_flags(), ["svm", "hypervisor"]);
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<HostFacts>(&text).unwrap(), facts);
}

#[test]
fn an_empty_host_says_so() {
    let fake = Fake::new("none", &[("x", "")]);
    let facts = HostFacts::of(&fake.facts());
    assert_eq!(
        facts,
        HostFacts {
            terminals: facts.terminals,
            ..HostFacts::default()
        }
    );
}

#[test]
fn files_are_told_apart() {
    let fake = Fake::new("files", &[("f", "12345")]);
    let facts = fake.facts();
    let file = facts.file(&fake.0.join("f")).unwrap();
    assert_eq!(
        (file.kind, file.length, file.writable),
        (FileKind::Regular, 5, true)
    );
    assert_eq!(facts.file(&fake.0).map(|f| f.kind), Ok(FileKind::Directory));
    assert_eq!(facts.file(&fake.0.join("g")), Err(FileError::Missing));
    assert_eq!(
        facts.file(Path::new("/dev/null")).map(|f| f.kind),
        Ok(FileKind::Other)
    );
}

#[test]
fn lists_of_cpus() {
    assert_eq!(
        (count_list("0"), count_list("0-3,5,7-8"), count_list("")),
        (Some(1), Some(7), None)
    );
    assert_eq!(
        (count_list("3-1"), count_list("0-4294967295")),
        (None, None)
    );
}
