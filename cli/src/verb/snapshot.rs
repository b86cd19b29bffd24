//! `gdo snapshot`

use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::repo::scan::{Sink, scan};
use git_devops::repo::stage::Recorded;

use super::changes::{preview, report};
use super::commit::commit_info;
use super::hand_over_args::HandOverArgs;
use super::scan_args::{ScanArgs, check_paths, scope};
use crate::places::GlobalArgs;
use crate::ui::{Ui, usage};

/// Commit everything new, changed or gone under the owned paths, in one pass
///
/// Paths that are named are owned from now on. Where nothing changed, there is no commit. Files that can't be read, vanish, or change while they are
/// read are named; the rest is stored, and the exit code is 3.
#[derive(clap::Args)]
pub struct SnapshotArgs {
    /// Look only at these files and directories, and own them from now on
    paths: Vec<PathBuf>,
    /// Message of the commit
    #[arg(short, long)]
    message: Option<String>,
    /// Tell what would be committed, and commit nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    hand_over: HandOverArgs,
    #[command(flatten)]
    scan: ScanArgs,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &SnapshotArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let info = || commit_info(&repo, args.message.clone().unwrap_or_else(|| "snapshot".to_owned()));
    if args.hand_over.is_stream() {
        let (info, progress) = (info()?, ui.progress());
        progress.stage("snapshot", 0, 0);
        let recorded = args.hand_over.record_stream(ui, global, &repo, Some(&info), &progress)?;
        return tell(ui, &recorded);
    }
    let mut paths = global.work_paths(&repo.places, &args.paths)?;
    check_paths(&repo, &paths)?;
    if paths.is_empty() && repo.index()?.is_empty() {
        if repo.places.is_system() {
            return Err(usage("nothing is owned yet; name what to own: 'gdo add PATH' or 'gdo snapshot PATH'"));
        }
        paths.push(Vec::new()); // a directory under control is owned as a whole, unless a part was named first
    }
    let options = args.scan.options(&repo, scope(paths))?;
    let progress = ui.progress();
    progress.stage("snapshot", 0, 0);
    if args.dry_run {
        return preview(ui, &repo.with_index(|index| scan(&repo, index, &options, Sink::Compare, &progress))?);
    }
    let recorded = args.hand_over.record(ui, &repo, &options, Some(&info()?), &progress)?;
    tell(ui, &recorded)
}

fn tell(ui: &mut Ui, recorded: &Recorded) -> Result<()> {
    report(ui, recorded, "stored")?;
    if recorded.commit.is_none() {
        ui.note("nothing changed: no commit")?;
    }
    Ok(())
}
