//! Files that are rendered from templates are laid down anew when what fills them changes, though no commit does.
//!
//! A note in the state says what was rendered last: who finds anything else on the disk finds what somebody did by hand.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::Host;
use super::halt::{Halt, Why};
use super::plan::{Step, are, attributes_of, first};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::git::Oid;
use crate::git::name::{Stored, work_path};
use crate::metadata::{escaped, unescaped};
use crate::progress::Progress;
use crate::repo::Repo;
use crate::repo::attributes::Ownership;
use crate::repo::restore::{ExchangeOptions, exchange};
use crate::repo::scan::{shown, split};
use crate::safepath::{Dir, FileKind};

const NOTE: &str = "rendered";
const HEAD: &str = "git-devops rendered 1\n";
/// Templates are small files, and so is what becomes of them: see `Laying::content`.
const MAX_FILE: u64 = 64 << 20;

impl Host<'_> {
    /// Makes all rendered files of `tree`, which is applied, what their templates say now; returns which were not.
    pub(super) fn render_anew(&mut self, tree: Oid, dry_run: bool, progress: &Progress) -> Step<Vec<Vec<u8>>> {
        let attributes = attributes_of(self.repo, tree)?;
        let index = self.repo.index()?;
        let files = index.iter().filter_map(|entry| match work_path(entry.path) {
            Stored::File(path) => Some(path.to_vec()),
            Stored::Alt(path) => Some(path),
            Stored::Meta(_) | Stored::Other => None,
        });
        let paths: Vec<Vec<u8>> = files.filter(|path| attributes.policy(path).ownership == Ownership::Env).collect();
        if paths.is_empty() {
            return Ok(paths);
        }
        let mut noted = read_note(&self.state())?;
        let how = ExchangeOptions { dry_run: true, ignores_times: true, allow_type_change: false, seen: None };
        let found = exchange(self.repo, (tree, tree), &paths, &*self.repo.laying, how, &Progress::default())?;
        let differ: Vec<Vec<u8>> = found.steps.iter().map(|step| step.path.clone()).collect();
        let root = Dir::open(&self.repo.places.work_tree)?;
        let mut by_hand = Vec::new();
        for path in &differ {
            let is_ours = match look_at(&root, path)? {
                There::Nothing => true,
                There::File(hash) => noted.get(path) == Some(&hash),
                There::Other => false,
            };
            by_hand.extend((!is_ours).then(|| format!("'{}'", shown(path))));
        }
        if !by_hand.is_empty() {
            let what = format!("{} rendered from a template, and not as it was laid down", are(by_hand.len()));
            let ways = [
                ("gdo env explain PATH", "shows what fills it"),
                ("gdo fix PATH", "lays down what the template says"),
                ("gdo up", "goes on then"),
            ];
            return Err(Halt::new(Why::Drift, what, &ways).with(first(by_hand)).into());
        }
        if dry_run {
            return Ok(differ);
        }
        if !differ.is_empty() {
            let mut handlers: Vec<String> = differ.iter().flat_map(|path| attributes.policy(path).handlers).collect();
            handlers.sort();
            handlers.dedup();
            let (count, by) = (differ.len().to_string(), self.call.by.clone());
            self.note("fixed", &[("what", "rendered"), ("paths", &count), ("handlers", &handlers.join(",")), ("by", &by)])?;
            let how = ExchangeOptions { dry_run: false, seen: Some(&found.seen), ..how };
            exchange(self.repo, (tree, tree), &differ, &self.laying(), how, progress)?;
        }
        let before = noted.clone();
        noted.clear();
        for path in paths {
            if let There::File(hash) = look_at(&root, &path)? {
                noted.insert(path, hash);
            }
        }
        if noted != before {
            self.write_note(&noted)?;
        }
        Ok(differ)
    }

    fn write_note(&self, noted: &BTreeMap<Vec<u8>, String>) -> Result<()> {
        let mut text = HEAD.as_bytes().to_vec();
        for (path, hash) in noted {
            text.extend([hash.as_bytes(), b" ", &escaped(path), b"\n"].concat());
        }
        durable::publish(&self.state().join(NOTE), &text, 0o600)
    }
}

fn read_note(state: &Path) -> Result<BTreeMap<Vec<u8>, String>> {
    let path = state.join(NOTE);
    let what =
        || format!("cannot read '{}'; remove it, and put right by hand what 'gdo up' takes for a change by hand", path.display());
    let Some(bytes) = durable::read_if_there(&path).context(what)? else { return Ok(BTreeMap::new()) };
    decode(&bytes).ok_or_else(|| Error::new(Kind::Corrupt, "it is damaged")).context(what)
}

/// Says whether the file at `path` is what was rendered last, whatever its template would become now.
pub(super) fn is_untouched(repo: &Repo, path: &[u8]) -> Result<bool> {
    let Some(noted) = read_note(&repo.places.state)?.remove(path) else { return Ok(false) };
    let root = Dir::open(&repo.places.work_tree)?;
    Ok(matches!(look_at(&root, path)?, There::File(hash) if hash == noted))
}

pub(super) fn decode(bytes: &[u8]) -> Option<BTreeMap<Vec<u8>, String>> {
    let lines = bytes.strip_prefix(HEAD.as_bytes())?.split_inclusive(|&b| b == b'\n');
    let line = |line: &[u8]| {
        let (hash, path) = line.strip_suffix(b"\n")?.split_at_checked(64)?;
        let hash = std::str::from_utf8(hash).ok()?.to_owned();
        Some((unescaped(path.strip_prefix(b" ")?).ok()?, hash))
    };
    lines.map(line).collect()
}

/// What lies where a rendered file belongs.
enum There {
    Nothing,
    /// A regular file, with this BLAKE3.
    File(String),
    /// Something that nobody rendered: no regular file, or one behind a symlink.
    Other,
}

fn look_at(root: &Dir, path: &[u8]) -> Result<There> {
    let (parent, name) = split(path);
    let mut dir = root.try_clone()?;
    for above in parent.split(|&b| b == b'/').filter(|_| !parent.is_empty()) {
        match dir.stat(above)?.map(|stat| stat.kind) {
            None => return Ok(There::Nothing),
            Some(FileKind::Dir) => dir = dir.open_dir(above)?,
            Some(_) => return Ok(There::Other),
        }
    }
    match dir.stat(name)?.map(|stat| stat.kind) {
        None => return Ok(There::Nothing),
        Some(FileKind::File) => (),
        Some(_) => return Ok(There::Other),
    }
    let mut hasher = blake3::Hasher::new();
    let mut file = dir.open_file(name)?.take(MAX_FILE);
    let mut buffer = vec![0; 64 << 10];
    while let n @ 1.. = file.read(&mut buffer)? {
        hasher.update(&buffer[..n]);
    }
    Ok(There::File(hasher.finalize().to_hex().to_string()))
}
