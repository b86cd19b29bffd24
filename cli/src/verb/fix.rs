//! `gdo fix`

use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::host::Host;
use git_devops::host::plan::Stop;
use git_devops::host::preimage::Fixed;
use serde_json::{Value, json};

use super::changes::{letter, to_json};
use super::fetch::{finish, repo_within_reach};
use super::host::{call, halt_json, tell_halt};
use crate::exit;
use crate::places::{GlobalArgs, render};
use crate::ui::{Ui, complain, counted, json_path, shown, shown_path};

/// Bring owned files that were changed here back to what was applied last, and keep what lay there
///
/// What is not owned is left alone. 'gdo fix --undo' lays down again what lay there before.
#[derive(clap::Args)]
pub struct FixArgs {
    /// These files, and all that is owned below these directories
    #[arg(required_unless_present_any = ["all", "undo"])]
    paths: Vec<PathBuf>,
    /// Everything that is owned
    #[arg(long, conflicts_with = "paths")]
    all: bool,
    /// Lay down again what lay there before fix or convergence N [default: the last one]
    #[arg(long, value_name = "N", num_args = 0..=1, conflicts_with_all = ["all", "dry_run"])]
    undo: Option<Option<u64>>,
    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &FixArgs) -> Result<()> {
    let mut repo = repo_within_reach(global, true)?;
    render(&mut repo)?;
    let paths = global.work_paths(&repo.places, &args.paths)?;
    let progress = ui.progress();
    progress.stage("fixing", 0, 0);
    let mut host = Host::open(&repo, call(&repo))?;
    let mut handlers = Vec::new();
    let mut tell = |name: &str, _: &_| {
        handlers.push(name.to_owned());
        Ok(())
    };
    let done = match args.undo {
        Some(n) => host.undo_fix(n, &progress, &mut tell),
        None => host.fix(&paths, args.dry_run, &progress, &mut tell),
    };
    finish(&repo);
    if !args.dry_run {
        super::host::report(ui, &host);
    }
    let (fixed, halt) = match done {
        Ok(fixed) => (fixed, None),
        Err(Stop::Halt(halt)) => (Fixed::default(), Some(halt)),
        Err(Stop::Error(error)) => return Err(error),
    };
    let Fixed { changes, left, undo } = fixed;
    ui.json(|| {
        json!({"changes": to_json(&changes), "dry_run": args.dry_run, "undo": undo, "handlers": handlers, "halt": halt_json(halt.as_ref()),
            "left": left.iter().map(|(path, why)| json!({"path": json_path(path), "why": why})).collect::<Value>()})
    })?;
    for change in &changes {
        ui.line(format_args!("{} {}", letter(change.what), shown_path(&change.path)))?;
    }
    for name in &handlers {
        ui.line(format_args!("handler {name}"))?;
    }
    for (path, why) in &left {
        complain(format_args!("warning: '{}': {}", shown_path(path), shown(why.as_bytes())));
        ui.exit_with(exit::PARTIAL);
    }
    if let Some(halt) = halt {
        return tell_halt(ui, &halt);
    }
    match (changes.len(), undo) {
        (0, _) => ui.note("nothing differs"),
        (n, None) => ui.note(format_args!("would lay down {}", counted(n, "path"))),
        (n, Some(number)) => ui.note(format_args!("laid down {}; 'gdo fix --undo {number}' takes that back", counted(n, "path"))),
    }
}

/// Brings `paths` back to what was applied last, for a run that lays down something newer after it, and says what became of what lay there; returns whether
/// all of them are so.
pub fn bring_back(ui: &mut Ui, global: &GlobalArgs, paths: &[PathBuf]) -> Result<bool> {
    let mut repo = global.repo()?;
    render(&mut repo)?;
    let paths = global.work_paths(&repo.places, paths)?;
    let progress = ui.progress();
    progress.stage("fixing", 0, 0);
    let fixed = Host::open(&repo, call(&repo))?.fix(&paths, false, &progress, &mut |_, _| Ok(()));
    let Fixed { changes, left, undo } = match fixed {
        Ok(fixed) => fixed,
        Err(Stop::Halt(halt)) => {
            ui.json(|| json!({"applied": [], "halt": halt_json(Some(&halt))}))?;
            return tell_halt(ui, &halt).map(|()| false);
        }
        Err(Stop::Error(error)) => return Err(error),
    };
    for (path, why) in &left {
        complain(format_args!("'{}' cannot be replaced: {}", shown_path(path), shown(why.as_bytes())));
    }
    if let Some(number) = undo {
        complain(format_args!("{} changed here; 'gdo fix --undo {number}' has what lay there", counted(changes.len(), "path")));
    }
    if left.is_empty() {
        return Ok(true);
    }
    ui.json(|| json!({"applied": [], "left": left.iter().map(|(path, why)| json!({"path": json_path(path), "why": why})).collect::<Value>()}))?;
    ui.exit_with(exit::HALTED);
    Ok(false)
}
