//! Where the chunks of a file come from: this host, else others.
//!
//! Other hosts are connected to when the first chunk is missing here, and stay so until [`ChunkSource::finish`]. What comes is verified before anyone
//! sees it, and kept here as the store's policy says.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::index::MAX_CHUNK_LEN;
use crate::error::{Error, Kind, Result};
use crate::id::ChunkId;
use crate::remote::fetch::{Fetcher, Link, Served, Wanted};
use crate::store::{CacheWriter, Local, Record, WriteOptions, Writer};

/// Chunks by their ids, from wherever they are.
pub struct ChunkSource {
    local: Arc<Local>,
    hosts: Option<Hosts>,
    /// Whether a chunk was missing here already: then others are, too, and it pays to look first.
    is_sparse: AtomicBool,
    n_damaged: AtomicU64,
}

/// What is done with chunks that come from other hosts.
#[derive(Clone, Copy, Debug)]
pub enum Keep {
    /// They are stored for good.
    Held(WriteOptions),
    /// They stay in the cache, which has at most so many bytes.
    Cached(u64, WriteOptions),
    /// They are passed on.
    Nothing,
}

/// What came of reaching out to other hosts.
#[derive(Default)]
pub struct Reached {
    /// Lines to those that could be reached.
    pub links: Vec<Link>,
    /// Why others could not be.
    pub unreached: Vec<Error>,
    /// What those are called.
    pub names: Vec<String>,
}

/// What came from other hosts.
#[derive(Debug, Default)]
pub struct Came {
    /// The hosts that were asked.
    pub hosts: Vec<Served>,
    /// Why others could not be.
    pub unreached: Vec<Error>,
    /// Why not all that came could be kept here.
    pub not_kept: Option<Error>,
    /// Chunks that were wanted because their copy here is damaged.
    pub n_damaged: u64,
}

struct Hosts {
    reach: Box<dyn Fn() -> Reached + Send + Sync>,
    keep: Keep,
    line: OnceLock<Line>,
}

/// The open connections.
struct Line {
    fetcher: Fetcher,
    keeper: Arc<Keeper>,
    /// All that are known here, with a word about those that could not be asked.
    asked: String,
    unreached: Mutex<Vec<Error>>,
}

impl ChunkSource {
    /// Returns what is on this host, and no other one.
    pub fn of(local: Local) -> Self {
        Self { local: Arc::new(local), hosts: None, is_sparse: AtomicBool::new(false), n_damaged: AtomicU64::new(0) }
    }

    /// Lets chunks that are not here come from hosts, which `reach` connects to when the first one is missing.
    pub fn ask(&mut self, keep: Keep, reach: impl Fn() -> Reached + Send + Sync + 'static) {
        self.hosts = Some(Hosts { reach: Box::new(reach), keep, line: OnceLock::new() });
    }

    /// Returns what is on this host.
    pub fn local(&self) -> &Local {
        &self.local
    }

    /// Says whether there are others to ask.
    pub fn has_hosts(&self) -> bool {
        self.hosts.is_some()
    }

    /// Replaces `out` by the plain bytes of a chunk, which is refused if it is longer than `max_len`; another host may have to send it first.
    pub fn read_into(&self, id: &ChunkId, out: &mut Vec<u8>, max_len: usize) -> Result<()> {
        match self.read_here(id, out, max_len) {
            Err(error) if self.may_come(&error) => self.read_from_afar(id, out, max_len, error),
            other => other,
        }
    }

    /// Returns the plain bytes of a chunk, which is refused if it is longer than `max_len`.
    pub fn read(&self, id: &ChunkId, max_len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.read_into(id, &mut out, max_len).map(|()| out)
    }

