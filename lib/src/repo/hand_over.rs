//! Checks in more than this host can keep: other holders pull the chunks while they are made, and what enough of them hold goes here.
//!
//! What is made is kept apart (`store::InFlight`), part by part, and named by a chunk index for each part below the ref `refs/devops/in-flight/run`,
//! which others fetch with the branches. A part goes when the rules of `docs/formats/holders.md` let it, and when the holders that count have that ref:
//! so they know a reason to keep what no commit names yet. Nobody is pushed to; who makes waits for those who pull. Design: `docs/streaming.md`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::holders::{self, known};
use super::{Policy, Repo, remotes};
use crate::durable::{self, Lock};
use crate::error::{Context, Error, Kind, Result};
use crate::file::index::{ChunkIndex, Entry, MAX_FLAT};
use crate::git::quarantine::{HANDED, IN_FLIGHT, Quarantine};
use crate::git::refs::RefMove;
use crate::git::{CommitData, Identity, ObjectKind, Objects, Oid, PackWriter, Signature, write_tree};
use crate::id::{ChunkId, FileHash};
use crate::placement::HolderId;
use crate::placement::inquiry::{Inquiry, Moment, Terms};
use crate::progress::Progress;
use crate::remote::ask::Line;
use crate::remote::ssh::{Connection, Remote};
use crate::remote::wire::{self, MAX_PROVE};
use crate::store::{MAX_CHUNK, Put, Store, WriteOptions, WriteStats, Writer};

/// Where it is noted what is on its way from other hosts, under their names here.
pub const TAKEN_OVER: &str = "refs/devops/in-flight-of/";
const FILE: u32 = 0o100_644;
/// Parts of one run, at most.
const MAX_PARTS: usize = 1 << 16;
/// A part has so many chunks at most, and some more when several threads fill it: its index must not need lists.
const PART_CHUNKS: usize = MAX_FLAT - 256;
/// With less room than this there is nothing to hand over in, in bytes.
const LEAST: u64 = 4 << 20;
/// More than this need not be on its way at a time, in bytes.
const MOST: u64 = 4 << 30;
/// The largest part, in bytes.
const MAX_PART: u64 = 256 << 20;
/// How long others are left alone between two questions.
const PAUSE: Duration = Duration::from_secs(1);

/// How to hand over.
#[derive(Clone, Debug)]
pub struct HandOverOptions {
    /// So many bytes may be here at a time; without it, half of what is free, and no more than the quota of a cache.
    pub in_flight: Option<u64>,
    /// When nothing could be given up for so long, the run ends.
    pub wait: Duration,
    /// Reads this host's clocks.
    pub clock: fn() -> Moment,
    /// A directory with a short path, for the sockets of connections.
    pub scratch: PathBuf,
}

/// Hands chunks over to other holders; several threads may put at once.
///
/// Dropped before [`HandOver::finish`], it leaves parts that others may still pull; the next run begins anew, and what they have need not go again.
pub struct HandOver<'a> {
    repo: &'a Repo,
    lock: &'a Lock,
    options: &'a HandOverOptions,
    terms: Terms,
    remotes: Vec<Remote>,
    own: HolderId,
    /// Bytes that may be here at a time, and of one part.
    limit: u64,
    part_len: u64,
    store: Store,
    store_lock: Lock,
    /// Where the chunks of the open part go; `None` while there is none, and after a failure.
    writer: RwLock<Option<Writer>>,
    part: Mutex<Part>,
    flight: Mutex<Flight>,
    failure: Mutex<Option<(Kind, String)>>,
}

/// The part that is being filled.
#[derive(Default)]
struct Part {
    entries: Vec<Entry>,
    hasher: blake3::Hasher,
    n_stored: u64,
    /// Chunks of this part, and of all that are on their way.
    named: HashSet<ChunkId>,
}

/// What others are to pull.
#[derive(Default)]
struct Flight {
    /// The commit that names it, and its files.
    at: Option<Oid>,
    files: Vec<(String, u32, Oid)>,
    /// How many parts of this run each commit names that was ever told.
    told: HashMap<Oid, usize>,
    n_told: usize,
    parts: VecDeque<Sent>,
    n_bytes: u64,
    /// What was ever made.
    stats: WriteStats,
    /// What the last look at the others found.
    state: Vec<String>,
}

