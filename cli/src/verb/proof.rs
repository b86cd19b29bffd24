//! `gdo fingerprint` and `gdo compare`: whether hosts are alike.

use std::collections::{BTreeMap, BTreeSet};

use git_devops::error::{Error, Kind, Result};
use git_devops::host::fingerprint::{Digests, Look};
use git_devops::repo::Repo;
use git_devops::repo::reports::{self, Told};
use serde_json::{Value, json};

use crate::exit;
use crate::places::{GlobalArgs, render};
use crate::ui::{Ui, complain, counted, json_path, shown_path, time};

/// Say in 64 digits what this host looks like, as far as its type decides that
///
/// Two hosts with the same fingerprint have the same files, owners, modes and labels. Left out are times, and what the attributes leave to each host.
#[derive(clap::Args)]
pub struct FingerprintArgs {
    /// What a host that has this commit looks like, instead of this one as it is
    rev: Option<String>,
}

pub fn run_fingerprint(ui: &mut Ui, global: &GlobalArgs, args: &FingerprintArgs) -> Result<()> {
    let mut repo = global.repo_of_host()?;
    render(&mut repo)?;
    let progress = ui.progress();
    progress.stage("looking", 0, 0);
    let look = match &args.rev {
        Some(rev) => Look::of_tree(&repo, repo.tree_of(rev)?)?,
        None => Look::here(&repo, &progress)?,
    };
    let (hash, n_items) = look.fingerprint()?;
    let warnings = ui.warnings();
    let hex = hex(&hash);
    ui.json(|| json!({"fingerprint": hex, "items": n_items, "partial": look.is_partial, "warnings": warnings}))?;
    if look.is_partial {
        ui.exit_with(exit::PARTIAL);
    }
    ui.line(hex)
}

/// Tell in which files two hosts differ
///
/// Looks at this host as it is, and at the other as it was when it reported last; nothing is asked of it. 'gdo fetch' brings newer reports.
#[derive(clap::Args)]
pub struct CompareArgs {
    /// The other host, by its name, or by the beginning of its id
    host: String,
    /// With which one it is compared; without it, this host is compared with the first
    other: Option<String>,
}

pub fn run_compare(ui: &mut Ui, global: &GlobalArgs, args: &CompareArgs) -> Result<()> {
    let mut repo = global.repo_of_host()?;
    render(&mut repo)?;
    let (a, b) = match &args.other {
        Some(other) => (Side::reported(&repo, &args.host)?, Side::reported(&repo, other)?),
        None => {
            let progress = ui.progress();
            progress.stage("looking", 0, 0);
            (Side::here(&repo, Look::here(&repo, &progress)?)?, Side::reported(&repo, &args.host)?)
        }
    };
    let warnings = ui.warnings();
    let differs = differing(&a, &b)?;
    let is_same = a.hash == b.hash;
    ui.json(|| {
        json!({"hosts": [a.to_json(), b.to_json()], "same": is_same, "warnings": warnings,
            "differs": differs.iter().map(|(path, [a, b])| json!({"path": json_path(path), "there": [a, b]})).collect::<Value>()})
    })?;
    // As a change that leads from the first to the second.
    for (path, there) in &differs {
        let what = match there {
            [true, true] => "M",
            [true, false] => "D",
            [false, _] => "A",
        };
        ui.line(format_args!("{what} {}", shown_path(path)))?;
    }
    for side in [&a, &b] {
        if side.n_more > 0 {
            complain(format_args!(
                "warning: {} more paths of '{}' are not as applied, and not named in its report",
                side.n_more, side.name
            ));
        }
    }
    if !is_same || a.is_partial || b.is_partial {
        ui.exit_with(if is_same { exit::PARTIAL } else { exit::DIFFERENCES });
    }
    let told = b.told.map_or(String::new(), |told| format!(", as it reported at {}", time(told)));
    match is_same {
        true => ui.note(format_args!("'{}' and '{}'{told} are alike in what their type decides", a.name, b.name)),
        false => ui.note(format_args!("'{}' and '{}'{told} differ in {}", a.name, b.name, counted(differs.len(), "path"))),
    }
}

