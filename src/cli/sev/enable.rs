//! `vsc-run sev plan` and `sev enable`: what switches encrypted guests on, done and undone.

#![forbid(unsafe_code)]

use clap::{Args, ValueEnum};
use serde_json::json;
use vsc::diag::shown;
use vsc::facts::{LiveFacts, Root, Variables};
use vsc::sev::enable::{How, Plan, WHAT};
use vsc::tune::{Foreign, How as Undoing, KeptFile, SEV_ENABLE, TuneError, Tuner};

use super::Common;
use crate::{run, say};

/// Arguments of `sev plan`.
#[derive(Debug, Args)]
pub(in crate::cli) struct PlanArgs {
    /// Where the parameters of kvm_amd are set; mem_encrypt=on is on the kernel's command line either way.
    #[arg(long, value_enum, default_value_t = Where::Cmdline)]
    how: Where,
}

/// Where the parameters of kvm_amd are set.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Where {
    /// On the kernel's command line.
    Cmdline,
    /// In /etc/modprobe.d/vsc-sev.conf.
    Modprobe,
}

impl From<Where> for How {
    fn from(place: Where) -> Self {
        match place {
            Where::Cmdline => How::Cmdline,
            Where::Modprobe => How::Modprobe,
        }
    }
}

/// Arguments of `sev enable`.
#[derive(Debug, Args)]
pub(in crate::cli) struct EnableArgs {
    #[command(flatten)]
    plan: PlanArgs,
    /// Shows it only, as `sev plan`.
    #[arg(long = "plan", conflicts_with = "undo")]
    plan_only: bool,
    /// Puts back what it changed: files get their bytes of before, new ones go.
    #[arg(long)]
    undo: bool,
    /// Undoes also where somebody has changed a file since: what they changed is lost.
    #[arg(long, requires = "undo")]
    force: bool,
    /// Leaves files that somebody has changed since as they are, and gives them up.
    #[arg(long, requires = "undo", conflicts_with = "force")]
    forget: bool,
}

pub(super) fn plan(args: &PlanArgs, common: &Common) -> u8 {
    match planned(args.how, common) {
        Some(plan) => {
            tell(&plan, common);
            0
        }
        None => crate::FAILED,
    }
}

/// The plan for this host; what is wrong was said.
fn planned(how: Where, common: &Common) -> Option<Plan> {
    let root = Root(common.host_root.clone());
    let facts = LiveFacts::new(root.clone(), Variables::of_process());
    match Plan::of(&facts, &root, how.into()) {
        Ok(plan) => Some(plan),
        Err(e) => {
            say::error(&run::chain(&e));
            None
        }
    }
}

fn tell(plan: &Plan, common: &Common) {
    say::out(&match common.json {
        true => serde_json::to_string_pretty(plan).unwrap_or_default() + "\n",
        false => shown_plan(plan),
    });
}

pub(super) fn enable(args: &EnableArgs, common: &Common) -> u8 {
    if args.undo {
        return undo(args, common);
    }
    let Some(plan) = planned(args.plan.how, common) else {
        return crate::FAILED;
    };
    if args.plan_only {
        tell(&plan, common);
        return 0;
    }
    let root = Root(common.host_root.clone());
    let tuner = Tuner::new(&root);
    // Nobody has to undo it when this process is gone: it is to stay.
    let begun = tuner.begin(&plan.changes(&root), SEV_ENABLE, true, |_| Ok(()));
    let told = match begun {
        Ok((begun, _)) => {
            for undone in begun.replayed.iter().filter(|u| u.is_warning()) {
                say::warning(&format!("W-HOST-LEFT: {undone}"));
            }
            begun.told
        }
        Err(e) => {
            let ours = |file: &KeptFile| plan.edits.iter().any(|edit| edit.path == file.path);
            let again = tuner.kept(WHAT).is_ok_and(|kept| kept.iter().any(ours));
            let first = match again {
                true => {
                    "; `vsc-run sev enable` was here before, with other words: `vsc-run sev enable --undo` first, then this"
                }
                false => "",
            };
            say::error(&format!("nothing was changed: {}{first}", run::chain(&e)));
            return crate::FAILED;
        }
    };
    if common.json {
        let mut all = json!(plan);
        all["done"] = json!(told);
        say::out(&format!("{all:#}\n"));
        return 0;
    }
    say::out(&shown_plan(&plan));
    if !common.quiet && !told.is_empty() {
        say::note("these files are changed now; `vsc-run sev enable --undo` puts them back");
    }
    0
}

