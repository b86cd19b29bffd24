//! The refs and their logs as they are on the disk, byte for byte: what git does not write is told from what it does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Oid;
use super::refs::check_ref_name;
use crate::durable::{self, Listed};
use crate::error::{Context, Kind, Result};

/// When a file was written: seconds since 1970, and nanoseconds.
pub type Mtime = (i64, i64);

/// All refs of a repository, but for HEAD.
pub(super) struct RefList {
    /// By their full names.
    pub refs: BTreeMap<String, Value>,
    /// The file `packed-refs`, if it is there.
    pub packed: Option<Packed>,
    /// Where `packed-refs` is not what git writes.
    pub packed_problem: Option<u64>,
}

/// What a ref is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Direct(Oid),
    Symbolic,
    Broken,
}

/// The file `packed-refs`, by its hash: what it says stands in the refs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    pub mtime: Mtime,
    pub hash: blake3::Hash,
}

/// A small file, all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub mtime: Mtime,
    pub content: Vec<u8>,
}

/// Longest file that is read, in bytes: some hundred thousand refs.
pub(super) const MAX_LEN: u64 = 64 << 20;

impl RefList {
    /// Reads all refs.
    pub fn of(git_dir: &Path) -> Result<Self> {
        let mut list = Self { refs: BTreeMap::new(), packed: None, packed_problem: None };
        // Loose ones first: git writes `packed-refs` before it removes them.
        let mut loose = BTreeMap::new();
        for_each_file(&git_dir.join("refs"), "refs", &mut |name, path| {
            if check_ref_name(&name).is_ok()
                && let Some(bytes) = read_if_there(path)?
            {
                loose.insert(name, decode_loose(&bytes));
            }
            Ok(())
        })?;
        if let Some(Copy { mtime, content }) = read_copy(&git_dir.join("packed-refs"))? {
            list.packed = Some(Packed { mtime, hash: blake3::hash(&content) });
            list.packed_problem = decode_packed(&content, &mut list.refs).err();
        }
        list.refs.append(&mut loose);
        Ok(list)
    }
}

/// Adds the refs of a `packed-refs`; fails with where it is not what git writes.
fn decode_packed(bytes: &[u8], refs: &mut BTreeMap<String, Value>) -> std::result::Result<(), u64> {
    let (mut at, mut last) = (0, String::new());
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let refused = Err(at as u64);
        let Some(text) = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok()) else { return refused };
        let is_head = at == 0 && text.starts_with("# pack-refs with: ");
        let is_peeled = text
            .strip_prefix('^')
            .is_some_and(|oid| oid.len() == 40 && Oid::from_hex(oid.as_bytes()).is_ok() && !last.is_empty());
        if !is_head && !is_peeled {
            let Some((oid, name)) = text.split_at_checked(40) else { return refused };
            let Some(name) = name.strip_prefix(' ') else { return refused };
            let Ok(oid) = Oid::from_hex(oid.as_bytes()) else { return refused };
            if check_ref_name(name).is_err() || name <= last.as_str() {
                return refused;
            }
            refs.insert(name.to_owned(), Value::Direct(oid));
            name.clone_into(&mut last);
        }
        at += line.len();
    }
    Ok(())
}

/// Decodes the file of a ref.
pub(super) fn decode_loose(bytes: &[u8]) -> Value {
    if bytes.starts_with(b"ref:") {
        return Value::Symbolic;
    }
    // Strict, where git reads the first 40 digits: it writes these, in lower case, and a line end.
    match bytes.strip_suffix(b"\n").map(Oid::from_hex) {
        Some(Ok(oid)) if oid.kind() == gix_hash::Kind::Sha1 && !bytes.iter().any(u8::is_ascii_uppercase) => Value::Direct(oid),
        _ => Value::Broken,
    }
}

/// Returns the full names of all refs that have a log, but for HEAD.
pub(super) fn names_of_logs(git_dir: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for_each_file(&git_dir.join("logs/refs"), "refs", &mut |name, _| {
        if check_ref_name(&name).is_ok() {
            names.insert(name);
        }
        Ok(())
    })?;
    Ok(names)
}

/// Returns what lies among refs and logs and is neither a directory nor a file that can be that of a ref: the name is none, it is a symlink that does
/// not lead to a file, it cannot be looked at, or it went meanwhile. Fails if a directory cannot be listed.
pub(super) fn strangers(git_dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for dir in ["refs", "logs/refs"] {
        for_each_file(&git_dir.join(dir), "refs", &mut |name, path| {
            found.extend((check_ref_name(&name).is_err() || !durable::is_file(path)).then(|| path.to_owned()));
            Ok(())
        })?;
    }
    // Git looks for logs in all of it: of what is no branch, too, as ORIG_HEAD.
    let logs = git_dir.join("logs");
    let what = || format!("cannot list '{}'", logs.display());
    if durable::find_dir(&logs).context(what)? {
        for Listed { path, is_dir } in durable::list(&logs).context(what)? {
            let is_known = is_dir && path.ends_with("refs") || path.ends_with("HEAD") && durable::is_file(&path);
            found.extend((!is_known).then_some(path));
        }
    }
    Ok(found)
}

/// Hands each file below `dir` to `take`, with the name of its ref. One that is not UTF-8 gets a name that can be that of none.
fn for_each_file(dir: &Path, prefix: &str, take: &mut dyn FnMut(String, &Path) -> Result<()>) -> Result<()> {
    let what = || format!("cannot list '{}'", dir.display());
    if !durable::find_dir(dir).context(what)? {
        return Ok(());
    }
    for Listed { path, is_dir } in durable::list(dir).context(what)? {
        let name = path.file_name().unwrap_or_default();
        let name = format!("{prefix}/{}", name.to_str().unwrap_or("?"));
        match is_dir {
            true => for_each_file(&path, &name, take)?,
            false => take(name, &path)?,
        }
    }
    Ok(())
}

/// Reads a file and its time from one handle: git replaces files by renaming, so that both are of the same version.
pub(super) fn read_copy(path: &Path) -> Result<Option<Copy>> {
    let what = || format!("cannot read '{}'", path.display());
    let file = match durable::open(path) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        other => other.context(what)?,
    };
    let meta = file.metadata().context(what)?;
    let mut content = Vec::new();
    file.take(MAX_LEN).read_to_end(&mut content).context(what)?;
    Ok(Some(Copy { mtime: (meta.mtime(), meta.mtime_nsec()), content }))
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    if !durable::is_file(path) {
        return Ok(None);
    }
    durable::read_if_there(path).context(|| format!("cannot read '{}'", path.display()))
}
