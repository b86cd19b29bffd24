//! `gdo add`

use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::repo::scan::{ScanOptions, Scope, Sink, scan};

use super::changes::{preview, report};
use super::hand_over_args::HandOverArgs;
use super::scan_args::{ScanArgs, check_paths};
use crate::places::GlobalArgs;
use crate::ui::Ui;

/// Own paths from now on, and stage their present state for the next commit
#[derive(clap::Args)]
pub struct AddArgs {
    /// Files and directories; a directory stands for all below it, also what comes later
    #[arg(required_unless_present = "stdin")]
    paths: Vec<PathBuf>,
    /// Tell what would be staged, and stage nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Leave the content of large files where it is: they become their own store, and take no space a second time
    ///
    /// For files that do not change. What is in one is lost with it, unless another host got it before.
    #[arg(long, conflicts_with_all = ["hand_over", "stdin"])]
    reference: bool,
    #[command(flatten)]
    hand_over: HandOverArgs,
    #[command(flatten)]
    scan: ScanArgs,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &AddArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    if args.hand_over.is_stream() {
        let progress = ui.progress();
        progress.stage("adding", 0, 0);
        let recorded = args.hand_over.record_stream(ui, global, &repo, None, &progress)?;
        return report(ui, &recorded, "staged");
    }
    let paths = global.work_paths(&repo.places, &args.paths)?;
    check_paths(&repo, &paths)?;
    let options = ScanOptions { by_reference: args.reference, ..args.scan.options(&repo, Scope::Paths(paths))? };
    let progress = ui.progress();
    progress.stage("adding", 0, 0);
    if args.dry_run {
        return preview(ui, &repo.with_index(|index| scan(&repo, index, &options, Sink::Compare, &progress))?);
    }
    let recorded = args.hand_over.record(ui, &repo, &options, None, &progress)?;
    report(ui, &recorded, "staged")
}
