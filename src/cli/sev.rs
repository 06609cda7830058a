//! `vsc-run sev`: what this host has of AMD's encrypted guests, what switches it on, and launch policies.

#![forbid(unsafe_code)]

use std::io::{BufRead, IsTerminal};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use vsc::diag::shown;
use vsc::facts::{LiveFacts, Root, Variables};
use vsc::libvirt::Virsh;
use vsc::sev::Level;
use vsc::sev::host::{Finding, Host};
use vsc::sev::policy::{self, Illegal};
use vsc::sev::renew::renew;
use vsc::sev::stack::{Answers, Cause, Memory, Stack};

use super::Common;
use super::doctor::checked;
use crate::say::Fault;
use crate::{run, say};

mod enable;

/// Arguments of `sev`.
#[derive(Debug, Args)]
pub(super) struct SevArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Says which encrypted guests this host can have: exit code 0 if any, else 1.
    Check(CheckArgs),
    /// Shows what would switch encrypted guests on: files with their lines before and after, and what to run then.
    Plan(enable::PlanArgs),
    /// Switches encrypted guests on, as `sev plan` shows it, or back; a journal has what was before.
    Enable(enable::EnableArgs),
    /// Decodes a launch policy, or makes one of words.
    Policy(PolicyArgs),
}

/// Arguments of `sev check`.
#[derive(Debug, Args)]
struct CheckArgs {
    /// Looks at libvirt and QEMU too: versions, what libvirt says of SEV, and why it says no.
    #[arg(long)]
    stack: bool,
    /// The libvirt to ask.
    #[arg(
        long,
        value_name = "URL",
        default_value = "qemu:///system",
        requires = "stack"
    )]
    connect: String,
    /// Where libvirt remembers what was before: stops it, removes what it remembers, starts it, and asks again.
    #[arg(long, requires = "stack")]
    fix: bool,
    /// Does that without a question.
    #[arg(short, long, requires = "fix")]
    yes: bool,
}

/// Arguments of `sev policy`.
#[derive(Debug, Args)]
struct PolicyArgs {
    /// A number such as 0x0003, or words such as nodbg,noks,es and api=0.24.
    #[arg(required = true, num_args = 1..)]
    policy: Vec<String>,
    /// The kind of guest (default: the policy tells).
    #[arg(long = "type", value_enum)]
    kind: Option<Kind>,
}

/// Kinds of encrypted guests.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Sev,
    SevEs,
    SevSnp,
}

impl From<Kind> for Level {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Sev => Level::Sev,
            Kind::SevEs => Level::SevEs,
            Kind::SevSnp => Level::SevSnp,
        }
    }
}

pub(super) fn run(args: &SevArgs, common: &Common) -> u8 {
    match &args.action {
        Action::Check(args) => check(args, common),
        Action::Plan(args) => enable::plan(args, common),
        Action::Enable(args) => enable::enable(args, common),
        Action::Policy(args) => match decoded(args) {
            Ok((level, policy)) => {
                tell_policy(level, policy, common);
                0
            }
            Err(Illegal { message, help, .. }) => Fault::error(&message).help(help).say(),
        },
    }
}

fn check(args: &CheckArgs, common: &Common) -> u8 {
    let root = Root(common.host_root.clone());
    let facts = LiveFacts::new(root.clone(), Variables::of_process());
    let host = Host::of(&facts, &root);
    let stack = args.stack.then(|| stack(args, &host, &root, common));
    if common.json {
        let mut told = json!(host);
        if let Some(stack) = &stack {
            told["stack"] = json!(stack);
        }
        say::out(&format!("{told:#}\n"));
    } else {
        let mut text = lines(&host.findings, common);
        if let Some(stack) = &stack {
            text += &lines(&stack.findings, common);
        }
        text += &verdict(&host);
        for command in stack.iter().flat_map(|s| &s.commands) {
            text += &format!("  {command}\n");
        }
        say::out(&text);
    }
    u8::from(!host.usable || stack.is_some_and(|s| !s.usable))
}