/// A part that is complete and named.
struct Sent {
    number: usize,
    /// Ascending.
    chunks: Vec<ChunkId>,
    n_stored: u64,
}

impl Part {
    /// Notes a chunk; returns whether it is new.
    fn add(&mut self, id: ChunkId, bytes: &[u8]) -> bool {
        if bytes.is_empty() || !self.named.insert(id) {
            return false;
        }
        self.hasher.update(bytes);
        self.entries.push(Entry::Chunk { id, len: bytes.len() as u64 });
        true
    }

    fn is_full(&self, part_len: u64) -> bool {
        self.n_stored >= part_len || self.entries.len() >= PART_CHUNKS
    }

    /// Returns the index of the part, as if it were a file, and its chunks.
    fn take(&mut self, repo: &Repo, number: usize) -> (ChunkIndex, Sent) {
        let entries = std::mem::take(&mut self.entries);
        let hash = FileHash::from_bytes(*std::mem::take(&mut self.hasher).finalize().as_bytes());
        let mut chunks: Vec<ChunkId> = entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Chunk { id, .. } => Some(*id),
                _ => None,
            })
            .collect();
        chunks.sort_unstable();
        let size = entries.iter().map(Entry::len).sum();
        let index = ChunkIndex { size, hash, has_holes: false, chunker: repo.settings.chunker, entries };
        (index, Sent { number, chunks, n_stored: std::mem::take(&mut self.n_stored) })
    }
}

impl<'a> HandOver<'a> {
    /// Begins a run, by who holds the repository's lock. What an earlier run left that was cut off is removed here, and stays named for others.
    pub fn begin(repo: &'a Repo, lock: &'a Lock, options: &'a HandOverOptions) -> Result<Self> {
        let what = || "cannot hand anything over";
        let remotes = remotes::named(repo, &[]).context(what)?;
        let own = own_id(repo, (options.clock)().wall).context(what)?;
        let (store, store_lock) = repo.chunks.local().in_flight().begin().context(what)?;
        let limit = limit(repo, options.in_flight).context(what)?;
        let mut flight = Flight { at: repo.git.read_ref(&own_ref())?, ..Flight::default() };
        if let Some(at) = flight.at {
            flight.files = files_of(&repo.objects, at)?;
        }
        let writer = store.writer(WriteOptions { level: repo.settings.level })?;
        Ok(Self {
            repo,
            lock,
            options,
            terms: holders::terms(repo)?,
            remotes,
            own,
            limit,
            part_len: (limit / 4).min(MAX_PART),
            store,
            store_lock,
            writer: RwLock::new(Some(writer)),
            part: Mutex::default(),
            flight: Mutex::new(flight),
            failure: Mutex::default(),
        })
    }

    /// Takes a chunk; waits while others have too much to pull.
    pub fn put(&self, id: ChunkId, bytes: &[u8]) -> Result<()> {
        let is_full = {
            let writer = self.writer.read().unwrap_or_else(PoisonError::into_inner);
            let Some(writer) = writer.as_ref() else { return Err(self.failed()) };
            if !self.part().add(id, bytes) {
                return Ok(());
            }
            let put = writer.put(id, bytes)?;
            let mut part = self.part();
            part.n_stored += match put {
                Put::New { stored_len } => stored_len.into(),
                Put::Known => 0,
            };
            part.is_full(self.part_len)
        };
        if is_full { self.next_part() } else { Ok(()) }
    }

    /// Ends the last part and returns when others hold everything, so that nothing is on its way any more; tells what there was.
    pub fn finish(&self) -> Result<WriteStats> {
        let mut writer = self.writer.write().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = writer.take() else { return Err(self.failed()) };
        let is_empty = self.part().entries.is_empty();
        match is_empty {
            true => drop(open),
            false => self.tell(open)?,
        }
        self.wait_until(&|flight| flight.parts.is_empty())?;
        self.repo.chunks.local().in_flight().empty(&self.store_lock)?;
        Ok(self.flight().stats)
    }

