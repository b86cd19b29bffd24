//! Who holds what: this store as a holder, and the records of all others.
//!
//! Format and rules: `docs/formats/holders.md`. A record is the ref `refs/devops/holders/ID`, which that holder alone writes and everybody passes on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Repo, enrolled};
use crate::durable::{self, Lock};
use crate::error::{Context, Error, Kind, Result};
use crate::git::quarantine::{HOLDERS, Quarantine};
use crate::git::refs::RefMove;
use crate::git::{CommitData, Identity, ObjectKind, Objects, Oid, PackWriter, Signature, write_tree};
use crate::id::ChunkId;
use crate::placement::inquiry::Terms;
use crate::placement::ledger::Ledger;
use crate::placement::record::{
    self, Holdings, ListLine, MAX_LIST, MAX_RECORD, Record, decode_list, encode_list, prefix, refused, tidied,
};
use crate::placement::{Holder, HolderId};
use crate::remote::sign::{self, Purpose};

const KEY: &str = "holder-key";
const FILE: u32 = 0o100_644;
/// More holders than this are not taken note of: each costs time for each chunk.
const MAX_HOLDERS: usize = 256;
/// With more lists than this, all is written anew.
const MANY_LISTS: usize = 32;

/// What is known of one holder, signed by it.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it says.
    pub record: Record,
    commit: Oid,
    /// The objects of its lists, in their order.
    lists: Vec<Oid>,
}

impl Known {
    /// Reads the record in `commit`; who signed it, is not looked at.
    fn read(objects: &Objects, commit: Oid) -> Result<(Self, Vec<u8>, Vec<u8>)> {
        let what = || "the record cannot be read";
        let data = objects.commit(&commit).context(what)?;
        if !data.parents.is_empty() {
            return Err(refused("the record has a history"));
        }
        let files = files_of(objects, &data.tree).context(what)?;
        let blob = |path: &str, most: usize| -> Result<Vec<u8>> {
            let oid = files.get(path).ok_or_else(|| refused(format!("the record has no '{path}'")))?;
            match objects.blob_size(oid)? {
                Some(size) if size <= most as u64 => objects.blob(oid),
                _ => Err(refused(format!("'{path}' of the record is too long"))),
            }
        };
        let text = blob("record", MAX_RECORD)?;
        let signature = blob("signature", sign::MAX_SIGNATURE)?;
        let record = Record::decode(&text)?;
        let list = |(number, line): (usize, &ListLine)| {
            let oid = files.get(&line.path(number)).copied();
            oid.ok_or_else(|| refused(format!("the record has no '{}'", line.path(number))))
        };
        let lists: Vec<Oid> = record.lists.iter().enumerate().map(list).collect::<Result<_>>()?;
        match files.len() == lists.len() + 2 {
            true => Ok((Self { record, commit, lists }, text, signature)),
            false => Err(refused("the record has files that it does not name")),
        }
    }

    /// Says which of `wanted`, which ascend, this holder holds; reads its lists one at a time.
    pub fn holds(&self, objects: &Objects, wanted: &[u64]) -> Result<Vec<bool>> {
        let mut holdings = Holdings::new(wanted);
        for (line, oid) in self.record.lists.iter().zip(&self.lists) {
            holdings.take(&list(objects, line, oid)?, line.is_held);
        }
        Ok(holdings.finish())
    }

    /// Returns all that it holds, ascending.
    fn all(&self, objects: &Objects) -> Result<Vec<u64>> {
        let mut all = Vec::new();
        for (line, oid) in self.record.lists.iter().zip(&self.lists) {
            let list = list(objects, line, oid)?;
            match line.is_held {
                true if all.last() < list.first() => all.extend(list),
                true => {
                    all.extend(list);
                    all.sort_unstable();
                    all.dedup();
                }
                false => all.retain(|prefix| list.binary_search(prefix).is_err()),
            }
        }
        Ok(all)
    }
}

fn list(objects: &Objects, line: &ListLine, oid: &Oid) -> Result<Vec<u64>> {
    match objects.blob_size(oid)? {
        Some(size) if size <= 8 * MAX_LIST as u64 => decode_list(&objects.blob(oid)?, line),
        _ => Err(refused("a list of chunks is too long")),
    }
}

