use std::path::{Path, PathBuf};

use proptest::prelude::*;
use vsc_devices::stream::Endpoint;
use vsc_vmm::kvm::HostKind;
use vsc_vmm::resources::{Action, KernelSpec, Topology};

use super::*;
use crate::facts::{
    FileInfo, FileKind, HostFacts, HostMemory, InstalledKernel, KvmFacts, Terminals,
};
use crate::scenario::{Input, Layer, Override};

fn host() -> HostFacts {
    let file = FileInfo {
        kind: FileKind::Regular,
        length: 1 << 20,
        writable: true,
    };
    let kernel = |path: &str, ours| InstalledKernel {
        path: path.into(),
        ours,
    };
    HostFacts {
        memory: Some(HostMemory {
            total: 8 << 30,
            available: 4 << 30,
        }),
        online_cpus: Some(4),
        kvm: Some(KvmFacts { max_vcpus: 288 }),
        host_kind: HostKind::Hardware,
        nested: true,
        kernels: vec![
            kernel("/k/vmlinux-cpl3", true),
            kernel("/boot/vmlinuz-6.12", false),
        ],
        files: ["a.img", "b.img", "vmlinuz", "initrd"]
            .map(|n| (PathBuf::from(n), Ok(file)))
            .into(),
        ..HostFacts::default()
    }
}

fn parsed(text: &str) -> Parsed {
    scenario::parse(&Input {
        file: Some((Path::new("s.yaml"), text.as_bytes())),
        settings: None,
        ..Input::default()
    })
}

use crate::scenario;

fn plan_on(facts: &HostFacts, text: &str) -> Plan {
    compile(parsed(text), facts).unwrap_or_else(|e| panic!("{e}"))
}

fn plan(text: &str) -> Plan {
    plan_on(&host(), text)
}

fn kernel(plan: &Plan) -> &KernelSpec {
    match &plan.resources.payload {
        Payload::Kernel(kernel) => kernel,
        other => panic!("{other:?}"),
    }
}

fn ends(plan: &Plan) -> Vec<(u8, Endpoint)> {
    plan.resources
        .serials
        .iter()
        .map(|s| (s.index, s.endpoint.clone()))
        .collect()
}

#[test]
fn an_empty_scenario_is_the_builtin_guest_on_stdio() {
    let plan = plan("");
    let r = &plan.resources;
    assert_eq!(
        r.payload,
        Payload::Builtin {
            parameters: String::new()
        }
    );
    assert_eq!(
        (r.name.as_str(), r.memory, r.cpus.count, r.pit, r.iothreads),
        ("s", 256 << 20, 1, false, 1)
    );
    assert_eq!(ends(&plan), [(0, Endpoint::Stdio)]);
    assert!(
        r.consoles.is_empty()
            && r.disks.is_empty()
            && r.rng.is_none()
            && plan.warnings.list.is_empty()
    );
    assert_eq!(plan.run, RunPlan::default());
    assert_eq!(r.validate(), Ok(()));
}

#[test]
fn topologies() {
    let topology = |text: &str| {
        let plan = plan(text);
        assert_eq!(plan.resources.validate(), Ok(()), "{text}");
        let Topology {
            sockets,
            cores,
            threads,
        } = plan.resources.cpus.topology;
        (plan.resources.cpus.count, sockets, cores, threads)
    };
    assert_eq!(topology("cpus: 4"), (4, 1, 4, 1));
    assert_eq!(topology("cpu: {count: 4, ht: on}"), (4, 1, 2, 2));
    assert_eq!(topology("cpu: {count: 1, ht: on}"), (1, 1, 1, 1));
    assert_eq!(
        topology("cpu: {count: 8, topology: {sockets: 2, threads: 2}}"),
        (8, 2, 2, 2)
    );
    assert_eq!(
        topology("cpu: {topology: {sockets: 2, cores: 2}}"),
        (4, 2, 2, 1)
    );
    assert_eq!(topology("cpu: {topology: {threads: 2}}"), (2, 1, 1, 2));
}

