//! What an entry of a source holds, to be compared with the disk and written there.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;

use super::Repo;
use super::tree::Item;
use crate::error::{Error, Kind, Reason, Result};
use crate::file::index::ChunkIndex;
use crate::file::read;
use crate::file::write::{ChunkSink, cut_file};
use crate::git::ObjectKind;
use crate::git::object::object_id;
use crate::metadata;
use crate::progress::Progress;
use crate::safepath::{Dir, FileKind, Stat};

/// The content of an entry, as far as it is needed to compare and to write it.
pub(super) enum Content {
    Small(Vec<u8>),
    Large(ChunkIndex),
    Link(Vec<u8>),
    Node,
}

impl Content {
    /// Reads the content of `item`.
    pub fn of(repo: &Repo, item: &Item) -> Result<Self> {
        let Some(oid) = item.content else { return Ok(Self::Node) };
        let bytes = repo.objects.blob(&oid)?;
        Ok(match item.metadata.kind {
            FileKind::Symlink => Self::Link(bytes),
            _ if ChunkIndex::is_index(&bytes) => {
                Self::Large(ChunkIndex::decode(&bytes).map_err(|error| error.or_refused(Reason::Index))?)
            }
            _ => Self::Small(bytes),
        })
    }

    /// Says whether an entry of this type could have this content.
    pub fn is_kind(&self, item: &Item, kind: FileKind) -> bool {
        match self {
            Self::Small(_) | Self::Large(_) => kind == FileKind::File,
            Self::Link(_) => kind == FileKind::Symlink,
            Self::Node => kind == item.metadata.kind,
        }
    }

    /// Says whether the entry `name` of `dir`, which is of the right type, has this content; a regular file is returned open.
    pub fn is_in(
        &self,
        repo: &Repo,
        (dir, name): (&Dir, &[u8]),
        stat: &Stat,
        item: &Item,
        buffer: &mut Vec<u8>,
    ) -> Result<(bool, Option<File>)> {
        match self {
            Self::Link(target) => Ok((dir.read_link(name)? == *target, None)),
            Self::Node => {
                let is_device = matches!(stat.kind, FileKind::Char | FileKind::Block);
                Ok((!is_device || item.metadata.rdev == Some(stat.rdev), None))
            }
            Self::Small(bytes) => {
                let file = dir.open_file(name)?;
                let is_same = stat.size == bytes.len() as u64 && {
                    read_all(&file, stat, buffer)?;
                    *buffer == *bytes && holes_of(&file, stat)? == item.metadata.holes
                };
                Ok((is_same, Some(file)))
            }
            Self::Large(index) => {
                let file = dir.open_file(name)?;
                let is_same = stat.size == index.size && has_same_chunks(repo, index, &file, stat)?;
                Ok((is_same, Some(file)))
            }
        }
    }
}

/// Returns the regular file `name` of `dir` if it holds just the bytes that are stored of `item`, as they are: known by their name alone, so that they
/// need not be read.
///
/// Of a large file the bytes that are stored are its chunk index, and never those of the file. One that cannot be read, or that nobody may name, is not it.
pub(super) fn file_as_stored(
    repo: &Repo,
    (dir, name): (&Dir, &[u8]),
    stat: &Stat,
    item: &Item,
    buffer: &mut Vec<u8>,
) -> Option<File> {
    let is_file = item.metadata.kind == FileKind::File && stat.kind == FileKind::File;
    let oid = item.content.filter(|_| is_file && stat.size < repo.settings.threshold)?;
    let file = dir.open_file(name).ok()?;
    read_all(&file, stat, buffer).ok()?;
    let is_it = buffer.len() as u64 == stat.size
        && !ChunkIndex::is_index(buffer)
        && object_id(ObjectKind::Blob, buffer).ok()? == oid
        && holes_of(&file, stat).ok()? == item.metadata.holes;
    is_it.then_some(file)
}

/// Reads a file that has as many bytes as `stat` says, or one more than that if there are more.
fn read_all(mut file: &File, stat: &Stat, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    file.rewind()?;
    file.take(stat.size + 1).read_to_end(buffer)?;
    Ok(())
}

fn has_same_chunks(repo: &Repo, index: &ChunkIndex, file: &File, stat: &Stat) -> Result<bool> {
    let holes = holes_of(file, stat)?;
    let n_threads = repo.settings.n_threads;
    // Without its lists, which may be at other hosts alone, the file must be cut once more.
    read::is_in_file(&repo.chunks, index, file, &holes, n_threads).or_else(|_| {
        let found = cut_file(file, stat.size, &holes, &index.chunker, ChunkSink::Discard, n_threads, &Progress::default())?;
        Ok(found == *index)
    })
}

fn holes_of(file: &File, stat: &Stat) -> Result<Vec<(u64, u64)>> {
    if stat.blocks.saturating_mul(512) < stat.size { metadata::holes(file, stat.size) } else { Ok(Vec::new()) }
}

/// Writes a small file and leaves its holes.
pub(super) fn write_around(file: &File, bytes: &[u8], holes: &[(u64, u64)]) -> Result<()> {
    let mut at = 0;
    let end = bytes.len() as u64;
    for &(hole, len) in holes.iter().chain([&(end, 0)]) {
        if hole < at || hole > end || len > end - hole {
            return Err(Error::new(Kind::Corrupt, "its recorded holes do not fit its size"));
        }
        file.write_all_at(&bytes[at as usize..hole as usize], at)?;
        at = hole + len;
    }
    Ok(file.set_len(end)?)
}
