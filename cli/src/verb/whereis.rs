//! `gdo whereis`

use std::path::PathBuf;

use git_devops::error::Result;
use git_devops::repo::Repo;
use git_devops::repo::holders;
use git_devops::repo::whereis::{self, Part, Told, Whereabouts, whereis};
use serde_json::{Value, json};

use crate::exit;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, json_path, shown_path, time};

/// Tell which holders have large files, also those that cannot be reached now
///
/// Answers from what holders told ('gdo fetch' and 'gdo sync' bring that), and asks nobody. Ends with 1 if a chunk has fewer promised copies than
/// 'devops.copies' says.
#[derive(clap::Args)]
pub struct WhereisArgs {
    /// Of the files in this commit, instead of those that are staged
    #[arg(short, long, value_name = "REV")]
    source: Option<String>,
    /// Files at and below these paths; all of them without this
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &WhereisArgs) -> Result<()> {
    let repo = global.repo()?;
    let paths = global.work_paths(&repo.places, &args.paths)?;
    let copies = holders::terms(&repo)?.copies;
    let files = whereis(&repo, repo.source_tree(args.source.as_deref())?, &paths, moment().wall)?;
    ui.json(|| json!({"copies": copies, "files": files.iter().map(to_json).collect::<Value>()}))?;
    for file in &files {
        print(ui, file, copies)?;
    }
    if files.iter().any(|file| file.n_under > 0 || file.n_unknown > 0) {
        ui.exit_with(exit::DIFFERENCES);
    }
    Ok(())
}

fn to_json(file: &Whereabouts) -> Value {
    let holder = |part: &Part| json!({"id": part.id.to_string(), "name": part.name, "chunks": part.n_chunks, "until": part.until, "promised": part.is_promised});
    json!({
        "path": json_path(&file.path), "chunks": file.n_chunks, "here": file.n_here, "unknown_lists": file.n_unknown,
        "holders": file.holders.iter().map(holder).collect::<Value>(), "fewest_copies": file.fewest, "under": file.n_under,
    })
}

fn print(ui: &mut Ui, file: &Whereabouts, copies: usize) -> Result<()> {
    let Whereabouts { n_chunks, n_here, n_unknown, fewest, n_under, .. } = file;
    ui.line(format_args!("{}: {n_chunks} chunks, {n_here} here", shown_path(&file.path)))?;
    for Part { id, name, until, is_promised, n_chunks } in &file.holders {
        let promised = if *is_promised { "promised until" } else { "NOT promised since" };
        ui.line(format_args!("  {name} ({}): {n_chunks}, {promised} {}", &id.to_string()[..8], time(*until)))?;
    }
    match n_under {
        0 => ui.line(format_args!("  every chunk has {fewest} promised copies or more"))?,
        n => ui.line(format_args!("  {n} chunks have fewer than {copies} promised copies, the worst one {fewest}"))?,
    }
    match n_unknown {
        0 => Ok(()),
        _ => ui.line("  there is more to it: lists of chunks are not here; 'gdo sync' or 'gdo get' brings them"),
    }
}

/// Runs `gdo status --holders`.
pub fn run_holders(ui: &mut Ui, repo: &Repo, exit_code: bool) -> Result<()> {
    let now = moment().wall;
    let copies = holders::terms(repo)?.copies;
    let told = whereis::holders(repo, now)?;
    let files = match repo.head()? {
        Some(_) => whereis(repo, repo.source_tree(Some("HEAD"))?, &[], now)?,
        None => Vec::new(),
    };
    let under: Vec<&Whereabouts> = files.iter().filter(|file| file.n_under > 0 || file.n_unknown > 0).collect();
    ui.json(|| {
        let holder = |told: &Told| {
            json!({"id": told.id.to_string(), "name": told.name, "own": told.is_own, "capacity": told.capacity, "chunks": told.n_chunks,
                "told": told.issued, "until": told.until, "promised": told.is_promised})
        };
        json!({"copies": copies, "holders": told.iter().map(holder).collect::<Value>(), "files": files.len(),
            "under": under.iter().map(|file| to_json(file)).collect::<Value>()})
    })?;
    for Told { id, name, is_own, capacity, n_chunks, until, is_promised, .. } in &told {
        let (here, promised) =
            (if *is_own { ", this host" } else { "" }, if *is_promised { "promised until" } else { "NOT promised since" });
        ui.line(format_args!(
            "{name} ({}{here}): {n_chunks} chunks, {capacity} GiB, {promised} {}",
            &id.to_string()[..8],
            time(*until)
        ))?;
    }
    if told.is_empty() {
        ui.note("no holder is known here; 'gdo sync' makes this host one, 'gdo fetch' brings what others told")?;
    }
    for file in &under {
        print(ui, file, copies)?;
    }
    if under.is_empty() && !told.is_empty() {
        ui.note(format_args!("each chunk of {} large files has {copies} promised copies or more", files.len()))?;
    }
    if exit_code && !under.is_empty() {
        ui.exit_with(exit::DIFFERENCES);
    }
    Ok(())
}
