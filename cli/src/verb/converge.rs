//! `gdo converge`

use std::sync::Arc;

use git_devops::error::Result;
use git_devops::host::Host;
use git_devops::host::converge::{ConvergeOptions, Converged, State};
use git_devops::host::rendering::Rendering;
use serde_json::{Value, json};

use super::changes::{letter, to_json};
use super::fetch::{finish, repo_within_reach};
use super::host::{call, halt_json, tell_halt};
use super::up::{HELD, fetch, held, target};
use crate::exit;
use crate::places::GlobalArgs;
use crate::ui::{Ui, complain, json_path, shown, shown_path};

/// Bring this host towards the newest release of its type, from whatever it is
///
/// For machines that were taken over ('gdo adopt'). Owned files are made right, promises are kept, what is not owned is left alone; the commands of the
/// journal are not run, but for those that are guarded and may be repeated. What is overwritten is kept ('gdo fix --undo').
#[derive(clap::Args)]
pub struct ConvergeArgs {
    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// With -n: end with code 1 if anything would be done
    #[arg(long, requires = "dry_run")]
    exit_code: bool,
    /// A commit on the way to the release; without a trusted key, any
    #[arg(long, value_name = "REV")]
    to: Option<String>,
    /// Ask no other host: what is needed is here
    #[arg(long)]
    offline: bool,
    /// So many removals are meant
    #[arg(long, value_name = "N", default_value_t = 0)]
    yes_delete: usize,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &ConvergeArgs) -> Result<()> {
    let mut repo = if args.offline { global.repo()? } else { repo_within_reach(global, true)? };
    if !args.offline && !args.dry_run {
        fetch(ui, &repo)?;
    }
    let mut host = Host::open(&repo, call(&repo))?;
    let target = target(&host, args.to.as_deref())?;
    if let Some(hold) = held(&mut host, (args.to.as_deref(), target), args.dry_run)? {
        ui.json(|| json!({"commit": target.to_string(), "held": hold, "halt": Value::Null}))?;
        return ui.note(HELD);
    }
    drop(host);
    repo.laying = Arc::new(Rendering::of_tree(&repo, &repo.objects.commit(&target)?.tree)?);
    let progress = ui.progress();
    progress.stage("converging", 0, 0);
    let mut handlers = Vec::new();
    let mut host = Host::open(&repo, call(&repo))?;
    let how = ConvergeOptions { dry_run: args.dry_run, yes_delete: args.yes_delete };
    let done = host.converge(target, how, &progress, &mut |name, _| {
        handlers.push(name.to_owned());
        Ok(())
    });
    finish(&repo);
    let done = done?;
    ui.json(|| to_json_all(&done, &handlers, args.dry_run))?;
    report(ui, &done, &handlers)?;
    if !args.dry_run {
        super::host::report(ui, &host);
    }
    if args.exit_code && done.is_whole() && done.has_news() {
        ui.exit_with(exit::DIFFERENCES);
    }
    Ok(())
}

fn to_json_all(done: &Converged, handlers: &[String], dry_run: bool) -> Value {
    let promise = |(name, state): &(String, State)| match state {
        State::Kept => json!({"name": name, "state": "kept", "why": null}),
        State::Repaired => json!({"name": name, "state": "repaired", "why": null}),
        State::NotKept(why) => json!({"name": name, "state": "not-kept", "why": why}),
    };
    json!({"commit": done.commit.to_string(), "dry_run": dry_run, "owned": done.n_owned, "percent": done.percent(), "unowned": done.n_unowned,
        "repaired": to_json(&done.repaired), "aside": done.aside.iter().map(|path| json_path(path)).collect::<Value>(),
        "left": done.left.iter().map(|(path, why)| json!({"path": json_path(path), "why": why})).collect::<Value>(),
        "promises": done.promises.iter().map(promise).collect::<Value>(), "handlers": handlers, "undo": done.undo, "quarantine": done.quarantine.as_ref().map(|dir| dir.display().to_string()),
        "halt": halt_json(done.halt.as_ref())})
}

fn report(ui: &mut Ui, done: &Converged, handlers: &[String]) -> Result<()> {
    for change in &done.repaired {
        ui.line(format_args!("{} {}", letter(change.what), shown_path(&change.path)))?;
    }
    for path in &done.aside {
        ui.line(format_args!("aside {}", shown_path(path)))?;
    }
    for name in handlers {
        ui.line(format_args!("handler {name}"))?;
    }
    for (path, why) in &done.left {
        complain(format_args!("warning: '{}': {}", shown_path(path), shown(why.as_bytes())));
    }
    let mut counts = [0; 3];
    for (name, state) in &done.promises {
        match state {
            State::Kept => counts[0] += 1,
            State::Repaired => {
                counts[1] += 1;
                ui.line(format_args!("promise {name}"))?;
            }
            State::NotKept(why) => {
                counts[2] += 1;
                complain(format_args!("warning: promise {name} is not kept: {}", shown(why.as_bytes())));
            }
        }
    }
    let (n, left, percent, would) =
        (done.repaired.len(), done.left.len(), done.percent(), if done.is_planned { "would be " } else { "" });
    ui.note(format_args!("files: {n} {would}repaired, {left} left, {percent}% of {} as they should be", done.n_owned))?;
    if !done.promises.is_empty() {
        ui.note(format_args!("promises: {} kept, {} {would}repaired, {} not kept", counts[0], counts[1], counts[2]))?;
    }
    ui.note(format_args!(
        "not owned: {}, in directories that are owned as a whole; nothing is said of what lies elsewhere",
        done.n_unowned
    ))?;
    if let Some(number) = done.undo {
        ui.note(format_args!("'gdo fix --undo {number}' lays down again what lay there before"))?;
    }
    if let Some(dir) = &done.quarantine {
        ui.note(format_args!("what was put aside is in '{}'", dir.display()))?;
    }
    if let Some(halt) = &done.halt {
        return tell_halt(ui, halt);
    }
    if !done.is_whole() {
        ui.exit_with(exit::PARTIAL);
    }
    Ok(())
}
