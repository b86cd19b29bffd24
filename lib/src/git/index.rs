//! The git index: what is staged, and what the disk looked like when we last read it.
//!
//! In memory an index is the bytes of its file, plus four bytes per entry that say where it starts; entries are decoded
//! when they are looked at. Versions 2, 3 and 4 are read (git may have rewritten it); 2 is written, or 3 where an
//! entry needs it. Extensions are dropped: a cached tree that no longer fits would make git commit the wrong one.
//!
//! The disk cache follows git's rules, so that `git status` finds our entries clean: see [`CachedStat`] and [`Index::is_racy`].

use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha1dc::Hasher;

use super::object::{GITLINK, oid_from};
use super::roots::Root;
use super::{ObjectKind, Oid, name};
use crate::durable;
use crate::error::{Context, Error, Kind, Result};
use crate::safepath::Stat;

/// The entries of an index, sorted by stored path, without unmerged ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// A header that is filled in when written, then the entries as version 3 has them, each padded.
    bytes: Vec<u8>,
    /// Where each entry starts in `bytes`.
    starts: Vec<u32>,
    /// The file that this was read from, all zero if there was none; `None` if it comes from elsewhere.
    stamp: Option<IndexStamp>,
    /// Whether the disk cache may have been changed by others, so that it vouches for nothing.
    is_doubted: bool,
    /// The tree of the entries, where somebody knows it.
    tree: Option<Oid>,
    /// Whether git noted more in it, which may name objects, too.
    has_extensions: bool,
}

/// The last bytes of an index file: the hash of all before them.
pub(super) type Checksum = [u8; TRAILER_LEN];

/// Tells one index file from another: what it says of itself, and what the file system says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexStamp {
    /// The file's own checksum, its last bytes.
    pub checksum: Checksum,
    /// When it was written: seconds since 1970, and nanoseconds.
    pub mtime: (i64, i64),
}

/// One entry of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry<'a> {
    /// Path in the commit, see [`name::stored_path`].
    pub path: &'a [u8],
    /// The blob that is staged.
    pub oid: Oid,
    /// File type and the executable bit: `0o100644`, `0o100755`, `0o120000` or `0o160000`.
    pub mode: u32,
    /// What the file looked like when its content was that blob.
    pub stat: CachedStat,
    /// The path is not in the work tree, and is not missed there; always set below `.git-devops/`.
    pub skip_worktree: bool,
    /// The path is announced, its content is not staged yet (`git add -N`).
    pub intent_to_add: bool,
}

/// What the index remembers of a `stat`, in git's own 32 bits per field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CachedStat {
    /// Seconds and nanoseconds of the last change of content or metadata.
    pub ctime: (u32, u32),
    /// Seconds and nanoseconds of the last change of content.
    pub mtime: (u32, u32),
    /// Device number; kept for git, never compared: it changes from boot to boot.
    pub dev: u32,
    /// Low half of the inode number.
    pub ino: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length, munged as git does: see [`CachedStat::of`].
    pub size: u32,
}

impl CachedStat {
    /// Returns what the index remembers of `stat`.
    ///
    /// The size is the low 32 bits of the length, but 2 GiB for a non-zero multiple of 4 GiB: zero means "look at the content".
    pub fn of(stat: &Stat) -> Self {
        let size = match stat.size as u32 {
            0 if stat.size != 0 => 0x8000_0000,
            low => low,
        };
        Self {
            ctime: (stat.ctime.secs as u32, stat.ctime.nanos),
            mtime: (stat.mtime.secs as u32, stat.mtime.nanos),
            dev: Self::short_dev(stat.dev),
            ino: stat.ino as u32,
            uid: stat.uid,
            gid: stat.gid,
            size,
        }
    }

    /// Returns the 32 bits that git keeps of a device number.
    pub fn short_dev(dev: (u32, u32)) -> u32 {
        rustix::fs::makedev(dev.0, dev.1) as u32
    }

    /// Says whether `stat` shows no sign of a change since; a file in the racy second can still have changed.
    pub fn matches(&self, stat: &Stat) -> bool {
        Self { dev: self.dev, ..Self::of(stat) } == *self
    }
}

impl IndexEntry<'_> {
    /// Says whether it has something that version 2 has no place for.
    pub(super) fn is_extended(&self) -> bool {
        self.skip_worktree || self.intent_to_add
    }
}

