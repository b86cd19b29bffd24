//! `gdo trust`

use std::path::{Path, PathBuf};

use git_devops::durable;
use git_devops::error::{Context, Result};
use git_devops::repo::{Repo, releases, roots};
use git_devops::trust::openpgp::Certificate;
use git_devops::trust::release::DAY;
use git_devops::trust::root::{Change, RootFile};
use git_devops::trust::{Fingerprint, Root, TypeName};
use serde_json::json;

use super::release::{signer, signer_of};
use super::verify::nobody;
use crate::places::{GlobalArgs, moment};
use crate::ui::{Ui, complain, shown, time, usage};

/// Whom this host believes
///
/// A host that trusts keys accepts only releases that these keys sign. Who they are stands in a root document; a new one counts when enough keys
/// of the one before sign it. 'gdo fetch' brings it to all hosts.
#[derive(clap::Args)]
pub struct TrustArgs {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Show the keys, and what is accepted (what 'gdo trust' does alone)
    Show,
    /// Begin to trust these keys, or those of a root document
    Init {
        /// Public keys as 'gpg --armor --export' writes them, or one root document
        #[arg(value_name = "KEYFILE", required = true)]
        files: Vec<PathBuf>,
    },
    /// Write the root document that is to follow; it is to be signed, and installed
    Next(Box<NextArgs>),
    /// Sign a root document in its file; needs no repository
    Sign {
        /// The document
        file: PathBuf,
        /// The key to sign with, in any of gpg's notations [default: the setting devops.signingkey]
        #[arg(long, value_name = "ID")]
        key: Option<String>,
    },
    /// Put a signed root document in force, here and on all hosts that fetch from here
    Install {
        /// The document
        file: PathBuf,
    },
    /// Make a new floor where it was lost, from the root documents and releases that are here
    Repair,
}

/// A type that is not named stands for all that have no keys of their own.
#[derive(clap::Args)]
struct NextArgs {
    /// Where to write it
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Until when it counts, in days
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
    expires: u64,
    /// How many root keys must sign what follows
    #[arg(long, value_name = "K")]
    threshold: Option<usize>,
    /// The key in this file may sign root documents
    #[arg(long, value_name = "KEYFILE")]
    add_root: Vec<PathBuf>,
    /// This key may not sign root documents any more
    #[arg(long, value_name = "FINGERPRINT")]
    remove_root: Vec<String>,
    /// The key in this file may sign releases of the type
    #[arg(long, value_name = "[TYPE=]KEYFILE")]
    add_key: Vec<String>,
    /// This key may not sign releases of the type any more
    #[arg(long, value_name = "[TYPE=]FINGERPRINT")]
    remove_key: Vec<String>,
    /// This key never counts again, for anything
    #[arg(long, value_name = "FINGERPRINT")]
    revoke: Vec<String>,
    /// The numbers of releases of this type begin anew ('*': of all that have no keys of their own)
    #[arg(long, value_name = "TYPE")]
    raise_epoch: Vec<String>,
}

pub fn run(ui: &mut Ui, global: &GlobalArgs, args: &TrustArgs) -> Result<()> {
    match args.what.as_ref().unwrap_or(&What::Show) {
        What::Show => show(ui, &global.repo()?),
        What::Init { files } => init(ui, global, &global.repo()?, files),
        What::Next(args) => next(ui, global, args),
        What::Sign { file, key } => sign(ui, global, file, key.clone()),
        What::Install { file } => {
            let file = read_root(&global.cwd()?.join(file))?;
            let version = file.root.version;
            let is_other = roots::install(&global.repo()?, file, moment().wall)?;
            ui.json(|| json!({"version": version, "changed": is_other}))?;
            ui.note(format_args!("root document {version} is in force{}", if is_other { "" } else { " already" }))
        }
        What::Repair => {
            let accepted = releases::repair_floor(&global.repo()?, moment().wall)?;
            let names: Vec<String> = accepted.iter().map(ToString::to_string).collect();
            ui.json(|| json!({"accepted": names}))?;
            names.iter().try_for_each(|name| ui.note(format_args!("{name} is accepted")))?;
            ui.note("the floor is whole")
        }
    }
}

fn init(ui: &mut Ui, global: &GlobalArgs, repo: &Repo, files: &[PathBuf]) -> Result<()> {
    let trust = roots::begin(repo, first(global, files)?)?;
    let root = trust.root();
    ui.json(|| json!({"version": root.version, "root_keys": names(&root.roots)}))?;
    ui.note(format_args!("trusts root document {}: {} of {}", root.version, root.threshold, names(&root.roots).join(", ")))
}

/// Reads what is to be trusted first: one root document, or public keys.
pub fn first(global: &GlobalArgs, files: &[PathBuf]) -> Result<RootFile> {
    let cwd = global.cwd()?;
    let read = |file: &PathBuf| std::fs::read(cwd.join(file)).context(|| format!("cannot read '{}'", file.display()));
    let texts: Vec<Vec<u8>> = files.iter().map(read).collect::<Result<_>>()?;
    if let [file] = files
        && texts[0].starts_with(b"git-devops root ")
    {
        return RootFile::decode(&texts[0]).context(|| format!("cannot use '{}'", file.display()));
    }
    let mut keys = Vec::new();
    for (file, text) in files.iter().zip(&texts) {
        keys.extend(Certificate::decode_all(text).context(|| format!("cannot use '{}'", file.display()))?);
    }
    Ok(RootFile::unsigned(Root::first(keys)?))
}

