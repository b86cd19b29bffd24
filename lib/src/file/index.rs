//! The chunk index: a large file's ordered list of chunks, as text in git.
//!
//! Format: `docs/formats/chunk-index.md`. Pure functions over bytes; nothing here reads a file.

use crate::chunk::ChunkerSpec;
use crate::error::{Context, Error, Kind, Result};
use crate::id::{ChunkId, FileHash};

/// The first line of every chunk index. A blob of a regular file that begins with it *is* one.
pub const MAGIC: &[u8] = b"git-devops chunk-index 1\n";

/// The first line of a list.
const LIST_MAGIC: &[u8] = b"git-devops chunk-list 1\n";

/// The longest chunk that any chunker may cut, in bytes.
pub const MAX_CHUNK_LEN: u64 = 16 << 20;

/// An index or a list of more lines than this is cut into lists.
pub const MAX_FLAT: usize = 4096;

/// The longest list that a reader accepts, in bytes: `MAX_FLAT` lines of the longest kind, rounded up.
pub const MAX_LIST_LEN: usize = 1 << 20;

/// How deep lists may be nested.
pub const MAX_DEPTH: usize = 4;

const MIN_RUN: usize = 256;

/// A large file as git sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkIndex {
    /// Length of the file, in bytes.
    pub size: u64,
    /// BLAKE3 of the content.
    pub hash: FileHash,
    /// Whether the file has holes; then `hash` covers the data alone, the holes left out.
    pub has_holes: bool,
    /// How the file was cut.
    pub chunker: ChunkerSpec,
    /// What the file consists of, in order; the lengths add up to `size`.
    pub entries: Vec<Entry>,
}

/// One line of an index or a list: what the next `len` bytes of the file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A chunk in the store.
    Chunk {
        /// Its id.
        id: ChunkId,
        /// Its length in bytes.
        len: u64,
    },
    /// Nothing: reads as zeros, takes no space.
    Hole {
        /// Its length in bytes.
        len: u64,
    },
    /// A list of further entries, itself a chunk in the store.
    List {
        /// The id of the list.
        id: ChunkId,
        /// How many bytes of the file it covers.
        len: u64,
        /// How many lines it has.
        lines: u32,
    },
}

impl Entry {
    /// Returns how many bytes of the file this entry covers.
    pub fn len(&self) -> u64 {
        match *self {
            Self::Chunk { len, .. } | Self::Hole { len } | Self::List { len, .. } => len,
        }
    }

    /// Says whether the entry covers nothing; a valid one never does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let line = match self {
            Self::Chunk { id, len } => format!("chunk {id} {len}\n"),
            Self::Hole { len } => format!("hole {len}\n"),
            Self::List { id, len, lines } => format!("list {id} {len} {lines}\n"),
        };
        out.extend_from_slice(line.as_bytes());
    }

    fn decode(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let entry = match fields.next()? {
            "chunk" => Self::Chunk { id: fields.next()?.parse().ok()?, len: number(fields.next()?)? },
            "hole" => Self::Hole { len: number(fields.next()?)? },
            "list" => {
                let id = fields.next()?.parse().ok()?;
                Self::List { id, len: number(fields.next()?)?, lines: number(fields.next()?)?.try_into().ok()? }
            }
            _ => return None,
        };
        let is_too_long = matches!(entry, Self::Chunk { len, .. } if len > MAX_CHUNK_LEN);
        (fields.next().is_none() && !entry.is_empty() && !is_too_long).then_some(entry)
    }

    /// Says whether a list may end after this entry, by its id alone.
    fn ends_run(&self) -> bool {
        match self {
            Self::Chunk { id, .. } | Self::List { id, .. } => {
                let [.., high, low] = *id.as_bytes();
                u16::from_be_bytes([high, low]) & 0x3ff == 0x3ff
            }
            Self::Hole { .. } => false,
        }
    }
}

impl ChunkIndex {
    /// Returns the text that stands in git.
    pub fn encode(&self) -> Vec<u8> {
        let mut body =
            format!("size {}\n{} {}\nchunker {}\n", self.size, hash_name(self.has_holes), self.hash, self.chunker).into_bytes();
        body.extend_from_slice(format!("entries {}\n", self.entries.len()).as_bytes());
        self.entries.iter().for_each(|entry| entry.encode(&mut body));
        let mut text = MAGIC.to_vec();
        text.extend_from_slice(format!("root {}\n", blake3::hash(&body).to_hex()).as_bytes());
        text.extend_from_slice(&body);
        text
    }

