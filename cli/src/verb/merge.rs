//! `gdo merge` and `gdo revert`: commits that are made on trees here, and applied by replay.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use git_devops::error::{Context, Error, Kind, Result};
use git_devops::git::Oid;
use git_devops::host::Host;
use git_devops::host::replay::UpOptions;
use git_devops::host::types::Joined;
use git_devops::repo::Repo;
use git_devops::repo::next::{Unsettled, Way};
use serde_json::{Value, json};

use super::fetch::repo_within_reach;
use super::host::call;
use super::up::lead_to;
use crate::exit;
use crate::places::GlobalArgs;
use crate::ui::{Ui, complain, counted, json_path, shown_path, usage};

/// Merge another machine type, or any commit, into the type of this host, and apply that here
///
/// The files of both come together; commands that are new on this line run, in the order in which the other side has them, and none twice. What git
/// cannot decide is laid into a scratch directory, never into the files of this host.
#[derive(clap::Args)]
pub struct MergeArgs {
    /// What is merged
    #[arg(required_unless_present_any = ["go_on", "abort", "take"], conflicts_with_all = ["go_on", "abort", "take"])]
    rev: Option<String>,
    /// Take the conflicts as they were settled in the scratch directory
    #[arg(long = "continue", conflicts_with_all = ["abort", "take"])]
    go_on: bool,
    /// Give up a merge, or a revert, that has conflicts
    #[arg(long)]
    abort: bool,
    /// Settle these paths by taking one side
    #[arg(long, num_args = 2.., value_names = ["ours|theirs", "PATH"], conflicts_with = "abort")]
    take: Option<Vec<PathBuf>>,
    #[command(flatten)]
    how: How,
}

/// How a commit is made and applied.
#[derive(clap::Args)]
struct How {
    /// What the commit says
    #[arg(short, long)]
    message: Option<String>,
    /// The machine may be started anew where the journal says so
    #[arg(short = 'r', long)]
    reboot: bool,
    /// Ask no other host: what is needed is here
    #[arg(long)]
    offline: bool,
    /// So many removals are meant
    #[arg(long, value_name = "N", default_value_t = 0)]
    yes_delete: usize,
}

impl How {
    fn repo(&self, global: &GlobalArgs) -> Result<Repo> {
        let mut repo = if self.offline { global.repo_of_host()? } else { repo_within_reach(global, true)? };
        // Git starts this program to merge metadata.
        let program = std::env::current_exe().context(|| "cannot tell where this program is")?;
        repo.git = repo.git.with_program(&program);
        Ok(repo)
    }

    fn options(&self) -> UpOptions {
        UpOptions { may_reboot: self.reboot, yes_delete: self.yes_delete, ..UpOptions::default() }
    }
}

pub fn run_merge(ui: &mut Ui, global: &GlobalArgs, args: &MergeArgs) -> Result<()> {
    let repo = args.how.repo(global)?;
    if args.abort {
        let is_there = Unsettled::open(&repo).map_or(true, |unsettled| unsettled.is_some());
        if !is_there {
            return Err(nothing());
        }
        Unsettled::forget(&repo)?;
        return ui.note("the merge is given up; nothing was changed");
    }
    if let Some(words) = &args.take {
        return take(ui, &repo, words);
    }
    let Some(rev) = &args.rev else { return conclude(ui, repo, &args.how) };
    let other = repo.git.resolve(rev)?;
    let message = args.how.message.clone().unwrap_or_else(|| format!("Merge {rev}"));
    let joined = Host::open(&repo, call(&repo))?.merge(other, &message)?;
    go_on(ui, repo, joined, &args.how)
}

/// Take a commit back for all hosts of the type, by a new one, and apply that here
///
/// Files come back as they were before it; its commands are undone by what their '--undo' says, the last one first. 'gdo release' then brings that to the
/// other hosts. 'gdo rollback' takes back what is applied on this host alone.
#[derive(clap::Args)]
pub struct RevertArgs {
    /// The commit
    rev: String,
    /// Take back the files, and leave what commands did
    #[arg(long)]
    content_only: bool,
    #[command(flatten)]
    how: How,
}

