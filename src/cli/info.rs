//! `vsc-run info`: what this host's processor, memory and KVM are.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileTypeExt;

use serde::Serialize;
use vsc::diag::shown;
use vsc::facts::{Facts, HostMemory, LiveFacts, Root, SevFacts, Variables};
use vsc_vmm::kvm::{Capabilities, Host, HostKind};

use super::Common;
use crate::say;

/// Most that is read of one file; /proc/cpuinfo of 8192 processors is shorter.
const FILE_MAX: usize = 64 << 20;

/// Flags of /proc/cpuinfo that say what machines can do here: virtualization and its second level of address
/// translation, page sizes, clocks, interrupts, encryption of memory, and what guests compute with.
const FLAGS: [&str; 27] = [
    "svm",
    "vmx",
    "npt",
    "ept",
    "avic",
    "hypervisor",
    "pse",
    "pdpe1gb",
    "la57",
    "nx",
    "smep",
    "smap",
    "umip",
    "x2apic",
    "tsc_deadline_timer",
    "constant_tsc",
    "nonstop_tsc",
    "invpcid",
    "sme",
    "sev",
    "sev_es",
    "sev_snp",
    "aes",
    "rdrand",
    "avx2",
    "avx512f",
    "sha_ni",
];

/// Everything; as JSON its fields are added, never renamed. Amounts are bytes.
#[derive(Debug, Serialize)]
struct Info {
    cpu: Cpu,
    numa_nodes: Vec<Node>,
    memory: Option<HostMemory>,
    huge_pages: Vec<HugePages>,
    transparent_huge_pages: Option<String>,
    kvm: Kvm,
    container: Option<String>,
    sev: Sev,
}

/// The processor.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Cpu {
    vendor: Option<String>,
    model: Option<String>,
    physical_cores: Option<usize>,
    logical_cores: usize,
    max_mhz: Option<f64>,
    flags: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Node {
    node: u32,
    cpus: String,
    memory_total: Option<u64>,
    memory_free: Option<u64>,
}

#[derive(Debug, Serialize)]
struct HugePages {
    size: u64,
    total: u64,
    free: u64,
    reserved: u64,
}

#[derive(Debug, Serialize)]
struct Kvm {
    #[serde(flatten)]
    host: Host,
    summary: String,
    nested: bool,
    capabilities: Option<Capabilities>,
}

#[derive(Debug, Serialize)]
struct Sev {
    /// Where KVM has it switched on.
    enabled: Option<SevFacts>,
    /// What the kernel's modules say: `sev`, `sev_es`, `sev_snp`.
    parameters: BTreeMap<&'static str, String>,
}

pub(super) fn run(common: &Common) -> u8 {
    let root = Root(common.host_root.clone());
    let facts = LiveFacts::new(root.clone(), Variables::of_process());
    let info = examine(&facts, &root);
    match common.json {
        true => say::out(&(serde_json::to_string_pretty(&info).unwrap_or_default() + "\n")),
        false => say::out(&text(&info)),
    }
    0
}

