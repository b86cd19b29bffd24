//! `gdo init`

use std::path::{Path, PathBuf};

use git_devops::durable;
use git_devops::error::{Context, Result};
use git_devops::repo::{Places, Repo, roots};
use serde_json::json;

use super::trust;
use crate::places::GlobalArgs;
use crate::ui::{Ui, usage};

/// Put a directory, or this whole machine, under control
///
/// Makes an empty repository and an empty chunk store. Nothing is stored yet: name what is to be owned with 'gdo add' or 'gdo snapshot PATH'.
/// Repeating it is safe.
#[derive(clap::Args)]
pub struct InitArgs {
    /// The directory [default: the current one]
    #[arg(conflicts_with = "system")]
    dir: Option<PathBuf>,
    /// Set up the system instance: repository in /etc/git-devops, work tree /, below --root if that is given
    #[arg(long)]
    system: bool,
    /// Machine type: the name of the first branch
    #[arg(long = "type", value_name = "TYPE", default_value = "main")]
    branch: String,
    /// Accept only releases that these keys sign: public keys as 'gpg --armor --export' writes them, or a root document of 'gdo trust'
    #[arg(long, value_name = "KEYFILE")]
    trust: Vec<PathBuf>,
    /// Tell what would be made, and make nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
}

/// What a system instance never takes in by itself: what the kernel makes up, what is gone after a boot, what is ours.
const SYSTEM_EXCLUDES: &str = "\
# Not stored unless named by 'gdo add'; patterns as in gitignore(5).
/proc/*
/run/*
/sys/*
/tmp/*
/var/tmp/*
/lost+found
/swapfile
";

/// The same for the system that runs, whose device nodes the kernel makes.
const RUNNING_SYSTEM_EXCLUDES: &str = "/dev/*\n";

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &InitArgs) -> Result<()> {
    let cwd = global.cwd()?;
    let places = places(global, args, &cwd)?;
    // Read before anything is made.
    let trusted = if args.trust.is_empty() { None } else { Some(trust::first(global, &args.trust)?) };
    if !args.dry_run {
        Repo::init(&places, &args.branch)?;
        if args.system {
            write_excludes(&places)?;
        }
        if let Some(root) = trusted {
            roots::begin(&Repo::open(places.clone())?, root)?;
        }
    }
    let (repository, work_tree, store) = (places.git_dir.display(), places.work_tree.display(), places.store.display());
    ui.json(|| json!({"repository": repository.to_string(), "work_tree": work_tree.to_string(), "store": store.to_string()}))?;
    let done = if args.dry_run { "would make" } else { "made" };
    ui.note(format_args!("{done} repository '{repository}' for '{work_tree}', chunks in '{store}'"))
}

fn places(global: &GlobalArgs, args: &InitArgs, cwd: &Path) -> Result<Places> {
    if args.system {
        let root = match &global.root {
            Some(root) => cwd.join(root),
            None => PathBuf::from("/"),
        };
        let root = root.canonicalize().context(|| format!("cannot use '{}'", root.display()))?;
        return Ok(global.with_store(Places::system(&root), cwd));
    }
    if global.root.is_some() {
        return Err(usage("--root is for the system instance: add --system"));
    }
    if let Some(named) = global.git_dir.is_some().then(|| global.named_places(cwd)).transpose()?.flatten() {
        return Ok(named);
    }
    let dir = global.work_tree.as_ref().or(args.dir.as_ref()).map_or(cwd.to_owned(), |dir| cwd.join(dir));
    durable::create_dir_all(&dir, 0o755)?;
    let dir = dir.canonicalize().context(|| format!("cannot use '{}'", dir.display()))?;
    Ok(match global.named_places(cwd)? {
        Some(named) if args.dir.is_none() && named.work_tree == dir => named,
        _ => global.with_store(Places::of_directory(&dir), cwd),
    })
}

fn write_excludes(places: &Places) -> Result<()> {
    let path = places.git_dir.join("info/exclude");
    if path.exists() {
        return Ok(());
    }
    let is_running = places.work_tree == Path::new("/");
    let text = SYSTEM_EXCLUDES.to_owned() + if is_running { RUNNING_SYSTEM_EXCLUDES } else { "" };
    durable::publish(&path, text.as_bytes(), 0o600)
}