    /// Reads the text that stands in git; refuses whatever [`encode`](Self::encode) would not have written.
    pub fn decode(text: &[u8]) -> Result<Self> {
        let rest = text.strip_prefix(MAGIC).ok_or_else(|| corrupt("chunk index does not begin with its magic line"))?;
        let rest = std::str::from_utf8(rest).map_err(|_| corrupt("chunk index is not ASCII text"))?;
        let (root, body) = field(rest, "root")?;
        if blake3::hash(body.as_bytes()).to_hex().as_str() != root {
            return Err(corrupt("chunk index does not match its root line: it was changed, merged or cut short"));
        }
        let (size, rest) = field(body, "size")?;
        let has_holes = rest.starts_with(hash_name(true));
        let (hash, rest) = field(rest, hash_name(has_holes))?;
        let (chunker, rest) = field(rest, "chunker")?;
        let (n_entries, rest) = field(rest, "entries")?;
        let size = number(size).ok_or_else(|| corrupt("chunk index has a bad size"))?;
        let entries = decode_lines(rest, "chunk index")?;
        if number(n_entries) != Some(entries.len() as u64) {
            return Err(corrupt("chunk index has another number of entries than it says"));
        }
        if total_len(&entries) != Some(size) {
            return Err(corrupt("chunk index has entries that do not add up to the file's size"));
        }
        let hash = hash.parse().context(|| "chunk index has a bad file hash")?;
        let spec: ChunkerSpec = chunker.parse().map_err(|_| corrupt("chunk index names an unknown chunker"))?;
        if spec.to_string() != chunker {
            return Err(corrupt("chunk index does not name its chunker in the canonical way"));
        }
        Ok(Self { size, hash, has_holes, chunker: spec, entries })
    }

    /// Says whether a blob of a regular file is a chunk index rather than the file itself.
    pub fn is_index(blob: &[u8]) -> bool {
        blob.starts_with(MAGIC)
    }
}

/// Returns the text of a list; `entries` are all lists, or none is.
pub fn encode_list(entries: &[Entry]) -> Vec<u8> {
    let mut text = LIST_MAGIC.to_vec();
    entries.iter().for_each(|entry| entry.encode(&mut text));
    text
}

/// Reads the text of a list that covers `len` bytes in `lines` lines.
pub fn decode_list(text: &[u8], len: u64, lines: u32) -> Result<Vec<Entry>> {
    let rest = text.strip_prefix(LIST_MAGIC).ok_or_else(|| corrupt("chunk list does not begin with its magic line"))?;
    let rest = std::str::from_utf8(rest).map_err(|_| corrupt("chunk list is not ASCII text"))?;
    let entries = decode_lines(rest, "chunk list")?;
    if entries.len() != lines as usize || total_len(&entries) != Some(len) {
        return Err(corrupt("chunk list has another length than its line says"));
    }
    Ok(entries)
}

/// Builds the entries of an index from a stream of chunks and holes, in bounded memory.
///
/// Closed lists are handed to `store` as soon as they are complete.
pub struct EntryBuilder<S> {
    store: S,
    levels: Vec<Level>,
}

/// One level of nesting: the entries while they are few, then only the list that is still open.
#[derive(Default)]
struct Level {
    open: Vec<Entry>,
    is_cut: bool,
}

impl<S: FnMut(ChunkId, &[u8]) -> Result<()>> EntryBuilder<S> {
    /// Returns a builder that gives each finished list to `store`.
    pub fn new(store: S) -> Self {
        Self { store, levels: vec![Level::default()] }
    }

    /// Appends what the next bytes of the file are.
    pub fn push(&mut self, entry: Entry) -> Result<()> {
        self.push_at(0, entry)
    }

