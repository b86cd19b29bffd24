//! Verifies every object that git has here, by all threads, those of a pack in the order in which they lie there.
//!
//! What comes out is what `git fsck` would find in the objects by themselves, and in what they take each other for, and whether each leads only to what
//! is here. What is not plainly in order is left to git. A pack that has the bytes which were in order before is only hashed:
//! `docs/formats/verified.md` tells why that is enough.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use flate2::Crc;
use sha1dc::Hasher;

use super::check::{Damaged, Role, SUM_LEN, check_sum, ends_in_its_sum, has_trailing_bytes, is_of_its_pack, list};
use super::inflate::{Reader, Source};
use super::loose::Loose;
use super::object::{object_id, oid_from};
use super::packed::{Pack, Shared};
use super::packhash::{PackHashes, hash_files};
use super::plain::links;
use super::roots::Root;
use super::{Git, ObjectKind, Oid};
use crate::durable::{self, FileStamp, hash_file};
use crate::error::{Context, Error, Kind, Result};
use crate::id::FileHash;
use crate::threads;

use follow::MAX_NEEDS;
use memory::Memory;

mod follow;
mod memory;

/// Packs that are in order, and what is known of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sound {
    /// Each with the blobs in it that the caller wanted to know, sorted.
    pub packs: BTreeMap<PackHashes, Vec<Oid>>,
    /// What their objects refer to outside of their own pack, and maybe more, sorted; `None` if it is too much to keep.
    pub needs: Option<Vec<Oid>>,
    /// Those of them that are in none of the packs: as long as all packs are here, nothing else has to be looked for. Sorted; `None` if nobody knows.
    pub outside: Option<Vec<Oid>>,
}

impl Sound {
    /// Where nothing is known.
    const NOTHING: Self = Self { packs: BTreeMap::new(), needs: Some(Vec::new()), outside: None };
}

impl Default for Sound {
    fn default() -> Self {
        Self::NOTHING
    }
}

static NOTHING: Sound = Sound::NOTHING;

/// What a look at all objects brought.
#[derive(Default)]
pub struct Verified {
    /// The files that are not what they ought to be.
    pub damaged: Vec<Damaged>,
    /// Blobs that the caller wanted to know; `None` if only git can say whether the objects are in order, or which there are.
    pub wanted: Option<Vec<Oid>>,
    /// Whether all is here that the roots and the objects lead to. If not, what is missing may be of no use to anybody, and git can say.
    pub is_whole: bool,
    /// The packs of which the same may be said whenever they have the same bytes; none if only git can say, or if something that they need is missing.
    pub sound: Sound,
    /// Bytes of packs and indexes that were as they had been when they were in order.
    pub n_same: u64,
    /// Bytes of those that were verified.
    pub n_fresh: u64,
}

/// Says whether the caller wants to know that there is a blob with this content.
pub type IsWanted<'a> = &'a (dyn Fn(&[u8]) -> bool + Sync);

/// So often it is begun again when something vanished that was not read.
const MAX_LOOKS: usize = 3;

/// So often the names are listed again while packs come and go.
const MAX_LISTS: usize = 10;

impl Git {
    /// Reads every object of this repository, those of its alternates excepted, and compares it with its name; packs that have the bytes of one that
    /// was in order `before` are compared with that. The `roots` are those of a time before this.
    pub(super) fn verify_objects(&self, is_wanted: IsWanted<'_>, before: &Sound, roots: &[Root]) -> Result<Verified> {
        for _ in 1..MAX_LOOKS {
            let (verified, has_seen_all) = Look::at(self, is_wanted, before, roots)?.run()?;
            if has_seen_all {
                return Ok(verified);
            }
        }
        let (verified, _) = Look::at(self, is_wanted, before, roots)?.run()?;
        Ok(verified)
    }
}

/// One look at the packs and loose objects that are there.
struct Look<'a> {
    packs: Vec<Packed>,
    loose_dir: Loose,
    /// Sorted by name.
    loose: Vec<Single>,
    before: &'a Sound,
    roots: &'a [Root],
    is_wanted: IsWanted<'a>,
    shared: Shared,
    memory: Memory,
    /// Whether there is anything that only git can judge.
    is_odd: AtomicBool,
    /// Whether something is not here that a root or an object leads to.
    has_gap: AtomicBool,
    /// Whether that is something which was there when packs that are the same were verified.
    has_lost_need: AtomicBool,
    /// What objects of packs refer to outside of their own pack, and as what; what is here, at most [`MAX_NEEDS`].
    needs: Mutex<HashMap<Oid, u8>>,
    /// Whether there was more.
    has_more_needs: AtomicBool,
    /// What objects of packs refer to and that is in none, whether it is here or not; one more than [`MAX_NEEDS`] at most.
    loose_needs: Mutex<HashSet<Oid>>,
    /// Whether something was gone before it was read: it may be elsewhere by now.
    has_vanished: AtomicBool,
    damaged: Mutex<Vec<Damaged>>,
    /// Loose blobs that are wanted.
    wanted: Mutex<Vec<Oid>>,
}

/// A pack and its objects.
struct Packed {
    path: PathBuf,
    pack: Pack,
    /// What the two files were when the look began.
    stamps: [Option<FileStamp>; 2],
    index_hash: FileHash,
    /// That of the pack, when it was read.
    hash: Mutex<Option<FileHash>>,
    /// Objects that the index says to be here, and that are not; it may be the index of another pack.
    damaged: Mutex<Vec<Damaged>>,
    /// Whether it has the bytes that were in order before.
    is_same: bool,
    /// Whether its index could be used.
    is_listed: bool,
    /// Whether it refers to something that is not here.
    is_open: AtomicBool,
    /// Blobs in it that are wanted.
    wanted: Mutex<Vec<Oid>>,
    /// Where each object starts, in this order, and its rank among the names. None if it is the same.
    by_offset: Vec<(u64, u32)>,
    /// By rank. None if it is the same.
    known: Vec<Known>,
}

impl Packed {
    fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Says whether the pack ends in its checksum, and the index is that of another one.
    fn is_foreign(&self) -> bool {
        self.hash.lock().expect(POISONED).is_some() && !is_of_its_pack(&self.path.with_extension("idx")).unwrap_or(false)
    }

    /// Lists the objects; fails if the index is not sound: then nothing that is wrong tells of the pack.
    fn list(&mut self, shared: &Shared) -> Result<()> {
        let index = self.path.with_extension("idx");
        if !ends_in_its_sum(&durable::open(&index)?)? {
            return Err(Error::new(Kind::Corrupt, "the index is damaged"));
        }
        if !self.pack.index().is_in_order(&shared.files)? {
            return Err(Error::new(Kind::Corrupt, "the index has names that are not found"));
        }
        self.by_offset = self.pack.index().by_offset(&shared.files)?;
        self.known = self.by_offset.iter().map(|_| Known::default()).collect();
        self.is_listed = true;
        Ok(())
    }
}