/// libvirt and QEMU; mended first where that is wanted.
fn stack(args: &CheckArgs, host: &Host, root: &Root, common: &Common) -> Stack {
    let virsh = Virsh::new(args.connect.as_str());
    let search = std::env::var_os("PATH");
    let ask = || Answers::of(root, &virsh, search.as_deref());
    let found = Stack::judge(host, root, ask());
    if !args.fix || found.cause != Cause::StaleCache {
        if args.fix && !common.quiet {
            say::note("nothing to fix: libvirt remembers nothing that is wrong");
        }
        return found;
    }
    say::err_raw(&format!("{}\n", found.commands.join("\n")));
    if !args.yes && !confirmed() {
        say::note("not done; --yes does it without a question");
        return found;
    }
    let service = found.answers.service;
    if let Err(e) = renew(root, service) {
        say::error(&run::chain(&e));
        return found;
    }
    // What it says now it has just found out.
    let answers = Answers {
        memory: Memory::Fresh,
        ..ask()
    };
    Stack::judge(host, root, answers)
}

/// Asks at the terminal. Without one the answer is no.
fn confirmed() -> bool {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return false;
    }
    say::err_raw("Run these? [y/N] ");
    let mut line = String::new();
    stdin.lock().read_line(&mut line).is_ok()
        && matches!(line.trim(), "y" | "Y" | "yes" | "Yes" | "YES")
}

fn lines(findings: &[Finding], common: &Common) -> String {
    let line = |finding: &Finding| {
        let Finding {
            id: _,
            what,
            works,
            needed: _,
            detail,
            remedy,
        } = finding;
        checked(
            *works,
            what,
            &shown(detail),
            remedy.as_deref().map(shown),
            common,
        )
    };
    findings.iter().map(line).collect()
}

fn verdict(host: &Host) -> String {
    let can = match host.level {
        Level::None => "none: no encrypted guests on this host",
        Level::Sev => "sev: guests with encrypted memory",
        Level::SevEs => "sev-es: guests with encrypted memory and registers",
        Level::SevSnp => {
            "sev-snp: guests with encrypted memory and registers, and memory that cannot be exchanged"
        }
    };
    let but = match (host.usable, host.level) {
        (false, Level::None) if host.processor > Level::None => {
            format!("; the processor has {}", host.processor.word())
        }
        (false, level) if level > Level::None => "; not by this user".to_owned(),
        (true, level) if host.processor > level => {
            format!("; the processor has {}", host.processor.word())
        }
        _ => String::new(),
    };
    format!("{can}{but}.\n")
}

/// The policy that the arguments say, as bits.
fn decoded(args: &PolicyArgs) -> Result<(Level, u64), Illegal> {
    let text = args.policy.join(",");
    let text = text.trim();
    let wanted = args.kind.map(Level::from);
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => Some(u64::from_str_radix(hex, 16)),
        None if text.starts_with(|c: char| c.is_ascii_digit()) => Some(text.parse()),
        None => None,
    };
    match number {
        None => policy::from_words(text, wanted),
        Some(Err(_)) => Err(Illegal {
            message: format!("{text:?} is no number of 64 bits"),
            help: "For example 0x0003, or nodbg,noks".into(),
            other_kind: false,
        }),
        Some(Ok(policy)) => {
            let level = wanted.unwrap_or_else(|| policy::kind(policy));
            policy::check(level, policy)?;
            Ok((level, policy))
        }
    }
}

fn tell_policy(level: Level, policy: u64, common: &Common) {
    let names = policy::names(level, policy);
    let version = policy::version(level, policy);
    let weakness = policy::weakness(level, policy);
    let notes = policy::notes(level, policy);
    if common.json {
        let bits: Vec<_> = policy::bits(level)
            .iter()
            .map(|b| json!({ "bit": b.bit, "name": b.name, "meaning": b.meaning, "set": policy >> b.bit & 1 == 1 }))
            .collect();
        let told = json!({
            "policy": policy,
            "hex": format!("{policy:#06x}"),
            "type": level,
            "names": names,
            "bits": bits,
            "least_version": version.map(|(major, minor)| format!("{major}.{minor}")),
            "weakness": weakness,
            "notes": notes,
        });
        say::out(&format!("{told:#}\n"));
        return;
    }
    let named = match names.is_empty() {
        true => "nothing".to_owned(),
        false => names.join(","),
    };
    let mut text = format!("{policy:#06x}  {}  {named}\n", level.word());
    for bit in policy::bits(level)
        .iter()
        .filter(|b| policy >> b.bit & 1 == 1)
    {
        text += &format!("  {:2}  {:22}  {}\n", bit.bit, bit.name, bit.meaning);
    }
    if let Some((major, minor)) = version {
        text += &format!("      firmware {major}.{minor} or later\n");
    }
    say::out(&text);
    if !common.quiet {
        if let Some(weakness) = weakness {
            say::warning(&format!("with this policy {weakness}"));
        }
        for note in notes {
            say::warning(note);
        }
    }
}
