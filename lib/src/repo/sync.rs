//! A holder's routine: get what is of one's own share, promise everything again, tell the others.

use std::collections::{BTreeSet, HashSet};

use super::Repo;
use super::check::for_each_index;
use super::holders::{self, Own};
use super::remotes::{AT_ONCE, Got, get_wanted};
use crate::durable;
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::file::index::{Entry, MAX_DEPTH, MAX_LIST_LEN, decode_list};
use crate::git::quarantine::HOLDERS;
use crate::id::ChunkId;
use crate::placement::inquiry::Terms;
use crate::placement::{Holder, HolderId, is_share};
use crate::progress::Progress;
use crate::remote::fetch::Wanted;
use crate::remote::hosts::Hosts;

/// The file in the state that tells when everything was here.
const NOTE: &str = "synced";

/// What a synchronisation did.
#[derive(Debug, Default)]
pub struct Synced {
    /// Who this host is.
    pub holder: Option<HolderId>,
    /// How many holders share the chunks, this one included.
    pub n_holders: usize,
    /// Chunks that are here and of its share, lists of chunks included: those every holder has.
    pub n_share: u64,
    /// Chunks that are here and not of its share.
    pub n_surplus: u64,
    /// What came, and from whom.
    pub got: Got,
    /// Until when everything is promised, in seconds since 1970.
    pub until: u64,
}

/// Who calls, and when.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    /// What this host calls itself.
    pub name: &'a str,
    /// Seconds since 1970.
    pub now: u64,
}

/// Gets what is of this store's share, of all that the repository knows, from all of `hosts`; renews the promise, and tells it.
pub fn sync(repo: &Repo, caller: Caller<'_>, hosts: &mut Hosts, progress: &Progress) -> Result<Synced> {
    if !holders::is_holder(repo) {
        let message = "this host keeps no share, because 'devops.policy' is not 'holder'; set that, or use 'gdo get'";
        return Err(Error::new(Kind::Usage, message));
    }
    let terms = holders::terms(repo)?;
    let own = Own::open(repo)?;
    let id = own.ledger.holder;
    let others = holders::counting(repo, Some(&own.ledger), &holders::known(repo)?, caller.now)?;
    // While chunks come, which may take days, others may decide.
    drop(own);
    let mut share = Share {
        repo,
        id,
        holders: others,
        terms,
        hosts,
        progress,
        synced: Synced::default(),
        wanted: Vec::new(),
        seen: HashSet::new(),
        held: BTreeSet::new(),
    };
    // Most of the time nothing changed, and then nothing has to be looked through.
    match share.noted()? {
        Some((n_share, n_surplus)) => (share.synced.n_share, share.synced.n_surplus) = (n_share, n_surplus),
        None => share.get_all()?,
    }
    let Share { mut synced, holders, held, .. } = share;
    let mut own = Own::open(repo)?;
    let is_here = |id: &ChunkId| repo.store.contains(id).unwrap_or(true);
    // What is of the share is promised again, what is gone need not lapse.
    own.ledger.retain_lapsing(|id| !held.contains(id) && is_here(id));
    own.ledger.renew(caller.now, terms.period);
    own.ledger.write(repo.store.dir())?;
    own.ledger.write_lapsing(repo.store.dir())?;
    own.publish(repo, caller.name, caller.now)?;
    (synced.holder, synced.n_holders, synced.until) = (Some(id), holders.len(), own.ledger.until());
    Ok(synced)
}

/// What of everything is one holder's share.
struct Share<'a, 'b> {
    repo: &'a Repo,
    id: HolderId,
    holders: Vec<Holder>,
    terms: Terms,
    hosts: &'b mut Hosts,
    progress: &'a Progress,
    synced: Synced,
    wanted: Vec<Wanted>,
    /// Lists that were gone through.
    seen: HashSet<ChunkId>,
    /// Chunks of the share that lapse.
    held: BTreeSet<ChunkId>,
}

impl Share<'_, '_> {
    /// Returns what was counted when the last synchronisation had everything, if nothing is different by now.
    fn noted(&self) -> Result<Option<(u64, u64)>> {
        let Some(note) = durable::read_if_there(&self.repo.places.state.join(NOTE))? else { return Ok(None) };
        let note = String::from_utf8_lossy(&note).into_owned();
        let mut numbers = note.split_whitespace().filter_map(|word| word.parse().ok());
        let (Some(n_share), Some(n_surplus)) = (numbers.next(), numbers.next()) else { return Ok(None) };
        Ok((note == self.note(n_share, n_surplus)?).then_some((n_share, n_surplus)))
    }