impl Index {
    /// Reads the index file at `path`; a missing one is empty.
    pub fn read(path: &Path) -> Result<Self> {
        let what = || format!("cannot read index '{}'", path.display());
        let mut file = match durable::open(path) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(Self::default().of_no_file()),
            other => other.context(what)?,
        };
        let stat = file.metadata().context(what)?;
        if stat.len() > MAX_FILE {
            return Err(Error::new(Kind::Unsupported, "it is larger than 4 GiB").wrap(what()));
        }
        let mut bytes = Vec::with_capacity(stat.len() as usize);
        io::Read::read_to_end(&mut file, &mut bytes).context(what)?;
        let stamp =
            IndexStamp { checksum: bytes.last_chunk().copied().unwrap_or_default(), mtime: (stat.mtime(), stat.mtime_nsec()) };
        let mut index = Self::decode(bytes).map_err(|error| {
            let remedy = match error.kind() {
                Kind::Corrupt => "; remove the file, it is rebuilt from HEAD",
                _ => "",
            };
            error.wrap(format!("{}{remedy}", what()))
        })?;
        index.stamp = Some(stamp);
        Ok(index)
    }

    /// Reads the checksum alone of the index file at `path`; `None` if there is no file.
    pub(super) fn read_checksum(path: &Path) -> Result<Option<Checksum>> {
        let mut file = match durable::open(path) {
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            other => other?,
        };
        let mut bytes = Vec::new();
        let start = file.metadata()?.len().saturating_sub(TRAILER_LEN as u64);
        io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
        io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok(Some(bytes.last_chunk().copied().unwrap_or_default()))
    }

    /// Decodes the bytes of an index file.
    pub fn decode(bytes: Vec<u8>) -> Result<Self> {
        let (version, n_entries, end) = check_frame(&bytes)?;
        match version {
            2 | 3 => Self::scan(bytes, n_entries, end),
            _ => Self::expand(&bytes[..end], n_entries),
        }
    }

    /// Returns the stamp of the file that this was read from; all zero if there was none.
    pub fn stamp(&self) -> IndexStamp {
        self.stamp.unwrap_or_default()
    }

    /// Notes that this stands for an index file that was looked for and is not there.
    #[must_use]
    pub fn of_no_file(self) -> Self {
        Self { stamp: Some(IndexStamp::default()), ..self }
    }

    /// Says whether it came from a file, or from the lack of one, and not from elsewhere.
    pub(super) fn is_read(&self) -> bool {
        self.stamp.is_some()
    }

    /// Returns the checksum of the file that this was read from; `None` if there was none.
    pub(super) fn checksum(&self) -> Option<Checksum> {
        self.stamp.filter(|stamp| *stamp != IndexStamp::default()).map(|stamp| stamp.checksum)
    }

    /// Takes the disk cache for worthless: somebody else wrote it, who knows nothing of owners and attributes.
    pub fn doubt(&mut self) {
        self.is_doubted = true;
    }

    /// Returns an entry of this index as one of an index that is believed: without what a doubted one remembers of the file.
    pub fn believed<'a>(&self, entry: IndexEntry<'a>) -> IndexEntry<'a> {
        if self.is_doubted { IndexEntry { stat: CachedStat::default(), ..entry } } else { entry }
    }

    /// Says whether [`Self::doubt`] was called.
    pub fn is_doubted(&self) -> bool {
        self.is_doubted
    }

    /// Returns the tree that the entries make, if that is known.
    pub fn tree(&self) -> Option<Oid> {
        self.tree
    }

    /// Notes the tree that the entries make, or that nobody knows.
    #[must_use]
    pub fn with_tree(self, tree: Option<Oid>) -> Self {
        Self { tree, ..self }
    }

    /// Returns what the index leads to: objects that have to be here. `None` if only git can say what that is.
    pub fn roots(&self) -> Option<Vec<Root>> {
        match self.tree {
            Some(tree) => Some(vec![(Some(ObjectKind::Tree), tree)]),
            None if self.has_extensions => None,
            // A commit of another repository need not be here.
            None => {
                let files = self.iter().filter(|entry| entry.mode != GITLINK);
                Some(files.map(|entry| (Some(ObjectKind::Blob), entry.oid)).collect())
            }
        }
    }

    /// Says whether the file of entry `at` is as it was when it was stored, by the word of `stat` alone.
    pub fn vouches_for(&self, at: usize, stat: &Stat) -> bool {
        !self.is_doubted && self.entry(at).stat.matches(stat)
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Says whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Returns entry number `at`, which is below [`Self::len`].
    pub fn entry(&self, at: usize) -> IndexEntry<'_> {
        let raw = RawEntry::decode(&self.bytes[self.starts[at] as usize..]).expect("BUG: an entry was checked when it was read");
        raw.entry()
    }

    /// Returns all entries, in the order of their paths.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = IndexEntry<'_>> + DoubleEndedIterator {
        (0..self.len()).map(|at| self.entry(at))
    }

    /// Returns the number of the entry at exactly `path`.
    pub fn lookup(&self, path: &[u8]) -> Option<usize> {
        let at = self.partition(|entry| entry < path);
        self.is_at(at, path).then_some(at)
    }

    /// Returns the number of the first entry that does not come before `path`; all before `from` do, and it is the quicker the nearer that is.
    ///
    /// So a directory's names, asked for in their order, are found in a step each.
    pub fn position_from(&self, from: usize, path: &[u8]) -> usize {
        self.gallop(from, |entry| entry < path)
    }

    /// Says whether entry `at`, which may be the end, has exactly this path.
    pub fn is_at(&self, at: usize, path: &[u8]) -> bool {
        at < self.len() && self.path(at) == path
    }

    /// Says whether there is an entry below the directory `dir`, whose name is not empty; none of those before `from` is.
    pub fn has_below(&self, from: usize, dir: &[u8]) -> bool {
        let at = self.gallop(from, |path| is_before(path, dir, b'/'));
        at < self.len() && self.path(at).strip_prefix(dir).is_some_and(|rest| rest.first() == Some(&b'/'))
    }

    /// Returns the numbers of the entries below the directory `dir`; empty means all.
    pub fn range(&self, dir: &[u8]) -> Range<usize> {
        if dir.is_empty() {
            return 0..self.len();
        }
        // A slash sorts just before a zero: what lies between `dir/` and `dir0` is below `dir`.
        self.partition(|path| is_before(path, dir, b'/'))..self.partition(|path| is_before(path, dir, b'/' + 1))
    }

    /// Says whether the file of entry `at` could have changed after we read it without its times showing it.
    ///
    /// Such an entry's content is looked at again, whatever [`CachedStat::matches`] says, and it is written back only
    /// after that: a new index has a new time, and the doubt would be gone.
    pub fn is_racy(&self, at: usize) -> bool {
        i64::from(self.entry(at).stat.mtime.0) >= self.stamp().mtime.0
    }

    /// Returns how many bytes entry `at` takes in the file.
    pub(super) fn entry_len(&self, at: usize) -> usize {
        self.starts.get(at + 1).map_or(self.bytes.len(), |next| *next as usize) - self.starts[at] as usize
    }

    /// Returns how many bytes the entries take in the file.
    pub(super) fn entries_len(&self) -> usize {
        self.bytes.len().saturating_sub(HEADER_LEN)
    }

    fn path(&self, at: usize) -> &[u8] {
        self.path_at(self.starts[at])
    }

    /// Returns the path of the entry that starts at this byte.
    fn path_at(&self, start: u32) -> &[u8] {
        path_of(&self.bytes[start as usize..]).expect("BUG: an entry was checked when it was read")
    }

    /// Returns the first position from `from` on for which `is_before` does not hold, in steps that double.
    fn gallop(&self, from: usize, is_before: impl Fn(&[u8]) -> bool) -> usize {
        let (mut start, mut step) = (from, 1);
        while start + step < self.len() && is_before(self.path(start + step)) {
            start += step;
            step *= 2;
        }
        let end = self.len().min(start + step + 1);
        start + self.starts[start..end].partition_point(|at| is_before(self.path_at(*at)))
    }

    fn partition(&self, is_before: impl Fn(&[u8]) -> bool) -> usize {
        self.starts.partition_point(|start| is_before(self.path_at(*start)))
    }

    /// Takes over the bytes of version 2 or 3 as they are.
    fn scan(mut bytes: Vec<u8>, n_entries: usize, end: usize) -> Result<Self> {
        let mut starts = Vec::with_capacity(n_entries);
        let mut at = HEADER_LEN;
        let mut last: &[u8] = b"";
        for _ in 0..n_entries {
            let raw = RawEntry::decode(&bytes[at..end]).ok_or_else(|| corrupt(at))?;
            let length = raw.padded_len();
            let padding = bytes[at..end].get(raw.unpadded_len()..length).ok_or_else(|| corrupt(at))?;
            if padding.iter().any(|&b| b != 0) {
                return Err(corrupt(at));
            }
            raw.check(last, at)?;
            last = raw.path;
            starts.push(at as u32);
            at += length;
        }
        let has_extensions = at < end;
        check_extensions(&bytes[at..end], at)?;
        bytes.truncate(at);
        Ok(Self { bytes, starts, has_extensions, ..Self::default() })
    }

    /// Undoes the prefix compression of version 4.
    fn expand(bytes: &[u8], n_entries: usize) -> Result<Self> {
        let mut builder = IndexBuilder::default();
        let mut path: Vec<u8> = Vec::new();
        let mut at = HEADER_LEN;
        let limit = bytes.len().saturating_mul(MAX_EXPANSION);
        for _ in 0..n_entries {
            let fixed = Fixed::decode(&bytes[at..]).ok_or_else(|| corrupt(at))?;
            let rest = &bytes[at + fixed.len()..];
            let (n_dropped, used) = decode_varint(rest).ok_or_else(|| corrupt(at))?;
            let n_kept = path.len().checked_sub(n_dropped).ok_or_else(|| corrupt(at))?;
            let suffix = &rest[used..];
            let suffix = &suffix[..suffix.iter().position(|&b| b == 0).ok_or_else(|| corrupt(at))?];
            let last = path.clone();
            path.truncate(n_kept);
            path.extend_from_slice(suffix);
            let raw = RawEntry { fixed, path: &path };
            raw.check(&last, at)?;
            builder.append(&raw.entry())?;
            if builder.index.bytes.len() > limit {
                return Err(corrupt(at));
            }
            at += raw.fixed.len() + used + suffix.len() + 1;
        }
        check_extensions(&bytes[at..], at)?;
        Ok(Self { has_extensions: at < bytes.len(), ..builder.build() })
    }
}