/// Returns the files of the tree of a record, by their paths.
fn files_of(objects: &Objects, tree: &Oid) -> Result<BTreeMap<String, Oid>> {
    let mut files = BTreeMap::new();
    for entry in objects.tree(tree)? {
        let name = String::from_utf8_lossy(&entry.name).into_owned();
        match entry.is_dir() {
            true => {
                for inner in objects.tree(&entry.oid)? {
                    if inner.mode != FILE {
                        return Err(refused(format!("'{name}' of the record has something else than files")));
                    }
                    files.insert(format!("{name}/{}", String::from_utf8_lossy(&inner.name)), inner.oid);
                }
            }
            false if entry.mode == FILE => drop(files.insert(name, entry.oid)),
            false => return Err(refused(format!("'{name}' of the record is no plain file"))),
        }
    }
    Ok(files)
}

/// Returns the latest record of each holder that this repository knows, also those of holders whose promise is over.
pub fn known(repo: &Repo) -> Result<BTreeMap<HolderId, Known>> {
    let listed = repo.git.run(&["for-each-ref", "--format=%(objectname) %(refname)", HOLDERS])?;
    let mut known = BTreeMap::new();
    for line in String::from_utf8_lossy(&listed).lines() {
        let wrong = || Error::new(Kind::Corrupt, format!("'{}' is no record of a holder; remove it", line.escape_debug()));
        let (oid, name) = line.split_once(' ').ok_or_else(wrong)?;
        let id: HolderId = name.strip_prefix(HOLDERS).and_then(|id| id.parse().ok()).ok_or_else(wrong)?;
        let oid = Oid::from_hex(oid.as_bytes()).map_err(|_| wrong())?;
        known.insert(id, Known::read(&repo.objects, oid).context(|| format!("cannot read what holder {id} tells"))?.0);
    }
    Ok(known)
}

/// Says which of `chunks`, which ascend, another holder told that it has.
pub(super) fn hold(repo: &Repo, chunks: &[ChunkId]) -> Result<Vec<bool>> {
    let wanted: Vec<u64> = chunks.iter().map(record::prefix).collect();
    let mut is_held = vec![false; wanted.len()];
    if wanted.is_empty() {
        return Ok(is_held);
    }
    let own = Ledger::read(repo.store.dir()).ok().flatten().map(|ledger| ledger.holder);
    for (id, known) in known(repo)? {
        if Some(id) != own {
            is_held.iter_mut().zip(known.holds(&repo.objects, &wanted)?).for_each(|(is, holds)| *is |= holds);
        }
    }
    Ok(is_held)
}

/// What came with a fetch about holders.
#[derive(Debug, Default)]
pub struct Came {
    /// Records to take over: whose, the new commit, the one before.
    news: Vec<(HolderId, Oid, Option<Oid>)>,
    /// Why others are not taken over.
    pub refused: Vec<Error>,
}

