//! `gdo fetch` and `gdo get`

use std::path::{Path, PathBuf};

use git_devops::error::{Error, Reason, Result};
use git_devops::remote::fetch::Served;
use git_devops::remote::hosts::Hosts;
use git_devops::remote::ssh::Remote;
use git_devops::repo::Repo;
use git_devops::repo::remotes::{self, Got, Moved, News};
use serde_json::{Value, json};

use crate::exit;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, bytes, complain, shown};

/// Ask other hosts where their branches are
///
/// The branches are noted as NAME/BRANCH, and 'gdo log web1/main' shows one; nothing of this host is moved. Chunks come with 'gdo get'. Where a key
/// is trusted ('gdo trust'), a release is accepted if it verifies; what does not is named, and the exit code is 65.
#[derive(clap::Args)]
pub struct FetchArgs {
    /// The hosts to ask; all of them without this
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Get what large files lack here, from all hosts that have it
#[derive(clap::Args)]
pub struct GetArgs {
    /// Of the files in this commit, instead of those that are staged
    #[arg(short, long, value_name = "REV")]
    source: Option<String>,
    /// Ask only this host; may be given several times
    #[arg(long, value_name = "NAME")]
    from: Vec<String>,
    /// Of the files at and below these paths; all of them without this
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub fn run_fetch(ui: &mut Ui, global: &GlobalArgs, args: &FetchArgs) -> Result<()> {
    let repo = global.repo()?;
    let remotes = remotes::named(&repo, &args.names)?;
    let (hosts, failures) = remotes::connect(&repo, &remotes, &scratch());
    let (mut all, mut accepted, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    let failed = |ui: &mut Ui, error: Error| match remotes.len() {
        1 => Err(error),
        _ => {
            tell_failure(ui, &error);
            Ok(())
        }
    };
    failures.into_iter().try_for_each(|error| failed(ui, error))?;
    for connection in hosts.connections() {
        let name = &connection.remote().name;
        match remotes::fetch_branches(&repo, connection, moment().wall) {
            Ok(News { moved, refused: records, releases }) => {
                all.extend(moved.into_iter().map(|moved| (name.clone(), moved)));
                records.iter().for_each(|error| tell_failure(ui, error));
                accepted.extend(releases.accepted.iter().map(ToString::to_string));
                refused.extend(releases.refused.into_iter().map(|error| (name.clone(), error)));
            }
            Err(error) => failed(ui, error)?,
        }
    }
    refused.iter().for_each(|(name, error)| tell_refused(ui, name, error));
    ui.json(|| {
        json!({"branches": all.iter().map(|(name, moved)| to_json(name, moved)).collect::<Vec<_>>(), "accepted": accepted,
            "refused": refused.iter().map(|(name, error)| refused_json(name, error)).collect::<Vec<_>>()})
    })?;
    accepted.iter().try_for_each(|name| ui.note(format_args!("{name} is accepted")))?;
    all.iter().try_for_each(|(name, Moved { branch, old, new })| {
        let what = match (old, new) {
            (None, Some(_)) => "new",
            (_, None) => "gone",
            _ => "moved",
        };
        ui.note(format_args!("{name}/{branch} {what}"))
    })
}

/// Names a release or a root document that was refused.
fn tell_refused(ui: &mut Ui, name: &str, error: &Error) {
    ui.exit_with(exit::REFUSED);
    complain(format_args!("warning: from '{name}': {}", shown(error.told().as_bytes())));
}

fn refused_json(name: &str, error: &Error) -> Value {
    json!({"remote": name, "id": error.reason().map(Reason::id), "message": format!("{error:#}")})
}

fn to_json(name: &str, moved: &Moved) -> Value {
    let oid = |oid: &Option<git_devops::git::Oid>| oid.map(|oid| oid.to_string());
    json!({"remote": name, "branch": moved.branch, "old": oid(&moved.old), "new": oid(&moved.new)})
}

pub fn run_get(ui: &mut Ui, global: &GlobalArgs, args: &GetArgs) -> Result<()> {
    let repo = global.repo()?;
    let paths = global.work_paths(&repo.places, &args.paths)?;
    let mut hosts = connect(ui, &repo, &remotes::named(&repo, &args.from)?);
    let tree = repo.source_tree(args.source.as_deref())?;
    let progress = ui.progress();
    progress.stage("getting chunks", 0, 0);
    let got = remotes::get(&repo, tree, &paths, &mut hosts, &progress)?;
    let warnings = ui.warnings();
    tell(ui, &got, &warnings)
}

/// Connects to all of `remotes`; who cannot be reached is named.
pub fn connect(ui: &mut Ui, repo: &Repo, remotes: &[Remote]) -> Hosts {
    let (hosts, failures) = remotes::connect(repo, remotes, &scratch());
    failures.iter().for_each(|error| tell_failure(ui, error));
    hosts
}

/// Notes where the branches of all hosts are, and what they tell of holders; who fails is named.
pub fn fetch_all(ui: &mut Ui, repo: &Repo, hosts: &Hosts) {
    for connection in hosts.connections() {
        match remotes::fetch_branches(repo, connection, moment().wall) {
            Ok(News { refused, releases, .. }) => {
                refused.iter().for_each(|error| tell_failure(ui, error));
                releases.refused.iter().for_each(|error| tell_refused(ui, &connection.remote().name, error));
            }
            Err(error) => tell_failure(ui, &error),
        }
    }
}

/// Names the hosts that were given up.
pub fn tell_failures(got: &Got) {
    for (name, share) in &got.hosts {
        tell_given_up(name, &share.failure);
    }
}

/// Returns what each host brought.
pub fn hosts_json(got: &Got) -> Value {
    let host = |(name, share): (&String, &remotes::Share)| {
        json!({"name": name, "chunks": share.n_chunks, "bytes": share.n_bytes,
            "failure": share.failure.as_ref().map(|error| format!("{error:#}"))})
    };
    got.hosts.iter().map(host).collect()
}

/// Says what each host brought.
pub fn tell_hosts(ui: &mut Ui, got: &Got) -> Result<()> {
    let mut brought = got.hosts.iter().filter(|(_, share)| share.n_chunks > 0);
    brought.try_for_each(|(name, share)| ui.note(format_args!("{name}: {} chunks, {}", share.n_chunks, bytes(share.n_bytes))))
}

/// Says what came of getting chunks.
pub fn tell(ui: &mut Ui, got: &Got, warnings: &[Value]) -> Result<()> {
    tell_failures(got);
    ui.json(|| {
        json!({"chunks": got.n_chunks, "stored_bytes": got.n_stored, "missing": got.n_missing, "unreadable": got.n_unreadable, "warnings": warnings,
            "hosts": hosts_json(got)})
    })?;
    tell_hosts(ui, got)?;
    ui.note(format_args!("got {} chunks, {} stored", got.n_chunks, bytes(got.n_stored)))?;
    if got.n_unreadable > 0 {
        ui.exit_with(exit::PARTIAL);
    }
    if got.n_left_out > 0 {
        ui.note("the cache is full: what is not in it comes when 'gdo restore' or 'gdo cat' needs it")?;
    }
    if got.n_missing > 0 {
        ui.exit_with(exit::PARTIAL);
        let n = got.n_missing;
        complain(format_args!("warning: {n} chunks are with none of these hosts; add one that has them with 'gdo remote add'"));
    }
    Ok(())
}

/// Names what failed at one of several hosts.
pub fn tell_failure(ui: &mut Ui, error: &Error) {
    ui.exit_with(exit::PARTIAL);
    complain(format_args!("warning: {}", shown(format!("{error:#}").as_bytes())));
}

/// Opens the repository that the call means, so that chunks which are not here come from its remotes.
pub fn repo_within_reach(global: &GlobalArgs, keeps: bool) -> Result<Repo> {
    let mut repo = global.repo()?;
    remotes::reach(&mut repo, &scratch(), keeps)?;
    Ok(repo)
}

/// Ends the connections of such a repository, and says what went wrong with them; returns what came from where.
pub fn finish(repo: &Repo) -> Vec<Served> {
    let came = repo.chunks.finish();
    for error in &came.unreached {
        complain(format_args!("warning: {}", shown(format!("{error:#}").as_bytes())));
    }
    for host in &came.hosts {
        tell_given_up(&host.name, host.failure.as_ref());
    }
    if came.n_damaged > 0 {
        let n = came.n_damaged;
        complain(format_args!("warning: {n} chunks are damaged here, and others were asked for them; see 'gdo check --data'"));
    }
    if let Some(error) = &came.not_kept {
        let error = format!("{error:#}");
        complain(format_args!("warning: not all that came could be kept here: {}", shown(error.as_bytes())));
    }
    came.hosts
}

fn tell_given_up<'a>(name: &str, failures: impl IntoIterator<Item = &'a Error>) {
    for failure in failures {
        complain(format_args!("warning: '{name}' was given up: {}", shown(format!("{failure:#}").as_bytes())));
    }
}

/// Returns a directory whose path is short enough for a socket in it.
pub fn scratch() -> PathBuf {
    let named =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute() && dir.as_os_str().len() < 60);
    let run = Path::new("/run");
    match named {
        Some(named) if named.is_dir() => named,
        _ if rustix::process::geteuid().is_root() && run.is_dir() => run.to_owned(),
        _ => PathBuf::from("/tmp"),
    }
}
