//! `gdo status`

use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::repo::scan::Change;
use git_devops::repo::status::status;
use serde_json::json;

use super::changes::{letter, to_json};
use super::scan_args::{ScanArgs, scope};
use crate::exit;
use crate::places::GlobalArgs;
use crate::ui::{Ui, shown_path};

/// Show what differs from the last commit, in content and metadata
///
/// One line for each path: first what is staged, then what is not. A: new, M: content, m: only metadata, D: gone.
#[derive(clap::Args)]
pub struct StatusArgs {
    /// Look only at these files and directories
    paths: Vec<PathBuf>,
    /// End names with NUL instead of line ends, and escape nothing
    #[arg(short = 'z')]
    nul: bool,
    /// End with code 1 if anything differs
    #[arg(long)]
    exit_code: bool,
    /// Tell instead which holders there are, what they promise, and which files have too few copies
    #[arg(long, conflicts_with_all = ["nul", "paths"])]
    holders: bool,
    #[command(flatten)]
    scan: ScanArgs,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &StatusArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    if args.holders {
        return super::whereis::run_holders(ui, &repo, args.exit_code);
    }
    let paths = global.work_paths(&repo.places, &args.paths)?;
    let options = args.scan.options(&repo, scope(paths))?;
    let progress = ui.progress();
    progress.stage("status", 0, 0);
    let status = status(&repo, &options, &progress)?;
    let warnings = ui.warnings();
    ui.json(|| {
        json!({
            "branch": status.branch,
            "commit": status.head.map(|head| head.to_string()),
            "staged": to_json(&status.staged),
            "changes": to_json(&status.found.changes),
            "files_seen": status.found.n_seen,
            "partial": status.found.is_partial,
            "warnings": warnings,
        })
    })?;
    if args.nul {
        print_nul(ui, &status.staged, b"S")?;
        print_nul(ui, &status.found.changes, b" ")?;
    } else {
        let branch = status.branch.as_deref().unwrap_or("(no branch)");
        match status.head {
            Some(head) => ui.note(format_args!("on {branch} at {}", head.to_hex_with_len(12)))?,
            None => ui.note(format_args!("on {branch}, no commit yet"))?,
        }
        print(ui, "staged for the next commit:", &status.staged)?;
        print(ui, "not staged ('gdo snapshot' takes all of it):", &status.found.changes)?;
        if status.staged.is_empty() && status.found.changes.is_empty() {
            ui.note(format_args!("nothing differs in {} files and directories", status.found.n_seen))?;
        }
    }
    if status.found.is_partial {
        ui.exit_with(exit::PARTIAL);
    } else if args.exit_code && !(status.staged.is_empty() && status.found.changes.is_empty()) {
        ui.exit_with(exit::DIFFERENCES);
    }
    Ok(())
}

fn print(ui: &mut Ui, title: &str, changes: &[Change]) -> Result<()> {
    if !changes.is_empty() {
        ui.note(title)?;
    }
    changes.iter().try_for_each(|change| ui.line(format_args!("  {} {}", letter(change.what), shown_path(&change.path))))
}

fn print_nul(ui: &mut Ui, changes: &[Change], stage: &[u8]) -> Result<()> {
    use std::io::Write;
    for change in changes {
        let letter = letter(change.what) as u8;
        ui.raw().write_all(&[stage, &[letter, b' '], &change.path, b"\0"].concat())?;
    }
    Ok(())
}
