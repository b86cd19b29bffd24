//! `gdo rollback`, `gdo hold` and `gdo unhold`: ways back.

use git_devops::error::Result;
use git_devops::host::Host;
use git_devops::repo::releases;
use serde_json::{Value, json};

use super::host::call;
use crate::places::GlobalArgs;
use crate::ui::{Ui, json_path, shown_path};

/// Bring this host back to what was applied before, and hold it there until a newer release
///
/// Commands are undone, the last one first, as their entries say; where one cannot be, nothing is done. This host alone goes back; 'gdo revert' takes a
/// change back for all.
#[derive(clap::Args)]
pub struct RollbackArgs {
    /// How many commits, or to which one; one that is applied by half counts
    #[arg(value_name = "N|REV", default_value = "1")]
    to: String,
    /// Bring back the files, and leave what commands did
    #[arg(long)]
    content_only: bool,
    /// Tell what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub fn run_rollback(ui: &mut Ui, global: &GlobalArgs, args: &RollbackArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let mut host = Host::open(&repo, call(&repo))?;
    let (to, content_only) = match host.history().backing {
        // One that was interrupted comes first.
        Some(backing) => (backing.to, backing.content_only || args.content_only),
        None => match args.to.parse() {
            Ok(n) => (host.earlier(n)?, args.content_only),
            Err(_) => (repo.git.resolve(&args.to)?, args.content_only),
        },
    };
    let progress = ui.progress();
    let back = match args.dry_run {
        true => host.plan_back(to)?,
        false => {
            let at = newest(&host)?;
            let back = host.back(to, content_only, Some(&at), &progress)?;
            super::host::report(ui, &host);
            back
        }
    };
    ui.json(|| {
        json!({"from": back.from.to_string(), "to": back.to.to_string(), "dry_run": args.dry_run, "not_undone": back.stuck, "failed": back.failed,
            "undone": back.undone.iter().map(ToString::to_string).collect::<Value>(),
            "handlers": back.handlers,
            "files": back.changes.iter().map(|change| json_path(&change.path)).collect::<Value>()})
    })?;
    if args.dry_run {
        for change in &back.changes {
            ui.line(format_args!("  {} {}", super::changes::letter(change.what), shown_path(&change.path)))?;
        }
        back.undone.iter().try_for_each(|id| ui.line(format_args!("  undo {id}")))?;
    }
    for entry in &back.stuck {
        ui.line(format_args!("  cannot be undone: {entry}"))?;
    }
    for entry in &back.failed {
        ui.line(format_args!("  had not succeeded, what it did stays: {entry}"))?;
    }
    for name in &back.handlers {
        ui.line(format_args!("  handler {name}"))?;
    }
    match args.dry_run {
        true => ui.note(format_args!("would go back to commit {to}")),
        false => ui.note(format_args!("went back to commit {to}; held there until a newer release, or 'gdo unhold'")),
    }
}

/// Apply no release by itself, until a newer one than is known now
#[derive(clap::Args)]
pub struct HoldArgs {}

pub fn run_hold(ui: &mut Ui, global: &GlobalArgs, _: &HoldArgs) -> Result<()> {
    let repo = global.repo()?;
    let mut host = Host::open(&repo, call(&repo))?;
    let at = newest(&host)?;
    host.hold(&at)?;
    ui.note("held: 'gdo up' and 'gdo converge' apply nothing until a newer release, or 'gdo unhold'")
}

/// Lift a hold
#[derive(clap::Args)]
pub struct UnholdArgs {}

pub fn run_unhold(ui: &mut Ui, global: &GlobalArgs, _: &UnholdArgs) -> Result<()> {
    let repo = global.repo()?;
    Host::open(&repo, call(&repo))?.unhold()?;
    ui.note("not held any more")
}

/// Returns the newest release that is accepted here, as a hold names it: epoch and number.
pub fn newest(host: &Host<'_>) -> Result<String> {
    let accepted = releases::accepted(host.repo, &host.kind()?.parse()?)?;
    Ok(accepted.map_or_else(|| "0/0".to_owned(), |accepted| format!("{}/{}", accepted.epoch, accepted.seq)))
}

/// Says whether a hold holds against a release with this epoch and number.
pub fn is_held(hold: &str, epoch: u64, seq: u64) -> bool {
    let held = hold.split_once('/').and_then(|(epoch, seq)| Some((epoch.parse().ok()?, seq.parse().ok()?)));
    held.is_none_or(|held: (u64, u64)| (epoch, seq) <= held)
}