/// Collects entries, sorted by path, into an index.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    index: Index,
}

impl IndexBuilder {
    /// Adds an entry whose path comes after all earlier ones; entries below `.git-devops/` become skip-worktree.
    pub fn push(&mut self, entry: &IndexEntry) -> Result<()> {
        check_new(entry, self.index.len().checked_sub(1).map_or(b"", |last| self.index.path(last)))?;
        self.append(&IndexEntry { skip_worktree: entry.skip_worktree || name::is_ours(entry.path), ..*entry })
    }

    /// Returns the index of all entries added.
    pub fn build(self) -> Index {
        self.index
    }

    fn append(&mut self, entry: &IndexEntry) -> Result<()> {
        let Index { bytes, starts, .. } = &mut self.index;
        if bytes.is_empty() {
            bytes.resize(HEADER_LEN, 0);
        }
        let start = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() + len_of(entry) <= MAX_ENTRIES);
        starts.push(start.ok_or_else(too_large)?);
        encode_entry(entry, bytes);
        Ok(())
    }
}

const HEADER_LEN: usize = 12;
const TRAILER_LEN: usize = 20;
/// Stat, mode and object name: everything before the flags.
const FIXED_LEN: usize = 60;
/// Positions are kept in 32 bits.
const MAX_FILE: u64 = u32::MAX as u64;
/// So many bytes entries may take that are written.
pub(super) const MAX_ENTRIES: usize = MAX_FILE as usize - HEADER_LEN - TRAILER_LEN;
/// Version 4 shares the starts of paths; no real tree gains more than a small factor.
const MAX_EXPANSION: usize = 64;