    /// Ends a part, if nobody else did meanwhile, and begins another one as soon as there is room for it.
    fn next_part(&self) -> Result<()> {
        let mut writer = self.writer.write().unwrap_or_else(PoisonError::into_inner);
        if writer.is_some() && !self.part().is_full(self.part_len) {
            return Ok(());
        }
        let Some(open) = writer.take() else { return Err(self.failed()) };
        let room = self.limit - self.part_len;
        let begun = self.tell(open).and_then(|()| self.wait_until(&|flight| flight.n_bytes <= room));
        let begun = begun.and_then(|()| self.store.writer(WriteOptions { level: self.repo.settings.level }));
        match begun {
            Ok(new) => *writer = Some(new),
            Err(error) => {
                // The other threads come to the same end.
                let failed = (error.kind(), format!("{error:#}"));
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failed);
                return Err(error);
            }
        }
        Ok(())
    }

    fn failed(&self) -> Error {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (kind, message) = failure.unwrap_or((Kind::Bug, "BUG: chunks are put into what has ended".to_owned()));
        Error::new(kind, message)
    }

    fn part(&self) -> MutexGuard<'_, Part> {
        self.part.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flight(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the open part durable and tells others of it.
    fn tell(&self, open: Writer) -> Result<()> {
        // The chunks first, then what names them.
        let made = open.finish()?;
        let mut flight = self.flight();
        flight.stats.new_chunks += made.new_chunks;
        flight.stats.plain_bytes += made.plain_bytes;
        flight.stats.stored_bytes += made.stored_bytes;
        flight.stats.packs += made.packs;
        let number = flight.n_told;
        let (index, sent) = self.part().take(self.repo, number);
        if flight.files.len() >= MAX_PARTS {
            let message = format!("more than {MAX_PARTS} parts are on their way; let more bytes be under way with '--in-flight'");
            return Err(Error::new(Kind::NoSpace, message));
        }
        let pack = PackWriter::new(&self.repo.places.git_dir, &self.repo.objects)?;
        let blob = pack.put_anew(ObjectKind::Blob, &index.encode())?;
        let name = format!("{:08}", flight.files.len());
        flight.files.push((name, FILE, blob));
        let identity = Identity { name: "git-devops".into(), email: "holder@localhost".into() };
        let who = Signature::new(&identity, (self.options.clock)().wall as i64, 0);
        let tree = write_tree(flight.files.iter().cloned(), &pack)?;
        let message = b"in flight\n".to_vec();
        let commit = pack.commit(&CommitData { tree, parents: Vec::new(), author: who.clone(), committer: who, message })?;
        let kept = pack.finish()?;
        self.repo.turn_ref(&self.repo.git, (&own_ref(), commit), flight.at, "hand over", self.lock)?;
        self.repo.note_refs(self.lock)?;
        self.repo.let_go(kept)?;
        flight.at = Some(commit);
        flight.n_told += 1;
        flight.told.insert(commit, number + 1);
        flight.n_bytes += sent.n_stored;
        flight.parts.push_back(sent);
        Ok(())
    }

    /// Gives up parts that others hold until `is_enough`, and fails if for too long none could be.
    fn wait_until(&self, is_enough: &dyn Fn(&Flight) -> bool) -> Result<()> {
        let mut since = Instant::now();
        while !is_enough(&self.flight()) {
            if self.give_up_parts()? > 0 {
                since = Instant::now();
            } else if since.elapsed() >= self.options.wait {
                return Err(self.nobody_pulls());
            } else {
                std::thread::sleep(PAUSE);
            }
        }
        Ok(())
    }

    fn nobody_pulls(&self) -> Error {
        let flight = self.flight();
        let (n_parts, mib, seconds) = (flight.parts.len(), flight.n_bytes >> 20, self.options.wait.as_secs());
        let (copies, state) = (self.terms.copies, flight.state.join("; "));
        let message = format!(
            "others do not pull: within {seconds} seconds no part could be given up, and {n_parts} parts ({mib} MiB) wait for {copies} holders ({state}); \
             let 'gdo sync --follow' run on them, with this host as a remote there and them as remotes here, then say the same again"
        );
        Error::new(Kind::NoSpace, message)
    }

    /// Asks the others, and removes the oldest parts as far as enough of them hold all of it; returns how many parts went.
    fn give_up_parts(&self) -> Result<usize> {
        let (mut hosts, unreached) = remotes::connect(self.repo, &self.remotes, &self.options.scratch);
        let mut state: Vec<String> = unreached.iter().map(|error| format!("{error:#}")).collect();
        let (links, failed) = hosts.links();
        state.extend(failed.iter().filter_map(|host| host.failure.as_ref()).map(|error| format!("{error:#}")));
        let mut lines = Vec::new();
        let n_told = self.flight().n_told;
        for link in links {
            let name = link.name.clone();
            let connection = hosts.connections().find(|connection| connection.remote().name == name);
            let reached = connection.map_or(Ok(0), |connection| self.n_known_to(connection));
            match reached.and_then(|n_known| Ok((n_known, Line::new(link)?))) {
                Ok((n_known, line)) => {
                    state.push(format!("'{name}' knows of {n_known} of {n_told} parts"));
                    lines.push((n_known, line));
                }
                Err(error) => state.push(format!("'{name}': {error:#}")),
            }
        }
        let mut n_gone = 0;
        while let Some(sent) = { self.flight().parts.pop_front() } {
            let went = self.give_up(&sent, &mut lines, &mut state);
            let mut flight = self.flight();
            if matches!(went, Ok(true)) {
                n_gone += 1;
                flight.n_bytes -= sent.n_stored;
                let mut part = self.part();
                part.named.retain(|id| sent.chunks.binary_search(id).is_err());
                continue;
            }
            flight.parts.push_front(sent);
            went?;
            break;
        }
        self.flight().state = state;
        Ok(n_gone)
    }

    /// Returns how many parts the host behind `connection` has a reason to keep: as many as the commit names that it took over.
    fn n_known_to(&self, connection: &Connection) -> Result<usize> {
        let (command, _) = wire::GIT_COMMAND.split_once(' ').expect("BUG: the command has an argument");
        let url = connection.remote().address.git_url();
        let refs = self.repo.git.refs_elsewhere(&url, command, &connection.git_ssh_command(), TAKEN_OVER)?;
        let flight = self.flight();
        Ok(refs.iter().filter_map(|oid| flight.told.get(oid)).max().copied().unwrap_or(0))
    }

    /// Removes a part if enough of those on `lines` know that it is on its way, promise all of it and prove that they have it; says whether it went.
    fn give_up(&self, sent: &Sent, lines: &mut Vec<(usize, Line)>, state: &mut Vec<String>) -> Result<bool> {
        let mut inquiries = Vec::new();
        let mut n_held = 0;
        for ids in sent.chunks.chunks(MAX_PROVE) {
            if lines.iter().filter(|(n_known, _)| *n_known > sent.number).count() < self.terms.copies {
                return Ok(false);
            }
            let inquiry = self.inquire(ids, sent.number, lines, state)?;
            n_held += inquiry.verdict((self.options.clock)())?.len();
            inquiries.push(inquiry);
            if n_held < inquiries.len().saturating_mul(MAX_PROVE).min(sent.chunks.len()) {
                // The rest is not there either; what is there is asked about again.
                state.push(format!("part {} is not held by enough", sent.number + 1));
                return Ok(false);
            }
        }
        let _one = self.store.removal_lock()?;
        let mut may_go = || inquiries.iter().try_for_each(|inquiry| inquiry.still_counts((self.options.clock)()));
        self.store.remove_chunks(&sent.chunks, &mut may_go, &Progress::default())?;
        Ok(true)
    }

    /// Asks all that know of the part `number` about some of its chunks.
    fn inquire(
        &self,
        ids: &[ChunkId],
        number: usize,
        lines: &mut Vec<(usize, Line)>,
        state: &mut Vec<String>,
    ) -> Result<Inquiry> {
        let mut nonce = [0; 32];
        super::drop::fill_random(&mut nonce)?;
        let mut plain = Vec::new();
        let mut expected = Vec::with_capacity(ids.len());
        for id in ids {
            self.store.read_into(id, &mut plain, MAX_CHUNK)?;
            expected.push((*id, wire::proof(&nonce, &plain)));
        }
        let clock = self.options.clock;
        let mut inquiry = Inquiry::new(self.own, self.terms, clock(), expected);
        let mut failure = None;
        lines.retain_mut(|(n_known, line)| {
            if *n_known <= number || failure.is_some() {
                return true;
            }
            match line.promises(nonce, ids.to_vec()) {
                Ok(answer) => {
                    let taken = inquiry.take(&answer, clock());
                    failure = taken.context(|| format!("cannot count on '{}'", line.name())).err();
                    true
                }
                Err(error) => {
                    state.push(format!("'{}': {error:#}", line.name()));
                    false
                }
            }
        });
        failure.map_or(Ok(inquiry), Err)
    }
}

