//! `vsc-run net plan SCENARIO`: what a scenario's bridges need of the host, and who would do it. Touches nothing.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use vsc::net::policy::{self, Names, Who};
use vsc::net::{commands, is_interface_name, tap};

use super::Common;
use super::export::describe;
use super::run::{KeyArgs, Source};
use crate::say;

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
    /// What root would do by hand.
    commands: Vec<String>,
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
    let What::Plan(args) = &args.what;
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
    let mut cards = Vec::new();
    for (index, net) in nets.into_iter().flatten().enumerate() {
        if net["type"] != "bridge" {
            continue;
        }
        let bridge = net["source"].as_str().unwrap_or_default().to_owned();
        let queues = net["queues"].as_u64().unwrap_or(1);
        let queues = u16::try_from(queues).unwrap_or(u16::MAX);
        let dev = net["target"].as_str().unwrap_or("vsc0");
        cards.push(Card {
            key: format!("nets[{index}]"),
            commands: commands(dev, &bridge, queues, mtu(&bridge, common)),
            obstacle: obstacle(&bridge, queues, helper.is_err(), common),
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

fn link(bridge: &str, common: &Common) -> PathBuf {
    common.host_root.join("sys/class/net").join(bridge)
}

fn mtu(bridge: &str, common: &Common) -> Option<u32> {
    let text = std::fs::read_to_string(link(bridge, common).join("mtu")).ok()?;
    text.trim().parse().ok()
}

/// Why vsc-helper would not do it, as far as this user may see.
fn obstacle(bridge: &str, queues: u16, no_helper: bool, common: &Common) -> Option<String> {
    if !is_interface_name(bridge) {
        return Some(format!("{bridge:?} cannot be the name of a bridge"));
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
    if no_helper {
        return Some("vsc-helper is not installed".to_owned());
    }
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
    decision.err().map(|e| e.to_string())
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