const EXTENDED: u16 = 1 << 14;
const STAGE: u16 = 3 << 12;
const NAME_LEN: u16 = 0xfff;
const SKIP_WORKTREE: u16 = 1 << 14;
const INTENT_TO_ADD: u16 = 1 << 13;

/// Everything of an entry but its path.
#[derive(Clone, Copy)]
struct Fixed {
    stat: CachedStat,
    mode: u32,
    oid: [u8; 20],
    flags: u16,
    extended: u16,
}

/// An entry as it stands in the file.
struct RawEntry<'a> {
    fixed: Fixed,
    path: &'a [u8],
}

impl Fixed {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let head: &[u8; FIXED_LEN + 2] = bytes.first_chunk()?;
        let word = |at: usize| u32::from_be_bytes([head[at * 4], head[at * 4 + 1], head[at * 4 + 2], head[at * 4 + 3]]);
        let stat = CachedStat {
            ctime: (word(0), word(1)),
            mtime: (word(2), word(3)),
            dev: word(4),
            ino: word(5),
            uid: word(7),
            gid: word(8),
            size: word(9),
        };
        let flags = u16::from_be_bytes([head[60], head[61]]);
        let extended = match flags & EXTENDED {
            0 => 0,
            _ => u16::from_be_bytes([*bytes.get(62)?, *bytes.get(63)?]),
        };
        let oid = head[40..60].try_into().expect("BUG: 20 bytes are 20 bytes");
        Some(Self { stat, mode: word(6), oid, flags, extended })
    }

    fn len(&self) -> usize {
        fixed_len(self.flags)
    }
}

/// Returns how many bytes of an entry with these flags come before its path.
fn fixed_len(flags: u16) -> usize {
    FIXED_LEN + 2 + if flags & EXTENDED == 0 { 0 } else { 2 }
}

/// Returns the path of the entry that `bytes` starts with, of version 2 or 3.
fn path_of(bytes: &[u8]) -> Option<&[u8]> {
    let flags = u16::from_be_bytes(*bytes.get(FIXED_LEN..)?.first_chunk()?);
    let rest = bytes.get(fixed_len(flags)..)?;
    let length = match flags & NAME_LEN {
        // The field holds no more: the path ends where the first NUL is.
        NAME_LEN => rest.iter().position(|&b| b == 0).filter(|length| *length >= usize::from(NAME_LEN))?,
        length => length.into(),
    };
    rest.get(..length)
}

/// Says whether `path` sorts before `dir` with `last` behind it.
fn is_before(path: &[u8], dir: &[u8], last: u8) -> bool {
    match path.get(..dir.len()) {
        Some(start) if start == dir => path.get(dir.len()).is_none_or(|next| *next < last),
        _ => path < dir,
    }
}

impl<'a> RawEntry<'a> {
    /// Decodes the entry that `bytes` starts with, of version 2 or 3.
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        Some(Self { fixed: Fixed::decode(bytes)?, path: path_of(bytes)? })
    }

    fn unpadded_len(&self) -> usize {
        self.fixed.len() + self.path.len()
    }

    /// One to eight NULs follow, up to a multiple of eight.
    fn padded_len(&self) -> usize {
        (self.unpadded_len() + 8) & !7
    }

    fn entry(&self) -> IndexEntry<'a> {
        IndexEntry {
            path: self.path,
            oid: oid_from(self.fixed.oid),
            mode: self.fixed.mode,
            stat: self.fixed.stat,
            skip_worktree: self.fixed.extended & SKIP_WORKTREE != 0,
            intent_to_add: self.fixed.extended & INTENT_TO_ADD != 0,
        }
    }

    /// Says whether the entry, at byte `at`, may follow one with the path `last`.
    fn check(&self, last: &[u8], at: usize) -> Result<()> {
        if self.fixed.flags & STAGE != 0 {
            let message = format!("path '{}' is in an unfinished merge; finish or abort it first", self.path.escape_ascii());
            return Err(Error::new(Kind::Conflict, message));
        }
        // The directories that it shares with the last path were checked there.
        let n_shared = self.path.iter().zip(last).take_while(|(a, b)| a == b).count();
        let start = self.path[..n_shared].iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
        if !self.path[start..].split(|&b| b == b'/').all(name::is_stored_name) {
            return Err(Error::new(Kind::Refused, format!("path '{}' is none that git-devops writes", self.path.escape_ascii())));
        }
        if !is_file_mode(self.fixed.mode) || self.path[n_shared..] <= last[n_shared..] {
            return Err(corrupt(at));
        }
        Ok(())
    }
}