    /// Returns the note: the two counts, and a hash of them and of all that they depend on.
    fn note(&self, n_share: u64, n_surplus: u64) -> Result<String> {
        let counts = format!("{n_share} {n_surplus}");
        let mut hasher = blake3::Hasher::new();
        hasher.update(counts.as_bytes());
        for line in self.repo.git.run(&["for-each-ref", "--format=%(refname) %(objectname)"])?.split(|&b| b == b'\n') {
            // Each record is new; of what they say only this counts here.
            if !line.starts_with(HOLDERS.as_bytes()) {
                hasher.update(line).update(b"\n");
            }
        }
        let mut holders = self.holders.clone();
        holders.sort_by_key(|holder| holder.id);
        hasher.update(format!("{holders:?} {}", self.terms.copies).as_bytes());
        hasher.update(&self.repo.store.version()?);
        // What lapses may be of the share again.
        hasher.update(&[u8::from(self.lapsing()?.is_empty())]);
        Ok(format!("{counts} {}\n", hasher.finalize().to_hex()))
    }

    fn get_all(&mut self) -> Result<()> {
        let lapsing: HashSet<ChunkId> = self.lapsing()?;
        // Each round brings the lists that tell what the next one has to bring.
        for _ in 0..=MAX_DEPTH + 1 {
            self.seen.clear();
            self.synced.got.n_missing = 0;
            let (mut n_lists, n_before) = (0, self.synced.got.n_chunks);
            for_each_index(self.repo, &mut |oid, index| {
                let what = || format!("cannot tell which chunks are needed: object {oid}");
                n_lists += self.entries(&index.context(what)?.entries, 0, &lapsing).context(what)?;
                Ok(())
            })?;
            self.flush()?;
            if n_lists == 0 || self.synced.got.n_chunks == n_before {
                break;
            }
        }
        self.count()?;
        let path = self.repo.places.state.join(NOTE);
        match self.synced.got.n_missing == 0 && self.lapsing()?.is_empty() {
            true => durable::publish(&path, self.note(self.synced.n_share, self.synced.n_surplus)?.as_bytes(), 0o600),
            false => durable::remove(&path),
        }
    }

    fn lapsing(&self) -> Result<HashSet<ChunkId>> {
        let ledger = crate::placement::ledger::Ledger::read(self.repo.store.dir())?;
        Ok(ledger.map(|ledger| ledger.lapsing().copied().collect()).unwrap_or_default())
    }

    /// Notes what of these entries is to come; returns how many lists are not here yet.
    fn entries(&mut self, entries: &[Entry], depth: usize, lapsing: &HashSet<ChunkId>) -> Result<u64> {
        if depth > MAX_DEPTH {
            return Err(Error::refused(Reason::Index, "chunk lists are nested too deep"));
        }
        let mut n_lists = 0;
        for entry in entries {
            match *entry {
                Entry::Hole { .. } => (),
                Entry::Chunk { id, len } => {
                    if !is_share(&self.id, &self.holders, self.terms.copies, &id) {
                        continue;
                    }
                    if lapsing.contains(&id) {
                        self.held.insert(id);
                    }
                    self.want(Wanted { id, max_len: len.try_into().unwrap_or(usize::MAX) })?;
                }
                Entry::List { id, .. } if !self.seen.insert(id) => (),
                // Whoever holds anything of a file must know what it is made of.
                Entry::List { id, .. } if !self.repo.store.contains(&id)? => {
                    n_lists += 1;
                    self.want(Wanted { id, max_len: MAX_LIST_LEN })?;
                }
                Entry::List { id, len, lines } => {
                    self.held.extend(lapsing.contains(&id).then_some(id));
                    let text = self.repo.store.read(&id, MAX_LIST_LEN)?;
                    let inner = decode_list(&text, len, lines).context(|| format!("cannot read chunk list '{id}'"))?;
                    n_lists += self.entries(&inner, depth + 1, lapsing)?;
                }
            }
        }
        Ok(n_lists)
    }

    fn want(&mut self, wanted: Wanted) -> Result<()> {
        if !self.repo.store.contains(&wanted.id)? {
            self.wanted.push(wanted);
        }
        if self.wanted.len() < AT_ONCE { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> Result<()> {
        let wanted = std::mem::take(&mut self.wanted);
        get_wanted(self.repo, wanted, self.hosts, &mut self.synced.got, self.progress).map(drop)
    }

    /// Counts what is here: of the share, and beyond it.
    fn count(&mut self) -> Result<()> {
        let (mut n_share, mut n_surplus) = (0, 0);
        self.repo.store.for_each_chunk(&mut |chunk| {
            match self.seen.contains(&chunk) || is_share(&self.id, &self.holders, self.terms.copies, &chunk) {
                true => n_share += 1,
                false => n_surplus += 1,
            }
            Ok(())
        })?;
        (self.synced.n_share, self.synced.n_surplus) = (n_share, n_surplus);
        Ok(())
    }
}