fn own_ref() -> String {
    format!("{IN_FLIGHT}{HANDED}")
}

/// Returns who this host is among holders; one that keeps a share itself cannot hand over.
fn own_id(repo: &Repo, now: u64) -> Result<HolderId> {
    let Some(ledger) = holders::look(repo)? else { return Ok(HolderId::NONE) };
    let is_counted = known(repo)?.get(&ledger.holder).is_some_and(|known| known.record.until >= now);
    match is_counted || ledger.until() >= now {
        true => Err(Error::new(
            Kind::Usage,
            "this host is a holder itself, and others count on it for its share; store it here, or set 'devops.policy' to 'cache' and wait until what it promised is over",
        )),
        false => Ok(ledger.holder),
    }
}

/// Returns how many bytes may be on their way at a time.
fn limit(repo: &Repo, asked: Option<u64>) -> Result<u64> {
    let free = durable::filesystem_free(repo.store.dir())?;
    let quota = match repo.settings.policy {
        Policy::Cache(quota) => quota,
        _ => u64::MAX,
    };
    let limit = asked.unwrap_or((free / 2).min(quota).min(MOST));
    match limit >= LEAST {
        true => Ok(limit),
        false => Err(Error::new(Kind::NoSpace, format!("{limit} bytes may be on their way, and {LEAST} are the least"))),
    }
}

