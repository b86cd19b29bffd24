//! `gdo gc`

use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::repo::gc::{CleanUp, Cleaned, gc};
use serde_json::json;

use super::fetch::{finish, repo_within_reach};
use crate::places::{GlobalArgs, moment, plain};
use crate::ui::{Ui, bytes, time};

/// Remove what nothing refers to any more
///
/// Git's objects by git's own rules, then the chunks whose indexes are gone with them. A snapshot that runs at the same time loses nothing. All
/// repositories that share the store are asked which chunks they need; if one is not there, no chunk is removed.
#[derive(clap::Args)]
pub struct GcArgs {
    /// Remove unreferenced objects older than DATE
    #[arg(long, value_name = "DATE", default_value = "2.weeks.ago")]
    prune: String,
    /// Don't ask the repository of DIR any more, which is gone for good: its chunks may go; may be given several times
    #[arg(long, value_name = "DIR")]
    forget: Vec<PathBuf>,
    /// Tell what would be removed, and remove nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &GcArgs) -> Result<()> {
    let repo = repo_within_reach(global, false)?;
    let progress = ui.progress();
    let cwd = global.cwd()?;
    let forget: Vec<PathBuf> = args.forget.iter().map(|dir| plain(&cwd.join(dir))).collect();
    let what = CleanUp { prune: args.prune.clone(), forget, dry_run: args.dry_run, now: moment().wall };
    let cleaned = gc(&repo, &what, &progress);
    finish(&repo);
    let Cleaned { report, n_lapsing, due } = cleaned?;
    ui.warnings();
    let freed = report.removed_bytes.saturating_sub(report.copied_bytes);
    ui.json(|| {
        json!({
            "live_chunks": report.live_chunks, "removed_packs": report.removed_packs, "rewritten_packs": report.rewritten_packs,
            "freed_bytes": freed, "dead_bytes_left": report.dead_bytes_left, "dry_run": args.dry_run, "is_cut_short": report.is_cut_short,
            "promised_chunks": n_lapsing, "promised_until": (n_lapsing > 0).then_some(due),
            "damaged_packs": report.findings.iter().map(|found| found.file.display().to_string()).collect::<Vec<_>>(),
        })
    })?;
    let would = if args.dry_run { "would remove" } else { "removed" };
    let (packs, rewritten, live) = (report.removed_packs, report.rewritten_packs, report.live_chunks);
    ui.note(format_args!(
        "{would} {packs} chunk packs, {rewritten} of them after copying what is live in them: {} free",
        bytes(freed)
    ))?;
    for found in &report.findings {
        ui.line(format_args!("'{}' is damaged and stays: {}; {}", found.file.display(), found.problem, found.remedy))?;
    }
    if n_lapsing > 0 {
        ui.line(format_args!("{n_lapsing} dead chunks are promised to other hosts; they can go after {}", time(due)))?;
    }
    if report.is_cut_short {
        ui.line("the disk is too full to copy what is live: run it again, there is more room now")?;
    }
    ui.note(format_args!(
        "{live} chunks are live, {} of dead ones stay until more is dead around them",
        bytes(report.dead_bytes_left)
    ))
}