/// A loose object.
struct Single {
    oid: Oid,
    path: PathBuf,
    known: Known,
}

/// What is known of an object, each kind a bit.
#[derive(Default)]
struct Known {
    is: AtomicU8,
    taken_for: AtomicU8,
}

/// What a thread does at a time.
enum Job {
    /// The checksums of this pack, and those that its index has of each object.
    Sums(usize),
    /// These objects of this pack, counted in the order of the pack.
    Objects(usize, Range<usize>),
    /// These loose objects.
    Loose(Range<usize>),
    /// These of the objects that packs which are the same refer to.
    Needs(Range<usize>),
    /// These roots.
    Roots(Range<usize>),
}

/// Bytes of a pack that a thread takes at a time.
const SLICE: u64 = 1 << 20;

/// Loose objects that a thread takes at a time.
const HANDFUL: usize = 64;

/// Names that a thread looks for at a time.
const ARMFUL: usize = 1 << 12;

/// Indexes in memory; what is beyond is read when it is needed.
const MAX_INDEX_BYTES: u64 = 32 << 20;

impl<'a> Look<'a> {
    /// Lists what is in the object directory of `git`, and compares it with what was in order `before`.
    fn at(git: &Git, is_wanted: IsWanted<'a>, before: &'a Sound, roots: &'a [Root]) -> Result<Self> {
        let dir = &git.git_dir().join("objects");
        let loose_dir = Loose::open(dir).context(|| format!("cannot list '{}'", dir.display()))?;
        let mut look = Self {
            packs: Vec::new(),
            loose_dir,
            loose: Vec::new(),
            before,
            roots,
            is_wanted,
            shared: Shared::default(),
            memory: Memory::for_threads(threads::n_processors()),
            // Git verifies what alternates have, too.
            is_odd: AtomicBool::new(durable::is_there(&dir.join("info/alternates"))),
            has_gap: AtomicBool::new(false),
            has_lost_need: AtomicBool::new(false),
            needs: Mutex::default(),
            has_more_needs: AtomicBool::new(false),
            loose_needs: Mutex::default(),
            has_vanished: AtomicBool::new(false),
            damaged: Mutex::default(),
            wanted: Mutex::default(),
        };
        let packs = look.list(git)?;
        let is_pair =
            |path: &&PathBuf| path.extension().is_some_and(|ext| ext == "idx") && packs.contains(&path.with_extension("pack"));
        let mut indexes: Vec<&PathBuf> = packs.iter().filter(is_pair).collect();
        // What many look for is mostly in the largest.
        indexes.sort_by_cached_key(|path| Reverse(durable::look(path).map_or(0, |meta| meta.len())));
        indexes.into_iter().for_each(|index| look.add_pack(index));
        look.compare()?;
        if look.needs_to_follow().is_none() {
            // Nobody knows what they need: they are verified anew.
            look.before = &NOTHING;
            look.compare()?;
        }
        Ok(look)
    }

    /// Lists the loose objects, and returns the names of packs and indexes, both of one time: what moves from one place to another stands in one of them.
    fn list(&mut self, git: &Git) -> Result<BTreeSet<PathBuf>> {
        let mut packs = git.pack_names()?;
        for _ in 0..MAX_LISTS {
            self.list_loose(&git.git_dir().join("objects"))?;
            let again = git.pack_names()?;
            if again == packs {
                return Ok(packs);
            }
            packs = again;
        }
        self.note_vanished();
        Ok(packs)
    }

    fn add_pack(&mut self, index: &Path) {
        let held: u64 = self.packs.iter().map(|packed| packed.pack.size_in_memory()).sum();
        let path = index.with_extension("pack");
        let stamps = [durable::stamp(index), durable::stamp(&path)];
        let opened = Pack::open_damaged(index, MAX_INDEX_BYTES.saturating_sub(held));
        match opened.and_then(|pack| Ok((pack, hash_file(index)?))) {
            Ok((pack, index_hash)) => self.packs.push(Packed {
                path,
                pack,
                stamps,
                index_hash,
                hash: Mutex::default(),
                damaged: Mutex::default(),
                is_same: false,
                is_listed: false,
                is_open: AtomicBool::new(false),
                wanted: Mutex::default(),
                by_offset: Vec::new(),
                known: Vec::new(),
            }),
            // If it is damaged, its checksum says so; the pack may be damaged, too.
            Err(error) => {
                self.note_unread(&error);
                let damaged = self.damaged.get_mut().expect(POISONED);
                if let Err(error) = check_sum(&path, Role::Pack, damaged) {
                    self.note_unread(&error);
                }
            }
        }
    }

    /// Compares each pack with those that were in order before, and lists the objects of the others.
    fn compare(&mut self) -> Result<()> {
        let indexes: BTreeSet<FileHash> = self.before.packs.keys().map(|hashes| hashes.index).collect();
        let mut packs = std::mem::take(&mut self.packs);
        let mut known = Vec::new();
        for packed in &mut packs {
            (packed.is_same, packed.hash, packed.wanted) = (false, Mutex::default(), Mutex::default());
            known.extend(indexes.contains(&packed.index_hash).then_some(packed));
        }
        let hashes = hash_files(&known.iter().map(|packed| &*packed.path).collect::<Vec<_>>())?;
        for (packed, pack) in known.into_iter().zip(hashes) {
            let Some(pack) = pack else { continue };
            if let Some(wanted) = self.before.packs.get(&PackHashes { pack, index: packed.index_hash }) {
                packed.is_same = true;
                packed.hash = Mutex::new(Some(pack));
                packed.wanted = Mutex::new(wanted.clone());
            }
        }
        let (todo, look) = (Mutex::new(packs.iter_mut().filter(|packed| !packed.is_same)), &*self);
        threads::in_all(threads::n_processors(), &|| {
            loop {
                let next = todo.lock().expect(POISONED).next();
                let Some(packed) = next else { return };
                if let Err(error) = packed.list(&look.shared) {
                    look.note_unread(&error);
                }
            }
        });
        self.packs = packs;
        Ok(())
    }

    fn list_loose(&mut self, dir: &Path) -> Result<()> {
        self.loose.clear();
        for fan in list(dir)? {
            let start = fan.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if start.len() != 2 || u8::from_str_radix(start, 16).is_err() {
                continue;
            }
            for path in list(&fan)? {
                let rest = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let name = format!("{start}{rest}");
                match Oid::from_hex(name.as_bytes()) {
                    Ok(oid) if !name.bytes().any(|b| b.is_ascii_uppercase()) => {
                        self.loose.push(Single { oid, path, known: Known::default() })
                    }
                    // What a killed git left.
                    _ if rest.starts_with("tmp_obj_") => (),
                    _ => self.note_odd(),
                }
            }
        }
        self.loose.sort_unstable_by_key(|single| single.oid);
        Ok(())
    }