fn examine(facts: &LiveFacts, root: &Root) -> Info {
    let read = |path: &str| {
        let bytes = vsc::read_text(&root.at(path), FILE_MAX).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let mut cpu = cpu_of(&read("/proc/cpuinfo"));
    let max_khz = read("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq");
    if let Ok(khz) = max_khz.trim().parse::<f64>() {
        cpu.max_mhz = Some(khz / 1000.0);
    }
    let device = root.at("/dev/kvm");
    let is_device = fs::metadata(&device).is_ok_and(|m| m.file_type().is_char_device());
    let host = facts.host();
    let ask = is_device && host.kind != HostKind::None;
    let parameters = ["sev", "sev_es", "sev_snp"].into_iter().filter_map(|name| {
        let value = read(&format!("/sys/module/kvm_amd/parameters/{name}"));
        (!value.trim().is_empty()).then(|| (name, value.trim().to_owned()))
    });
    Info {
        numa_nodes: nodes(root),
        memory: facts.memory(),
        huge_pages: huge_pages(root),
        transparent_huge_pages: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        kvm: Kvm {
            host,
            summary: host.describe(),
            nested: facts.nested(),
            capabilities: ask.then(|| Capabilities::of(&device).ok()).flatten(),
        },
        container: facts.container(),
        sev: Sev {
            enabled: facts.sev(),
            parameters: parameters.collect(),
        },
        cpu,
    }
}

/// What /proc/cpuinfo says.
fn cpu_of(text: &str) -> Cpu {
    let mut cpu = Cpu::default();
    let mut cores = BTreeSet::new();
    let mut all_cores_told = true;
    for processor in text.split("\n\n").filter(|p| !p.trim().is_empty()) {
        let field = |name: &str| {
            processor.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key.trim() == name).then(|| value.trim().to_owned())
            })
        };
        if field("processor").is_none() {
            continue;
        }
        if cpu.logical_cores == 0 {
            cpu.vendor = field("vendor_id");
            cpu.model = field("model name");
            let flags = field("flags").unwrap_or_default();
            // Whole words: pse is no part of pse36.
            let has: BTreeSet<&str> = flags.split_ascii_whitespace().collect();
            cpu.flags = FLAGS
                .iter()
                .filter(|f| has.contains(*f))
                .map(|f| (*f).to_owned())
                .collect();
        }
        cpu.logical_cores += 1;
        match (field("physical id"), field("core id")) {
            (package, Some(core)) => drop(cores.insert((package, core))),
            _ => all_cores_told = false,
        }
    }
    cpu.physical_cores = (all_cores_told && !cores.is_empty()).then_some(cores.len());
    cpu
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(word, _)| word.to_owned())
}

/// Names in a directory that are a number between `before` and `after`, in the order of the numbers.
fn numbered(root: &Root, directory: &str, before: &str, after: &str) -> Vec<u64> {
    let entries = fs::read_dir(root.at(directory))
        .into_iter()
        .flatten()
        .flatten();
    let mut found: Vec<u64> = entries
        .filter_map(|e| {
            let name = e.file_name().into_string().ok()?;
            name.strip_prefix(before)?.strip_suffix(after)?.parse().ok()
        })
        .collect();
    found.sort_unstable();
    found
}

fn nodes(root: &Root) -> Vec<Node> {
    const NODES: &str = "/sys/devices/system/node";
    let of = |number: u64| {
        let read = |file: &str| {
            let text = fs::read_to_string(root.at(format!("{NODES}/node{number}/{file}")));
            text.unwrap_or_default()
        };
        let meminfo = read("meminfo");
        // Node 0 MemTotal:  24683000 kB
        let field = |name: &str| {
            let line = meminfo.lines().find(|l| l.contains(name))?;
            let mut words = line.split_ascii_whitespace().rev();
            let (unit, value) = (words.next()?, words.next()?);
            value
                .parse::<u64>()
                .ok()
                .filter(|_| unit == "kB")?
                .checked_mul(1024)
        };
        Node {
            node: u32::try_from(number).unwrap_or(u32::MAX),
            cpus: read("cpulist").trim().to_owned(),
            memory_total: field(" MemTotal:"),
            memory_free: field(" MemFree:"),
        }
    };
    numbered(root, NODES, "node", "")
        .into_iter()
        .map(of)
        .collect()
}

fn huge_pages(root: &Root) -> Vec<HugePages> {
    const PAGES: &str = "/sys/kernel/mm/hugepages";
    let of = |kib: u64| {
        let number = |file: &str| {
            let text = fs::read_to_string(root.at(format!("{PAGES}/hugepages-{kib}kB/{file}")));
            text.ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0)
        };
        HugePages {
            size: kib.saturating_mul(1024),
            total: number("nr_hugepages"),
            free: number("free_hugepages"),
            reserved: number("resv_hugepages"),
        }
    };
    numbered(root, PAGES, "hugepages-", "kB")
        .into_iter()
        .map(of)
        .collect()
}

/// An amount in GiB, two decimals.
fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

/// A page size.
fn page(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 => format!("{} GiB", b >> 30),
        b if b >= 1 << 20 => format!("{} MiB", b >> 20),
        b => format!("{} KiB", b >> 10),
    }
}

