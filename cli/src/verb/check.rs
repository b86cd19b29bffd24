//! `gdo check`

use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::repo::Repo;
use git_devops::repo::check::{Checked, Depth, Finding, check};
use git_devops::repo::mend::{self, Repaired};
use serde_json::{Value, json};

use crate::exit;
use crate::places::GlobalArgs;
use crate::ui::{Ui, bytes, shown};

/// Verify what is stored
///
/// Git's objects, the structure of the chunk store, and that every large file has all its chunks. With --data every stored byte is read and its hash
/// compared; what is byte for byte as it was when it was verified is not unpacked again. Each finding names file, place and remedy; the exit code is 8 if there is one.
#[derive(clap::Args)]
pub struct CheckArgs {
    /// Read all stored data
    #[arg(long)]
    data: bool,
    /// Unpack all of it, also what is as it was when it was verified
    #[arg(long, requires = "data")]
    fresh: bool,
    /// Put aside what is damaged, after copying what is sound in it, and make anew what can be derived
    #[arg(long)]
    repair: bool,
    /// Take what is lost from here: another repository, another chunk store, or a directory or file that still has the content
    #[arg(long, value_name = "SOURCE", requires = "repair")]
    from: Vec<PathBuf>,
    /// Take HEAD, configuration and refs for right as they are now
    #[arg(long, conflicts_with = "repair")]
    accept: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &CheckArgs) -> Result<()> {
    let places = global.places()?;
    if args.repair {
        crate::places::tell_healed(&mend::prepare(&places)?);
    }
    let mut repo = Repo::open_to_check(places)?;
    let progress = ui.progress();
    if args.accept {
        repo.accept_refs()?;
        repo = Repo::open_to_check(repo.places)?;
    }
    if args.repair {
        crate::places::tell_healed(&repo.witnessed);
        let cwd = global.cwd()?;
        let from: Vec<PathBuf> = args.from.iter().map(|path| cwd.join(path)).collect();
        let repaired = mend::repair(&repo, &from, &progress)?;
        let Repaired { n_git_files, n_store_findings, n_objects, n_chunks } = repaired;
        ui.note(format_args!(
            "repaired: {n_git_files} findings in git's files, {n_store_findings} in the chunk store; {n_objects} objects and {n_chunks} chunks taken from elsewhere"
        ))?;
        repo = Repo::open_to_check(repo.places)?;
    }
    let depth = match (args.data, args.fresh) {
        (false, _) => Depth::Structure,
        (true, false) => Depth::Data,
        (true, true) => Depth::Afresh,
    };
    let Checked { findings, n_same, n_fresh } = check(&repo, depth, &progress)?;
    ui.warnings();
    ui.json(|| {
        let to_json = |found: &Finding| {
            json!({"what": found.what, "offset": found.offset, "problem": found.problem, "remedy": found.remedy})
        };
        json!({"findings": findings.iter().map(to_json).collect::<Value>(), "bytes_same": n_same, "bytes_fresh": n_fresh})
    })?;
    for found in &findings {
        let at = found.offset.map_or(String::new(), |offset| format!(" at byte {offset}"));
        ui.line(format_args!("'{}'{at}: {}", shown(found.what.as_bytes()), shown(found.problem.as_bytes())))?;
        ui.line(format_args!("  remedy: {}", found.remedy))?;
    }
    if findings.is_empty() {
        return match (args.data, n_same) {
            (false, _) => ui.note("all is in order (data not read: --data does)"),
            (true, 0) => ui.note("all data is intact"),
            (true, _) => ui.note(format_args!(
                "all data is intact: {} verified, {} the same as when they were verified",
                bytes(n_fresh),
                bytes(n_same)
            )),
        };
    }
    ui.exit_with(exit::INTEGRITY);
    Ok(())
}