#[test]
fn the_lab_boots_its_disk_on_its_own_serial_line() {
    let plan = plan(
        "name: lab1\nkernel: vmlinuz\nmemory: 256M\ndisk: a.img\nserial: unix:serial.socket\n",
    );
    assert_eq!(ends(&plan), [(0, Endpoint::Unix("serial.socket".into()))]);
    let line = &kernel(&plan).cmdline;
    for word in ["console=ttyS0", "root=/dev/vda", "rw", "reboot=k"] {
        assert!(
            line.split(' ').any(|w| w == word),
            "{word} is not in {line}"
        );
    }
    let pairs: Vec<_> = device_pairs(&plan)
        .into_iter()
        .map(|p| (p.guest, p.host, p.id))
        .collect();
    let pair = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
    assert_eq!(
        pairs,
        [
            pair(
                "isa-serial ttyS0 (port 0x3f8, irq 4)",
                "unix:serial.socket",
                "serial0"
            ),
            pair("virtio-blk vda", "raw:a.img (cache=writeback)", "disk0"),
        ]
    );
}

#[test]
fn what_the_user_says_on_the_command_line_is_not_said_again() {
    let plan = plan(
        "kernel: {path: vmlinuz, prolog: first, cmdline: root=/dev/vdb console=ttyS0 reboot=t, epilog: last}\ndisk: a.img\n",
    );
    let words: Vec<&str> = kernel(&plan).cmdline.split(' ').collect();
    assert_eq!((words[0], words[words.len() - 1]), ("first", "last"));
    for word in ["root=", "console=", "reboot="] {
        assert_eq!(
            words.iter().filter(|w| w.starts_with(word)).count(),
            1,
            "{words:?}"
        );
    }
}

#[test]
fn a_command_gets_pipes_or_a_terminal_and_a_kernel_of_this_host() {
    let text = "command: echo 'a b'\nenv: {A: b}\nworkdir: /tmp\n";
    let p = plan(text);
    assert_eq!(kernel(&p).path, Path::new("/boot/vmlinuz-6.12"));
    assert_eq!(p.run.command, ["echo", "a b"]);
    assert_eq!(
        (p.run.env.as_slice(), p.run.workdir.as_str()),
        (&[("A".to_owned(), "b".to_owned())][..], "/tmp")
    );
    assert_eq!(
        (p.run.stdio, p.run.initrd, &p.run.root),
        (Stdio::Pipes, InitrdPlan::Tiny, &None)
    );
    assert_eq!(ends(&p), [(0, Endpoint::Null)]);
    let names: Vec<_> = p.resources.consoles[0]
        .ports
        .iter()
        .map(|p| p.name.clone().unwrap())
        .collect();
    assert_eq!(names, ["vsc.ctl", "vsc.stdin", "vsc.stdout", "vsc.stderr"]);

    let soft = HostFacts {
        host_kind: HostKind::SoftwarePaging,
        ..host()
    };
    assert_eq!(
        kernel(&plan_on(&soft, text)).path,
        Path::new("/k/vmlinux-cpl3")
    );
    let tty = HostFacts {
        terminals: Terminals {
            stdin: true,
            stdout: true,
        },
        ..host()
    };
    let p = plan_on(&tty, text);
    assert_eq!(p.run.stdio, Stdio::Terminal);
    let ports: Vec<_> = p.resources.consoles[0]
        .ports
        .iter()
        .map(|p| (p.name.as_deref(), p.console))
        .collect();
    assert_eq!(ports, [(Some("vsc.tty"), true), (Some("vsc.ctl"), false)]);
    assert!(
        !p.resources.consoles[0].ports[0].kernel,
        "a panic that a command prints is none"
    );

    let p = plan(&format!("{text}disk: {{path: a.img, ro: on}}\n"));
    let root = p.run.root.unwrap();
    assert_eq!(
        (root.device.as_str(), root.options.as_str(), p.run.initrd),
        ("/dev/vda", "ro", InitrdPlan::InitOnly)
    );
    let p = plan(&format!(
        "{text}kernel: {{path: vmlinuz, initrd: initrd}}\n"
    ));
    assert_eq!((p.run.initrd, p.run.root), (InitrdPlan::InitOnly, None));
}

#[test]
fn consoles_exist_as_listed() {
    assert!(ends(&plan("console: {implicit: false}")).is_empty());
    let p = plan("kernel: {path: vmlinuz, console: hvc0}\n");
    assert!(p.resources.serials.is_empty() && p.resources.consoles[0].ports[0].console);
    assert!(kernel(&p).cmdline.contains("console=hvc0"));
    assert!(
        !kernel(&plan("kernel: {path: vmlinuz, console: none}\n"))
            .cmdline
            .contains("console=")
    );
    let p =
        plan("serials: [null, \"fd:5\"]\nconsoles: [{name: a, in: \"fd:6\", out: \"file:o\"}]\n");
    assert_eq!(
        ends(&p),
        [(0, Endpoint::Null), (1, Endpoint::Given("fd:5".into()))]
    );
    assert_eq!(
        p.run.descriptors,
        [("fd:5".to_owned(), 5), ("fd:6".to_owned(), 6)]
    );
}

