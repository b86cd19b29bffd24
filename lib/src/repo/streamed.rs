//! Records a stream as the content of a file that need not be on the disk.

use std::io::Read;
use std::sync::{Mutex, PoisonError};

use super::attributes::Ownership;
use super::exclude::{ExcludeOptions, Excludes};
use super::hand_over::{HandOver, HandOverOptions};
use super::scan::{self, Found, ScanOptions, Scope, Sink, Staged};
use super::stage::{Beside, CommitInfo, Line, Recorded, record_with};
use super::{Repo, next, wip};
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::git::index::{CachedStat, Index};
use crate::git::name;
use crate::git::object::{EXECUTABLE, FILE};
use crate::metadata::{DirMetadata, Metadata};
use crate::progress::Progress;
use crate::safepath::{self, FileKind};

/// Stages what `input` gives until it ends as the content of the file at `path`, and, if `commit` is given, commits all that is staged.
///
/// What is on the disk is not looked at; where nothing is, nothing is missed there until somebody restores the file. Chunks are handed over as `how`
/// says, as [`record_handing_over`](super::stage::record_handing_over) does, or stored.
pub fn record_stream(
    repo: &Repo,
    path: &[u8],
    input: &mut (dyn Read + Send),
    commit: Option<&CommitInfo>,
    how: Option<&HandOverOptions>,
    progress: &Progress,
) -> Result<Recorded> {
    let lock = repo.lock()?;
    wip::must_not_be(repo)?;
    next::must_not_be(repo)?;
    check_stream(repo, path)?;
    let stored = name::stored_path(path).into_owned();
    let hand_over = how.map(|how| HandOver::begin(repo, &lock, how)).transpose()?;
    let input = Mutex::new(input);
    let extra = |_: &Found, sink: Sink<'_>| {
        let mut input = input.lock().unwrap_or_else(PoisonError::into_inner);
        let (oid, index) = (scan::read_stream(repo, path, &mut **input, sink, progress)?, repo.index()?);
        let mode = index.lookup(&stored).map(|position| index.entry(position).mode).filter(|mode| *mode == EXECUTABLE);
        let staged = Staged { path: stored.clone(), oid, mode: mode.unwrap_or(FILE), stat: CachedStat::default() };
        Ok(metadata_of_stream(repo, &index, path, sink)?.into_iter().chain([staged]).collect())
    };
    let excludes = Excludes::new(ExcludeOptions::default(), &repo.places.git_dir.join("info/exclude"))?;
    let options = ScanOptions { scope: Scope::Paths(Vec::new()), excludes, one_file_system: false, by_reference: false };
    let beside = Beside { extra: &extra, absent: Some(&stored), hand_over: hand_over.as_ref() };
    record_with(repo, &lock, &Line::of_head(repo)?, &options, commit, &beside, progress)
}

/// The mode of a file that came from a stream and of which nothing is recorded.
const PRIVATE: u16 = 0o600;

/// Returns the metadata files that a stream at `path` needs: its directories are known from now on, and what is recorded of the file stays, but for what
/// its old content was like.
fn metadata_of_stream(repo: &Repo, index: &Index, path: &[u8], sink: Sink<'_>) -> Result<Vec<Staged>> {
    let (parent, entry_name) = scan::split(path);
    let attributes = repo.attributes(index)?;
    let mut staged = Vec::new();
    let mut above = Some(parent);
    while let Some(dir) = above {
        above = (!dir.is_empty()).then(|| scan::split(dir).0);
        let position = index.lookup(&name::meta_path(dir));
        let mut recorded = match position {
            Some(position) => repo.read_dir_metadata(&index.entry(position).oid, dir)?,
            None => {
                let own = scan::dir_on_the_way(repo, &attributes, dir)?;
                let own = own.unwrap_or_else(|| Metadata { partial: true, ..Metadata::new(FileKind::Dir) });
                DirMetadata { dir: own, ..DirMetadata::new() }
            }
        };
        if dir == parent {
            let is_known = index.lookup(&name::stored_path(path)).is_some();
            match recorded.entries.get_mut(entry_name) {
                None if is_known => (),
                Some(known) if known.kind == FileKind::File && known.hardlink.is_none() => {
                    (known.holes, known.mtime) = (Vec::new(), None);
                }
                _ => {
                    let private = Metadata { mode: PRIVATE, ..Metadata::new(FileKind::File) };
                    recorded.entries.insert(entry_name.to_vec(), private);
                }
            }
        } else if position.is_some() {
            continue;
        }
        let stat = position.map(|position| index.entry(position).stat).unwrap_or_default();
        staged.push(Staged { path: name::meta_path(dir), oid: sink.blob(&recorded.encode())?, mode: FILE, stat });
    }
    Ok(staged)
}

/// Refuses a path that a stream cannot be stored at.
fn check_stream(repo: &Repo, path: &[u8]) -> Result<()> {
    let what = || format!("cannot store a stream at '{}'", scan::shown(path));
    let refused = |why: &str| Err(Error::new(Kind::Usage, why)).context(what);
    if path.is_empty() {
        return refused("it is the work tree itself");
    }
    safepath::check_path(path).context(what)?;
    let is_in = |own: &Vec<u8>| path.strip_prefix(&own[..]).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
    if repo.places.own_paths().iter().any(is_in) {
        let lies = "it lies in a directory that is our own";
        return Err(Error::refused(Reason::PathDenied, lies)).context(what);
    }
    if name::is_ours(&name::stored_path(path)) {
        return refused("git takes no file of that name");
    }
    let index = repo.index()?;
    if scan::recorded_below(&index, path).iter().any(|range| !range.is_empty()) {
        return refused("it is a directory");
    }
    let above = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| &path[..at]);
    if above.into_iter().any(|dir| index.lookup(&name::stored_path(dir)).is_some()) {
        return refused("a directory above it is a file");
    }
    match repo.attributes(&index)?.policy(path).ownership {
        Ownership::Own => Ok(()),
        _ => refused("the attributes say that its content is not simply that of the disk"),
    }
}
