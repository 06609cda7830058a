//! `vsc-run hosts`: the hypervisors of virthosts.yaml, which one is selected, and what it has.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use vsc::diag::shown;
use vsc::facts::{Root, Variables};
use vsc::hosts::{Certificate, Host, Hosts, HostsError};
use vsc::libvirt::{Machine, Virsh, machines};

use super::Common;
use super::run::{or_report, report};
use crate::{run, say};

/// Arguments of `hosts`.
#[derive(Debug, Args)]
pub(super) struct HostsArgs {
    /// The list of hypervisors (default: hvconf of virtscenario.yaml, else virthosts.yaml here,
    /// in ~/.local/virt-scenario, in /etc/virt-scenario or in /etc).
    #[arg(long, value_name = "FILE", global = true)]
    hosts: Option<PathBuf>,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Lists the hypervisors.
    List,
    /// Selects the hypervisor that later commands use.
    Select {
        /// Its name in the list.
        name: String,
    },
    /// Lists the virtual networks of the selected hypervisor.
    Networks {
        /// Asks this one.
        #[arg(long, value_name = "NAME")]
        on: Option<String>,
    },
    /// Lists the machine types of the selected hypervisor.
    Machines {
        /// Only those of this architecture.
        #[arg(long)]
        arch: Option<String>,
        /// Asks this one.
        #[arg(long, value_name = "NAME")]
        on: Option<String>,
    },
}

pub(super) fn run(args: &HostsArgs, common: &Common) -> u8 {
    let root = Root(common.host_root.clone());
    let variables = Variables::of_process();
    let settings = common.settings(&root);
    let hosts = Hosts::load(args.hosts.as_deref(), settings, &variables, &root);
    let Some(mut hosts) = or_report(hosts, common) else {
        return crate::FAILED;
    };
    report(&hosts.messages, common);
    let done = match &args.action {
        Action::List => Ok(list(&hosts, common)),
        Action::Select { name } => select(&mut hosts, name, common).map_err(|e| run::chain(&e)),
        Action::Networks { on } => networks(&hosts, on.as_deref(), common),
        Action::Machines { arch, on } => {
            machine_types(&hosts, on.as_deref(), arch.as_deref(), common)
        }
    };
    done.unwrap_or_else(|why| {
        say::error(&shown(&why));
        crate::FAILED
    })
}

/// A host as data; `selected` is what JSON readers ask first.
fn record(host: &Host, selected: bool) -> Value {
    let mut record = json!(host);
    if let Value::Object(map) = &mut record {
        map.insert("selected".into(), selected.into());
    }
    record
}

fn list(hosts: &Hosts, common: &Common) -> u8 {
    let selected = hosts.selected();
    let is = |host: &Host| selected.as_ref().is_ok_and(|s| s.name == host.name);
    if common.json {
        let told = json!({
            "file": hosts.file,
            "selected": selected.as_ref().ok().map(|s| &s.name),
            "hosts": hosts.list.iter().map(|h| record(h, is(h))).collect::<Vec<_>>(),
        });
        say::out(&format!("{told:#}\n"));
    } else {
        let rows = hosts.list.iter().map(|host| {
            let mark = if is(host) { "*" } else { "" };
            let url = host.url.as_deref().unwrap_or("(none)");
            [
                mark.into(),
                shown(&host.name),
                shown(url),
                certificate(&host.certificate),
            ]
        });
        say::out(&table(["", "NAME", "URL", "SEV CERTIFICATE"], rows));
    }
    match selected {
        Ok(_) => 0,
        Err(e) => {
            say::error(&shown(&e.to_string()));
            crate::FAILED
        }
    }
}

fn certificate(certificate: &Certificate) -> String {
    match certificate {
        Certificate::None => "none".into(),
        Certificate::Missing(path) => {
            format!("missing: {}", shown(&path.display().to_string()))
        }
        Certificate::Present(path) => {
            format!(
                "present, not verified: {}",
                shown(&path.display().to_string())
            )
        }
    }
}