#[test]
fn events_limits_and_machine_keys_arrive() {
    let p = plan(
        "on_reboot: restart\nevents: {max_restarts: 2}\nirqchip: split\nlimits: {timeout: 1m, boot_deadline: none}\nrng: on\n",
    );
    let r = &p.resources;
    assert_eq!(
        (
            r.events.on_reboot,
            r.events.on_poweroff,
            r.events.max_restarts
        ),
        (Action::Restart, Action::Destroy, 2)
    );
    assert_eq!(
        (
            r.limits.timeout.map(|t| t.as_secs()),
            r.limits.boot_deadline
        ),
        (Some(60), None)
    );
    assert_eq!(
        (r.irqchip, r.pit, r.rng.is_some()),
        (Irqchip::Split, false, true)
    );
}

#[test]
fn defaults_of_the_table_are_those_of_the_plan() {
    // Writing a default down must change nothing.
    let disks = "kernel: vmlinuz\ndisk: a.img\nserial: null\n";
    let bare = plan(disks);
    for setting in bare
        .settings()
        .iter()
        .filter(|s| s.origin == crate::diag::Origin::Default)
    {
        let key = setting.key.replace('[', ".").replace(']', "");
        if setting.value.contains("disk0,") || key == "workdir" {
            continue;
        }
        let layers = vec![Layer::Option(Override::option(&format!(
            "{key}={}",
            setting.value
        )))];
        let file = Some((Path::new("s.yaml"), disks.as_bytes()));
        let written = compile(
            scenario::parse(&Input {
                file,
                settings: None,
                layers,
                home: None,
            }),
            &host(),
        );
        let written = written.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(written.resources, bare.resources, "{key}={}", setting.value);
    }
}

#[test]
fn a_plan_is_plain_data() {
    let plan = plan("disk: a.img\ncommand: ls\nserial: null\nrng: on\n");
    let text = serde_json::to_string(&(&plan.resources, &plan.run)).unwrap();
    let (resources, run): (VmResources, RunPlan) = serde_json::from_str(&text).unwrap();
    assert_eq!((resources, run), (plan.resources, plan.run));
}

fn scenarios() -> impl Strategy<Value = String> {
    let lines = [
        "cpus: 1",
        "cpus: 3",
        "cpu: {count: 4, ht: on}",
        "cpu: {topology: {sockets: 2}}",
        "memory: 64M",
        "memory: 6G",
        "memory: 9G",
        "kernel: vmlinuz",
        "kernel: {path: vmlinuz, initrd: initrd, console: hvc0}",
        "kernel: gone",
        "disks: [a.img, b.img]",
        "disk: {path: a.img, block_size: 4096, cache: directsync}",
        "serial: stdio",
        "serials: [null, null, null, null]",
        "consoles: [{tty: stdio}, {name: x, out: stderr}]",
        "command: ls -l",
        "console: {implicit: no, log: c.log}",
        "irqchip: split",
        "timers: {pit: no}",
        "on_poweroff: restart",
        "limits: {timeout: 1s}",
        "root: {device: /dev/vdb, options: \"ro,noatime\"}",
        "env: {A: b}",
        "name: x",
        "guest: exit=3",
        "cmdline: quiet",
        "rng: on",
        "iothreads: 0",
        "bogus: 1",
    ];
    proptest::sample::subsequence(lines.to_vec(), 0..6).prop_map(|l| l.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn what_check_accepts_compiles_and_is_valid(text in scenarios()) {
        let messages = crate::check(parsed(&text), &host());
        match compile(parsed(&text), &host()) {
            Ok(plan) => {
                prop_assert!(!messages.has_errors(), "{}", messages);
                prop_assert_eq!(plan.resources.validate(), Ok(()));
                for disk in &plan.resources.disks {
                    prop_assert!(disk.validate().is_ok());
                }
                prop_assert!(!device_pairs(&plan).iter().any(|p| p.guest.is_empty() || p.host.is_empty()));
            }
            Err(errors) => prop_assert!(messages.has_errors(), "{}", errors),
        }
    }
}