/// One of two hosts.
struct Side<'a> {
    name: String,
    hash: [u8; 32],
    /// What it has, but for what differs from that.
    look: Look<'a>,
    differs: BTreeMap<Vec<u8>, Option<[u8; 32]>>,
    /// Paths that differ and are not named.
    n_more: u64,
    is_partial: bool,
    /// When it was told.
    told: Option<u64>,
}

impl<'a> Side<'a> {
    fn here(repo: &'a Repo, look: Look<'a>) -> Result<Self> {
        Ok(Self {
            name: super::host::name(repo),
            hash: look.fingerprint()?.0,
            differs: BTreeMap::new(),
            n_more: 0,
            is_partial: look.is_partial,
            told: None,
            look,
        })
    }

    fn reported(repo: &'a Repo, name: &str) -> Result<Self> {
        let Told { report, .. } = find(repo, name)?;
        let applied = report.applied.ok_or_else(|| Error::new(Kind::NotFound, format!("'{name}' has nothing applied yet")))?;
        let commit = repo.objects.commit(&applied).map_err(|error| {
            error.wrap(format!("'{name}' has commit {applied}, which is not here; 'gdo fetch' from where its type comes from"))
        })?;
        Ok(Self {
            name: report.name,
            hash: report.fingerprint,
            look: Look::of_tree(repo, commit.tree)?,
            n_more: report.n_drift - report.differs.len() as u64,
            differs: report.differs.into_iter().collect(),
            is_partial: report.is_partial,
            told: Some(report.issued),
        })
    }

    /// Returns the digests of those of `paths` that it has.
    fn digests(&self, paths: &BTreeSet<Vec<u8>>) -> Result<Digests> {
        let mut digests = self.look.digests(paths)?;
        for (path, digest) in &self.differs {
            match digest {
                Some(digest) => drop(digests.insert(path.clone(), *digest)),
                None => drop(digests.remove(path)),
            }
        }
        Ok(digests)
    }

    fn to_json(&self) -> Value {
        json!({"name": self.name, "fingerprint": hex(&self.hash), "told": self.told, "partial": self.is_partial, "not_named": self.n_more})
    }
}

/// Returns the paths that are not alike, and which side has them.
fn differing(a: &Side<'_>, b: &Side<'_>) -> Result<Vec<(Vec<u8>, [bool; 2])>> {
    let mut paths: BTreeSet<Vec<u8>> = a.differs.keys().chain(b.differs.keys()).cloned().collect();
    paths.extend(a.look.differing(&b.look)?.into_iter().map(|(path, _)| path));
    let (is_a, is_b) = (a.digests(&paths)?, b.digests(&paths)?);
    let differs = |path: &Vec<u8>| is_a.get(path) != is_b.get(path);
    Ok(paths
        .into_iter()
        .filter(differs)
        .map(|path| (path.clone(), [is_a.contains_key(&path), is_b.contains_key(&path)]))
        .collect())
}

/// Returns the host that is meant.
pub fn find(repo: &Repo, name: &str) -> Result<Told> {
    let known = reports::known(repo)?;
    let is_meant = |id: &str, told: &Told| told.report.name == name || name.len() >= 4 && id.starts_with(name);
    let mut found: Vec<Told> =
        known.into_iter().filter(|(id, told)| is_meant(&id.to_string(), told)).map(|(_, told)| told).collect();
    match (found.pop(), found.len()) {
        (Some(told), 0) => Ok(told),
        (None, _) => Err(Error::new(
            Kind::NotFound,
            format!("no host '{name}' has reported; 'gdo fleet' lists those that have, 'gdo fetch' brings news"),
        )),
        (Some(_), n) => {
            let message = format!(
                "{} hosts call themselves '{name}'; 'gdo fleet' shows their ids, and 'devops.name' gives them names",
                n + 1
            );
            Err(Error::new(Kind::Conflict, message))
        }
    }
}

pub fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