fn show(ui: &mut Ui, repo: &Repo) -> Result<()> {
    let trust = releases::trust(repo)?.ok_or_else(nobody)?;
    let root = trust.root();
    if let Some(damage) = &trust.damage {
        let damage = shown(format!("{damage:#}").as_bytes());
        complain(format_args!("warning: {damage}; the other slot is whole, and 'gdo trust repair' mends this one"));
    }
    ui.json(|| {
        let kind = |(name, signers): (&str, &git_devops::trust::root::Signers)| {
            json!({"type": name, "epoch": signers.epoch, "keys": names(&signers.keys)})
        };
        let accepted = |(kind, floor): (&TypeName, &git_devops::trust::Accepted)| {
            json!({"type": kind.as_str(), "epoch": floor.epoch, "seq": floor.seq, "tag": floor.tag.to_string(),
                "commit": floor.commit.to_string(), "manifest": floor.manifest.to_string(), "accepted": floor.accepted})
        };
        json!({"version": root.version, "issued": root.issued, "expires": root.expires, "threshold": root.threshold,
            "root_keys": names(&root.roots), "revoked": names(&root.revoked), "types": root.types().map(kind).collect::<Vec<_>>(),
            "accepted": trust.all_accepted().map(accepted).collect::<Vec<_>>()})
    })?;
    let until = root.expires.map_or("for ever".to_owned(), |expires| format!("until {}", time(expires)));
    ui.line(format_args!("root document {}, {until}", root.version))?;
    ui.line(format_args!("{} of these sign the next one: {}", root.threshold, names(&root.roots).join(", ")))?;
    for (name, signers) in root.types() {
        let name = if name == "*" { "any other type" } else { name };
        ui.line(format_args!("releases of {name}, epoch {}: {}", signers.epoch, names(&signers.keys).join(", ")))?;
    }
    root.revoked.iter().try_for_each(|key| ui.line(format_args!("revoked: {key}")))?;
    trust.all_accepted().try_for_each(|(kind, floor)| {
        ui.line(format_args!("accepted: {kind}, epoch {}, number {}, commit {}", floor.epoch, floor.seq, floor.commit))
    })
}

fn next(ui: &mut Ui, global: &GlobalArgs, args: &NextArgs) -> Result<()> {
    let trust = releases::trust(&global.repo()?)?.ok_or_else(nobody)?;
    let cwd = global.cwd()?;
    let now = moment().wall;
    let mut changes = vec![Change::Issue {
        version: trust.root().version + 1,
        issued: now,
        expires: Some(now.saturating_add(args.expires * DAY)),
    }];
    for file in &args.add_root {
        changes.push(Change::AddRoot(read_key(&cwd.join(file))?));
    }
    for text in &args.add_key {
        let (kind, file) = split(text)?;
        changes.push(Change::AddSigner(kind, read_key(&cwd.join(file))?));
    }
    for text in &args.remove_key {
        let (kind, key) = split(text)?;
        changes.push(Change::RemoveSigner(kind, key.parse()?));
    }
    for key in &args.remove_root {
        changes.push(Change::RemoveRoot(key.parse()?));
    }
    for key in &args.revoke {
        changes.push(Change::Revoke(key.parse()?));
    }
    for kind in &args.raise_epoch {
        changes.push(Change::RaiseEpoch(if kind == "*" { None } else { Some(kind.parse()?) }));
    }
    changes.extend(args.threshold.map(Change::Threshold));
    let file = RootFile::unsigned(trust.root().with(&changes)?);
    durable::publish(&cwd.join(&args.output), &file.encode(), 0o644)?;
    let (root, output) = (&file.root, args.output.display());
    ui.json(|| json!({"version": root.version, "file": output.to_string(), "threshold": root.threshold}))?;
    let n = trust.root().threshold;
    ui.note(format_args!(
        "wrote root document {} to '{output}'; {n} of the root keys before it and {} of its own must sign it: 'gdo trust sign'",
        root.version, root.threshold
    ))
}

/// Splits `TYPE=REST`.
fn split(text: &str) -> Result<(Option<TypeName>, &str)> {
    match text.split_once('=') {
        Some((kind, rest)) => Ok((Some(kind.parse()?), rest)),
        None => Ok((None, text)),
    }
}

fn sign(ui: &mut Ui, global: &GlobalArgs, file: &Path, key: Option<String>) -> Result<()> {
    let path = global.cwd()?.join(file);
    let mut document = read_root(&path)?;
    let signer = match key {
        Some(key) => signer_of(Some(key))?,
        None => signer(&global.repo()?, None)?,
    };
    roots::sign(&mut document, &signer)?;
    durable::publish(&path, &document.encode(), 0o644)?;
    let (n, version) = (document.signatures.len(), document.root.version);
    ui.json(|| json!({"version": version, "signatures": n}))?;
    ui.note(format_args!("root document {version} has {n} signatures"))
}

fn read_root(path: &Path) -> Result<RootFile> {
    let what = || format!("cannot use '{}'", path.display());
    RootFile::decode(&durable::read(path).context(what)?).context(what)
}

fn read_key(path: &Path) -> Result<Certificate> {
    let what = || format!("cannot use '{}'", path.display());
    match <[Certificate; 1]>::try_from(Certificate::decode_all(&durable::read(path).context(what)?).context(what)?) {
        Ok([one]) => Ok(one),
        Err(all) => Err(usage(format!("'{}' has {} keys; give one file for each", path.display(), all.len()))),
    }
}

fn names(keys: &std::collections::BTreeSet<Fingerprint>) -> Vec<String> {
    keys.iter().map(ToString::to_string).collect()
}
