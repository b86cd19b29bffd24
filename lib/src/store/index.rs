//! The index of the store: a list of segments. Derived from the packs; whatever is wrong with it, it is rebuilt.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::lease::lock_list;
use super::pack::{self, ReadAt, TocEntry, corrupt};
use super::segment::{self, Builder, Entry, LastBlock, Segment, SegmentId};
use super::{Layout, Location, list_dir, reference};
use crate::durable;
use crate::endline;
use crate::error::{Context, Error, Kind, Result};
use crate::id::{ChunkId, PackId};

const LIST_HEAD: &str = "git-devops store segments 1\n";
const LIST_NAME: &str = "git-devops store segments ";
/// Longest segment list that is read: some 15,000 segments, where some 40 are usual.
const MAX_LIST: u64 = 1 << 20;
/// New entries are gathered in memory up to this many, then written as a segment.
pub(super) const FLUSH_ENTRIES: usize = 256 << 10;
/// This many segments of a size class are merged into one.
const MERGE_AT: usize = 8;
/// Most segments merged at once, which bounds the memory for their buffers.
const MERGE_MOST: usize = 64;

/// All segments of one moment, loaded.
#[derive(Debug)]
pub(super) struct Index {
    pub segments: Vec<Arc<Segment>>,
    stamp: Stamp,
}

/// What changes when the segment list is replaced.
type Stamp = (u64, u64, i64, i64);

/// An entry of the index, and where in the index it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub segment: usize,
    pub position: u64,
    pub location: Location,
}

impl Index {
    /// Loads the segments that the list names.
    pub fn load(layout: &Layout) -> Result<Self> {
        Self::load_again(layout, &[])
    }

    /// Loads the segments that the list names, but for those that are `loaded` already.
    pub fn load_again(layout: &Layout, loaded: &[Arc<Segment>]) -> Result<Self> {
        loop {
            let stamp = stamp(layout)?;
            let open = |id: SegmentId| match loaded.iter().find(|segment| segment.id == id) {
                Some(segment) => Ok(Arc::clone(segment)),
                None => Segment::open(&layout.index(), id).map(Arc::new),
            };
            match read_list(layout)?.into_iter().map(open).collect() {
                Ok(segments) => return Ok(Self { segments, stamp }),
                // A merge may have replaced a segment between our reading the list and opening it.
                Err(error) if error.kind() == Kind::NotFound && self::stamp(layout)? != stamp => continue,
                Err(error) => return Err(error),
            }
        }
    }

    /// Says whether the list on the disk is still the one that was loaded.
    pub fn is_current(&self, layout: &Layout) -> bool {
        stamp(layout).is_ok_and(|stamp| stamp == self.stamp)
    }

    /// Looks `id` up; the newest segment that lists it answers.
    pub fn find(&self, id: &ChunkId) -> Result<Option<Found>> {
        self.find_from(self.segments.len(), id)
    }

    /// Looks `id` up everywhere: the same chunk may lie in several packs.
    pub fn find_all(&self, id: &ChunkId) -> Result<Vec<Location>> {
        let mut all = Vec::new();
        let mut end = self.segments.len();
        while let Some(found) = self.find_from(end, id)? {
            all.push(found.location);
            end = found.segment;
        }
        Ok(all)
    }

    /// Returns those of the `ids` that are nowhere; sorted ones cost least.
    pub fn lacking(&self, ids: &[ChunkId]) -> Result<Vec<ChunkId>> {
        let mut lacking = ids.to_vec();
        for segment in &self.segments {
            let mut last = LastBlock::default();
            let mut others = Vec::new();
            for id in lacking {
                if segment.find_near(&id, &mut last)?.is_none() {
                    others.push(id);
                }
            }
            lacking = others;
        }
        Ok(lacking)
    }

    fn find_from(&self, end: usize, id: &ChunkId) -> Result<Option<Found>> {
        for (i, segment) in self.segments[..end].iter().enumerate().rev() {
            if let Some((position, entry)) = segment.find(id)? {
                return Ok(Some(Found { segment: i, position, location: location(segment, &entry) }));
            }
        }
        Ok(None)
    }

    /// Returns every pack that is indexed.
    pub fn packs(&self) -> HashSet<PackId> {
        self.segments.iter().flat_map(|segment| segment.packs()).collect()
    }
}

/// Returns what a reader needs to find the chunk of `entry`.
pub(super) fn location(segment: &Segment, entry: &Entry) -> Location {
    let pack = segment.pack(entry.pack);
    Location { pack, offset: entry.offset, stored_len: entry.stored_len, plain_len: entry.plain_len }
}

