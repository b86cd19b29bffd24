//! What this store promised, and of which chunks the promise is not renewed any more.
//!
//! All times are seconds since 1970 by this host's clock. Format: `docs/formats/holders.md`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::HolderId;
use crate::durable;
use crate::endline;
use crate::error::{Context, Error, Kind, Result};
use crate::id::ChunkId;

/// What the files of a ledger look like from outside: inode, length, time.
pub type LedgerStamp = [(u64, u64, i64, i64); 2];

/// Chunks that may lapse at a time.
pub const MAX_LAPSING: usize = 1 << 19;

const LEDGER: &str = "promises";
const LAPSING: &str = "lapsing";
const HEAD: &str = "git-devops promises 1\n";
const LAPSING_HEAD: &[u8] = b"git-devops lapsing 1\n";
const ENTRY: usize = 40;
const HASH: usize = 32;

/// The promises of one store. Changes count when they were written: [`Ledger::write`] and [`Ledger::write_lapsing`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    /// Who promises.
    pub holder: HolderId,
    /// How many records this holder has made.
    pub generation: u64,
    until: u64,
    /// Ascending by id, each with the moment until which it was promised.
    lapsing: Vec<(ChunkId, u64)>,
}

impl Ledger {
    /// Returns that of a holder that never promised anything.
    pub fn new(holder: HolderId) -> Self {
        Self { holder, generation: 0, until: 0, lapsing: Vec::new() }
    }

    /// Returns until when all is promised that does not lapse; 0 for never.
    pub fn until(&self) -> u64 {
        self.until
    }

    /// Returns until when a chunk of this store is promised.
    pub fn promise_of(&self, chunk: &ChunkId) -> u64 {
        match self.lapsing.binary_search_by(|(id, _)| id.cmp(chunk)) {
            Ok(at) => self.lapsing[at].1,
            Err(_) => self.until,
        }
    }

    /// Promises everything, but for what lapses, for `period` from now on; what was promised for longer stays so.
    pub fn renew(&mut self, now: u64, period: u64) {
        self.promise_until(now.saturating_add(period));
    }

    /// Promises everything, but for what lapses, until `until`, or until the moment that was promised, whichever is later.
    pub fn promise_until(&mut self, until: u64) {
        self.until = self.until.max(until);
    }

    /// Stops renewing the promise of `chunks`; one that lapses already keeps its moment. Returns how many could be noted: there is a limit.
    pub fn lapse(&mut self, chunks: impl IntoIterator<Item = ChunkId>) -> usize {
        let mut n = 0;
        let mut new = Vec::new();
        for chunk in chunks {
            let is_noted = self.lapsing.binary_search_by(|(id, _)| id.cmp(&chunk)).is_ok();
            if !is_noted && self.lapsing.len() + new.len() >= MAX_LAPSING {
                break;
            }
            if !is_noted {
                new.push((chunk, self.until));
            }
            n += 1;
        }
        self.lapsing.extend(new);
        self.lapsing.sort_unstable();
        self.lapsing.dedup_by_key(|(id, _)| *id);
        n
    }

    /// Keeps only those that lapse and that `still` says to: the others are promised again as everything else, or are gone.
    pub fn retain_lapsing(&mut self, mut still: impl FnMut(&ChunkId) -> bool) {
        self.lapsing.retain(|(id, _)| still(id));
    }

    /// Returns the chunks that lapse.
    pub fn lapsing(&self) -> impl ExactSizeIterator<Item = &ChunkId> {
        self.lapsing.iter().map(|(id, _)| id)
    }

    /// Says whether the promise of a chunk is over for every clock that differs by `max_skew` at most.
    pub fn is_over(&self, chunk: &ChunkId, now: u64, max_skew: u64) -> bool {
        let until = self.promise_of(chunk);
        until == 0 || now > until.saturating_add(max_skew)
    }

    /// Says whether anything is promised still.
    pub fn is_binding(&self, now: u64, max_skew: u64) -> bool {
        self.until != 0 && now <= self.until.saturating_add(max_skew)
            || self.lapsing.iter().any(|(_, until)| now <= until.saturating_add(max_skew))
    }

    /// Takes over what a later record of this very holder says: this ledger was set back.
    pub fn catch_up(&mut self, generation: u64, until: u64) {
        self.generation = self.generation.max(generation);
        self.promise_until(until);
        // What lapsed here may have been promised again since.
        self.lapsing.iter_mut().for_each(|(_, moment)| *moment = (*moment).max(until));
    }