impl Came {
    /// Looks at the records in `quarantine`: signature, order, lists, and whether they are newer than what is known.
    pub(super) fn look(repo: &Repo, quarantine: &Quarantine) -> Result<Self> {
        let mut came = Self::default();
        let known = known(repo)?;
        let objects = Objects::open(quarantine.git_dir())?;
        for (name, commit) in quarantine.holders()? {
            if known.len() + came.news.len() >= MAX_HOLDERS {
                came.refused.push(refused(format!("more than {MAX_HOLDERS} holders are told of; no more are taken over")));
                break;
            }
            let what = || format!("what holder '{}' tells is not taken over", name.escape_debug());
            match is_news(&known, &objects, quarantine, &name, commit).context(what) {
                Ok(Some(id)) => came.news.push((id, commit, known.get(&id).map(|known| known.commit))),
                Ok(None) => (),
                Err(error) if error.kind() == Kind::Refused => came.refused.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(came)
    }

    /// Returns the commits to take over.
    pub(super) fn commits(&self) -> Vec<Oid> {
        self.news.iter().map(|(_, commit, _)| *commit).collect()
    }

    /// Returns how the refs of the records move then.
    pub(super) fn moves(&self) -> impl Iterator<Item = RefMove> {
        self.news.iter().map(|(id, new, old)| RefMove { name: format!("{HOLDERS}{id}"), old: *old, new: Some(*new) })
    }
}

fn is_news(
    known: &BTreeMap<HolderId, Known>,
    objects: &Objects,
    quarantine: &Quarantine,
    name: &str,
    commit: Oid,
) -> Result<Option<HolderId>> {
    let id: HolderId = name.parse().map_err(|_| refused("its name is no id"))?;
    if known.get(&id).is_some_and(|known| known.commit == commit) {
        return Ok(None);
    }
    let (new, text, signature) = Known::read(objects, commit).map_err(|error| error.with_kind(Kind::Refused))?;
    if new.record.id() != id {
        return Err(refused("it has another key"));
    }
    match known.get(&id).map(|known| known.record.generation) {
        Some(generation) if new.record.generation < generation => return Ok(None),
        Some(generation) if new.record.generation == generation => {
            return Err(refused(format!("there are two of generation {generation}")));
        }
        _ => (),
    }
    sign::verify(quarantine.dir(), Purpose::Holder, &new.record.key, &text, &signature)
        .map_err(|error| refused(format!("{error:#}")))?;
    for (line, oid) in new.record.lists.iter().zip(&new.lists) {
        list(objects, line, oid).map_err(|error| error.with_kind(Kind::Refused))?;
    }
    Ok(Some(id))
}

/// This store as a holder; whoever has it holds the store's lock for removal, so that nobody decides anything meanwhile.
pub struct Own {
    /// What it promised.
    pub ledger: Ledger,
    key: PathBuf,
    /// Held until the promises are as they are to be.
    _lock: Lock,
}

impl Own {
    /// Opens the ledger of the repository's store, makes one if it has none, and takes over what a later record of its own says.
    pub fn open(repo: &Repo) -> Result<Self> {
        Self::open_under(repo, repo.store.removal_lock()?)
    }

    /// Opens the ledger if the store has one; else returns the lock under which it has none.
    pub fn open_if_holder(repo: &Repo) -> Result<std::result::Result<Self, Lock>> {
        let lock = repo.store.removal_lock()?;
        match look(repo)? {
            Some(_) => Self::open_under(repo, lock).map(Ok),
            None => Ok(Err(lock)),
        }
    }

    fn open_under(repo: &Repo, lock: Lock) -> Result<Self> {
        let dir = repo.store.dir();
        enrolled::clear_store(dir, &lock)?;
        let key = dir.join(KEY);
        let mut ledger = match look(repo)? {
            Some(ledger) => ledger,
            None => {
                sign::make_key(&key)?;
                let ledger = Ledger::new(HolderId::of_key(&sign::public_key(&key)?));
                ledger.write(dir)?;
                ledger
            }
        };
        let is_there = durable::is_there(&key);
        if is_there {
            sign::make_key(&key)?; // the public one may be lost
        }
        let id = HolderId::of_key(&sign::public_key(&key)?);
        if ledger.holder != id || !is_there {
            let message = format!("the key '{}' is not the one that promised; put back the one that was there", key.display());
            return Err(Error::new(Kind::Corrupt, message));
        }
        if let Some(known) = known(repo)?.get(&id).filter(|known| known.record.generation > ledger.generation) {
            ledger.catch_up(known.record.generation, known.record.until);
            ledger.write_lapsing(dir)?;
            ledger.write(dir)?;
        }
        Ok(Self { ledger, key, _lock: lock })
    }

    /// Tells what this store holds, and until when, in its record: durable on return. `name` is what it calls itself, `now` what the clock says.
    pub fn publish(&mut self, repo: &Repo, name: &str, now: u64) -> Result<()> {
        let lock = repo.lock()?;
        let before = known(repo)?.remove(&self.ledger.holder);
        self.ledger.generation += 1;
        self.ledger.write(repo.store.dir())?;
        let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
        let lists = self.lists(repo, before.as_ref(), &pack)?;
        let record = Record {
            key: sign::public_key(&self.key)?,
            name: tidied(name, "holder"),
            generation: self.ledger.generation,
            issued: now,
            until: self.ledger.until(),
            capacity: capacity(repo)?,
            lists: lists.iter().map(|(line, _)| *line).collect(),
        };
        let text = record.encode();
        let signature = sign::sign(&self.key, Purpose::Holder, text.as_bytes())?;
        let commit = write_record(&pack, &text, &signature, &lists, now)?;
        let kept = pack.finish()?;
        let name = format!("{HOLDERS}{}", self.ledger.holder);
        repo.git.update_ref(&name, commit, before.map(|before| before.commit), "sync")?;
        repo.note_refs(&lock)?;
        repo.let_go(kept)
    }

    /// Returns the lists of the next record: those of the last one, and what changed since.
    fn lists(&self, repo: &Repo, before: Option<&Known>, pack: &PackWriter) -> Result<Vec<(ListLine, Oid)>> {
        let mut lists: Vec<(ListLine, Oid)> = before
            .map(|before| before.record.lists.iter().copied().zip(before.lists.iter().copied()).collect())
            .unwrap_or_default();
        let mut old = before.map_or(Ok(Vec::new()), |before| before.all(&repo.objects))?.into_iter().peekable();
        let (mut came, mut gone, mut n_held) = (Vec::new(), Vec::new(), 0);
        self.for_each_held(repo, &mut |prefix| {
            while old.peek().is_some_and(|old| *old < prefix) {
                gone.extend(old.next());
            }
            if old.next_if_eq(&prefix).is_none() {
                came.push(prefix);
            }
            n_held += 1;
            Ok(())
        })?;
        gone.extend(old);
        add_lists(&mut lists, false, &gone, pack)?;
        add_lists(&mut lists, true, &came, pack)?;
        let n_listed: usize = lists.iter().map(|(line, _)| line.n_chunks).sum();
        if lists.len() > MANY_LISTS.max(2 * n_held / MAX_LIST) || 2 * n_listed > 3 * n_held {
            lists.clear();
            let mut all = Vec::new();
            self.for_each_held(repo, &mut |prefix| {
                all.push(prefix);
                match all.len() == MAX_LIST {
                    true => add_lists(&mut lists, true, &std::mem::take(&mut all), pack),
                    false => Ok(()),
                }
            })?;
            add_lists(&mut lists, true, &all, pack)?;
        }
        Ok(lists)
    }

    /// Hands the first bytes of each chunk that is here and does not lapse to `take`, ascending, each once.
    fn for_each_held(&self, repo: &Repo, take: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let mut lapsing = self.ledger.lapsing().copied().peekable();
        let mut last = None;
        repo.store.for_each_chunk(&mut |id| {
            while lapsing.next_if(|lapsing| *lapsing < id).is_some() {}
            let prefix = prefix(&id);
            match lapsing.peek() == Some(&id) || last.replace(prefix) == Some(prefix) {
                true => Ok(()),
                false => take(prefix),
            }
        })
    }
}

fn add_lists(lists: &mut Vec<(ListLine, Oid)>, is_held: bool, prefixes: &[u64], pack: &PackWriter) -> Result<()> {
    for part in prefixes.chunks(MAX_LIST) {
        let bytes = encode_list(part);
        let line = ListLine { is_held, n_chunks: part.len(), hash: *blake3::hash(&bytes).as_bytes() };
        lists.push((line, pack.put_anew(ObjectKind::Blob, &bytes)?));
    }
    Ok(())
}

fn write_record(pack: &PackWriter, text: &str, signature: &[u8], lists: &[(ListLine, Oid)], now: u64) -> Result<Oid> {
    let mut files: Vec<(String, u32, Oid)> =
        lists.iter().enumerate().map(|(number, (line, oid))| (line.path(number), FILE, *oid)).collect();
    files.push(("record".into(), FILE, pack.put_anew(ObjectKind::Blob, text.as_bytes())?));
    files.push(("signature".into(), FILE, pack.put_anew(ObjectKind::Blob, signature)?));
    files.sort();
    let tree = write_tree(files, pack)?;
    let identity = Identity { name: "git-devops".into(), email: "holder@localhost".into() };
    let who = Signature::new(&identity, now as i64, 0);
    pack.commit(&CommitData { tree, parents: Vec::new(), author: who.clone(), committer: who, message: b"holder\n".to_vec() })
}

/// Returns what the store promised, and fails if that cannot be told.
pub fn look(repo: &Repo) -> Result<Option<Ledger>> {
    let dir = repo.store.dir();
    match Ledger::read(dir)? {
        None if durable::is_there(&dir.join(KEY).with_extension("pub")) => Err(Error::new(
            Kind::Corrupt,
            "it is gone, though this store is a holder's; 'gdo check --repair' makes one that promises enough",
        )),
        ledger => Ok(ledger),
    }
}

/// Says whether the promise of any chunk lapses.
pub fn is_lapsing(repo: &Repo) -> Result<bool> {
    Ok(look(repo)?.is_some_and(|ledger| ledger.lapsing().len() > 0))
}

fn own_record(repo: &Repo) -> Result<Option<Record>> {
    let id = HolderId::of_key(&sign::public_key(&repo.store.dir().join(KEY))?);
    Ok(known(repo)?.remove(&id).map(|known| known.record))
}

/// Makes a ledger in the place of a damaged or lost one, which promises all that the old one can have promised; says whether one was made.
pub(super) fn mend(repo: &Repo) -> Result<bool> {
    let dir = repo.store.dir();
    let _lock = repo.store.removal_lock()?;
    match look(repo) {
        Err(error) if error.kind() == Kind::Corrupt => (),
        other => return other.map(|_| false),
    }
    let record = own_record(repo)?;
    let period = terms(repo)?.period;
    // The damaged one was written when it was renewed, for one period.
    let renewed = Ledger::stamp(dir).map(|(.., mtime, _)| mtime.max(0) as u64).into_iter().max().unwrap_or(0);
    let mut ledger = Ledger::new(HolderId::of_key(&sign::public_key(&dir.join(KEY))?));
    ledger.renew(renewed, period);
    if let Some(record) = record {
        ledger.renew(record.issued, period);
        ledger.catch_up(record.generation, record.until);
    }
    ledger.write_lapsing(dir)?;
    ledger.write(dir)?;
    Ok(true)
}

/// Returns how careful this repository is, by its settings.
pub fn terms(repo: &Repo) -> Result<Terms> {
    let default = Terms::default();
    let number = |key: &str, default: u64, most: u64| -> Result<u64> {
        let Some(value) = repo.config.get(key) else { return Ok(default) };
        let text = String::from_utf8_lossy(value).into_owned();
        let seconds = match text.as_bytes().split_last() {
            Some((b'd', days)) => parse(days).and_then(|days| days.checked_mul(86_400)),
            Some((b'h', hours)) => parse(hours).and_then(|hours| hours.checked_mul(3600)),
            Some((b'm', minutes)) => parse(minutes).and_then(|minutes| minutes.checked_mul(60)),
            _ => parse(text.as_bytes()),
        };
        let wrong = || {
            Error::new(Kind::Usage, format!("setting '{key}' is '{}'; it must be a number from 1 to {most}", text.escape_debug()))
        };
        seconds.filter(|n| (1..=most).contains(n)).ok_or_else(wrong)
    };
    Ok(Terms {
        copies: number("devops.copies", default.copies as u64, 100)? as usize,
        window: default.window,
        max_skew: number("devops.maxskew", default.max_skew, 3600)?,
        period: number("devops.promise", default.period, 10 * 366 * 86_400)?,
    })
}

fn parse(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Returns what this store can take, in GiB: `devops.capacity`, or the size of its filesystem.
fn capacity(repo: &Repo) -> Result<u64> {
    if let Some(value) = repo.config.get("devops.capacity") {
        let wrong = || Error::new(Kind::Usage, "setting 'devops.capacity' must be a number of GiB, 1 or more");
        return parse(value).filter(|capacity| *capacity > 0).ok_or_else(wrong);
    }
    Ok((durable::filesystem_size(repo.store.dir())? >> 30).max(1))
}

/// Says whether this repository's store is to hold a share: `devops.policy`.
pub fn is_holder(repo: &Repo) -> bool {
    repo.config.get("devops.policy").is_none_or(|policy| policy == b"holder")
}

/// Returns the holders that count at `now`: those whose promise is not over, and `own` if this host is one.
pub fn counting(repo: &Repo, own: Option<&Ledger>, known: &BTreeMap<HolderId, Known>, now: u64) -> Result<Vec<Holder>> {
    let own_id = own.map(|ledger| ledger.holder);
    let others = known.iter().filter(|(id, known)| Some(**id) != own_id && known.record.until >= now);
    let mut holders: Vec<Holder> = others.map(|(id, known)| Holder { id: *id, capacity: known.record.capacity }).collect();
    if let Some(id) = own_id.filter(|_| is_holder(repo)) {
        holders.push(Holder { id, capacity: capacity(repo)? });
    }
    Ok(holders)
}