    /// Returns the lines of the index.
    pub fn finish(mut self) -> Result<Vec<Entry>> {
        let mut depth = 0;
        while self.levels[depth].is_cut {
            let run = std::mem::take(&mut self.levels[depth].open);
            if !run.is_empty() {
                self.close(depth, &run)?;
            }
            depth += 1;
        }
        Ok(std::mem::take(&mut self.levels[depth].open))
    }

    fn push_at(&mut self, depth: usize, entry: Entry) -> Result<()> {
        let level = &mut self.levels[depth];
        level.open.push(entry);
        if level.is_cut {
            let is_end = entry.ends_run() && level.open.len() >= MIN_RUN;
            if is_end || level.open.len() == MAX_FLAT {
                let run = std::mem::take(&mut level.open);
                self.close(depth, &run)?;
            }
        } else if level.open.len() > MAX_FLAT {
            // More than an index may hold: from here on this level is a row of lists.
            level.is_cut = true;
            let all = std::mem::take(&mut level.open);
            self.levels.push(Level::default());
            for entry in all {
                self.push_at(depth, entry)?;
            }
        }
        Ok(())
    }

    fn close(&mut self, depth: usize, run: &[Entry]) -> Result<()> {
        if depth + 1 > MAX_DEPTH {
            return Err(Error::new(Kind::Unsupported, "file has more chunks than a chunk index can describe"));
        }
        let text = encode_list(run);
        let id = ChunkId::of(&text);
        (self.store)(id, &text)?;
        let len = run.iter().map(Entry::len).sum();
        self.push_at(depth + 1, Entry::List { id, len, lines: run.len() as u32 })
    }
}

fn hash_name(has_holes: bool) -> &'static str {
    if has_holes { "data-blake3" } else { "blake3" }
}

fn decode_lines(text: &str, what: &str) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    if text.is_empty() {
        return Ok(entries);
    }
    let Some(text) = text.strip_suffix('\n') else { return Err(corrupt(&format!("{what} is cut short"))) };
    for (at, line) in text.split('\n').enumerate() {
        let entry = Entry::decode(line).ok_or_else(|| corrupt(&format!("{what} has a bad entry {}", at + 1)))?;
        let is_list = |entry: &Entry| matches!(entry, Entry::List { .. });
        if entries.first().is_some_and(|first| is_list(first) != is_list(&entry)) {
            return Err(corrupt(&format!("{what} mixes lists and chunks at entry {}", at + 1)));
        }
        entries.push(entry);
    }
    Ok(entries)
}

fn total_len(entries: &[Entry]) -> Option<u64> {
    entries.iter().try_fold(0u64, |sum, entry| sum.checked_add(entry.len()))
}

fn field<'a>(text: &'a str, name: &str) -> Result<(&'a str, &'a str)> {
    text.split_once('\n')
        .and_then(|(line, rest)| Some((line.strip_prefix(name)?.strip_prefix(' ')?, rest)))
        .ok_or_else(|| corrupt(&format!("chunk index has no '{name}' line where it must stand")))
}

/// Parses a decimal number in its one canonical spelling.
fn number(text: &str) -> Option<u64> {
    let is_plain = text == "0" || !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    if is_plain { text.parse().ok() } else { None }
}

