//! `gdo check`

use git_devops::error::Result;
use git_devops::repo::check::check;
use serde_json::{Value, json};

use crate::exit;
use crate::places::GlobalArgs;
use crate::ui::{Ui, shown};

/// Verify what is stored
///
/// Git's objects, the structure of the chunk store, and that every large file has all its chunks. With --data every stored byte is read and its hash
/// compared. Each finding names file, place and remedy; the exit code is 8 if there is one.
#[derive(clap::Args)]
pub struct CheckArgs {
    /// Read all stored data
    #[arg(long)]
    data: bool,
    /// Move damaged chunk packs out of the way, after copying what is sound in them; what is lost can then be stored again
    #[arg(long)]
    repair: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &CheckArgs) -> Result<()> {
    let repo = global.repo()?;
    let progress = ui.progress();
    if args.repair {
        let damaged = repo.repair(&progress)?;
        ui.note(format_args!(
            "repaired {damaged} findings in the chunk store; what was damaged is in its directory 'quarantine'"
        ))?;
    }
    let findings = check(&repo, args.data, &progress)?;
    ui.warnings();
    ui.json(|| {
        let to_json = |found: &git_devops::repo::check::Finding| {
            json!({"what": found.what, "offset": found.offset, "problem": found.problem, "remedy": found.remedy})
        };
        json!({"findings": findings.iter().map(to_json).collect::<Value>()})
    })?;
    for found in &findings {
        let at = found.offset.map_or(String::new(), |offset| format!(" at byte {offset}"));
        ui.line(format_args!("'{}'{at}: {}", shown(found.what.as_bytes()), shown(found.problem.as_bytes())))?;
        ui.line(format_args!("  remedy: {}", found.remedy))?;
    }
    if findings.is_empty() {
        return ui.note(if args.data { "all data is intact" } else { "all is in order (data not read: --data does)" });
    }
    ui.exit_with(exit::INTEGRITY);
    Ok(())
}
