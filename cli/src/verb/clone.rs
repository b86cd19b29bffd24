//! `gdo clone`

use std::path::{Path, PathBuf};

use git_devops::durable;
use git_devops::error::{Context, Error, Kind, Result};
use git_devops::git::NewIndex;
use git_devops::remote::ssh::Remote;
use git_devops::repo::restore::{RestoreOptions, into_work_tree};
use git_devops::repo::{Places, Repo, remotes};
use serde_json::json;

use super::fetch::{scratch, tell};
use super::remote::text_or_file;
use crate::exit;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, bytes, usage};

/// Make a copy of another host's repository, with its files
///
/// What was begun and cut short goes on where it was when it is repeated.
#[derive(clap::Args)]
pub struct CloneArgs {
    /// Where it is: 'ssh://[user@]host[:port]', or '[user@]host'
    address: String,
    /// The directory to make; it must be empty, or not there
    #[arg(conflicts_with = "system", required_unless_present = "system")]
    dir: Option<PathBuf>,
    /// Set up the system instance, below --root if that is given; its files are written by 'gdo restore'
    #[arg(long)]
    system: bool,
    /// The branch to begin with [default: 'main', or the only one]
    #[arg(short, long, value_name = "BRANCH")]
    branch: Option<String>,
    /// What to call the other host
    #[arg(long, value_name = "NAME", default_value = "origin")]
    name: String,
    /// Its host key: a line of /etc/ssh/ssh_host_ed25519_key.pub there, or a file with such lines ('-': standard input)
    #[arg(long, value_name = "KEY|FILE")]
    host_key: String,
    /// The private key to show there, instead of ssh's usual ones
    #[arg(short, long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Get no large files, and write no files
    #[arg(long)]
    no_restore: bool,
}

/// The file in the state that says that a clone was begun and not ended: only then it may go on over what is there.
const MARKER: &str = "cloning";

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &CloneArgs) -> Result<()> {
    let cwd = global.cwd()?;
    let identity = args.identity.as_ref().map(|path| cwd.join(path));
    let remote = Remote { name: args.name.clone(), address: args.address.parse()?, identity };
    let host_key = text_or_file(global, &args.host_key)?;
    let places = places(global, args)?;
    Repo::init(&places, args.branch.as_deref().unwrap_or("main"))?;
    let repo = Repo::open(places)?;
    let marker = repo.places.state.join(MARKER);
    if repo.head()?.is_some() && !marker.exists() {
        let dir = repo.places.work_tree.display().to_string();
        return Err(Error::new(
            Kind::Refused,
            format!("'{dir}' has a repository already; 'gdo fetch' and 'gdo get' bring what is new"),
        ));
    }
    durable::publish(&marker, b"", 0o600)?;
    remotes::add(&repo, &remote, &host_key)?;
    let (mut hosts, failures) = remotes::connect(&repo, std::slice::from_ref(&remote), &scratch());
    failures.into_iter().try_for_each(Err)?;
    hosts.connections().try_for_each(|connection| remotes::fetch_branches(&repo, connection, moment().wall).map(drop))?;
    let branch = remotes::begin_branch(&repo, &remote, args.branch.as_deref())?;
    ui.note(format_args!("'{branch}' of '{}' is here", remote.name))?;
    if args.no_restore || args.system {
        durable::remove(&marker)?;
        return ui.json(|| json!({"branch": branch}));
    }
    // Opened anew: what it knew of itself was from before there was a commit.
    let repo = Repo::open(repo.places)?;
    let progress = ui.progress();
    progress.stage("getting chunks", 0, 0);
    let got = remotes::get(&repo, repo.tree_of("HEAD")?, &[], &mut hosts, &progress)?;
    progress.stage("restoring", 0, 0);
    let restored = into_work_tree(&repo, Some("HEAD"), &RestoreOptions::default(), &progress)?;
    // For stock git, too, what is here is staged.
    repo.write_index(&NewIndex::of(&*repo.index()?))?;
    if !restored.is_partial {
        durable::remove(&marker)?;
    }
    let warnings = ui.warnings();
    tell(ui, &got, &warnings)?;
    let (n, written) = (restored.steps.len(), bytes(restored.n_bytes));
    ui.note(format_args!("wrote {n} files and directories, {written}"))?;
    if restored.is_partial {
        ui.note("not all files are written; the same 'gdo clone' again, or 'gdo restore .', goes on")?;
        ui.exit_with(exit::PARTIAL);
    }
    Ok(())
}

fn places(global: &GlobalArgs, args: &CloneArgs) -> Result<Places> {
    let cwd = global.cwd()?;
    let Some(dir) = &args.dir else {
        let root = global.root.clone().unwrap_or_else(|| "/".into());
        let root = cwd.join(&root).canonicalize().context(|| format!("cannot use '{}'", root.display()))?;
        return Ok(global.with_store(Places::system(&root), &cwd));
    };
    if global.root.is_some() {
        return Err(usage("--root is for the system instance: add --system"));
    }
    let dir = cwd.join(dir);
    durable::create_dir_all(&dir, 0o755)?;
    let dir = dir.canonicalize().context(|| format!("cannot use '{}'", dir.display()))?;
    let places = global.with_store(Places::of_directory(&dir), &cwd);
    if !places.state.is_dir() && !is_hardly_begun(&dir)? {
        return Err(Error::new(
            Kind::Refused,
            format!("'{}' is not empty; name a directory that is, or is not there", dir.display()),
        ));
    }
    Ok(places)
}

/// Says whether `dir` has nothing in it, or nothing but the first directories of a repository: there a clone was stopped just after its start.
fn is_hardly_begun(dir: &Path) -> Result<bool> {
    let mut dir = dir.to_owned();
    for first in [".git", "devops"] {
        let what = || format!("cannot list '{}'", dir.display());
        let names: Vec<_> = std::fs::read_dir(&dir).context(what)?.collect::<std::io::Result<_>>().context(what)?;
        match names.as_slice() {
            [] => return Ok(true),
            [one] if one.file_name() == first && one.file_type()?.is_dir() => dir = one.path(),
            _ => return Ok(false),
        }
    }
    Ok(std::fs::read_dir(&dir).context(|| format!("cannot list '{}'", dir.display()))?.next().is_none())
}