fn corrupt(message: &str) -> Error {
    Error::new(Kind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn chunk(n: u64) -> Entry {
        Entry::Chunk { id: ChunkId::of(&n.to_le_bytes()), len: 1000 + n % 7 }
    }

    fn index(entries: Vec<Entry>) -> ChunkIndex {
        let size = total_len(&entries).unwrap();
        let has_holes = entries.iter().any(|entry| matches!(entry, Entry::Hole { .. }));
        ChunkIndex { size, hash: FileHash::of(b"x"), has_holes, chunker: ChunkerSpec::default(), entries }
    }

    #[test]
    fn the_text_is_the_golden_file() {
        let text = index(vec![chunk(1), Entry::Hole { len: 4096 }, chunk(2)]).encode();
        let golden = include_bytes!("../../tests/golden/chunk-index.txt");
        assert_eq!(String::from_utf8_lossy(&text), String::from_utf8_lossy(golden));
        assert_eq!(ChunkIndex::decode(golden).unwrap().encode(), golden);
    }

    #[test]
    fn any_changed_removed_or_added_byte_is_refused() {
        let text = index(vec![chunk(1), Entry::Hole { len: 4096 }, chunk(2)]).encode();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bad = text.clone();
                bad[at] ^= 1 << bit;
                assert!(ChunkIndex::decode(&bad).is_err(), "bit {bit} of byte {at}");
            }
            assert!(ChunkIndex::decode(&text[..at]).is_err(), "cut at {at}");
        }
        assert!(ChunkIndex::decode(&[&text[..], b"\n"].concat()).is_err());
    }

    #[test]
    fn impossible_entries_are_refused_even_under_a_right_root() {
        let id = ChunkId::of(b"");
        let cases = [
            ("size 5\n", format!("entries 1\nchunk {id} 4\n"), "add up"),
            ("size 4\n", format!("entries 2\nchunk {id} 4\n"), "number of entries"),
            ("size 4\n", format!("entries 4294967295\nchunk {id} 4\n"), "number of entries"),
            ("size 0\n", format!("entries 1\nchunk {id} 0\n"), "bad entry 1"),
            ("size 99999999\n", format!("entries 1\nchunk {id} 99999999\n"), "bad entry 1"),
            ("size 4\n", format!("entries 1\nchunk {id} 04\n"), "bad entry 1"),
            ("size 4\n", format!("entries 1\nchunk {id} +4\n"), "bad entry 1"),
            ("size 4\n", format!("entries 1\nchunk {id}  4\n"), "bad entry 1"),
            ("size 0\n", format!("entries 2\nhole {}\nhole 1\n", u64::MAX), "add up"),
            ("size 8\n", format!("entries 2\nchunk {id} 4\nlist {id} 4 1\n"), "mixes"),
            ("size 4\n", format!("entries 1\nchunk {id} 4"), "cut short"),
        ];
        for (size, rest, want) in cases {
            let body = format!("{size}blake3 {id}\nchunker {}\n{rest}", ChunkerSpec::default());
            let text = format!("{}root {}\n{body}", String::from_utf8_lossy(MAGIC), blake3::hash(body.as_bytes()).to_hex());
            let error = ChunkIndex::decode(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(want), "{error} instead of '{want}'");
        }
    }

    fn build(n: u64, entry: impl Fn(u64) -> Entry) -> (Vec<Entry>, HashMap<ChunkId, Vec<u8>>) {
        let mut lists = HashMap::new();
        let mut builder = EntryBuilder::new(|id, text: &[u8]| {
            lists.insert(id, text.to_vec());
            Ok(())
        });
        (0..n).for_each(|n| builder.push(entry(n)).unwrap());
        (builder.finish().unwrap(), lists)
    }

    fn flatten(entries: &[Entry], lists: &HashMap<ChunkId, Vec<u8>>, out: &mut Vec<Entry>) {
        for entry in entries {
            match entry {
                Entry::List { id, len, lines } => flatten(&decode_list(&lists[id], *len, *lines).unwrap(), lists, out),
                other => out.push(*other),
            }
        }
    }

    #[test]
    fn a_long_list_is_cut_into_lists_and_read_back_the_same() {
        for n in [0, 1, 4096, 4097, 50_000] {
            let (entries, lists) = build(n, chunk);
            assert_eq!(lists.is_empty(), n <= 4096, "{n} entries");
            assert!(entries.len() <= MAX_FLAT);
            let mut all = Vec::new();
            flatten(&entries, &lists, &mut all);
            assert_eq!(all, (0..n).map(chunk).collect::<Vec<_>>());
        }
    }

    #[test]
    fn holes_without_end_nest_and_stay_bounded() {
        let (entries, lists) = build(MAX_FLAT as u64 * 20, |n| if n % 2 == 0 { Entry::Hole { len: 1 } } else { chunk(1) });
        assert!(entries.len() <= 40 && lists.len() <= 40, "{} lines, {} lists", entries.len(), lists.len());
    }

    #[test]
    fn one_changed_chunk_changes_one_line() {
        let (before, _) = build(50_000, chunk);
        let (after, _) = build(50_000, |n| chunk(if n == 30_000 { 999_999 } else { n }));
        let changed = after.iter().filter(|entry| !before.contains(entry)).count();
        assert!((1..=2).contains(&changed), "{changed} of {} lines changed", after.len());
    }
}