fn stamp(layout: &Layout) -> Result<Stamp> {
    let path = layout.list();
    let metadata = durable::look(&path).context(|| format!("cannot look at '{}'", path.display()))?;
    Ok((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
}

/// Reads the list of segments.
pub(super) fn read_list(layout: &Layout) -> Result<Vec<SegmentId>> {
    let path = layout.list();
    let what = || format!("cannot read '{}'", path.display());
    let len = durable::look(&path).context(what)?.len();
    if len > MAX_LIST {
        return Err(corrupt(format!("segment list is {len} bytes long, at most {MAX_LIST} are possible")).wrap(what()));
    }
    decode_list(&durable::read(&path).context(what)?).context(what)
}

/// Returns the text that lists `segments`.
pub(super) fn encode_list(segments: &[SegmentId]) -> Vec<u8> {
    let mut text = LIST_HEAD.to_owned();
    for id in segments {
        text += &format!("{id}\n");
    }
    endline::add(text)
}

/// Decodes a segment list; anything unexpected is refused.
pub(super) fn decode_list(bytes: &[u8]) -> Result<Vec<SegmentId>> {
    let bad = || corrupt("segment list is cut short or damaged");
    let body = std::str::from_utf8(endline::strip(bytes).ok_or_else(bad)?).map_err(|_| bad())?;
    let lines = match body.strip_prefix(LIST_HEAD) {
        Some(lines) => lines,
        None if body.starts_with(LIST_NAME) => {
            return Err(Error::new(Kind::Unsupported, "segment list has a newer version; use a newer program"));
        }
        None => return Err(bad()),
    };
    lines
        .split_inclusive('\n')
        .map(|line| {
            let id: PackId = line.strip_suffix('\n').ok_or_else(bad)?.parse().map_err(|_| bad())?;
            Ok(SegmentId(*id.as_bytes()))
        })
        .collect()
}

/// Changes the list of segments, durably; segments it names must be there, and durable is what they tell of.
fn change_list(layout: &Layout, change: impl FnOnce(Vec<SegmentId>) -> Option<Vec<SegmentId>>) -> Result<bool> {
    let _lock = lock_list(layout)?;
    let Some(segments) = change(read_list(layout)?) else { return Ok(false) };
    replace_list(layout, &segments)?;
    Ok(true)
}

/// Writes a new list of segments; the caller sees to it that nobody else does.
pub(super) fn replace_list(layout: &Layout, segments: &[SegmentId]) -> Result<()> {
    durable::sync_dir(&layout.index())?;
    durable::publish(&layout.list(), &encode_list(segments), 0o600)
}

/// Adds `segments` to the list; the caller has a lease.
///
/// One that is not there any more was made by another process, too, listed, and merged into one that is listed now.
pub(super) fn publish(layout: &Layout, segments: &[SegmentId]) -> Result<()> {
    change_list(layout, |mut listed| {
        let is_new = |id: &&SegmentId| !listed.contains(id) && is_there(layout, **id);
        let new: Vec<SegmentId> = segments.iter().filter(is_new).copied().collect();
        listed.extend(new);
        Some(listed)
    })?;
    Ok(())
}

fn is_there(layout: &Layout, id: SegmentId) -> bool {
    durable::is_file(&segment::path_of(&layout.index(), id))
}

/// Removes those of `segments` that are not listed: one that was merged away may have been made and listed again by now, since its name is its content.
fn remove_unlisted(layout: &Layout, segments: impl IntoIterator<Item = SegmentId>) -> Result<()> {
    let _lock = lock_list(layout)?;
    let listed = read_list(layout)?;
    let mut gone = segments.into_iter().filter(|id| !listed.contains(id));
    gone.try_for_each(|id| durable::remove(&segment::path_of(&layout.index(), id)))
}

/// Writes the entries of sealed packs as one segment, and empties `packs`.
pub(super) fn write_segment(layout: &Layout, packs: &mut Vec<(PackId, Vec<TocEntry>)>) -> Result<Option<SegmentId>> {
    let mut entries = Vec::with_capacity(packs.iter().map(|(_, toc)| toc.len()).sum());
    for (i, (_, toc)) in packs.iter().enumerate() {
        entries.extend(toc.iter().map(|e| Entry {
            id: e.id,
            pack: i as u32,
            offset: e.offset,
            stored_len: e.stored_len,
            plain_len: e.plain_len,
        }));
    }
    entries.sort_unstable();
    let ids = std::mem::take(packs).into_iter().map(|(id, _)| id).collect();
    let mut builder = Builder::create(&layout.tmp(), entries.len() as u64, ids)?;
    entries.iter().try_for_each(|entry| builder.push(entry))?;
    builder.publish(&layout.index())
}

/// Merges segments of similar size until there are few; the caller has a lease. Those that are `loaded` already are not read again.
///
/// Nothing is locked meanwhile: if the list changed under us, the merged segment is thrown away.
pub(super) fn merge_segments(layout: &Layout, mut loaded: Vec<Arc<Segment>>) -> Result<()> {
    loop {
        let index = Index::load_again(layout, &loaded)?;
        let inputs = choose_merge(&index.segments);
        if inputs.is_empty() {
            return Ok(());
        }
        let merged = segment::merge(&inputs, &|_| false, &layout.tmp(), &layout.index())?;
        let old: Vec<SegmentId> = inputs.iter().map(|segment| segment.id).collect();
        let is_taken = change_list(layout, |listed| replaced(&listed, &old, merged))?;
        if !is_taken {
            return Ok(());
        }
        remove_unlisted(layout, old)?;
        loaded = index.segments;
    }
}

/// Returns `listed` with `old` replaced by `new`, which takes the place of the first; `None` if some of `old` is not listed.
fn replaced(listed: &[SegmentId], old: &[SegmentId], new: Option<SegmentId>) -> Option<Vec<SegmentId>> {
    if !old.iter().all(|id| listed.contains(id)) {
        return None;
    }
    let rest = listed.iter().filter(|id| !old.contains(id) && Some(**id) != new).copied();
    Some(new.into_iter().chain(rest).collect())
}

/// Returns the segments of the smallest size class that has too many, or none.
fn choose_merge(segments: &[Arc<Segment>]) -> Vec<Arc<Segment>> {
    let class = |segment: &Arc<Segment>| (segment.trailer.n_entries / 1024).max(1).ilog(8);
    (0..=segments.iter().map(class).max().unwrap_or(0))
        .map(|wanted| segments.iter().filter(|segment| class(segment) == wanted).take(MERGE_MOST).cloned().collect())
        .find(|same: &Vec<_>| same.len() >= MERGE_AT)
        .unwrap_or_default()
}

/// Makes the index anew from the packs; the caller has a lease, or excludes them.
///
/// Segments that another process publishes meanwhile stay listed.
pub(super) fn rebuild(layout: &Layout) -> Result<()> {
    let before = read_list(layout).unwrap_or_default();
    let packs = list_packs(layout)?;
    loop {
        let rebuilt = index_packs(layout, packs.iter().map(|pack| pack.id))?;
        let _lock = lock_list(layout)?;
        // Another process that did the same may have merged it already.
        if !rebuilt.iter().all(|id| is_there(layout, *id)) {
            continue;
        }
        let mut segments = rebuilt.clone();
        segments
            .extend(read_list(layout).unwrap_or_default().into_iter().filter(|id| !before.contains(id) && !rebuilt.contains(id)));
        replace_list(layout, &segments)?;
        break;
    }
    remove_unlisted(layout, before)?;
    merge_segments(layout, Vec::new())
}

/// Indexes those of `packs` that `index` does not know: a run that was killed left them, or the list is an earlier one. Says whether there were any; the
/// caller has a lease, or excludes them.
pub(super) fn index_strays(layout: &Layout, index: &Index, packs: &[PackOnDisk]) -> Result<bool> {
    let known = index.packs();
    let segments = index_packs(layout, packs.iter().map(|pack| pack.id).filter(|id| !known.contains(id)))?;
    if segments.is_empty() {
        return Ok(false);
    }
    publish(layout, &segments)?;
    Ok(true)
}

/// Writes segments for `packs` from their tables, without listing them.
pub(super) fn index_packs(layout: &Layout, packs: impl Iterator<Item = PackId>) -> Result<Vec<SegmentId>> {
    let packs: Vec<PackId> = packs.collect();
    // Who wrote a pack may have been killed before its name was durable, and what is indexed is not stored again.
    let dirs: BTreeSet<PathBuf> =
        packs.iter().filter_map(|id| Some(pack::path_of(&layout.packs(), *id).parent()?.to_owned())).collect();
    for dir in dirs {
        match durable::sync_dir(&dir) {
            Err(error) if error.kind() == Kind::NotFound => (),
            other => other?,
        }
    }
    let (mut gathered, mut n_entries, mut segments) = (Vec::new(), 0, Vec::new());
    for id in packs {
        let toc = match read_toc_or_salvage(&pack::path_of(&layout.packs(), id)) {
            Err(error) if error.kind() == Kind::NotFound => continue,
            other => other?,
        };
        n_entries += toc.len();
        gathered.push((id, toc));
        if n_entries >= FLUSH_ENTRIES {
            segments.extend(write_segment(layout, &mut gathered)?);
            n_entries = 0;
        }
    }
    if n_entries > 0 {
        segments.extend(write_segment(layout, &mut gathered)?);
    }
    Ok(segments)
}

/// A pack as the directory shows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackOnDisk {
    pub id: PackId,
    pub len: u64,
    pub modified: SystemTime,
}

/// Returns the packs on the disk.
pub(super) fn list_packs(layout: &Layout) -> Result<Vec<PackOnDisk>> {
    let mut packs = Vec::new();
    for dir in list_dir(&layout.packs())? {
        for path in list_dir(&dir)? {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(id) = name.strip_suffix(".pack").and_then(|name| name.parse().ok()) {
                let what = || format!("cannot look at '{}'", path.display());
                let metadata = durable::look(&path).context(what)?;
                packs.push(PackOnDisk { id, len: metadata.len(), modified: metadata.modified().context(what)? });
            }
        }
    }
    Ok(packs)
}

/// Reads the table of a pack.
pub(super) fn read_toc(path: &Path) -> Result<Vec<TocEntry>> {
    let what = || format!("cannot read the table of chunk pack '{}'", path.display());
    if is_reference(path).context(what)? {
        return Ok(reference::read(path)?.entries);
    }
    with_pack(path, pack::read_toc).context(what)
}

/// Says whether the pack at `path` tells where chunks lie, and does not hold them.
pub(super) fn is_reference(path: &Path) -> Result<bool> {
    let mut magic = [0; 8];
    match durable::open(path)?.read_exact_at(&mut magic, 0) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        other => Ok(other.map(|()| reference::is_reference(&magic))?),
    }
}

