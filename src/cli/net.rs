//! `vsc-run net plan SCENARIO`: what a scenario's bridges need of the host, and who would do it. Touches nothing.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use vsc::net::policy::{self, Names, Who};
use vsc::net::{ACTION, commands, is_interface_name, polkit_policy, sudo_line, tap};

use super::Common;
use super::export::describe;
use super::run::{KeyArgs, Source};
use crate::say;
use vsc::diag::shown;

/// Arguments of `net`.
#[derive(Debug, Args)]
pub(super) struct NetArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Shows the commands that a scenario's bridges stand for, and whether vsc-helper may do them.
    Plan(PlanArgs),
    /// Prints the action for polkit that lets pkexec start vsc-helper after a question: install it as
    /// /usr/share/polkit-1/actions/io.github.vsc.helper.policy. None is installed by itself.
    Polkit(PolkitArgs),
}

/// Arguments of `net polkit`.
#[derive(Debug, Args)]
struct PolkitArgs {
    /// Where vsc-helper is installed (default: the one that is found).
    #[arg(long, value_name = "FILE")]
    helper: Option<PathBuf>,
}

/// Arguments of `net plan`.
#[derive(Debug, Args)]
struct PlanArgs {
    /// A scenario file, or a preset.
    #[arg(value_name = "SCENARIO")]
    scenario: Option<PathBuf>,
    #[command(flatten)]
    keys: KeyArgs,
}

/// A card of the guest that is connected to a bridge of the host.
#[derive(Debug, Serialize)]
struct Card {
    /// `nets[0]`
    key: String,
    bridge: String,
    queues: u16,
    /// What it stands for.
    commands: Vec<String>,
    /// The same as one line for a person to type, with a tap that this user may open.
    sudo: String,
    /// Why it is not to be had as things are; null where it is.
    obstacle: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Answer {
    cards: Vec<Card>,
    /// The program that would do it.
    helper: Option<PathBuf>,
}

pub(super) fn run(args: &NetArgs, common: &Common) -> u8 {
    let args = match &args.what {
        What::Plan(args) => args,
        What::Polkit(args) => return polkit(args, common),
    };
    let mut layers = args.keys.layers();
    layers.extend(args.keys.overrides());
    let source = Source {
        file: args.scenario.as_deref(),
        layers,
    };
    let Some(description) = describe(source, common) else {
        return crate::FAILED;
    };
    let helper = tap::find();
    let nets = description
        .domain
        .get("nets")
        .and_then(|nets| nets.as_array());
    let user = rustix::process::getuid().as_raw();
    let mut cards = Vec::new();
    for (index, net) in nets.into_iter().flatten().enumerate() {
        if net["type"] != "bridge" {
            continue;
        }
        let bridge = net["source"].as_str().unwrap_or_default().to_owned();
        let queues = net["queues"].as_u64().unwrap_or(1);
        let queues = u16::try_from(queues).unwrap_or(u16::MAX);
        let mtu = mtu(&bridge, common);
        let dev = net["target"].as_str().unwrap_or("vsc0");
        cards.push(Card {
            key: format!("nets[{index}]"),
            commands: commands(dev, &bridge, queues, mtu),
            sudo: sudo_line(dev, &bridge, queues, mtu, user),
            obstacle: obstacle(&bridge, queues, helper.as_deref().ok(), common),
            bridge,
            queues,
        });
    }
    let answer = Answer {
        cards,
        helper: helper.ok(),
    };
    if common.json {
        let text = serde_json::to_string_pretty(&answer).unwrap_or_default();
        say::out(&format!("{text}\n"));
    } else {
        say::out(&told(&answer));
    }
    0
}

/// The action for polkit.
fn polkit(args: &PolkitArgs, common: &Common) -> u8 {
    let found = args.helper.clone().map_or_else(tap::find, Ok);
    let helper = match found {
        Ok(helper) => std::path::absolute(&helper).unwrap_or(helper),
        Err(_) => {
            say::error("vsc-helper is not installed: --helper FILE says where it will be");
            return crate::FAILED;
        }
    };
    let Some(text) = polkit_policy(&helper) else {
        say::error("--helper: a path that XML cannot hold");
        return crate::FAILED;
    };
    if common.json {
        let file = format!("/usr/share/polkit-1/actions/{ACTION}.policy");
        let answer = serde_json::json!({ "file": file, "helper": helper, "text": text });
        say::out(&format!("{answer:#}\n"));
    } else {
        say::out(&text);
    }
    0
}

fn link(bridge: &str, common: &Common) -> PathBuf {
    common.host_root.join("sys/class/net").join(bridge)
}

fn mtu(bridge: &str, common: &Common) -> Option<u32> {
    let text = std::fs::read_to_string(link(bridge, common).join("mtu")).ok()?;
    text.trim().parse().ok()
}

/// Why vsc-helper would not do it, as far as this user may see.
fn obstacle(bridge: &str, queues: u16, helper: Option<&Path>, common: &Common) -> Option<String> {
    if !is_interface_name(bridge) {
        return Some(format!(
            "vsc-helper takes no bridge of such a name: {bridge:?}"
        ));
    }
    if queues > vsc::net::QUEUES_OF_A_REQUEST {
        let most = vsc::net::QUEUES_OF_A_REQUEST;
        return Some(format!(
            "vsc-helper makes taps with at most {most} pairs of queues"
        ));
    }
    if !link(bridge, common).join("bridge").is_dir() {
        return Some(format!("{bridge} is no bridge of this host"));
    }
    let Some(helper) = helper else {
        return Some("vsc-helper is not installed".to_owned());
    };
    if common.host_root != Path::new("/") {
        return None;
    }
    let groups = rustix::process::getgroups().unwrap_or_default();
    let groups = groups.into_iter().chain([rustix::process::getgid()]);
    let who = Who {
        user: rustix::process::getuid().as_raw(),
        groups: groups.map(|group| group.as_raw()).collect(),
    };
    let names = Names::read(Path::new("/"));
    let decision = policy::read().and_then(|text| policy::decide(&text, bridge, &who, &names));
    let refused = decision.err().map(|e| e.to_string());
    refused.or_else(|| tap::powerless(helper))
}

fn told(answer: &Answer) -> String {
    if answer.cards.is_empty() {
        return "no card of this machine is in a bridge: nothing of the host is needed\n"
            .to_owned();
    }
    let mut out = String::new();
    for card in &answer.cards {
        out += &format!("{}: a tap in {}, which stands for\n", card.key, card.bridge);
        for command in &card.commands {
            out += &format!("  {command}\n");
        }
        out += &format!("  by hand: {}\n", shown(&card.sudo));
        match (&card.obstacle, &answer.helper) {
            (Some(why), _) => {
                out += &format!("  not as things are: {why}\n");
                out += "  without any rights: `nets: [{type: user}]`\n";
            }
            (None, Some(helper)) => out += &format!("  done by {}\n", helper.display()),
            (None, None) => {}
        }
    }
    out
}