    /// Does all of it, and says whether nothing vanished unread.
    fn run(self) -> Result<(Verified, bool)> {
        let work = |job: &Job, reader: &mut Reader| {
            match job {
                Job::Sums(at) => self.verify_sums(&self.packs[*at], reader),
                Job::Objects(at, range) => self.verify_packed(&self.packs[*at], range.clone(), reader),
                Job::Loose(range) => self.loose[range.clone()].iter().for_each(|single| self.verify_loose(single, reader)),
                Job::Needs(range) => self.follow_needs(range.clone(), reader),
                Job::Roots(range) => self.follow_roots(&self.roots[range.clone()], reader),
            }
            Ok(())
        };
        threads::each(usize::MAX, &self.jobs(), || Ok(Reader::new()), work)?;
        let has_seen_all = !self.has_vanished.load(Ordering::Relaxed);
        Ok((self.conclude(), has_seen_all))
    }

    fn conclude(self) -> Verified {
        let sound = Sound { packs: BTreeMap::new(), needs: self.needs_after(), outside: None };
        let mut verified = Verified { is_whole: self.is_whole(), sound, ..Verified::default() };
        for packed in &self.packs {
            let n_bytes = packed.stamps.iter().flatten().map(FileStamp::size).sum::<u64>();
            *(if packed.is_same { &mut verified.n_same } else { &mut verified.n_fresh }) += n_bytes;
        }
        let mut known = self.packs.iter().flat_map(|packed| &packed.known).chain(self.loose.iter().map(|single| &single.known));
        let is_plain = !self.is_odd.into_inner() && known.all(Known::holds);
        verified.damaged = self.damaged.into_inner().expect(POISONED);
        // Where the pack is sound, objects that are not there tell of the index, which is told of.
        for packed in self.packs.iter().filter(|packed| !packed.is_foreign()) {
            verified.damaged.append(&mut packed.damaged.lock().expect(POISONED));
        }
        if !is_plain || !verified.damaged.is_empty() {
            return verified;
        }
        let mut all = self.wanted.into_inner().expect(POISONED);
        let mut has_all_packs = !self.has_lost_need.load(Ordering::Relaxed);
        for packed in self.packs {
            let stamps = [durable::stamp(&packed.path.with_extension("idx")), durable::stamp(&packed.path)];
            let is_noted = stamps == packed.stamps && !packed.is_open() && !self.has_lost_need.load(Ordering::Relaxed);
            let mut wanted = packed.wanted.into_inner().expect(POISONED);
            wanted.sort_unstable();
            all.extend(&wanted);
            match packed.hash.into_inner().expect(POISONED).filter(|_| is_noted) {
                Some(pack) => _ = verified.sound.packs.insert(PackHashes { pack, index: packed.index_hash }, wanted),
                None => has_all_packs = false,
            }
        }
        let mut outside: Vec<Oid> = self.loose_needs.into_inner().expect(POISONED).into_iter().collect();
        outside.sort_unstable();
        verified.sound.outside = Some(outside).filter(|outside| has_all_packs && outside.len() <= MAX_NEEDS);
        // What is loose, too, or in several packs.
        all.sort_unstable();
        all.dedup();
        verified.wanted = Some(all);
        verified
    }