    /// Reads the ledger in the store's directory `dir`, `None` if there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let read = |name: &str| {
            let path = dir.join(name);
            let what = format!("cannot read '{}'; 'gdo check --repair' makes one that promises enough", path.display());
            (durable::read_if_there(&path), what)
        };
        let (text, what) = read(LEDGER);
        let Some(text) = text.context(|| what.clone())? else { return Ok(None) };
        let mut ledger = Self::decode(&text).context(|| what)?;
        let (bytes, what) = read(LAPSING);
        if let Some(bytes) = bytes.context(|| what.clone())? {
            ledger.lapsing = decode_lapsing(&bytes).context(|| what)?;
        }
        Ok(Some(ledger))
    }

    /// Writes what is promised into the store's directory `dir`; durable on return.
    pub fn write(&self, dir: &Path) -> Result<()> {
        durable::publish(&dir.join(LEDGER), &self.encode(), 0o600)
    }

    /// Writes what lapses into the store's directory `dir`; durable on return.
    pub fn write_lapsing(&self, dir: &Path) -> Result<()> {
        let path = dir.join(LAPSING);
        match self.lapsing.is_empty() && !durable::is_there(&path) {
            true => Ok(()),
            false => durable::publish(&path, &self.encode_lapsing(), 0o600),
        }
    }

    /// Returns what changes when either file is replaced: whoever keeps a ledger in memory compares it.
    pub fn stamp(dir: &Path) -> LedgerStamp {
        let stamp = |name: &str| {
            durable::look(&dir.join(name)).ok().map(|meta| (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
        };
        [LEDGER, LAPSING].map(|name| stamp(name).unwrap_or_default())
    }

    fn encode(&self) -> Vec<u8> {
        let body = format!("{HEAD}holder {}\ngeneration {}\nuntil {}\n", self.holder, self.generation, self.until);
        endline::add(body)
    }

    fn decode(bytes: &[u8]) -> Result<Self> {
        let decoded = Self::decode_fields(bytes);
        decoded.filter(|ledger| ledger.encode() == bytes).ok_or_else(|| damaged("it is not what was written"))
    }

    fn decode_fields(bytes: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(bytes).ok()?.strip_prefix(HEAD)?.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let mut ledger = Self::new(field("holder")?.parse().ok()?);
        ledger.generation = field("generation")?.parse().ok()?;
        ledger.until = field("until")?.parse().ok()?;
        Some(ledger)
    }

    fn encode_lapsing(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(LAPSING_HEAD.len() + ENTRY * self.lapsing.len() + HASH);
        bytes.extend_from_slice(LAPSING_HEAD);
        for (id, until) in &self.lapsing {
            bytes.extend_from_slice(id.as_bytes());
            bytes.extend_from_slice(&until.to_le_bytes());
        }
        let hash = blake3::hash(&bytes);
        bytes.extend_from_slice(hash.as_bytes());
        bytes
    }
}

fn decode_lapsing(bytes: &[u8]) -> Result<Vec<(ChunkId, u64)>> {
    let (body, hash) = bytes.split_last_chunk::<HASH>().ok_or_else(|| damaged("it is too short"))?;
    if blake3::hash(body) != *hash {
        return Err(damaged("its checksum does not hold"));
    }
    let entries = body.strip_prefix(LAPSING_HEAD).ok_or_else(|| damaged("it does not begin as it should"))?;
    let (entries, rest) = entries.as_chunks::<ENTRY>();
    if !rest.is_empty() || entries.len() > MAX_LAPSING {
        return Err(damaged("it has another length than it can have"));
    }
    let decode = |entry: &[u8; ENTRY]| {
        let (id, until) = entry.split_first_chunk::<32>().expect("BUG: an entry begins with an id");
        (ChunkId::from_bytes(*id), u64::from_le_bytes(until.try_into().expect("BUG: an entry ends with a moment")))
    };
    let entries: Vec<_> = entries.iter().map(decode).collect();
    match entries.is_sorted_by(|a, b| a.0 < b.0) {
        true => Ok(entries),
        false => Err(damaged("its entries are out of order")),
    }
}

fn damaged(what: &str) -> Error {
    Error::new(Kind::Corrupt, what)
}

/// Runs what decodes the two files on `data`, and on `data` with the checksum that it should have.
#[cfg(fuzzing)]
pub fn fuzz(data: &[u8]) {
    for bytes in [data, &endline::add(data)] {
        if let Ok(ledger) = Ledger::decode(bytes) {
            assert_eq!(ledger.encode(), bytes);
        }
    }
    let hashed = [data, blake3::hash(data).as_bytes()].concat();
    if let Ok(lapsing) = decode_lapsing(&hashed) {
        let ledger = Ledger { lapsing: lapsing.into_iter().collect(), ..Ledger::new(HolderId::NONE) };
        assert_eq!(ledger.encode_lapsing(), hashed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(n: u32) -> Vec<ChunkId> {
        (0..n).map(|at| ChunkId::of(&at.to_le_bytes())).collect()
    }

    fn ledger() -> Ledger {
        Ledger::new(HolderId::of_key("7"))
    }

    #[test]
    fn a_promise_is_never_shortened() {
        let mut ledger = ledger();
        assert!(ledger.is_over(&ids(1)[0], 0, 60), "nothing was promised");
        ledger.renew(1000, 500);
        assert_eq!(ledger.promise_of(&ids(1)[0]), 1500);
        ledger.renew(200, 500); // the clock was set back
        assert_eq!(ledger.until(), 1500);
        for (now, is_over) in [(0, false), (1500, false), (1560, false), (1561, true)] {
            assert_eq!((ledger.is_over(&ids(1)[0], now, 60), ledger.is_binding(now, 60)), (is_over, !is_over), "{now}");
        }
        ledger.renew(u64::MAX - 1, 500);
        assert!(!ledger.is_over(&ids(1)[0], u64::MAX, 60), "a time that cannot be is never over");
    }

    #[test]
    fn what_lapses_keeps_its_moment_and_is_not_renewed() {
        let mut ledger = ledger();
        let ids = ids(4);
        ledger.renew(1000, 500);
        assert_eq!(ledger.lapse(ids[..2].iter().copied()), 2);
        ledger.renew(2000, 500);
        assert_eq!(ledger.lapse(ids[1..3].iter().copied()), 2);
        let promised: Vec<u64> = ids.iter().map(|id| ledger.promise_of(id)).collect();
        assert_eq!(promised, [1500, 1500, 2500, 2500]);
        ledger.renew(3000, 500);
        assert!(ledger.is_over(&ids[0], 1561, 60) && !ledger.is_over(&ids[2], 1561, 60));
        ledger.retain_lapsing(|id| *id != ids[0]);
        assert_eq!(ledger.promise_of(&ids[0]), 3500, "it is promised again");
        // A record of the future: this ledger is a copy of long ago.
        ledger.catch_up(9, 7000);
        assert_eq!((ledger.generation, ledger.promise_of(&ids[1]), ledger.until()), (9, 7000, 7000));
    }

    #[test]
    fn no_more_lapse_than_the_file_may_hold() {
        let mut ledger = ledger();
        let many = ids(MAX_LAPSING as u32 + 5);
        assert_eq!(ledger.lapse(many.iter().copied()), MAX_LAPSING);
        assert_eq!(ledger.lapse(many[..3].iter().copied()), 3, "these do already");
        assert_eq!(decode_lapsing(&ledger.encode_lapsing()).unwrap().len(), MAX_LAPSING);
    }

    #[test]
    fn it_is_read_as_it_was_written_and_no_other_way() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Ledger::read(dir.path()).unwrap(), None);
        let mut ledger = ledger();
        (ledger.generation, ledger.until) = (7, 1_795_400_000);
        ledger.write(dir.path()).unwrap();
        ledger.write_lapsing(dir.path()).unwrap();
        assert!(!dir.path().join(LAPSING).exists());
        assert_eq!(Ledger::read(dir.path()).unwrap().as_ref(), Some(&ledger));
        ledger.lapse(ids(3));
        let stamp = Ledger::stamp(dir.path());
        ledger.write_lapsing(dir.path()).unwrap();
        assert_ne!(Ledger::stamp(dir.path()), stamp);
        assert_eq!(Ledger::read(dir.path()).unwrap().as_ref(), Some(&ledger));
        for name in [LEDGER, LAPSING] {
            let path = dir.path().join(name);
            let whole = std::fs::read(&path).unwrap();
            for at in 0..whole.len() {
                let mut flipped = whole.clone();
                flipped[at] ^= 1;
                std::fs::write(&path, &flipped).unwrap();
                assert_eq!(Ledger::read(dir.path()).unwrap_err().kind(), Kind::Corrupt, "{name} {at}");
                std::fs::write(&path, &whole[..at]).unwrap();
                assert_eq!(Ledger::read(dir.path()).unwrap_err().kind(), Kind::Corrupt, "{name} cut at {at}");
            }
            std::fs::write(&path, &whole).unwrap();
        }
    }

    #[test]
    fn the_example_in_the_page_is_what_is_written() {
        let page = include_str!("../../../docs/formats/holders.md");
        let at = page.find(HEAD).unwrap();
        let end = at + page[at..].find("```").unwrap();
        let mut ledger = ledger();
        ledger.holder = "0f1e2d3c4b5a69788796a5b4c3d2e1f0".parse().unwrap();
        (ledger.generation, ledger.until) = (7, 1_795_400_000);
        assert_eq!(page[at..end], String::from_utf8(ledger.encode()).unwrap());
    }
}