fn text(info: &Info) -> String {
    let Info {
        cpu,
        numa_nodes,
        memory,
        huge_pages,
        transparent_huge_pages,
        kvm,
        container,
        sev,
    } = info;
    let mut rows: Vec<(&str, String)> = Vec::new();
    let unknown = || "unknown".to_owned();
    rows.push(("CPU", cpu.model.as_deref().map_or_else(unknown, shown)));
    let cores = cpu.physical_cores.map_or_else(unknown, |n| n.to_string());
    rows.push((
        "cores",
        format!("{cores} physical, {} logical", cpu.logical_cores),
    ));
    if let Some(mhz) = cpu.max_mhz {
        rows.push(("frequency", format!("{mhz:.0} MHz at most")));
    }
    rows.push(("flags", cpu.flags.join(" ")));
    for node in numa_nodes {
        let memory = match (node.memory_total, node.memory_free) {
            (Some(total), Some(free)) => format!(", {} ({} free)", gib(total), gib(free)),
            _ => String::new(),
        };
        rows.push((
            "NUMA node",
            format!("{}: CPUs {}{memory}", node.node, shown(&node.cpus)),
        ));
    }
    rows.push((
        "memory",
        memory.map_or_else(unknown, |m| {
            format!("{}, {} available", gib(m.total), gib(m.available))
        }),
    ));
    for pages in huge_pages {
        rows.push((
            "huge pages",
            format!(
                "of {}: {} ({} free, {} reserved)",
                page(pages.size),
                pages.total,
                pages.free,
                pages.reserved
            ),
        ));
    }
    if let Some(word) = transparent_huge_pages {
        rows.push(("transparent", shown(word)));
    }
    rows.push(("KVM", kvm.summary.clone()));
    if let Some(c) = &kvm.capabilities {
        let lacks: Vec<&str> = c
            .lacks
            .iter()
            .chain(&c.lacks_optional)
            .map(String::as_str)
            .collect();
        let lacks = match lacks.is_empty() {
            true => String::new(),
            false => format!(", without {}", lacks.join(", ")),
        };
        rows.push((
            "KVM API",
            format!(
                "version {}, up to {} vCPUs{lacks}",
                c.api_version, c.max_vcpus
            ),
        ));
    }
    rows.push(("nested", if kvm.nested { "on" } else { "off" }.into()));
    rows.push((
        "container",
        container.as_deref().map_or_else(|| "none".into(), shown),
    ));
    let parameters: Vec<String> = sev
        .parameters
        .iter()
        .map(|(k, v)| format!("{k}={}", shown(v)))
        .collect();
    rows.push((
        "SEV",
        match (&sev.enabled, parameters.is_empty()) {
            (Some(s), _) => format!(
                "on, ES {}, SNP {}, C-bit {}, {} physical address bits fewer",
                if s.es { "on" } else { "off" },
                if s.snp { "on" } else { "off" },
                s.cbitpos,
                s.reduced_phys_bits
            ),
            (None, false) => format!("off ({})", parameters.join(", ")),
            (None, true) => "off".into(),
        },
    ));
    let lines = rows
        .iter()
        .map(|(what, value)| format!("{what:11}  {value}\n"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_CORES: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC \n\
        physical id\t: 0\ncore id\t: 0\nflags\t\t: fpu pse36 svm avx512f\n\n\
        processor\t: 1\nphysical id\t: 0\ncore id\t: 0\nflags\t: pse\n\n\
        processor\t: 2\nphysical id\t: 0\ncore id\t: 1\n\n\
        processor\t: 3\nphysical id\t: 1\ncore id\t: 1\n\n";

    #[test]
    fn cores_are_counted_by_package_and_number() {
        let cpu = cpu_of(TWO_CORES);
        assert_eq!((cpu.physical_cores, cpu.logical_cores), (Some(3), 4));
        assert_eq!(
            (cpu.model.as_deref(), cpu.flags),
            (Some("EPYC"), vec!["svm".into(), "avx512f".into()])
        );
        let none = cpu_of("");
        assert_eq!(
            (none.physical_cores, none.logical_cores, none.model),
            (None, 0, None)
        );
        assert_eq!(cpu_of("processor: 0\n\nHardware: x\n").physical_cores, None);
    }

    #[test]
    fn amounts_have_their_unit() {
        assert_eq!(gib(25 << 28), "6.25 GiB");
        assert_eq!(
            [page(2 << 20), page(1 << 30), page(64 << 10)],
            ["2 MiB", "1 GiB", "64 KiB"]
        );
        assert_eq!(
            chosen("always [madvise] never\n").as_deref(),
            Some("madvise")
        );
        assert_eq!(chosen("x"), None);
    }
}