    fn jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (at, packed) in self.packs.iter().enumerate().filter(|(_, packed)| !packed.is_same) {
            jobs.push(Job::Sums(at));
            let mut start = 0;
            while start < packed.by_offset.len() {
                let end_of_slice = packed.by_offset[start].0.saturating_add(SLICE);
                let end = start + packed.by_offset[start..].partition_point(|(offset, _)| *offset < end_of_slice).max(1);
                jobs.push(Job::Objects(at, start..end));
                start = end;
            }
        }
        let slices = |n: usize, step: usize| (0..n).step_by(step).map(move |start| start..n.min(start + step));
        jobs.extend(slices(self.loose.len(), HANDFUL).map(Job::Loose));
        jobs.extend(slices(self.needs_to_follow().map_or(0, <[Oid]>::len), ARMFUL).map(Job::Needs));
        jobs.extend(slices(self.roots.len(), ARMFUL).map(Job::Roots));
        jobs
    }

    /// Verifies what a pack ends with and begins with, and what its index has of each object's bytes.
    fn verify_sums(&self, packed: &Packed, reader: &mut Reader) {
        let damaged = |problem| Damaged { path: packed.path.clone(), offset: None, problem, role: Role::Pack };
        let sums = packed.pack.source(&self.shared, reader).and_then(|source| self.sums(packed, &source));
        match sums {
            Err(error) if error.kind() == Kind::Corrupt => self.note(damaged(format!("{error:#}"))),
            Err(error) => self.note_unread(&error),
            Ok(Sums { is_right: false, .. }) => {
                self.note(damaged("its bytes do not match the checksum that it ends with".to_owned()));
            }
            Ok(_) if !packed.is_listed || packed.is_foreign() => self.note_odd(),
            Ok(Sums { is_pack: false, .. }) => self.note(damaged("it does not begin as a file of its kind".to_owned())),
            Ok(Sums { bad_crc: Some(offset), .. }) => {
                let problem = format!("it has another checksum of the object at byte {offset} of its pack");
                self.note(Damaged { path: packed.path.with_extension("idx"), offset: None, problem, role: Role::Index });
            }
            Ok(_) => (),
        }
    }

    fn sums(&self, packed: &Packed, source: &Source) -> Result<Sums> {
        let (mut hasher, mut whole, mut buffer) = (Hasher::new(), blake3::Hasher::new(), vec![0; BUFFER as usize]);
        let mut sums = Sums { is_right: false, is_pack: false, bad_crc: None };
        let mut objects = packed.by_offset.iter().peekable();
        let mut current: Option<(u64, u32, Crc)> = None;
        let mut end_object = |current: Option<(u64, u32, Crc)>| -> Result<()> {
            if let Some((offset, rank, crc)) = current
                && packed.pack.index().crc(rank, &self.shared.files)? != crc.sum()
            {
                sums.bad_crc = sums.bad_crc.or(Some(offset));
            }
            Ok(())
        };
        let end = source.length() - SUM_LEN as u64;
        for at in (0..end).step_by(BUFFER as usize) {
            let block = &mut buffer[..BUFFER.min(end - at) as usize];
            source.read(at, block)?;
            hasher.update(block);
            whole.update(block);
            if at == 0 {
                let n_objects = (packed.by_offset.len() as u32).to_be_bytes();
                sums.is_pack =
                    matches!(block.get(..8), Some(b"PACK\0\0\0\x02" | b"PACK\0\0\0\x03")) && block.get(8..12) == Some(&n_objects);
            }
            let (mut rest, mut from) = (&*block, at);
            while !rest.is_empty() {
                if let Some((offset, rank)) = objects.next_if(|(offset, _)| *offset <= from) {
                    end_object(current.replace((*offset, *rank, Crc::new())))?;
                    continue;
                }
                let n = objects.peek().map_or(rest.len(), |(offset, _)| (offset - from).min(rest.len() as u64) as usize);
                let (part, after) = rest.split_at(n);
                if let Some((.., crc)) = &mut current {
                    crc.update(part);
                }
                (rest, from) = (after, from + n as u64);
            }
        }
        end_object(current)?;
        let mut sum = [0; SUM_LEN];
        source.read(end, &mut sum)?;
        whole.update(&sum);
        sums.is_right = hasher.finalize().is_ok_and(|digest| digest.to_bytes() == sum);
        *packed.hash.lock().expect(POISONED) = sums.is_right.then(|| FileHash::from_bytes(*whole.finalize().as_bytes()));
        Ok(sums)
    }

    fn verify_packed(&self, packed: &Packed, range: Range<usize>, reader: &mut Reader) {
        for at in range {
            let (offset, rank) = packed.by_offset[at];
            let mut held = self.memory.hold();
            let oid = match packed.pack.index().name(rank, &self.shared.files) {
                Ok(name) => oid_from(name),
                Err(error) => return self.note_unread(&error),
            };
            let found = packed.pack.read_claiming(offset, &self.shared, reader, &mut |n_bytes| held.claim(n_bytes));
            let found = found.and_then(|found| named(&oid, found));
            match found {
                Ok((kind, content)) => {
                    self.take(oid, kind, &content, &packed.known[rank as usize], Some(packed), reader);
                }
                Err(error) if error.kind() == Kind::NotFound => return self.note_unread(&error),
                Err(error) if error.kind() == Kind::Corrupt => {
                    let problem = format!("object {oid} is damaged: {error:#}");
                    let damaged = Damaged { path: packed.path.clone(), offset: Some(offset), problem, role: Role::Pack };
                    packed.damaged.lock().expect(POISONED).push(damaged);
                }
                Err(error) => self.note_unread(&error),
            }
        }
    }

    fn verify_loose(&self, single: &Single, reader: &mut Reader) {
        let Single { oid, path, known } = single;
        let mut held = self.memory.hold();
        let mut read = |reader: &mut Reader| -> Result<Option<(ObjectKind, Vec<u8>)>> {
            let found = self.loose_dir.read_claiming(oid, reader, &mut |n_bytes| held.claim(n_bytes))?;
            let Some((kind, content)) = found else { return Ok(None) };
            if object_id(kind, &content)? != *oid {
                return Err(Error::new(Kind::Corrupt, "its content has another hash than its name"));
            }
            match has_trailing_bytes(path)? {
                true => Err(Error::new(Kind::Corrupt, "something follows the end of the object")),
                false => Ok(Some((kind, content))),
            }
        };
        match read(reader) {
            Ok(Some((kind, content))) => self.take(*oid, kind, &content, known, None, reader),
            Err(error) if error.kind() == Kind::Corrupt => {
                let problem = format!("{error:#}");
                self.note(Damaged { path: path.clone(), offset: None, problem, role: Role::Loose(*oid) });
            }
            // It was packed or removed meanwhile.
            Ok(None) => self.note_vanished(),
            Err(error) => self.note_unread(&error),
        }
    }

    /// Takes an object of a pack, or a loose one, that has the content which its name says.
    fn take(&self, oid: Oid, kind: ObjectKind, content: &[u8], known: &Known, packed: Option<&Packed>, reader: &mut Reader) {
        known.is.fetch_or(bit(kind), Ordering::Relaxed);
        match links(kind, content) {
            Some(links) => {
                for (kind, oid) in links {
                    match packed {
                        Some(packed) if self.is_in(packed, Some(kind), &oid, reader) => (),
                        Some(packed) => self.follow_out_of(packed, kind, oid, reader),
                        None => self.require(Some(kind), oid, reader),
                    }
                }
            }
            None => self.note_odd(),
        }
        if kind == ObjectKind::Blob && (self.is_wanted)(content) {
            packed.map_or(&self.wanted, |packed| &packed.wanted).lock().expect(POISONED).push(oid);
        }
    }

    fn note(&self, damaged: Damaged) {
        self.damaged.lock().expect(POISONED).push(damaged);
    }

    fn note_odd(&self) {
        self.is_odd.store(true, Ordering::Relaxed);
    }

    /// Notes what could not be read, though nothing says that it is damaged: it is gone, or there is no memory for it.
    fn note_unread(&self, error: &Error) {
        self.note_odd();
        if error.kind() == Kind::NotFound {
            self.note_vanished();
        }
    }

    /// Notes that something is gone that was there.
    fn note_vanished(&self) {
        self.note_odd();
        self.has_vanished.store(true, Ordering::Relaxed);
    }
}

/// What the checksums of a pack say.
struct Sums {
    is_right: bool,
    /// Whether it begins as a pack with as many objects as its index has.
    is_pack: bool,
    /// Where an object starts whose bytes are not those that the index was made of.
    bad_crc: Option<u64>,
}

/// Bytes read at once.
const BUFFER: u64 = 256 << 10;

const POISONED: &str = "BUG: a thread panicked while it verified objects";

impl Known {
    /// Notes what somebody takes the object for, if that matters.
    fn take_for(&self, kind: Option<ObjectKind>) {
        if let Some(kind) = kind {
            self.taken_for.fetch_or(bit(kind), Ordering::Relaxed);
        }
    }

    /// Says whether nobody takes the object for anything else.
    fn holds(&self) -> bool {
        let is = self.is.load(Ordering::Relaxed);
        is == 0 || self.taken_for.load(Ordering::Relaxed) & !is == 0
    }
}

fn bit(kind: ObjectKind) -> u8 {
    match kind {
        ObjectKind::Blob => 1,
        ObjectKind::Tree => 2,
        ObjectKind::Commit => 4,
        ObjectKind::Tag => 8,
    }
}