pub fn run_revert(ui: &mut Ui, global: &GlobalArgs, args: &RevertArgs) -> Result<()> {
    let repo = args.how.repo(global)?;
    let other = repo.git.resolve(&args.rev)?;
    let message = args.how.message.clone().map_or_else(|| revert_message(&repo, other), Ok)?;
    let joined = Host::open(&repo, call(&repo))?.revert(other, args.content_only, &message)?;
    go_on(ui, repo, joined, &args.how)
}

fn revert_message(repo: &Repo, other: Oid) -> Result<String> {
    let said = repo.objects.commit(&other)?.message;
    let said = String::from_utf8_lossy(&said);
    Ok(format!("Revert \"{}\"\n\nThis takes back commit {other}.", said.lines().next().unwrap_or_default()))
}

fn go_on(ui: &mut Ui, repo: Repo, joined: Joined, how: &How) -> Result<()> {
    match joined {
        Joined::Nothing => {
            ui.json(|| json!({"commit": Value::Null, "conflicts": []}))?;
            ui.note("nothing to merge: it is all here")
        }
        Joined::Next(commit) => lead_to(ui, repo, commit, &how.options(), how.offline),
        Joined::Conflicts(unsettled) => {
            let conflicts = &unsettled.merged.conflicts;
            ui.json(|| {
                json!({"commit": Value::Null, "conflicts": conflicts.iter().map(|conflict| json_path(&conflict.path)).collect::<Value>(),
                    "files": unsettled.files().to_string_lossy()})
            })?;
            for conflict in conflicts {
                ui.line(format_args!("conflict in {}", shown_path(&conflict.path)))?;
            }
            complain(format_args!(
                "cannot merge {} by itself; nothing was changed. The files lie in",
                counted(conflicts.len(), "path")
            ));
            complain(format_args!("  {}", unsettled.files().display()));
            complain(
                "edit them there ('gdo merge --take ours|theirs PATH' lays one side, a file that you remove is removed), then",
            );
            complain("  gdo merge --continue  makes the commit and applies it");
            complain("  gdo merge --abort     gives it up");
            ui.exit_with(exit::CONFLICT);
            Ok(())
        }
    }
}

fn conclude(ui: &mut Ui, repo: Repo, how: &How) -> Result<()> {
    let unsettled = Unsettled::open(&repo)?.ok_or_else(nothing)?;
    let other = unsettled.joining.other;
    let message = match (&how.message, unsettled.joining.way) {
        (Some(message), _) => message.clone(),
        (None, Way::Merge) => format!("Merge {other}"),
        (None, Way::Revert { .. }) => revert_message(&repo, other)?,
    };
    let next = Host::open(&repo, call(&repo))?.conclude(&unsettled, &message)?;
    lead_to(ui, repo, next, &how.options(), how.offline)
}

fn take(ui: &mut Ui, repo: &Repo, words: &[PathBuf]) -> Result<()> {
    let unsettled = Unsettled::open(repo)?.ok_or_else(nothing)?;
    let (side, taken) = words.split_first().ok_or_else(|| usage("say which side, and which paths"))?;
    let is_theirs = match side.to_str() {
        Some("ours") => false,
        Some("theirs") => true,
        _ => return Err(usage("say '--take ours PATH' or '--take theirs PATH'")),
    };
    taken.iter().try_for_each(|path| unsettled.take(repo, path.as_os_str().as_bytes(), is_theirs))?;
    ui.note(format_args!("{} taken as on {} side", counted(taken.len(), "path"), if is_theirs { "their" } else { "our" }))
}

fn nothing() -> Error {
    Error::new(Kind::NotFound, "no merge is being settled")
}