/// Reads the trailer of a pack, which tells whether the pack has its right length.
pub(super) fn read_trailer(path: &Path) -> Result<pack::Trailer> {
    with_pack(path, pack::read_trailer).context(|| format!("cannot read the end of chunk pack '{}'", path.display()))
}

/// Opens the file of a pack, and hands its length to `then`, and what reads it.
pub(super) fn with_pack<T>(path: &Path, then: impl FnOnce(u64, ReadAt<'_>) -> Result<T>) -> Result<T> {
    let file = durable::open(path)?;
    let len = file.metadata()?.len();
    then(len, &|at, bytes| Ok(file.read_exact_at(bytes, at)?))
}

/// Reads the table of a pack, or what can be found in a pack whose table is damaged.
fn read_toc_or_salvage(path: &Path) -> Result<Vec<TocEntry>> {
    match read_toc(path) {
        Err(error) if error.kind() == Kind::Corrupt => {
            let len = durable::look(path).context(|| format!("cannot look at '{}'", path.display()))?.len();
            // Not without what the disk does not give now: it may the next time, and nobody would look again.
            let bytes = match len <= pack::MAX_PACK {
                true => durable::read(path).context(|| format!("cannot read chunk pack '{}'", path.display()))?,
                false => Vec::new(),
            };
            Ok(pack::salvage(&bytes))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn a_segment_that_another_process_makes_again_while_it_is_merged_away_stays_if_it_is_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(&dir.path().join("store")).unwrap();
        let layout = store.layout();
        rebuild(layout).unwrap();
        let segment = |n: u8| {
            let toc = vec![TocEntry { id: ChunkId::from_bytes([n; 32]), offset: 8, stored_len: 1, plain_len: 1 }];
            let mut packs = vec![(PackId::from_bytes([n; 32]), toc)];
            write_segment(layout, &mut packs).unwrap().unwrap()
        };
        let (one, other) = (segment(1), segment(2));
        publish(layout, &[one]).unwrap();
        // It is merged away; before its file goes, somebody else made and listed the very same.
        change_list(layout, |_| Some(vec![other])).unwrap();
        assert_eq!(segment(1), one);
        publish(layout, &[one]).unwrap();
        remove_unlisted(layout, [one]).unwrap();
        assert!(is_there(layout, one) && read_list(layout).unwrap().contains(&one));
        // Or it was made again before, and is to be listed when its file went.
        change_list(layout, |_| Some(vec![other])).unwrap();
        remove_unlisted(layout, [one]).unwrap();
        assert!(!is_there(layout, one));
        publish(layout, &[one]).unwrap();
        assert_eq!(read_list(layout).unwrap(), [other]);
        Index::load(layout).unwrap();
    }
}