/// Fails if an entry cannot be written, after one with the path `last`, which is empty for the first one.
pub(super) fn check_new(entry: &IndexEntry<'_>, last: &[u8]) -> Result<()> {
    let path = entry.path.escape_ascii();
    if !entry.path.split(|&b| b == b'/').all(name::is_stored_name) || !is_file_mode(entry.mode) {
        return Err(Error::new(Kind::Refused, format!("path '{path}' with mode {:o} cannot be staged", entry.mode)));
    }
    match last < entry.path {
        true => Ok(()),
        false => Err(Error::new(Kind::Bug, format!("BUG: path '{path}' is out of order"))),
    }
}

fn is_file_mode(mode: u32) -> bool {
    matches!(mode, 0o100644 | 0o100755 | 0o120000 | 0o160000)
}

/// Checks what surrounds the entries; returns the version, the number of entries, and where entries and extensions end.
fn check_frame(bytes: &[u8]) -> Result<(u32, usize, usize)> {
    let end = bytes.len().checked_sub(TRAILER_LEN).filter(|end| *end >= HEADER_LEN).ok_or_else(|| corrupt(bytes.len()))?;
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    if &bytes[..4] != b"DIRC" {
        return Err(corrupt(0));
    }
    let (version, n_entries) = (word(4), word(8) as usize);
    // First of all: what rot made of the version is none that a newer git wrote.
    if sha1(&bytes[..end]) != bytes[end..] {
        return Err(Error::new(Kind::Corrupt, "its checksum does not hold"));
    }
    if !(2..=4).contains(&version) {
        return Err(Error::new(Kind::Unsupported, format!("it has the unknown version {version}; use a newer program")));
    }
    // An entry takes 63 bytes at least: no count makes us allocate more than the file is worth.
    if n_entries > end / (FIXED_LEN + 3) || bytes.len() as u64 > MAX_FILE {
        return Err(corrupt(8));
    }
    Ok((version, n_entries, end))
}

/// Walks over the extensions; one that git may not ignore, we may not either.
fn check_extensions(bytes: &[u8], start: usize) -> Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = start + bytes.len() - rest.len();
        let (head, body) = rest.split_at_checked(8).ok_or_else(|| corrupt(at))?;
        if !head[0].is_ascii_uppercase() {
            let message = format!("it needs git's extension '{}' (a split or sparse index)", head[..4].escape_ascii());
            return Err(Error::new(Kind::Unsupported, message));
        }
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        rest = body.get(length..).ok_or_else(|| corrupt(at))?;
    }
    Ok(())
}

/// Decodes git's offset encoding: seven bits a byte, each continuation adds one.
fn decode_varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value: usize = 0;
    for (at, &byte) in bytes.iter().enumerate().take(5) {
        value = if at == 0 { 0 } else { value.checked_add(1)? << 7 } | usize::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

/// Returns the entry that `bytes` starts with, as [`encode_entry`] wrote it.
pub(super) fn decode_entry(bytes: &[u8]) -> IndexEntry<'_> {
    RawEntry::decode(bytes).expect("BUG: an entry of our own is whole").entry()
}

/// Returns its path.
pub(super) fn path_in(bytes: &[u8]) -> &[u8] {
    path_of(bytes).expect("BUG: an entry of our own is whole")
}

/// Appends an entry as it stands in a file of version 2 or 3.
pub(super) fn encode_entry(entry: &IndexEntry, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    let CachedStat { ctime, mtime, dev, ino, uid, gid, size } = entry.stat;
    for word in [ctime.0, ctime.1, mtime.0, mtime.1, dev, ino, entry.mode, uid, gid, size] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend_from_slice(entry.oid.as_slice());
    let extended = if entry.skip_worktree { SKIP_WORKTREE } else { 0 } | if entry.intent_to_add { INTENT_TO_ADD } else { 0 };
    let flags = entry.path.len().min(NAME_LEN.into()) as u16;
    if extended == 0 {
        bytes.extend_from_slice(&flags.to_be_bytes());
    } else {
        bytes.extend_from_slice(&(flags | EXTENDED).to_be_bytes());
        bytes.extend_from_slice(&extended.to_be_bytes());
    }
    bytes.extend_from_slice(entry.path);
    let length = bytes.len() - start;
    bytes.resize(start + ((length + 8) & !7), 0);
}

/// Returns what an index file with so many entries starts with; `is_extended` if one of them is.
pub(super) fn header(is_extended: bool, n_entries: usize) -> [u8; HEADER_LEN] {
    let mut header = *b"DIRC\0\0\0\x02\0\0\0\0";
    header[7] = if is_extended { 3 } else { 2 };
    header[8..].copy_from_slice(&(n_entries as u32).to_be_bytes());
    header
}

fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut hasher = Hasher::new();
    hasher.update(bytes);
    digest(hasher)
}

/// Returns the plain SHA-1: here it guards against damage, not against an attacker.
pub(super) fn digest(hasher: Hasher) -> [u8; 20] {
    match hasher.finalize() {
        Ok(digest) => digest.to_bytes(),
        Err(collision) => collision.digest().to_bytes(),
    }
}