fn undo(args: &EnableArgs, common: &Common) -> u8 {
    let tuner = Tuner::new(&Root(common.host_root.clone()));
    let failed = |e: TuneError| {
        say::error(&run::chain(&e));
        crate::FAILED
    };
    let kept = match tuner.kept(WHAT) {
        Ok(kept) => kept,
        Err(e) => return failed(e),
    };
    let changed: Vec<&KeptFile> = kept.iter().filter(|file| file.is_changed()).collect();
    if !changed.is_empty() && !args.force && !args.forget {
        for file in changed {
            let name = file.path.display();
            let what = match &file.now {
                Some(now) => format!(
                    "{name} was changed by somebody else since:\n{}",
                    difference(Some(&file.after), now)
                ),
                None => format!("{name} is not there any more"),
            };
            say::warning(&what);
        }
        say::error(
            "nothing was undone; --force puts the files back all the same, --forget leaves those as they are and undoes the rest",
        );
        return crate::FAILED;
    }
    let foreign = match args.force {
        true => Foreign::Force,
        false => Foreign::Forget,
    };
    let undone = match tuner.undo_kept(WHAT, foreign) {
        Ok(undone) => undone,
        Err(e) => return failed(e),
    };
    // The boot loader has to hear of it the same way.
    let root = Root(common.host_root.clone());
    let facts = LiveFacts::new(root.clone(), Variables::of_process());
    let commands = Plan::of(&facts, &root, How::Cmdline).map_or(Vec::new(), |plan| plan.commands);
    let any = undone.iter().any(|u| matches!(u.how, Undoing::Back { .. }));
    if common.json {
        let told = json!({ "undone": undone, "commands": if any { commands } else { Vec::new() } });
        say::out(&format!("{told:#}\n"));
    } else {
        let mut text: String = undone
            .iter()
            .map(|u| shown(&u.to_string()) + "\n")
            .collect();
        if undone.is_empty() {
            text = "Nothing is switched on by vsc-run here.\n".into();
        }
        if any && !commands.is_empty() {
            text += &then_run(&commands);
        }
        say::out(&text);
    }
    let left = |u: &vsc::tune::Undone| !(args.forget && matches!(u.how, Undoing::Left { .. }));
    match undone.iter().any(|u| u.is_warning() && left(u)) {
        true => crate::FAILED,
        false => 0,
    }
}

fn then_run(commands: &[Vec<String>]) -> String {
    let lines = commands
        .iter()
        .map(|command| format!("  sudo {}\n", shown(&command.join(" "))));
    format!("\nThen run:\n{}", lines.collect::<String>())
}

/// A plan for people.
fn shown_plan(plan: &Plan) -> String {
    let Plan {
        distribution,
        loader,
        how: _,
        words,
        edits,
        commands,
        notes,
        reboot,
        alternative,
        guests,
    } = plan;
    let mut text = format!(
        "{}, {}: the kernel's command line gets {words}\n",
        shown(&distribution.name),
        loader.word()
    );
    if edits.is_empty() && commands.is_empty() {
        text += "Its files say so already.\n";
    }
    for edit in edits {
        text += &format!("\n{}\n", shown(&edit.path.display().to_string()));
        text += &difference(edit.old.as_deref(), &edit.new);
    }
    if !commands.is_empty() {
        text += &then_run(commands);
    }
    if *reboot {
        text += "\nA reboot is needed.\n";
    }
    text += &match alternative.how {
        How::Modprobe => format!(
            "\nOr with --how modprobe: {} on the command line, and in {}:\n{}",
            alternative.words,
            alternative.path.display(),
            indented("  + ", &alternative.text)
        ),
        How::Cmdline => format!(
            "\nOr with --how cmdline, without a file for modprobe: {} on the command line.\n",
            alternative.words
        ),
    };
    let number = |n: Option<u32>| n.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
    text += &format!(
        "\nGuests: cbitpos {}, reducedPhysBits {}, policy {:#06x} ({})\n",
        number(guests.cbitpos),
        number(guests.reduced_phys_bits),
        guests.policy,
        guests.policy_names.join(",")
    );
    for note in notes {
        text += &format!("Note: {}\n", shown(note));
    }
    text
}

fn indented(mark: &str, text: &str) -> String {
    text.lines()
        .map(|line| format!("{mark}{}\n", shown(line)))
        .collect()
}

/// The lines that differ, with their numbers where the others stay.
fn difference(old: Option<&str>, new: &str) -> String {
    let Some(old) = old else {
        return indented("  + ", new);
    };
    let (before, after): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    if before.len() == after.len() {
        let pairs = before.iter().zip(&after).zip(1..);
        return pairs
            .filter(|((a, b), _)| a != b)
            .map(|((a, b), number)| format!("  {number}\n  - {}\n  + {}\n", shown(a), shown(b)))
            .collect();
    }
    let same = before
        .iter()
        .zip(&after)
        .take_while(|(a, b)| a == b)
        .count();
    let rest = before.len().min(after.len()) - same;
    let ends = before.iter().rev().zip(after.iter().rev());
    let end = ends.take_while(|(a, b)| a == b).count().min(rest);
    let part = |lines: &[&str], mark| {
        let changed = lines.get(same..lines.len() - end).unwrap_or_default();
        indented(mark, &changed.join("\n"))
    };
    format!(
        "  {}\n{}{}",
        same + 1,
        part(&before, "  - "),
        part(&after, "  + ")
    )
}