fn select(hosts: &mut Hosts, name: &str, common: &Common) -> Result<u8, HostsError> {
    let host = hosts.select(name)?;
    if common.json {
        say::out(&format!("{:#}\n", record(host, true)));
    } else {
        let url = host.url.as_deref().unwrap_or("no url");
        say::out(&format!("{} ({})\n", shown(&host.name), shown(url)));
    }
    Ok(0)
}

/// The hypervisor to ask, with a connection to it.
fn asked<'a>(hosts: &'a Hosts, on: Option<&str>) -> Result<(&'a Host, Virsh), String> {
    let host = match on {
        Some(name) => hosts.get(name),
        None => hosts.selected(),
    };
    let host = host.map_err(|e| e.to_string())?;
    let url = host.url().map_err(|e| e.to_string())?;
    Ok((host, Virsh::new(url)))
}

fn networks(hosts: &Hosts, on: Option<&str>, common: &Common) -> Result<u8, String> {
    let (host, virsh) = asked(hosts, on)?;
    let answer = virsh
        .run(&["net-list", "--all", "--name"], None)
        .map_err(|e| run::chain(&e))?;
    let names: Vec<&str> = answer
        .stdout
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    if common.json {
        let told = json!({ "host": host.name, "url": host.url, "networks": names });
        say::out(&format!("{told:#}\n"));
    } else {
        say::out(&names.iter().map(|n| shown(n) + "\n").collect::<String>());
        if names.is_empty() && !common.quiet {
            say::note(&format!("{} has no networks", shown(&host.name)));
        }
    }
    Ok(0)
}

fn machine_types(
    hosts: &Hosts,
    on: Option<&str>,
    arch: Option<&str>,
    common: &Common,
) -> Result<u8, String> {
    let (host, virsh) = asked(hosts, on)?;
    let answer = virsh
        .run(&["capabilities"], None)
        .map_err(|e| run::chain(&e))?;
    let all = machines(&answer.stdout)
        .map_err(|e| format!("the capabilities of {} are no XML: {e}", host.name))?;
    let found: Vec<&Machine> = all
        .iter()
        .filter(|m| arch.is_none_or(|arch| m.arch == arch))
        .collect();
    if let Some(arch) = arch
        && found.is_empty()
    {
        let mut known: Vec<&str> = all.iter().map(|m| m.arch.as_str()).collect();
        known.dedup();
        return Err(format!(
            "{} runs no {arch:?}; it runs {}",
            host.name,
            if known.is_empty() {
                "nothing".into()
            } else {
                known.join(", ")
            }
        ));
    }
    if common.json {
        let told = json!({ "host": host.name, "url": host.url, "machines": found });
        say::out(&format!("{told:#}\n"));
    } else {
        let rows = found.iter().map(|m| {
            [
                shown(&m.name),
                m.arch.clone(),
                m.max_cpus.map_or_else(String::new, |n| n.to_string()),
                m.canonical.as_deref().map_or_else(String::new, shown),
            ]
        });
        say::out(&table(["MACHINE", "ARCH", "MAX VCPUS", "STANDS FOR"], rows));
    }
    Ok(0)
}

/// Columns as wide as their widest entry.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut lines = vec![head.map(str::to_owned)];
    lines.extend(rows);
    let width = |column: usize| {
        let lengths = lines.iter().filter_map(|line| line.get(column));
        lengths.map(|text| text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths);
        let text: Vec<String> = cells
            .map(|(text, &width)| format!("{text:width$}"))
            .collect();
        out += text.join("  ").trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["", "ä", "x"], ["*", "longer", ""]].map(|r| r.map(str::to_owned));
        assert_eq!(
            table(["", "NAME", "URL"], rows.into_iter()),
            "   NAME    URL\n   ä       x\n*  longer\n"
        );
    }
}