    /// Does as [`ChunkSource::read_into`], but asks no other host.
    pub(super) fn read_here(&self, id: &ChunkId, out: &mut Vec<u8>, max_len: usize) -> Result<()> {
        if self.is_far(id)? {
            return Err(Error::new(Kind::NotFound, format!("chunk '{id}' is not present")));
        }
        let read = self.local.read_into(id, out, max_len);
        if read.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
            self.is_sparse.store(true, Ordering::Relaxed);
        }
        read
    }

    /// Says whether a chunk will have to come from another host. Costs nothing while nothing was missing.
    pub(super) fn is_far(&self, id: &ChunkId) -> Result<bool> {
        Ok(self.has_hosts() && self.is_sparse.load(Ordering::Relaxed) && !self.local.contains(id)?)
    }

    /// Says whether another host may have what could not be read here because of `error`.
    pub(super) fn may_come(&self, error: &Error) -> bool {
        self.has_hosts() && matches!(error.kind(), Kind::NotFound | Kind::Corrupt)
    }

    /// Asks other hosts for a chunk that is not here because of `error`; `then` gets its plain bytes, from another thread, which must not wait.
    pub(super) fn want(&self, id: &ChunkId, error: Error, then: impl FnOnce(Result<&[u8]>) + Send + 'static) {
        let Some(hosts) = &self.hosts else { return then(Err(error)) };
        self.n_damaged.fetch_add(u64::from(error.kind() == Kind::Corrupt), Ordering::Relaxed);
        let line = hosts.line.get_or_init(|| Line::open(hosts, &self.local));
        let asked = line.asked.clone();
        let id = *id;
        let missing = move || match error.kind() {
            Kind::Corrupt => error,
            _ => Error::new(Kind::NotFound, format!("chunk '{id}' is not present, neither here nor with {asked}")),
        };
        let wanted = Wanted { id, max_len: MAX_CHUNK_LEN as usize };
        line.fetcher.want(wanted, Box::new(move |plain| then(plain.ok_or_else(missing))));
    }

    fn read_from_afar(&self, id: &ChunkId, out: &mut Vec<u8>, max_len: usize, error: Error) -> Result<()> {
        let (give, take) = sync_channel(1);
        self.want(id, error, move |plain| drop(give.send(plain.map(<[u8]>::to_vec))));
        let ended = || Error::new(Kind::NotFound, format!("chunk '{id}' is not present, and no other host is asked any more"));
        *out = take.recv().map_err(|_| ended())??;
        match out.len() <= max_len {
            true => Ok(()),
            false => {
                Err(Error::new(Kind::Corrupt, format!("chunk '{id}' has {} bytes, at most {max_len} are expected", out.len())))
            }
        }
    }

    /// Ends the connections, if there are any, and makes durable what is kept of what came.
    pub fn finish(&self) -> Came {
        let Some(line) = self.hosts.as_ref().and_then(|hosts| hosts.line.get()) else { return Came::default() };
        let hosts = line.fetcher.finish();
        let unreached = std::mem::take(&mut *line.unreached.lock().unwrap_or_else(PoisonError::into_inner));
        Came { hosts, unreached, not_kept: line.keeper.finish().err(), n_damaged: self.n_damaged.swap(0, Ordering::Relaxed) }
    }
}

impl Line {
    fn open(hosts: &Hosts, local: &Arc<Local>) -> Self {
        let Reached { links, unreached, names } = (hosts.reach)();
        let mut asked: Vec<String> = links.iter().map(|link| format!("'{}'", link.name)).collect();
        asked.extend(names.iter().map(|name| format!("'{name}' (which cannot be reached)")));
        let keeper = Arc::new(Keeper { keep: hosts.keep, local: Arc::clone(local), state: Mutex::default() });
        let keeps = Arc::clone(&keeper);
        let fetcher = Fetcher::start(links, move |record| keeps.take(record));
        Self { fetcher, keeper, asked: asked.join(", "), unreached: Mutex::new(unreached) }
    }
}

/// Keeps what comes. That something cannot be kept is no reason not to pass it on.
struct Keeper {
    keep: Keep,
    local: Arc<Local>,
    state: Mutex<Keeping>,
}

#[derive(Default)]
enum Keeping {
    #[default]
    NotYet,
    Held(Writer),
    Cached(CacheWriter),
    Ended(Option<Error>),
}

impl Keeper {
    fn state(&self) -> MutexGuard<'_, Keeping> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, record: &Record<'_>) {
        let mut state = self.state();
        if let Keeping::NotYet = *state {
            *state = self.begin().unwrap_or_else(|error| Keeping::Ended(Some(error)));
        }
        let done = match &*state {
            Keeping::Held(writer) => writer.put_record(record).map(drop),
            Keeping::Cached(writer) => writer.put_record(record),
            _ => Ok(()),
        };
        if let Err(error) = done {
            *state = Keeping::Ended(Some(error));
        }
    }

    fn begin(&self) -> Result<Keeping> {
        Ok(match self.keep {
            Keep::Held(options) => Keeping::Held(self.local.store.writer(options)?),
            Keep::Cached(quota, options) => match self.local.cache().writer(quota, options)? {
                Some(writer) => Keeping::Cached(writer),
                None => Keeping::Ended(None),
            },
            Keep::Nothing => Keeping::Ended(None),
        })
    }

    fn finish(&self) -> Result<()> {
        match std::mem::replace(&mut *self.state(), Keeping::Ended(None)) {
            Keeping::Held(writer) => writer.finish().map(drop),
            Keeping::Cached(writer) => writer.finish(),
            Keeping::Ended(Some(error)) => Err(error),
            Keeping::NotYet | Keeping::Ended(None) => Ok(()),
        }
    }
}
