//! `gdo git`

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::Write;

use git_devops::error::{Context, Error, Kind, Result};
use git_devops::repo::Repo;

use super::commit::identity;
use crate::places::GlobalArgs;
use crate::ui::Ui;

/// Run stock git on this repository
///
/// Commands that only read, and those that change refs and objects. What would write the work tree is refused: git would lose owners, modes and
/// attributes, and leave half-written files after a crash.
#[derive(clap::Args)]
pub struct GitArgs {
    /// The git command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<OsString>,
}

/// Commands of git that never write a work tree.
const ALLOWED: &[&str] = &[
    "annotate",
    "archive",
    "blame",
    "branch",
    "bundle",
    "cat-file",
    "check-ref-format",
    "cherry",
    "commit-graph",
    "commit-tree",
    "count-objects",
    "describe",
    "diff",
    "diff-files",
    "diff-index",
    "diff-tree",
    "for-each-ref",
    "format-patch",
    "fsck",
    "gc",
    "grep",
    "hash-object",
    "help",
    "log",
    "ls-files",
    "ls-tree",
    "merge-base",
    "merge-file",
    "merge-tree",
    "mktag",
    "mktree",
    "multi-pack-index",
    "name-rev",
    "notes",
    "pack-refs",
    "prune",
    "range-diff",
    "reflog",
    "repack",
    "rev-list",
    "rev-parse",
    "shortlog",
    "show",
    "show-branch",
    "show-ref",
    "status",
    "symbolic-ref",
    "tag",
    "update-ref",
    "upload-pack",
    "var",
    "verify-commit",
    "verify-pack",
    "verify-tag",
    "version",
    "whatchanged",
    "write-tree",
];

/// Commands of git that would write the work tree, and what does the same here.
const INSTEAD: &[(&str, &str)] = &[
    ("add", "gdo add"),
    ("am", "a plain clone"),
    ("apply", "a plain clone"),
    ("bisect", "'gdo restore --source REV --target DIR' for each step"),
    ("checkout", "gdo restore"),
    ("checkout-index", "gdo restore"),
    ("cherry-pick", "'gdo git merge-tree' or a plain clone"),
    ("clean", "nothing: what is not owned is not ours to remove"),
    ("commit", "gdo commit"),
    ("config", "'git config --file', on the file 'config' of the repository"),
    ("merge", "gdo merge"),
    ("mv", "'mv' and 'gdo snapshot'"),
    ("pull", "a plain clone"),
    ("read-tree", "gdo restore"),
    ("rebase", "a plain clone"),
    ("reset", "'gdo restore', or 'gdo git update-ref' to move a branch"),
    ("restore", "gdo restore"),
    ("revert", "gdo revert"),
    ("rm", "gdo rm"),
    ("sparse-checkout", "nothing: the work tree is not git's"),
    ("stash", "gdo snapshot"),
    ("submodule", "nothing: nested repositories are stored as they are"),
    ("switch", "gdo switch"),
    ("worktree", "'gdo restore --target DIR' or a plain clone"),
];

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &GitArgs) -> Result<()> {
    let repo = global.repo()?;
    let verb = args.command[0].to_string_lossy();
    if !ALLOWED.contains(&verb.as_ref()) {
        let instead = INSTEAD.iter().find(|(refused, _)| *refused == verb);
        let message = match instead {
            Some((_, instead)) => format!("'git {verb}' writes where git must not write here; use {instead}"),
            None => format!("'git {verb}' is not among the commands that are known to leave the work tree alone"),
        };
        return Err(Error::new(Kind::Refused, message));
    }
    if let Some((option, instead)) = refused_option(&verb, &args.command[1..]) {
        let message = match option {
            None => format!("'git {verb}' writes files where git must not write here; use {instead}"),
            Some(option) => format!("'git {verb} {option}' writes where git must not write here; use {instead}"),
        };
        return Err(Error::new(Kind::Refused, message));
    }
    if ["gc", "prune", "repack"].contains(&verb.as_ref()) {
        // There would be commits and packs in them that are gone: git, which does not read them here, does not write them anew either.
        repo.git.remove_graph()?;
        repo.git.remove_midx()?;
    }
    hand_over(ui, &repo, &args.command)
}

/// Returns what makes an allowed command write files beside the repository, if that is an option and not the lack of one, and what to use instead.
///
/// A file that a person names is written by the shell, not by git: `>`. Git takes every beginning of a long option that is unambiguous.
fn refused_option<'a>(verb: &str, args: &'a [OsString]) -> Option<(Option<Cow<'a, str>>, &'static str)> {
    let options = || args.iter().map(|arg| arg.to_string_lossy()).take_while(|arg| arg != "--");
    let begins = |arg: &str, full: &str, least: usize| {
        let name = arg.split('=').next().unwrap_or_default();
        name.len() >= least && full.starts_with(name)
    };
    let output = options().find(|arg| begins(arg, "--output", 5) || begins(arg, "--output-directory", 9));
    match verb {
        "format-patch" if !options().any(|arg| arg == "--stdout") => Some((None, "'--stdout' and '>'")),
        "merge-file" if !options().any(|arg| arg == "-p" || arg == "--stdout") => Some((None, "'--stdout' and '>'")),
        // It would note in the index the times of every file whose content is unchanged, before we saw its owner and mode.
        "describe" => {
            let dirty = options().find(|arg| begins(arg, "--dirty", 4) || begins(arg, "--broken", 3));
            dirty.map(|arg| (Some(arg), "gdo status"))
        }
        _ => {
            let short = options().find(|arg| verb == "archive" && arg.starts_with("-o"));
            output.or(short).map(|arg| (Some(arg), "'>'"))
        }
    }
}

/// Begins a command whose text a person reads: git then quotes in names whatever is not plain, as it does unless told otherwise.
///
/// Between programs names stay as they are, and so our configuration has it.
pub fn for_people(words: &[&str]) -> Vec<OsString> {
    ["-c", "core.quotePath=true"].iter().chain(words).map(OsString::from).collect()
}

/// Runs git with our own streams, and ends as it ends.
pub fn hand_over(ui: &mut Ui, repo: &Repo, command: &[OsString]) -> Result<()> {
    ui.raw().flush().context(|| "cannot write to standard output")?;
    let program = std::env::current_exe().context(|| "cannot tell where this program is")?;
    let git = repo.git.clone().with_program(&program).with_identity(identity(repo));
    let mut command = match command[0] == "merge-tree" {
        // A merge driver gets temporary files, which git would make in the work tree.
        true => {
            let mut command = git.without_work_tree().command(command);
            command.current_dir(&repo.places.git_dir);
            command
        }
        false => git.command(command),
    };
    let status = command.status().context(|| "cannot run git; is it installed?")?;
    if status.success() {
        // Git keeps no log of some of what it may have done, such as moving HEAD to another branch.
        repo.accept_refs()?;
    }
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    ui.exit_with(status.code().or(signal).unwrap_or(crate::exit::BUG.into()) as u8);
    Ok(())
}
