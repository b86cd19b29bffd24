//! `gdo env`

use std::io::Read;
use std::path::{Path, PathBuf};

use git_devops::durable;
use git_devops::error::{Context, Error, Kind, Result};
use git_devops::git::name;
use git_devops::host::env::{Assignment, DIR, Env, Template, is_name};
use git_devops::host::rendering::Rendering;
use git_devops::repo::attributes::Ownership;
use git_devops::repo::{Repo, stage};
use serde_json::{Value, json};

use crate::places::GlobalArgs;
use crate::ui::{Ui, shown, shown_path, usage};

/// What differs from host to host: keys and values, and where they come from
///
/// Files with the attribute 'env' are templates; their keys get values from '.git-devops/env/main' and what it includes, by the host's name and facts.
#[derive(clap::Args)]
pub struct EnvArgs {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Show all keys that this host has, with their values (what 'gdo env' does alone)
    List,
    /// Show where the value of a key, or of each key of a template, comes from
    Explain {
        /// A key, or the path of a template
        #[arg(value_name = "PATH|KEY")]
        what: String,
    },
    /// Put a file of keys and values in the place of the one of that name, staged for the next commit
    Keys {
        /// Name of the file: 'main', or one that it includes
        name: String,
        /// Where the new text is [default: standard input]
        file: Option<PathBuf>,
    },
    /// Put a template in the place of what is stored for a path, staged for the next commit
    Template {
        /// The path
        path: PathBuf,
        /// Where the template is [default: standard input]
        file: Option<PathBuf>,
    },
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &EnvArgs) -> Result<()> {
    let repo = global.repo()?;
    match args.what.as_ref().unwrap_or(&What::List) {
        What::List => list(ui, &repo),
        What::Explain { what } => explain(ui, global, &repo, what),
        What::Keys { name, file } => keys(&repo, name, file.as_deref()),
        What::Template { path, file } => template(global, &repo, path, file.as_deref()),
    }
}

fn list(ui: &mut Ui, repo: &Repo) -> Result<()> {
    let rendering = Rendering::of_index(repo, &*repo.index()?)?;
    let env = rendering.env()?;
    ui.json(|| {
        let keys: Vec<Value> = env.iter().map(|(key, found)| to_json(key, found)).collect();
        json!({"keys": keys, "n_keys": env.n_keys(), "n_files": rendering.n_files()})
    })?;
    for (key, found) in env.iter() {
        ui.line(told(key, found))?;
    }
    // The fewer, the better: each is a way in which hosts of one type differ.
    ui.note(format_args!(
        "{} keys in {} files, and {} facts",
        env.n_keys(),
        rendering.n_files(),
        env.iter().count() - env.n_keys()
    ))
}

fn explain(ui: &mut Ui, global: &GlobalArgs, repo: &Repo, what: &str) -> Result<()> {
    let index = repo.index()?;
    let rendering = Rendering::of_index(repo, &index)?;
    let all = rendering.env()?.all(what);
    if let Some((counts, before)) = all.split_last() {
        ui.json(|| json!({"key": to_json(what, counts), "overridden": before.iter().map(|found| to_json(what, found)).collect::<Vec<_>>()}))?;
        ui.line(told(what, counts))?;
        return before.iter().rev().try_for_each(|found| ui.line(format_args!("  in the place of {}", told(what, found))));
    }
    let path = global.work_paths(&repo.places, &[PathBuf::from(what)])?.remove(0);
    let is_template = repo.attributes(&index)?.policy(&path).ownership == Ownership::Env;
    let stored = index.lookup(&name::stored_path(&path)).filter(|_| is_template);
    let Some(position) = stored else {
        let what = shown(what.as_bytes());
        return Err(Error::new(
            Kind::NotFound,
            format!("'{what}' is neither a key that this host has nor a stored file with the attribute 'env'"),
        ));
    };
    let uses = rendering.uses(&path, &repo.objects.blob(&index.entry(position).oid)?)?;
    let env = rendering.env()?;
    ui.json(|| {
        let of = |key: &str| env.get(key).map(|found| to_json(key, found));
        let uses: Vec<Value> = uses
            .iter()
            .map(|used| json!({"line": used.line, "key": used.key, "default": used.default, "value": of(&used.key)}))
            .collect();
        json!({"template": shown_path(&path), "uses": uses})
    })?;
    for used in &uses {
        let told = match (env.get(&used.key), &used.default) {
            (Some(found), _) => told(&used.key, found),
            (None, Some(default)) => format!("{} = {}  (no value; what the template says)", used.key, shown(default.as_bytes())),
            (None, None) => format!("{} has no value", used.key),
        };
        ui.line(format_args!("line {}: {told}", used.line))?;
    }
    Ok(())
}

fn told(key: &str, found: &Assignment) -> String {
    let Assignment { value, at, stanza } = found;
    let stanza = if stanza.is_empty() { String::new() } else { format!(" [{stanza}]") };
    format!("{key} = {}  ({at}{stanza})", shown(value.as_bytes()))
}

fn to_json(key: &str, found: &Assignment) -> Value {
    let is_fact = found.at.line == 0;
    let place = if is_fact {
        json!({"fact": &*found.at.file})
    } else {
        json!({"file": &*found.at.file, "line": found.at.line, "stanza": &*found.stanza})
    };
    json!({"key": key, "value": &*found.value, "from": place})
}

fn keys(repo: &Repo, name: &str, file: Option<&Path>) -> Result<()> {
    if !is_name(name) {
        return Err(usage(format!("'{name}' cannot be the name of such a file: up to 64 of a-z, 0-9, '-', '_' and '.'")));
    }
    let text = read(file)?;
    Env::check(name, &text)?;
    stage::put(repo, &[DIR, b"/", name.as_bytes()].concat(), &text)
}

fn template(global: &GlobalArgs, repo: &Repo, path: &Path, file: Option<&Path>) -> Result<()> {
    let path = global.work_paths(&repo.places, &[path.to_owned()])?.remove(0);
    if repo.attributes(&*repo.index()?)?.policy(&path).ownership != Ownership::Env {
        let path = shown_path(&path);
        return Err(usage(format!("'{path}' is no template; say so first: gdo attributes '/{path}' env")));
    }
    let text = read(file)?;
    Template::decode(&text).context(|| "this is no template")?;
    stage::put(repo, &name::stored_path(&path), &text)
}

/// Reads a file that a person named, or standard input.
pub fn read(file: Option<&Path>) -> Result<Vec<u8>> {
    if let Some(file) = file {
        return durable::read(file).context(|| format!("cannot read '{}'", file.display()));
    }
    let mut text = Vec::new();
    std::io::stdin().lock().take(MAX_INPUT).read_to_end(&mut text).context(|| "cannot read standard input")?;
    Ok(text)
}

/// No file of this kind may be as large.
const MAX_INPUT: u64 = 2 << 20;