/// Refuses an object that has another name.
fn named(oid: &Oid, (kind, content): (ObjectKind, Vec<u8>)) -> Result<(ObjectKind, Vec<u8>)> {
    match object_id(kind, &content)? == *oid {
        true => Ok((kind, content)),
        false => Err(Error::new(Kind::Corrupt, "its content has another hash")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Makes a repository with a few versions of a tree, in a pack with deltas, and a loose tag; returns it with what it wants to know.
    fn repository() -> (tempfile::TempDir, Git, Vec<Oid>) {
        let dir = tempfile::tempdir().unwrap();
        let git = Git::init(dir.path(), "main").unwrap();
        let (mut wanted, mut parent) = (Vec::new(), None);
        for version in 0..5 {
            let large: String =
                (0..3000).map(|line| format!("line {line} of {}\n", if line == 700 { version } else { 0 })).collect();
            let blobs = [large, format!("wanted {version}\n")].map(|text| put(&git, "blob", text.as_bytes()));
            wanted.push(blobs[1]);
            let sub = put(&git, "tree", &entry("100755", "x", &blobs[1]));
            let tree = [entry("100644", "a", &blobs[0]), entry("40000", "d", &sub)].concat();
            let tree = put(&git, "tree", &tree);
            parent = Some(commit(&git, &tree, parent));
        }
        let tip = parent.unwrap();
        git.run(&["update-ref", "refs/heads/main", &tip.to_string()]).unwrap();
        git.run(&["repack", "-adfq", "--depth=50"]).unwrap();
        git.run(&["prune-packed", "-q"]).unwrap();
        let tag = put(&git, "tag", format!("object {tip}\ntype commit\ntag x\ntagger A <a@b> 1 +0000\n\nx\n").as_bytes());
        git.run(&["update-ref", "refs/tags/x", &tag.to_string()]).unwrap();
        (dir, git, wanted)
    }

    fn put(git: &Git, kind: &str, content: &[u8]) -> Oid {
        let hex = git.run_with_input(&["hash-object", "-w", "--literally", "-t", kind, "--stdin"], content).unwrap();
        Oid::from_hex(hex.trim_ascii()).unwrap()
    }

    fn entry(mode: &str, name: &str, oid: &Oid) -> Vec<u8> {
        [format!("{mode} {name}\0").as_bytes(), oid.as_slice()].concat()
    }

    fn commit(git: &Git, tree: &Oid, parent: Option<Oid>) -> Oid {
        let parent = parent.map_or(String::new(), |parent| format!("parent {parent}\n"));
        let text = format!("tree {tree}\n{parent}author A <a@b> 1 +0000\ncommitter A <a@b> 1 +0000\n\nx\n");
        put(git, "commit", text.as_bytes())
    }

    fn verified(git: &Git) -> Verified {
        verified_after(git, &Sound::default())
    }

    fn verified_after(git: &Git, before: &Sound) -> Verified {
        git.check_files(&|content| content.starts_with(b"wanted"), before, &git.roots().unwrap_or_default()).unwrap()
    }

    fn only(dir: &Path, extension: &str) -> PathBuf {
        list(&dir.join("objects/pack"))
            .unwrap()
            .into_iter()
            .find(|path| path.extension().is_some_and(|ext| ext == extension))
            .unwrap()
    }

    #[test]
    fn what_is_in_order_is_told_with_what_is_wanted() {
        let (_dir, git, mut wanted) = repository();
        let found = verified(&git);
        wanted.sort_unstable();
        assert_eq!((found.damaged, found.wanted), (Vec::new(), Some(wanted)));
    }

    #[test]
    fn what_has_the_same_bytes_is_not_unpacked_again() {
        let (_dir, git, mut wanted) = repository();
        let first = verified(&git);
        assert!(first.sound.packs.len() == 1 && first.n_same == 0 && first.n_fresh > 1000);
        let again = verified_after(&git, &first.sound);
        assert_eq!((again.n_same, again.n_fresh, &again.sound), (first.n_fresh, 0, &first.sound));
        wanted.sort_unstable();
        assert_eq!(again.wanted.unwrap(), wanted);
        // What is new is verified, what is repacked is new, and what is gone is forgotten.
        let last = put(&git, "blob", b"wanted too");
        let tree = put(&git, "tree", &[entry("100644", "a", &last), entry("100644", "b", &wanted[0])].concat());
        let more = commit(&git, &tree, None);
        git.run(&["update-ref", "refs/heads/more", &more.to_string()]).unwrap();
        git.run(&["repack", "-q"]).unwrap();
        let second = verified_after(&git, &first.sound);
        assert!(second.sound.packs.len() == 2 && second.n_same == first.n_fresh && second.n_fresh > 0);
        assert_eq!(second.wanted.unwrap().len(), wanted.len() + 1);
        git.run(&["repack", "-adfq"]).unwrap();
        let third = verified_after(&git, &second.sound);
        assert!(third.n_same == 0 && third.sound.packs.len() == 1 && third.wanted.is_some());
    }

    #[test]
    fn what_a_pack_needs_of_others_is_looked_for_again_and_again() {
        let (dir, git, wanted) = repository();
        // One blob of the first pack, and one that is only loose.
        let loose = put(&git, "blob", b"loose");
        let tree = put(&git, "tree", &[entry("100644", "a", &wanted[0]), entry("100644", "b", &loose)].concat());
        let pack = git.git_dir().join("objects/pack/pack");
        git.run_with_input(&["pack-objects", "-q", &pack.to_string_lossy()], format!("{tree}\n").as_bytes()).unwrap();
        let found = verified(&git);
        let mut needed = [wanted[0], loose];
        needed.sort_unstable();
        assert!(found.is_whole && found.sound.packs.len() == 2 && found.sound.needs.as_ref() == Some(&needed.to_vec()));
        assert_eq!(found.sound.outside, Some(vec![loose]), "it may go");
        let again = verified_after(&git, &found.sound);
        assert!(again.is_whole && again.n_fresh == 0 && again.sound == found.sound);
        let much = Sound { needs: None, ..found.sound.clone() };
        let again = verified_after(&git, &much);
        assert!(again.is_whole && again.n_fresh == 0 && again.sound == much);
        let unknown = verified_after(&git, &Sound { outside: None, ..much.clone() });
        assert!(unknown.is_whole && unknown.n_same == 0 && unknown.sound == found.sound, "they are verified anew");
        let learnt = verified_after(&git, &Sound { outside: None, ..found.sound.clone() });
        assert!(learnt.is_whole && learnt.n_fresh == 0 && learnt.sound == found.sound, "each need was looked for");
        // It may move.
        git.run_with_input(&["pack-objects", "-q", &pack.to_string_lossy()], format!("{loose}\n").as_bytes()).unwrap();
        git.run(&["prune-packed"]).unwrap();
        let moved = verified_after(&git, &much);
        assert!(moved.is_whole && moved.n_same > 0 && moved.sound.outside == Some(Vec::new()));
        // But not go, neither the one nor the other.
        let has = |path: &Path, oid: &Oid| {
            let name = oid.as_slice().try_into().unwrap();
            Pack::open(path, 0).unwrap().index().rank(name, &Shared::default().files).unwrap().is_some()
        };
        let indexes = list(&dir.path().join("objects/pack")).unwrap().into_iter();
        let indexes: Vec<PathBuf> = indexes.filter(|path| path.extension().is_some_and(|ext| ext == "idx")).collect();
        let with = |oid: &Oid| indexes.iter().find(|path| has(path, oid)).unwrap();
        for (index, is_known) in [(with(&loose), true), (with(&wanted[0]), false)] {
            let aside = index.with_extension("aside");
            fs::rename(index, &aside).unwrap();
            fs::rename(index.with_extension("pack"), index.with_extension("more")).unwrap();
            let found = git.check_files(&|_| false, &found.sound, &[]).unwrap();
            assert!(!found.is_whole && found.damaged.is_empty() && found.wanted.is_some() && found.n_same > 0);
            // So that the next look begins afresh, and does not miss for ever what was of use to something that is gone.
            assert!(found.sound.packs.is_empty());
            let found = git.check_files(&|_| false, &much, &[]).unwrap();
            assert!(!found.is_whole && found.sound.outside.is_none());
            assert_eq!(found.n_same > 0, is_known, "nobody knows what a pack that is gone was needed for");
            fs::rename(&aside, index).unwrap();
            fs::rename(index.with_extension("more"), index.with_extension("pack")).unwrap();
        }
    }

    #[test]
    fn more_than_can_be_kept_is_as_if_nobody_knew() {
        for (n_loose, is_known) in [(MAX_NEEDS, true), (MAX_NEEDS + 1, false)] {
            let (_dir, git, _) = repository();
            let mut entries = Vec::new();
            for at in 0..n_loose {
                entries.extend(entry("100644", &format!("{at:03}"), &put(&git, "blob", format!("loose {at}").as_bytes())));
            }
            let tree = put(&git, "tree", &entries);
            let pack = git.git_dir().join("objects/pack/pack");
            git.run_with_input(&["pack-objects", "-q", &pack.to_string_lossy()], format!("{tree}\n").as_bytes()).unwrap();
            let found = verified(&git);
            assert!(found.is_whole && found.sound.packs.len() == 2);
            let known = [found.sound.outside, found.sound.needs].map(|oids| oids.map(|oids| oids.len()));
            assert_eq!(known, [is_known.then_some(n_loose); 2]);
        }
    }

    #[test]
    fn a_gap_that_is_none_of_the_packs_changes_nothing_that_is_known_of_them() {
        let (_dir, git, _) = repository();
        put(&git, "tree", &entry("100644", "f", &oid_from([9; 20])));
        let found = verified(&git);
        assert!(!found.is_whole && found.sound.packs.len() == 1);
        assert_eq!(found.sound.outside, Some(Vec::new()));
    }

    #[test]
    fn packs_that_need_nothing_but_each_other_are_whole_as_long_as_all_are_here() {
        let (dir, git, wanted) = repository();
        let pack_only = |oids: &[Oid]| {
            let names: String = oids.iter().map(|oid| format!("{oid}\n")).collect();
            let pack = git.git_dir().join("objects/pack/pack");
            let name = git.run_with_input(&["pack-objects", "-q", &pack.to_string_lossy()], names.as_bytes()).unwrap();
            git.run(&["prune-packed", "-q"]).unwrap();
            PathBuf::from(format!("{}-{}.pack", pack.display(), String::from_utf8(name).unwrap().trim()))
        };
        let last = only(dir.path(), "pack");
        let one = pack_only(&[put(&git, "tree", &entry("100644", "a", &wanted[0]))]);
        let first = verified(&git);
        let is_closed = |sound: &Sound| sound.outside == Some(Vec::new());
        assert!(first.is_whole && is_closed(&first.sound));
        // Nothing of what they need is known one by one.
        let much = |sound: &Sound| Sound { needs: None, ..sound.clone() };
        let again = verified_after(&git, &much(&first.sound));
        assert!(again.is_whole && again.n_fresh == 0 && is_closed(&again.sound) && again.sound == much(&first.sound));
        // One that may be another file by now is not noted, and nobody knows what is in it.
        let touch = |content: &[u8]| {
            let changed = std::time::SystemTime::UNIX_EPOCH;
            content.starts_with(b"wanted") && fs::File::open(&last).unwrap().set_modified(changed).is_ok()
        };
        let touched = git.check_files(&touch, &Sound::default(), &[]).unwrap();
        assert!(touched.is_whole && touched.sound.packs.len() == 1 && touched.sound.outside.is_none());
        // What is new may need them, and is looked at.
        let two = pack_only(&[put(&git, "tree", &entry("100644", "b", &wanted[1]))]);
        let second = verified_after(&git, &much(&first.sound));
        assert!(second.is_whole && is_closed(&second.sound) && second.sound.packs.len() == 3 && second.sound.needs.is_none());
        let missing = put(&git, "blob", b"missing");
        let three = pack_only(&[put(&git, "tree", &entry("100644", "c", &missing))]);
        let object = format!("{missing}");
        fs::remove_file(git.git_dir().join("objects").join(&object[..2]).join(&object[2..])).unwrap();
        let third = verified_after(&git, &much(&second.sound));
        assert!(!third.is_whole && third.sound.outside.is_none());
        for path in [&three, &three.with_extension("idx")] {
            fs::remove_file(path).unwrap();
        }
        // One of them goes: whether it was needed is looked for anew.
        for (gone, is_needed) in [(two, false), (one, false), (last, true)] {
            let aside = [gone.clone(), gone.with_extension("idx")].map(|path| {
                let aside = path.with_file_name(format!("aside-{}", path.extension().unwrap().display()));
                fs::rename(&path, &aside).unwrap();
                (aside, path)
            });
            let without = git.check_files(&|_| false, &much(&second.sound), &[]).unwrap();
            assert_eq!(
                (without.is_whole, is_closed(&without.sound), without.n_same),
                (!is_needed, !is_needed, 0),
                "{}",
                gone.display()
            );
            aside.into_iter().for_each(|(aside, path)| fs::rename(aside, path).unwrap());
        }
        assert!(verified_after(&git, &much(&second.sound)).n_fresh == 0);
    }

    #[test]
    fn what_is_new_and_takes_something_the_same_for_what_it_is_not_is_left_to_git() {
        let (_dir, git, wanted) = repository();
        let sound = verified(&git).sound;
        let tree = put(&git, "tree", &entry("40000", "d", &wanted[0]));
        git.run_with_input(
            &["pack-objects", "-q", &git.git_dir().join("objects/pack/pack").to_string_lossy()],
            format!("{tree}\n").as_bytes(),
        )
        .unwrap();
        git.run(&["prune-packed", "-q"]).unwrap();
        assert!(verified_after(&git, &sound).wanted.is_none());
    }

    #[test]
    fn a_pack_that_comes_meanwhile_begins_nothing_anew() {
        let (_dir, git, wanted) = repository();
        let n_times = AtomicUsize::new(0);
        let is_wanted = |content: &[u8]| {
            if content == b"wanted 3\n" && n_times.fetch_add(1, Ordering::Relaxed) == 0 {
                let stem = git.git_dir().join("objects/pack/pack");
                git.run_with_input(&["pack-objects", "-q", &stem.to_string_lossy()], format!("{}\n", wanted[0]).as_bytes())
                    .unwrap();
            }
            content.starts_with(b"wanted")
        };
        let found = git.check_files(&is_wanted, &Sound::default(), &[]).unwrap();
        assert_eq!((found.wanted.map(|found| found.len()), found.sound.packs.len()), (Some(wanted.len()), 1));
        assert_eq!(n_times.into_inner(), 1);
    }

    #[test]
    fn what_vanishes_unread_is_looked_for_again() {
        let look = |git: &Git, vanish: &dyn Fn()| {
            let before = Sound::default();
            let look = Look::at(git, &|content| content.starts_with(b"wanted"), &before, &[]).unwrap();
            vanish();
            let (verified, is_whole) = look.run().unwrap();
            (verified.wanted.is_some(), verified.damaged.len(), is_whole)
        };
        let (dir, git, _) = repository();
        assert_eq!(look(&git, &|| ()), (true, 0, true));
        // All that is loose is in a pack now, and the old pack is gone.
        assert_eq!(look(&git, &|| drop(git.run(&["repack", "-adfq"]).unwrap())), (false, 0, false));
        assert_eq!(look(&git, &|| ()), (true, 0, true));
        put(&git, "blob", b"wanted, loose");
        assert_eq!(look(&git, &|| drop(git.run(&["prune", "--expire=now"]).unwrap())), (false, 0, false));
        let pack = only(dir.path(), "pack");
        assert_eq!(look(&git, &|| fs::remove_file(&pack).unwrap()), (false, 0, false));
    }

    #[test]
    fn a_pack_that_refers_to_something_that_is_not_here_is_not_noted() {
        let (_dir, git, _) = repository();
        let n_before = verified(&git).sound.packs.len();
        let tree = put(&git, "tree", &entry("100644", "f", &oid_from([9; 20])));
        git.run_with_input(
            &["pack-objects", "-q", &git.git_dir().join("objects/pack/pack").to_string_lossy()],
            format!("{tree}\n").as_bytes(),
        )
        .unwrap();
        git.run(&["prune-packed", "-q"]).unwrap();
        let found = verified(&git);
        assert!(found.wanted.is_some() && found.sound.packs.len() == n_before);
    }

    #[test]
    fn every_damaged_byte_of_every_file_of_objects_is_found() {
        let (dir, git, _) = repository();
        let sound = verified(&git).sound;
        let loose =
            list(&dir.path().join("objects")).unwrap().into_iter().find(|path| path.file_name().unwrap().len() == 2).unwrap();
        for path in [only(dir.path(), "pack"), only(dir.path(), "idx"), list(&loose).unwrap().remove(0)] {
            let good = fs::read(&path).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            for at in (0..good.len()).step_by(good.len() / 50 + 1).chain(good.len().saturating_sub(45)..good.len()) {
                let mut bad = good.clone();
                bad[at] ^= 1;
                fs::write(&path, &bad).unwrap();
                // What is noted of the bytes that were there before changes nothing.
                let found = if at % 2 == 0 { verified(&git) } else { verified_after(&git, &sound) };
                assert!(found.wanted.is_none() && found.sound.packs.is_empty(), "{} byte {at}", path.display());
                assert!(
                    found.damaged.iter().any(|found| found.path == path),
                    "{} byte {at}: {:?}",
                    path.display(),
                    found.damaged
                );
            }
            for bad in [&good[..good.len() / 2], &[&good[..], b"x"].concat(), b"", &vec![0; good.len()]] {
                fs::write(&path, bad).unwrap();
                let damaged = verified_after(&git, &sound).damaged;
                assert!(damaged.iter().any(|found| found.path == path), "{} {}", path.display(), bad.len());
            }
            fs::write(&path, &good).unwrap();
        }
        assert!(verified(&git).wanted.is_some());
    }

    #[test]
    fn of_a_pack_whose_end_is_lost_the_objects_are_told_by_their_place() {
        let (dir, git, _) = repository();
        let path = only(dir.path(), "pack");
        let good = fs::read(&path).unwrap();
        let zeroed = [&good[..good.len() - 64], &[0; 64]].concat();
        for bad in [&good[..good.len() / 2], &zeroed, &vec![0; good.len()]] {
            fs::remove_file(&path).unwrap();
            fs::write(&path, bad).unwrap();
            let found = verified(&git).damaged;
            assert!(found.iter().any(|found| found.path == path && found.offset.is_some()), "{found:?}");
        }
    }

    #[test]
    fn what_another_hash_hides_is_found() {
        let (dir, git, _) = repository();
        let sha1 = |bytes: &[u8]| {
            let mut hasher = Hasher::new();
            hasher.update(bytes);
            hasher.finalize().unwrap().to_bytes()
        };
        let (pack, idx) = (only(dir.path(), "pack"), only(dir.path(), "idx"));
        let goods = [fs::read(&pack).unwrap(), fs::read(&idx).unwrap()];
        let write = |pack_bytes: &[u8], idx_bytes: &[u8]| {
            for (path, bytes) in [(&pack, pack_bytes), (&idx, idx_bytes)] {
                fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
                fs::write(path, bytes).unwrap();
            }
        };
        let seal = |idx: &mut Vec<u8>| {
            let end = idx.len() - SUM_LEN;
            let sum = sha1(&idx[..end]);
            idx[end..].copy_from_slice(&sum);
        };
        let n = u32::from_be_bytes(goods[1][8 + 255 * 4..][..4].try_into().unwrap()) as usize;
        let (names, crcs, offsets) = (8 + 1024, 8 + 1024 + n * 20, 8 + 1024 + n * 24);
        let problem_of = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut idx = goods[1].clone();
            change(&mut idx);
            seal(&mut idx);
            write(&goods[0], &idx);
            let found = verified(&git);
            assert!(found.wanted.is_none());
            found.damaged.into_iter().map(|found| (found.role, found.problem)).collect::<Vec<_>>()
        };
        let tells = |found: Vec<(Role, String)>, role: Role, words: &str| {
            assert!(found.iter().any(|(of, problem)| *of == role && problem.contains(words)), "{found:?}");
        };
        tells(problem_of(&|idx| idx[crcs] ^= 1), Role::Index, "another checksum of the object at byte");
        tells(problem_of(&|idx| idx[names + 19] ^= 1), Role::Pack, "its content has another hash");
        tells(problem_of(&|idx| idx[offsets] ^= 0x10), Role::Pack, "outside of the pack");
        // A large offset that leads nowhere, and as far as there are numbers.
        let far = |idx: &mut Vec<u8>| {
            idx[offsets..offsets + 4].copy_from_slice(&(1u32 << 31).to_be_bytes());
            let at = idx.len() - 2 * SUM_LEN;
            idx.splice(at..at, [0xff; 8]);
        };
        tells(problem_of(&far), Role::Pack, "outside of the pack");
        // Two names in the wrong order: all of it is there, and git would not find it.
        let (a, b) = (n - 1, n - 2);
        problem_of(&|idx| {
            for (start, len) in [(names, 20), (crcs, 4), (offsets, 4)] {
                (0..len).for_each(|at| idx.swap(start + a * len + at, start + b * len + at));
            }
        });
        // A pack that says to have one object more, sealed again.
        let [mut bad, mut bad_idx] = goods.clone();
        bad[11] += 1;
        let end = bad.len() - SUM_LEN;
        let sum = sha1(&bad[..end]);
        bad[end..].copy_from_slice(&sum);
        let at = bad_idx.len() - 2 * SUM_LEN;
        bad_idx[at..at + SUM_LEN].copy_from_slice(&sum);
        seal(&mut bad_idx);
        write(&bad, &bad_idx);
        assert!(verified(&git).damaged.iter().any(|found| found.problem.contains("does not begin as")));
        write(&goods[0], &goods[1]);
        assert!(verified(&git).wanted.is_some());
    }

    #[test]
    fn of_what_unpacks_to_much_there_is_one_at_a_time_in_memory() {
        let (_dir, git, _) = repository();
        // One in a pack, where it takes a thousandth, and one that is loose.
        let large = [1, 2].map(|byte| vec![byte; 9 << 20]);
        let tree = put(&git, "tree", &entry("100644", "f", &put(&git, "blob", &large[0])));
        git.run(&["update-ref", "refs/tags/large", &commit(&git, &tree, None).to_string()]).unwrap();
        git.run(&["repack", "-dq"]).unwrap();
        put(&git, "blob", &large[1]);
        let (n_now, n_most, n_all) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let is_wanted = |content: &[u8]| {
            if content.len() > 8 << 20 {
                n_all.fetch_add(1, Ordering::Relaxed);
                n_most.fetch_max(n_now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_millis(300));
                n_now.fetch_sub(1, Ordering::Relaxed);
            }
            false
        };
        assert!(git.check_files(&is_wanted, &Sound::default(), &[]).unwrap().wanted.is_some());
        assert_eq!((n_all.into_inner(), n_most.into_inner()), (2, 1));
    }

    #[test]
    fn an_index_that_is_of_another_pack_or_damaged_tells_nothing_of_the_pack() {
        let (dir, git, _) = repository();
        let (_other_dir, other, _) = repository();
        let blob = put(&other, "blob", b"more");
        let tree = put(&other, "tree", &entry("100644", "f", &blob));
        other.run(&["update-ref", "refs/tags/more", &commit(&other, &tree, None).to_string()]).unwrap();
        other.run(&["repack", "-adfq"]).unwrap();
        let (idx, pack) = (only(dir.path(), "idx"), only(dir.path(), "pack"));
        let good = fs::read(&idx).unwrap();
        let foreign = fs::read(only(other.git_dir(), "idx")).unwrap();
        fs::remove_file(&idx).unwrap();
        let mut bad_offset = good.clone();
        bad_offset[good.len() - 2 * SUM_LEN - 1] ^= 1;
        for bad in [&foreign[..], &bad_offset, &good[..1000], b""] {
            fs::write(&idx, bad).unwrap();
            let found = verified(&git);
            assert!(found.wanted.is_none() && !found.damaged.is_empty());
            assert!(found.damaged.iter().all(|found| found.role == Role::Index), "{:?}", found.damaged);
        }
        // But what is wrong with the pack itself is seen.
        let mut bytes = fs::read(&pack).unwrap();
        bytes[100] ^= 1;
        fs::remove_file(&pack).unwrap();
        fs::write(&pack, bytes).unwrap();
        for bad in [&foreign[..], &bad_offset, &good[..1000], b""] {
            fs::write(&idx, bad).unwrap();
            assert!(verified(&git).damaged.iter().any(|found| found.path == pack));
        }
    }

    #[test]
    fn what_only_git_can_judge_is_left_to_it() {
        // Objects that are what their names say, and not in order.
        type Make = fn(&Git, Oid);
        let cases: [(&str, Make); 8] = [
            ("a directory among the loose objects", |git, _| {
                fs::create_dir_all(git.git_dir().join("objects/00").join("1".repeat(38))).unwrap();
            }),
            ("a directory that is a file", |git, blob| _ = put(git, "tree", &entry("40000", "d", &blob))),
            ("a file that is a directory", |git, blob| {
                let tree = put(git, "tree", &entry("100644", "f", &blob));
                put(git, "tree", &entry("100644", "d", &tree));
            }),
            ("a commit of a file", |git, blob| _ = commit(git, &blob, None)),
            ("a commit after a tree", |git, blob| {
                let tree = put(git, "tree", &entry("100644", "f", &blob));
                commit(git, &tree, Some(tree));
            }),
            ("a tag of another kind", |git, blob| {
                put(git, "tag", format!("object {blob}\ntype tree\ntag x\ntagger A <a@b> 1 +0000\n\nx\n").as_bytes());
            }),
            ("a tree of a bad mode", |git, blob| _ = put(git, "tree", &entry("100600", "f", &blob))),
            ("a file among the objects that is none", |git, _| {
                fs::create_dir_all(git.git_dir().join("objects/00")).unwrap();
                fs::write(git.git_dir().join("objects/00/x"), "").unwrap();
            }),
        ];
        for (what, make) in cases {
            let (_dir, git, wanted) = repository();
            make(&git, wanted[0]);
            let found = verified(&git);
            assert!(found.wanted.is_none() && found.damaged.is_empty(), "{what}: {:?}", found.damaged);
        }
        let (_dir, git, _) = repository();
        fs::write(git.git_dir().join("objects/info/alternates"), "/nowhere\n").unwrap();
        assert!(verified(&git).wanted.is_none());
    }
}
