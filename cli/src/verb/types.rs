//! `gdo branch`, `gdo fork` and `gdo switch`: machine types.

use git_devops::error::{Error, Kind, Result};
use git_devops::git::Oid;
use git_devops::host::Host;
use git_devops::repo::{Repo, branch, releases, remotes};
use serde_json::{Value, json};

use super::commit::identity;
use super::host::call;
use crate::places::GlobalArgs;
use crate::ui::{Ui, shown};

/// List the machine types that are here, make a branch, or remove one
#[derive(clap::Args)]
pub struct BranchArgs {
    /// The branch; without it, all are listed
    name: Option<String>,
    /// Where the new branch begins
    #[arg(value_name = "REV", default_value = "HEAD")]
    from: String,
    /// Remove it, if another ref leads to what it has
    #[arg(short, long, requires = "name")]
    delete: bool,
    /// Remove it, also where what it has is lost
    #[arg(long, requires = "delete")]
    force: bool,
}

pub fn run_branch(ui: &mut Ui, global: &GlobalArgs, args: &BranchArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let Some(name) = &args.name else { return list(ui, &repo) };
    if args.delete {
        let at = branch::remove(&repo, name, args.force)?;
        ui.json(|| json!({"branch": name, "removed": at.to_string()}))?;
        return ui.note(format_args!("removed branch '{name}' (was at {})", at.to_hex_with_len(12)));
    }
    let commit = repo.git.resolve(&args.from)?;
    branch::create(&repo, name, commit, identity(&repo))?;
    ui.json(|| json!({"branch": name, "commit": commit.to_string()}))?;
    ui.note(format_args!("branch '{name}' begins at {}; 'gdo switch {name}' takes it for this host", commit.to_hex_with_len(12)))
}

fn list(ui: &mut Ui, repo: &Repo) -> Result<()> {
    let head = repo.git.head_ref()?;
    let mut told: Vec<Value> = Vec::new();
    let mut lines = Vec::new();
    for (name, commit) in branch::list(repo)? {
        let is_here = head.as_deref() == Some(&*branch::full_name(&name)?);
        let accepted = name.parse().ok().map(|kind| releases::accepted(repo, &kind)).transpose()?.flatten();
        let release = accepted.as_ref().map(|accepted| accepted.seq);
        told.push(json!({"branch": name, "commit": commit.to_string(), "here": is_here, "release": release}));
        let mark = if is_here { '*' } else { ' ' };
        let release = release.map_or(String::new(), |seq| format!("  release {seq} accepted"));
        lines.push(format!("{mark} {name}  {}{release}", commit.to_hex_with_len(12)));
    }
    ui.json(|| Value::Array(told))?;
    lines.iter().try_for_each(|line| ui.line(shown(line.as_bytes())))
}

/// Begin a new machine type with what is applied here
///
/// This host is of that type from then on; no file changes.
#[derive(clap::Args)]
pub struct ForkArgs {
    /// What it is called
    #[arg(value_name = "TYPE")]
    kind: String,
}

pub fn run_fork(ui: &mut Ui, global: &GlobalArgs, args: &ForkArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let commit = Host::open(&repo, call(&repo))?.fork(&args.kind)?;
    ui.json(|| json!({"type": args.kind, "commit": commit.to_string()}))?;
    ui.note(format_args!("this host is of the new type '{}', which begins at {}", args.kind, commit.to_hex_with_len(12)))
}

/// Let this host be of another machine type, where what is applied here is the beginning of it
///
/// No file changes; 'gdo up' then brings the rest.
#[derive(clap::Args)]
pub struct SwitchArgs {
    /// The type: its accepted release counts; where no key is trusted, the branch of that name, here or at a remote
    #[arg(value_name = "TYPE")]
    kind: String,
}

pub fn run_switch(ui: &mut Ui, global: &GlobalArgs, args: &SwitchArgs) -> Result<()> {
    let repo = global.repo_of_host()?;
    let wanted = wanted(&repo, &args.kind)?;
    Host::open(&repo, call(&repo))?.switch(&args.kind, wanted)?;
    ui.json(|| json!({"type": args.kind, "wanted": wanted.to_string()}))?;
    ui.note(format_args!("this host is of type '{}'", args.kind))?;
    match repo.head()? == Some(wanted) {
        true => Ok(()),
        false if releases::trust(&repo)?.is_some() => ui.note("'gdo up' brings what it has more"),
        false => ui.note(format_args!("'gdo up --to {wanted}' brings what it has more")),
    }
}

/// Returns the commit that a type is.
fn wanted(repo: &Repo, kind: &str) -> Result<Oid> {
    if releases::trust(repo)?.is_some() {
        let accepted = releases::accepted(repo, &kind.parse()?)?;
        return accepted.map(|accepted| accepted.commit).ok_or_else(|| {
            let message =
                format!("no release of type '{kind}' was accepted here yet; 'gdo fetch' gets them, 'gdo verify' says why not");
            Error::new(Kind::NotFound, message)
        });
    }
    if let Some(here) = repo.git.read_ref(&branch::full_name(kind)?)? {
        return Ok(here);
    }
    let of_remote = |name: &str| repo.git.read_ref(&format!("refs/remotes/{name}/{kind}"));
    let names = remotes::list(repo)?.into_iter().map(|remote| remote.name);
    let found: Vec<Oid> = names.map(|name| of_remote(&name)).filter_map(Result::transpose).collect::<Result<_>>()?;
    match found.as_slice() {
        [one] => Ok(*one),
        [] => Err(Error::new(
            Kind::NotFound,
            format!("there is no type '{kind}' here; 'gdo branch' lists those that are, 'gdo fetch' gets others"),
        )),
        _ => {
            let message =
                format!("several remotes have a type '{kind}'; 'gdo branch {kind} REMOTE/{kind}' says which one is meant");
            Err(Error::new(Kind::Conflict, message))
        }
    }
}
