//! `gdo ls`

use std::path::PathBuf;

use git_devops::error::{Error, Kind, Result};
use git_devops::metadata::Metadata;
use git_devops::repo::Repo;
use git_devops::repo::tree::{Item, StoredDir};
use serde_json::{Value, json};

use crate::places::GlobalArgs;
use crate::ui::{Ui, json_path, shown};

/// List what a commit holds, with owners, modes, sizes and times
#[derive(clap::Args)]
pub struct LsArgs {
    /// The commit
    #[arg(value_name = "REV", default_value = "HEAD")]
    rev: String,
    /// A directory or a file in it [default: all]
    path: Option<PathBuf>,
    /// All below it, not only its entries
    #[arg(short = 'R', long)]
    recursive: bool,
    /// End names with NUL, escape nothing, print nothing but names
    #[arg(short = 'z')]
    nul: bool,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &LsArgs) -> Result<()> {
    let repo = global.repo()?;
    let path = match &args.path {
        Some(path) => global.work_paths(&repo.places, std::slice::from_ref(path))?.remove(0),
        None => Vec::new(),
    };
    let tree = repo.tree_of(&args.rev).map_err(|error| match &args.path {
        None => global.or_path(&repo, "gdo ls HEAD", std::slice::from_ref(&args.rev), error),
        Some(_) => error,
    })?;
    let root = StoredDir::root(&repo, tree)?;
    let not_found = || Error::new(Kind::NotFound, format!("'{}' is not in '{}'", path.escape_ascii(), args.rev));
    match root.clone().descend(&repo, &path)? {
        Some(node) => list(ui, &repo, &node, args),
        None => {
            let at = path.iter().rposition(|&b| b == b'/');
            let (parent, name) = at.map_or((&b""[..], &path[..]), |at| (&path[..at], &path[at + 1..]));
            let node = root.descend(&repo, parent)?.ok_or_else(not_found)?;
            let item = node.list(&repo)?.files.remove(name).ok_or_else(not_found)?;
            print(ui, &repo, &path, &item.metadata, Some(&item), args)
        }
    }
}

fn list(ui: &mut Ui, repo: &Repo, node: &StoredDir, args: &LsArgs) -> Result<()> {
    let listing = node.list(repo)?;
    let path_of = |name: &[u8]| if node.path.is_empty() { name.to_vec() } else { [&node.path[..], b"/", name].concat() };
    let mut names: Vec<&Vec<u8>> = listing.files.keys().chain(listing.dirs.keys()).collect();
    names.sort();
    for name in names {
        match (listing.files.get(name), listing.dirs.get(name)) {
            (Some(item), _) => print(ui, repo, &path_of(name), &item.metadata, Some(item), args)?,
            (None, Some(dir)) => {
                let below = dir.list(repo)?;
                print(ui, repo, &dir.path, &below.metadata.dir, None, args)?;
                if args.recursive {
                    list(ui, repo, dir, args)?;
                }
            }
            (None, None) => (),
        }
    }
    Ok(())
}

fn print(ui: &mut Ui, repo: &Repo, path: &[u8], metadata: &Metadata, item: Option<&Item>, args: &LsArgs) -> Result<()> {
    use std::io::Write;
    if args.nul {
        return Ok(ui.raw().write_all(&[path, b"\0"].concat())?);
    }
    let size = item.and_then(|item| repo.content_size(item).transpose()).transpose()?;
    ui.json(|| to_json(path, metadata, size))?;
    let time = metadata.mtime.map_or("-".to_owned(), |time| {
        jiff::Timestamp::from_second(time.secs).map_or(time.secs.to_string(), |time| time.to_string())
    });
    let size = size.map_or("-".to_owned(), |size| size.to_string());
    ui.line(format_args!("{metadata} {size:>12} {time} {}", shown(path)))
}

fn to_json(path: &[u8], metadata: &Metadata, size: Option<u64>) -> Value {
    let name = |name: &Option<Vec<u8>>| name.as_ref().map(|name| json_path(name));
    json!({
        "path": json_path(path),
        "type": format!("{:?}", metadata.kind).to_lowercase(),
        "mode": format!("{:04o}", metadata.mode),
        "uid": metadata.uid, "user": name(&metadata.user),
        "gid": metadata.gid, "group": name(&metadata.group),
        "mtime": metadata.mtime.map(|time| json!({"seconds": time.secs, "nanoseconds": time.nanos})),
        "size": size,
        "hardlink": name(&metadata.hardlink),
    })
}