/// Returns how many bytes an entry takes.
pub(super) fn len_of(entry: &IndexEntry<'_>) -> usize {
    let flags = if entry.is_extended() { EXTENDED } else { 0 };
    (fixed_len(flags) + entry.path.len() + 8) & !7
}

pub(super) fn too_large() -> Error {
    Error::new(Kind::Unsupported, "an index of more than 4 GiB cannot be written")
}

fn corrupt(at: usize) -> Error {
    Error::new(Kind::Corrupt, format!("it is damaged or cut short at byte {at}"))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::PathBuf;

    use super::*;
    use crate::git::{Git, Identity, IndexLock};
    use crate::safepath::Dir;

    struct Work {
        _dir: tempfile::TempDir,
        root: PathBuf,
        git: Git,
    }

    /// Makes a repository beside a work tree with a few files.
    fn work() -> Work {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("tree");
        fs::create_dir_all(root.join("etc/ssh")).unwrap();
        for (path, content) in
            [("a", "one\n"), ("etc/fstab", "two\n"), ("etc/ssh/config", "three\n"), ("etc-x", ""), ("etc0", "four\n")]
        {
            fs::write(root.join(path), content).unwrap();
        }
        let git = Git::init(&dir.path().join("repo"), "main").unwrap().with_work_tree(&root);
        Work { root, git: git.with_identity(Identity { name: "A".into(), email: "a@b".into() }), _dir: dir }
    }

    impl Work {
        /// Returns an index of `paths` (sorted) with the stat and the blob that the disk has, plus metadata entries.
        fn index(&self, paths: &[&str]) -> Index {
            let dir = Dir::open(&self.root).unwrap();
            let mut builder = IndexBuilder::default();
            for path in paths {
                let oid = self.git.run(&["hash-object", "-w", "--", path]).unwrap();
                let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
                let stat = dir.open_path(parent.as_bytes()).unwrap().stat(name.as_bytes()).unwrap().unwrap();
                builder.push(&entry(path, Oid::from_hex(oid.trim_ascii()).unwrap(), CachedStat::of(&stat))).unwrap();
            }
            builder.build()
        }

        fn read(&self) -> Result<Index> {
            Index::read(&self.git.git_dir().join("index"))
        }
    }

    fn entry(path: &str, oid: Oid, stat: CachedStat) -> IndexEntry<'_> {
        IndexEntry { path: path.as_bytes(), oid, mode: 0o100644, stat, skip_worktree: false, intent_to_add: false }
    }

    const PATHS: [&str; 5] = ["a", "etc-x", "etc/fstab", "etc/ssh/config", "etc0"];

    #[test]
    fn git_finds_our_entries_clean_and_sees_the_same_values() {
        let work = work();
        work.git.run(&[&["update-index", "--add", "--"][..], &PATHS].concat()).unwrap();
        let theirs = work.git.run(&["ls-files", "--stage", "--debug"]).unwrap();
        work.index(&PATHS).write(work.git.git_dir()).unwrap();
        let ours = work.git.run(&["ls-files", "--stage", "--debug"]).unwrap();
        assert_eq!(String::from_utf8(ours), String::from_utf8(theirs));
        assert_eq!(work.git.run(&["diff-files", "--name-only"]).unwrap(), b"");
        let tree = work.git.run(&["write-tree"]).unwrap();
        let commit = work.git.run(&["commit-tree", "-m", "m", std::str::from_utf8(tree.trim_ascii()).unwrap()]).unwrap();
        work.git.update_ref("refs/heads/main", Oid::from_hex(commit.trim_ascii()).unwrap(), None, "m").unwrap();
        assert_eq!(work.git.run(&["status", "--porcelain"]).unwrap(), b"");
        fs::write(work.root.join("etc/fstab"), "TWO\n").unwrap();
        assert_eq!(work.git.run(&["status", "--porcelain"]).unwrap(), b" M etc/fstab\n");
    }

    #[test]
    fn what_an_index_leads_to_is_its_files_or_its_tree_and_where_git_noted_more_git_is_to_say() {
        let work = work();
        work.index(&PATHS).write(work.git.git_dir()).unwrap();
        let blobs: Vec<Root> = work.index(&PATHS).iter().map(|entry| (Some(ObjectKind::Blob), entry.oid)).collect();
        assert_eq!(work.read().unwrap().roots(), Some(blobs));
        let other = format!("160000,{},g", "1".repeat(40));
        work.git.run(&["update-index", "--add", "--cacheinfo", &other]).unwrap();
        assert_eq!(work.read().unwrap().roots().map(|roots| roots.len()), Some(PATHS.len()));
        let tree = work.git.run(&["mktree"]).unwrap();
        let tree = Oid::from_hex(tree.trim_ascii()).unwrap();
        assert_eq!(work.read().unwrap().with_tree(Some(tree)).roots(), Some(vec![(Some(ObjectKind::Tree), tree)]));
        for version in ["2", "4"] {
            // It notes the trees of the directories.
            work.git.run(&["update-index", "--index-version", version]).unwrap();
            work.git.run(&["write-tree"]).unwrap();
            assert_eq!(work.read().unwrap().roots(), None, "{version}");
        }
    }

    #[test]
    fn an_index_that_git_wrote_is_read_in_every_version() {
        let work = work();
        work.index(&PATHS).write(work.git.git_dir()).unwrap();
        let long = format!("z/{}", vec!["d"; 2100].join("/"));
        let blob = work.git.run_with_input(&["hash-object", "-w", "--stdin"], b"x").unwrap();
        let info = format!("100755,{},{long}", std::str::from_utf8(blob.trim_ascii()).unwrap());
        work.git.run(&["update-index", "--add", "--cacheinfo", &info]).unwrap();
        let two = work.read().unwrap();
        assert_eq!(
            two.iter().map(|entry| entry.path.to_vec()).collect::<Vec<_>>(),
            PATHS.iter().copied().chain([long.as_str()]).map(|p| p.as_bytes().to_vec()).collect::<Vec<_>>()
        );
        work.git.run(&["write-tree"]).unwrap();
        for version in ["4", "2"] {
            work.git.run(&["update-index", "--index-version", version]).unwrap();
            assert_eq!(fs::read(work.git.git_dir().join("index")).unwrap()[7..8], [version.as_bytes()[0] - b'0']);
            let read = work.read().unwrap();
            assert!(read.iter().eq(two.iter()), "version {version}");
        }
        // git takes the bit away from what is there; the long path is not.
        work.git.run(&["update-index", "--skip-worktree", &long]).unwrap();
        let three = work.read().unwrap();
        assert!(three.entry(5).skip_worktree && !three.entry(1).skip_worktree);
        work.git.run(&["update-index", "--index-version", "4"]).unwrap();
        assert!(work.read().unwrap().iter().eq(three.iter()));
        three.write(work.git.git_dir()).unwrap();
        let listed = String::from_utf8(work.git.run(&["ls-files", "-t"]).unwrap()).unwrap();
        assert!(listed.starts_with("H a\n") && listed.ends_with(&format!("S {long}\n")));
    }

    #[test]
    fn our_own_directory_is_never_missed_in_the_work_tree() {
        let work = work();
        let mut builder = IndexBuilder::default();
        let index = work.index(&["a"]);
        let oid = index.entry(0).oid;
        builder.push(&entry(".git-devops/alt/%2egit/config", oid, CachedStat::default())).unwrap();
        builder.push(&entry(".git-devops/meta/.m", oid, CachedStat::default())).unwrap();
        builder.push(&index.entry(0)).unwrap();
        builder.build().write(work.git.git_dir()).unwrap();
        assert_eq!(work.git.run(&["diff-files"]).unwrap(), b"");
        assert_eq!(work.git.run(&["ls-files", "-t"]).unwrap(), b"S .git-devops/alt/%2egit/config\nS .git-devops/meta/.m\nH a\n");
        work.git.run(&["write-tree"]).unwrap();
    }

    #[test]
    fn entries_are_found_by_path_and_by_directory() {
        let work = work();
        let index = work.index(&PATHS);
        assert_eq!(index.lookup(b"etc/fstab"), Some(2));
        assert_eq!((index.lookup(b"etc"), index.lookup(b"zzz"), index.lookup(b"")), (None, None, None));
        assert_eq!(index.range(b"etc"), 2..4);
        assert_eq!(index.range(b"etc/ssh"), 3..4);
        assert_eq!((index.range(b""), index.range(b"a"), index.range(b"zz")), (0..5, 1..1, 5..5));
        assert_eq!(Index::default().range(b"a"), 0..0);
        for (dir, has) in [("etc", true), ("etc/ssh", true), ("etc-x", false), ("et", false), ("a", false), ("zz", false)] {
            assert_eq!((0..2).map(|from| index.has_below(from, dir.as_bytes())).collect::<Vec<_>>(), [has; 2], "{dir}");
        }
        assert!(!Index::default().has_below(0, b"a"));
        for path in ["", "a", "b", "etc/fstab", "etc/fstab2", "etc0", "zz"] {
            let want = PATHS.iter().filter(|known| **known < path).count();
            for from in 0..=want {
                assert_eq!(index.position_from(from, path.as_bytes()), want, "{path} from {from}");
            }
            assert_eq!(index.is_at(want, path.as_bytes()), PATHS.contains(&path), "{path}");
        }
    }

    #[test]
    fn an_empty_index_and_a_missing_one_are_the_same() {
        let work = work();
        assert!(work.read().unwrap().is_empty());
        Index::default().write(work.git.git_dir()).unwrap();
        assert!(work.read().unwrap().is_empty());
        assert_eq!(work.git.run(&["ls-files"]).unwrap(), b"");
    }

    #[test]
    fn any_damage_is_named_and_never_a_panic() {
        let work = work();
        work.index(&PATHS).write(work.git.git_dir()).unwrap();
        for version in ["2", "4"] {
            work.git.run(&["update-index", "--force-write-index", "--index-version", version]).unwrap();
            let good = fs::read(work.git.git_dir().join("index")).unwrap();
            for cut in 0..good.len() {
                assert_eq!(Index::decode(good[..cut].to_vec()).unwrap_err().kind(), Kind::Corrupt, "cut at {cut}");
            }
            let body = good.len() - TRAILER_LEN;
            for at in 0..body {
                let mut bad = good.clone();
                bad[at] ^= 0x41;
                assert!(Index::decode(bad.clone()).is_err(), "flip at {at}");
                // With a right checksum the decoder itself must cope: any result but a panic.
                let sum = sha1(&bad[..body]);
                bad[body..].copy_from_slice(&sum);
                if let Ok(index) = Index::decode(bad) {
                    index.iter().for_each(|entry| assert!(!entry.path.is_empty()));
                }
            }
        }
        fs::write(work.git.git_dir().join("index"), "DIRC").unwrap();
        let error = work.read().unwrap_err();
        assert!(error.to_string().ends_with("index'; remove the file, it is rebuilt from HEAD"), "{error}");
    }

    #[test]
    fn an_unfinished_merge_and_a_split_index_are_refused() {
        let work = work();
        let blob = work.git.run_with_input(&["hash-object", "-w", "--stdin"], b"x").unwrap();
        let blob = std::str::from_utf8(blob.trim_ascii()).unwrap();
        let input = format!("100644 {blob} 1\ta\n100644 {blob} 2\ta\n");
        work.git.run_with_input(&["update-index", "--index-info"], input.as_bytes()).unwrap();
        assert_eq!(work.read().unwrap_err().kind(), Kind::Conflict);
        work.git.run(&["read-tree", "--empty"]).unwrap();
        work.git.run(&["update-index", "--split-index"]).unwrap();
        assert_eq!(work.read().unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn a_path_that_we_do_not_write_is_refused_wherever_it_differs() {
        let oid = oid_from([1; 20]);
        for (first, second) in
            [("a/b/c", "a/b/.git"), ("a/b", "a/git~1/x"), ("a", "a/../b"), ("a/b", "a/b//c"), ("a", ".git/x"), ("a/b", "a/b/")]
        {
            let mut builder = IndexBuilder::default();
            let mut pair = [first, second];
            pair.sort_unstable();
            pair.iter().for_each(|path| builder.append(&entry(path, oid, CachedStat::default())).unwrap());
            let dir = tempfile::tempdir().unwrap();
            builder.build().write(dir.path()).unwrap();
            let error = Index::read(&dir.path().join("index")).unwrap_err();
            assert_eq!(error.kind(), Kind::Refused, "{second}: {error:#}");
        }
        for pair in [["b", "a"], ["a", "a"], ["a/b", "a"], ["a/b/c", "a/b/a"]] {
            let mut builder = IndexBuilder::default();
            pair.iter().for_each(|path| builder.append(&entry(path, oid, CachedStat::default())).unwrap());
            let dir = tempfile::tempdir().unwrap();
            builder.build().write(dir.path()).unwrap();
            assert_eq!(Index::read(&dir.path().join("index")).unwrap_err().kind(), Kind::Corrupt, "{pair:?}");
        }
    }

    #[test]
    fn gits_lock_is_respected_and_ours_is_given_back() {
        let work = work();
        let held = IndexLock::take(work.git.git_dir()).unwrap();
        assert_eq!(Index::default().write(work.git.git_dir()).unwrap_err().kind(), Kind::Locked);
        assert!(work.git.run(&["update-index", "--add", "a"]).is_err());
        drop(held);
        Index::default().write(work.git.git_dir()).unwrap();
        assert!(!work.git.git_dir().join("index.lock").exists());
    }

    #[test]
    fn a_length_of_whole_four_gigabytes_is_not_taken_for_unknown() {
        let work = work();
        let dir = Dir::open(&work.root).unwrap();
        let stat = dir.stat(b"a").unwrap().unwrap();
        for (length, size) in [(0, 0), (1, 1), (1 << 32, 0x8000_0000), (5 << 32, 0x8000_0000), ((1 << 32) + 7, 7)] {
            let stat = Stat { size: length, ..stat };
            assert_eq!(CachedStat::of(&stat).size, size, "{length}");
            assert!(CachedStat::of(&stat).matches(&stat));
        }
        assert!(!CachedStat { size: 0, ..CachedStat::of(&stat) }.matches(&stat));
        assert!(CachedStat { dev: 1, ..CachedStat::of(&stat) }.matches(&stat));
        let file = File::create(work.root.join("sparse")).unwrap();
        file.set_len(8 << 32).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
        let stat = dir.stat(b"sparse").unwrap().unwrap();
        let mut builder = IndexBuilder::default();
        let blob = work.index(&["a"]).entry(0).oid;
        builder.push(&entry("sparse", blob, CachedStat::of(&stat))).unwrap();
        builder.build().write(work.git.git_dir()).unwrap();
        assert_eq!(work.git.run(&["diff-files"]).unwrap(), b"", "git would read 32 GiB to answer otherwise");
    }

    #[test]
    fn a_file_changed_in_the_second_of_the_write_is_looked_at_again() {
        let work = work();
        File::open(work.root.join("etc0")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
        work.index(&PATHS).write(work.git.git_dir()).unwrap();
        let index = work.read().unwrap();
        let written = fs::metadata(work.git.git_dir().join("index")).unwrap().mtime();
        assert_eq!(index.is_racy(0), fs::metadata(work.root.join("a")).unwrap().mtime() >= written);
        assert!(!index.is_racy(4));
    }
}