/// Returns the files of the tree that names parts.
fn files_of(objects: &Objects, commit: Oid) -> Result<Vec<(String, u32, Oid)>> {
    let refused = |what: &str| Error::new(Kind::Refused, what);
    let data = objects.commit(&commit)?;
    if !data.parents.is_empty() {
        return Err(refused("it has a history"));
    }
    let entries = objects.tree(&data.tree)?;
    if entries.len() > MAX_PARTS || entries.iter().any(|entry| entry.mode != FILE) {
        return Err(refused("it names something else than parts"));
    }
    Ok(entries.into_iter().map(|entry| (String::from_utf8_lossy(&entry.name).into_owned(), FILE, entry.oid)).collect())
}

/// Returns the commit in `quarantine` that names what is on its way from that host; one that is not in order is passed over and told of.
pub(super) fn look(quarantine: &Quarantine, refused: &mut Vec<Error>) -> Result<Option<Oid>> {
    let Some(commit) = quarantine.in_flight()? else { return Ok(None) };
    let objects = Objects::open(quarantine.git_dir())?;
    let parts = files_of(&objects, commit)
        .and_then(|files| files.iter().try_for_each(|(_, _, oid)| ChunkIndex::decode(&objects.blob(oid)?).map(drop)));
    match parts.context(|| "what is said to be on its way is not taken over") {
        Ok(()) => Ok(Some(commit)),
        Err(error) if matches!(error.kind(), Kind::Refused | Kind::Corrupt) => {
            refused.push(error);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Returns how the ref moves that notes what is on its way from the remote `name`.
pub(super) fn taken_over(repo: &Repo, name: &str, new: Option<Oid>) -> Result<Option<RefMove>> {
    let name = format!("{TAKEN_OVER}{name}");
    let old = repo.git.read_ref(&name)?;
    Ok((old != new).then_some(RefMove { name, old, new }))
}

/// Takes the ref away that names what was on its way: a commit is there now, and names what counts of it.
pub(super) fn forget(repo: &Repo) -> Result<()> {
    let name = own_ref();
    match repo.git.read_ref(&name)? {
        Some(old) => repo.git.move_refs(&[RefMove { name, old: Some(old), new: None }], ""),
        None => Ok(()),
    }
}
