//! Other hosts that this repository pulls from: which there are, what their branches are at, the chunks they have.
//!
//! A remote is `devops.remote.NAME.url` (and `identity`) in the configuration, and its host keys are under its name in `known_hosts` in the state
//! directory. Its branches are `refs/remotes/NAME/…`; nothing here moves a branch of this repository.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::holders::Came;
use super::releases::Incoming;
use super::tree::StoredDir;
use super::{Policy, Repo, hand_over, reports};
use crate::durable::{self, Lock};
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::file::index::{Entry, MAX_DEPTH, MAX_LIST_LEN, decode_list};
use crate::file::source::{Keep, Reached};
use crate::git::Oid;
use crate::git::quarantine::Quarantine;
use crate::git::refs::RefMove;
use crate::id::ChunkId;
use crate::progress::Progress;
use crate::remote::fetch::{Fetched, Link, Served, Wanted, fetch};
use crate::remote::hosts::Hosts;
use crate::remote::ssh::{Connection, Remote};
use crate::remote::wire;
use crate::store::{CacheWriter, MAX_CHUNK, Put, Record, WriteOptions, Writer};

const SECTION: &str = "devops.remote.";
const KNOWN_HOSTS: &str = "known_hosts";
const MAX_NAME: usize = 64;
/// Chunks that are asked for in one go, so that their list stays small however large a file is.
pub(super) const AT_ONCE: usize = 100_000;

/// Returns the remotes, by name.
pub fn list(repo: &Repo) -> Result<Vec<Remote>> {
    let mut remotes = Vec::new();
    for (key, value) in repo.config.with_prefix(SECTION) {
        let Some(name) = key.strip_prefix(SECTION).and_then(|key| key.strip_suffix(".url")) else { continue };
        let what = || format!("setting '{key}' is wrong");
        let text = std::str::from_utf8(value).map_err(|_| Error::refused(Reason::HostSyntax, "it is no text")).context(what)?;
        let identity = repo.config.get(&format!("{SECTION}{name}.identity")).map(|path| PathBuf::from(bytes_to_os(path)));
        check_name(name).context(what)?;
        remotes.push(Remote { name: name.to_owned(), address: text.parse().context(what)?, identity });
    }
    remotes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(remotes)
}

fn bytes_to_os(bytes: &[u8]) -> std::ffi::OsString {
    std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec())
}

/// Returns the remotes that are called `names`; all of them if there are no names.
pub fn named(repo: &Repo, names: &[String]) -> Result<Vec<Remote>> {
    let all = list(repo)?;
    if names.is_empty() && all.is_empty() {
        return Err(Error::new(Kind::NotFound, "no other host is known here; add one with 'gdo remote add'"));
    }
    if names.is_empty() {
        return Ok(all);
    }
    let find = |name: &String| {
        let found = all.iter().find(|remote| remote.name == *name).cloned();
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("no remote '{name}'; 'gdo remote list' lists them")))
    };
    names.iter().map(find).collect()
}

/// Adds a remote whose host keys are `host_keys`, in the form of `ssh_host_…_key.pub` or of ssh-keyscan; one of that name is replaced.
pub fn add(repo: &Repo, remote: &Remote, host_keys: &str) -> Result<()> {
    let _lock = repo.lock()?;
    check_name(&remote.name)?;
    let keys = decode_host_keys(host_keys)?;
    let identity = remote
        .identity
        .as_ref()
        .map(|path| path.to_str().ok_or_else(|| Error::new(Kind::Usage, "the path of a key must be UTF-8")));
    // The keys first: a remote without them could not be reached.
    let path = known_hosts(repo);
    let mut lines = other_lines(&path, &remote.name)?;
    keys.iter().for_each(|key| lines += &format!("{} {key}\n", remote.name));
    durable::publish(&path, lines.as_bytes(), 0o600)?;
    repo.git.set_config(&format!("{SECTION}{}.url", remote.name), &remote.address.to_string())?;
    match identity {
        Some(identity) => repo.git.set_config(&format!("{SECTION}{}.identity", remote.name), identity?)?,
        None => repo.git.unset_config(&format!("{SECTION}{}.identity", remote.name))?,
    }
    repo.note_refs(&_lock)
}

/// Removes a remote, its host keys, and what is known of its branches.
pub fn remove(repo: &Repo, name: &str) -> Result<()> {
    named(repo, &[name.to_owned()])?;
    let lock = repo.lock()?;
    let gone = |(branch, oid)| Moved { branch, old: Some(oid), new: None }.of_remote(name);
    let mut gone: Vec<RefMove> = branches(repo, name)?.into_iter().map(gone).collect();
    gone.extend(hand_over::taken_over(repo, name, None)?);
    repo.git.move_refs(&gone, "")?;
    for key in ["identity", "url"] {
        repo.git.unset_config(&format!("{SECTION}{name}.{key}"))?;
    }
    let path = known_hosts(repo);
    durable::publish(&path, other_lines(&path, name)?.as_bytes(), 0o600)?;
    repo.note_refs(&lock)
}

/// Returns the branches of a remote as they were when it was last fetched from.
pub fn branches(repo: &Repo, name: &str) -> Result<BTreeMap<String, Oid>> {
    let prefix = format!("refs/remotes/{name}/");
    let listed = repo.git.run(&["for-each-ref", "--format=%(objectname) %(refname)", &prefix])?;
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let branch = |line: &str| {
        let (oid, name) = line.split_once(' ')?;
        Some((name.strip_prefix(&prefix)?.to_owned(), Oid::from_hex(oid.as_bytes()).ok()?))
    };
    Ok(listed.lines().filter_map(branch).collect())
}

fn known_hosts(repo: &Repo) -> PathBuf {
    repo.places.state.join(KNOWN_HOSTS)
}

/// Returns the lines of `known_hosts` that are not about `name`.
fn other_lines(path: &Path, name: &str) -> Result<String> {
    let text = durable::read_if_there(path).context(|| format!("cannot read '{}'", path.display()))?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let is_other = |line: &&str| line.split(' ').next() != Some(name);
    Ok(text.lines().filter(is_other).map(|line| format!("{line}\n")).collect())
}

/// The name stands in a ref, in a setting, and in a line of host keys.
fn check_name(name: &str) -> Result<()> {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let is_good = name.len() <= MAX_NAME
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name.bytes().all(is_plain)
        && !name.contains("..")
        && !name.ends_with('.')
        && !name.ends_with(".lock");
    match is_good {
        true => Ok(()),
        false => Err(Error::new(
            Kind::Usage,
            format!("'{}' is no name for a remote; letters, digits, '-', '_' and '.' make one", name.escape_debug()),
        )),
    }
}

/// Returns the host keys in `text`, each as type and key.
pub(super) fn decode_host_keys(text: &str) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let at =
            (0..words.len().min(2)).find(|&at| is_key_type(words[at]) && words.get(at + 1).is_some_and(|key| is_base64(key)));
        let key = at.and_then(|at| Some((words[at], *words.get(at + 1)?))).filter(|(_, key)| is_base64(key));
        let (kind, key) = key.ok_or_else(|| {
            let message = format!(
                "'{}' is no host key; give the line of '/etc/ssh/ssh_host_ed25519_key.pub' of that host",
                line.escape_debug()
            );
            Error::new(Kind::Usage, message)
        })?;
        keys.push(format!("{kind} {key}"));
    }
    if keys.is_empty() {
        return Err(Error::new(
            Kind::Usage,
            "there is no host key; give the line of '/etc/ssh/ssh_host_ed25519_key.pub' of that host",
        ));
    }
    Ok(keys)
}

fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-sha2-", "sk-"].iter().any(|prefix| word.starts_with(prefix))
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-@.".contains(&b))
}

fn is_base64(word: &str) -> bool {
    word.len() >= 40 && word.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
}

/// Connects to all of `remotes` at the same time; `scratch` is a directory with a short path. Returns also who could not be reached, and why.
pub fn connect(repo: &Repo, remotes: &[Remote], scratch: &Path) -> (Hosts, Vec<Error>) {
    Hosts::connect(remotes, &known_hosts(repo), scratch)
}

/// Lets chunks that are not here come from the remotes, which are connected to when the first one is missing; `keeps` says whether the host's policy
/// decides what becomes of them here, or they are only passed on.
pub fn reach(repo: &mut Repo, scratch: &Path, keeps: bool) -> Result<()> {
    let remotes = list(repo)?;
    if remotes.is_empty() {
        return Ok(());
    }
    let options = WriteOptions { level: repo.settings.level };
    let keep = match repo.settings.policy {
        Policy::Holder if keeps => Keep::Held(options),
        Policy::Cache(quota) if keeps => Keep::Cached(quota, options),
        _ => Keep::Nothing,
    };
    let (known_hosts, scratch) = (known_hosts(repo), scratch.to_owned());
    repo.chunks.ask(keep, move || reach_all(&remotes, &known_hosts, &scratch));
    Ok(())
}

fn reach_all(remotes: &[Remote], known_hosts: &Path, scratch: &Path) -> Reached {
    let (mut hosts, errors) = Hosts::connect(remotes, known_hosts, scratch);
    let (links, failed) = hosts.links();
    let hosts = Arc::new(hosts);
    let links: Vec<Link> = links.into_iter().map(|link| link.keeping(Arc::clone(&hosts))).collect();
    let unreached: Vec<Error> = errors.into_iter().chain(failed.into_iter().filter_map(|host| host.failure)).collect();
    let is_out = |remote: &&Remote| !links.iter().any(|link| link.name == remote.name);
    let names = remotes.iter().filter(is_out).map(|remote| remote.name.clone()).collect();
    Reached { links, unreached, names }
}

/// A branch of a remote that is elsewhere than it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Its name at the remote.
    pub branch: String,
    /// Where it was; `None` for a new one.
    pub old: Option<Oid>,
    /// Where it is; `None` for one that is gone.
    pub new: Option<Oid>,
}

impl Moved {
    /// Returns the move of the ref by which the branch is known here.
    fn of_remote(self, name: &str) -> RefMove {
        RefMove { name: format!("refs/remotes/{name}/{}", self.branch), old: self.old, new: self.new }
    }
}

/// What a fetch brought.
#[derive(Debug)]
pub struct News {
    /// Branches that are elsewhere than they were.
    pub moved: Vec<Moved>,
    /// What is wrong with records of holders and reports of hosts that are not taken over.
    pub refused: Vec<Error>,
    /// Releases and root documents: what is accepted, what is refused.
    pub releases: Incoming,
}

/// Fetches the branches of the remote behind `connection`, through a quarantine, and notes them as `refs/remotes/NAME/…`; durable on return.
///
/// Records of holders that are newer than what is known are taken over, too. Releases are accepted by the root document in force; where no key is
/// trusted, they are only noted. `now` is what the clock says, in seconds since 1970.
pub fn fetch_branches(repo: &Repo, connection: &Connection, now: u64) -> Result<News> {
    let remote = connection.remote();
    let what = || format!("cannot fetch from '{}'", remote.name);
    // While the other host takes its time, others may work here.
    Quarantine::clear(&repo.places.state)?;
    let quarantine = Quarantine::open(&repo.git, &repo.places.state)?;
    let (command, _) = wire::GIT_COMMAND.split_once(' ').expect("BUG: the command has an argument");
    quarantine.fetch(&remote.address.git_url(), command, &connection.git_ssh_command()).context(what)?;
    let lock = repo.lock()?;
    let mut came = Came::look(repo, &quarantine)?;
    let reports = reports::Came::look(repo, &quarantine)?;
    let in_flight = hand_over::look(&quarantine, &mut came.refused)?;
    let mut releases = Incoming::look(repo, &quarantine, now).context(what)?;
    let moved = take_branches(repo, &remote.name, &quarantine, in_flight, (&came, &releases, &reports), &lock).context(what)?;
    releases.accept()?;
    came.refused.extend(reports.refused);
    Ok(News { moved, refused: came.refused, releases })
}

/// Puts a repository without commits on a branch of `remote`: on `wanted`, on 'main', or on the only one; returns which.
pub fn begin_branch(repo: &Repo, remote: &Remote, wanted: Option<&str>) -> Result<String> {
    let lock = repo.lock()?;
    if repo.head()?.is_some() {
        let head = repo.git.head_ref()?.unwrap_or_else(|| "HEAD".to_owned());
        return Ok(head.strip_prefix("refs/heads/").unwrap_or(&head).to_owned());
    }
    let all = branches(repo, &remote.name)?;
    let only = if all.len() == 1 { all.keys().next().map(String::as_str) } else { None };
    let name = wanted.or_else(|| all.contains_key("main").then_some("main")).or(only);
    let found = name.and_then(|name| all.get(name).map(|oid| (name.to_owned(), *oid)));
    let Some((name, oid)) = found else {
        let names: Vec<&str> = all.keys().map(String::as_str).take(20).collect();
        let message = match names.is_empty() {
            true => format!("'{}' has no branch yet; make a commit there first", remote.name),
            false => format!("say with '--branch' which branch to begin with; '{}' has: {}", remote.name, names.join(", ")),
        };
        return Err(Error::new(Kind::NotFound, message));
    };
    let full = format!("refs/heads/{name}");
    if repo.git.read_ref(&full)?.is_none() {
        repo.git.update_ref(&full, oid, None, &format!("clone: from {}", remote.name))?;
    }
    repo.git.stand_on(&full)?;
    repo.note_refs(&lock)?;
    Ok(name)
}

fn take_branches(
    repo: &Repo,
    name: &str,
    quarantine: &Quarantine,
    in_flight: Option<Oid>,
    (came, releases, reports): (&Came, &Incoming, &reports::Came),
    lock: &Lock,
) -> Result<Vec<Moved>> {
    let (old, new) = (branches(repo, name)?, quarantine.branches()?);
    let more: Vec<Oid> = came.commits().into_iter().chain(releases.objects()).chain(reports.commits()).chain(in_flight).collect();
    let kept = quarantine.take_over(&repo.git, &repo.objects, &more)?;
    let gone = old.iter().filter(|(branch, _)| !new.contains_key(*branch));
    let gone = gone.map(|(branch, oid)| Moved { branch: branch.clone(), old: Some(*oid), new: None });
    let here = new.iter().map(|(branch, oid)| Moved { branch: branch.clone(), old: old.get(branch).copied(), new: Some(*oid) });
    let moved: Vec<Moved> = gone.chain(here.filter(|moved| moved.old != moved.new)).collect();
    let branches = moved.iter().map(|moved| moved.clone().of_remote(name));
    let moves: Vec<RefMove> = branches.chain(came.moves()).chain(releases.moves(repo)?).chain(reports.moves()).collect();
    // With the branches: what is not on its way any more is in one of them.
    let moves: Vec<RefMove> = moves.into_iter().chain(hand_over::taken_over(repo, name, in_flight)?).collect();
    repo.turn_refs(&repo.git, &moves, "fetch", lock)?;
    repo.note_refs(lock)?;
    repo.let_go(kept)?;
    Ok(moved)
}

/// What came of getting chunks.
#[derive(Debug, Default)]
pub struct Got {
    /// Chunks that came and are stored, durably.
    pub n_chunks: u64,
    /// Bytes that they take here.
    pub n_stored: u64,
    /// Chunks that no host brought.
    pub n_missing: u64,
    /// Files and directories that cannot be read, so that nobody knows what they lack; each was warned of.
    pub n_unreadable: u64,
    /// Chunks that were not asked for, because the quota of the cache would not hold them.
    pub n_left_out: u64,
    /// Each host, by its name.
    pub hosts: BTreeMap<String, Share>,
}

/// What came from one host.
#[derive(Debug, Default)]
pub struct Share {
    /// Chunks that were taken.
    pub n_chunks: u64,
    /// Bytes that it sent.
    pub n_bytes: u64,
    /// Why it was given up, if it was.
    pub failure: Option<Error>,
}

/// Gets the chunks that the large files of `tree` at and below `paths` (all, if there are none) lack, from all of `hosts` at once.
///
/// A host that fails at anything is given up. A file whose chunk index or chunk list cannot be read is warned of, and the others come. A cache gets what
/// its quota holds, and a host that keeps nothing is refused.
pub fn get(repo: &Repo, tree: Oid, paths: &[Vec<u8>], hosts: &mut Hosts, progress: &Progress) -> Result<Got> {
    if repo.settings.policy == Policy::None {
        let message = "this host keeps no chunks ('devops.policy' is 'none'); 'gdo restore' and 'gdo cat' bring what they need";
        return Err(Error::new(Kind::Usage, message));
    }
    let _lease = repo.store.lease()?;
    let mut run = Run { repo, hosts, progress, got: Got::default(), unreadable: HashSet::new() };
    // Each round brings the lists that tell what the next one has to bring.
    for _ in 0..=MAX_DEPTH + 1 {
        // What one round missed, the next one may bring.
        (run.got.n_missing, run.got.n_left_out) = (0, 0);
        let mut round = Round { run: &mut run, wanted: Vec::new(), n_noted: 0, n_came: 0, n_lists: 0, seen: HashSet::new() };
        round.directory(StoredDir::root(repo, tree)?, paths)?;
        round.flush()?;
        if round.n_lists == 0 || round.n_came == 0 {
            break;
        }
    }
    Ok(run.got)
}

struct Run<'a> {
    repo: &'a Repo,
    hosts: &'a mut Hosts,
    progress: &'a Progress,
    got: Got,
    /// What was warned of.
    unreadable: HashSet<Vec<u8>>,
}

struct Round<'a, 'b> {
    run: &'b mut Run<'a>,
    wanted: Vec<Wanted>,
    /// Bytes of what is wanted, at most.
    n_noted: u64,
    n_came: u64,
    /// Lists that were wanted: behind each there may be more.
    n_lists: u64,
    /// Lists that were gone through: a hostile one names another a thousand times.
    seen: HashSet<ChunkId>,
}

impl Run<'_> {
    /// Passes on what can be read, and warns of what cannot, once.
    fn readable<T>(&mut self, path: &[u8], read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Refused | Kind::NotFound | Kind::Unsupported) => {
                if self.unreadable.insert(path.to_vec()) {
                    self.got.n_unreadable += 1;
                    self.progress.warn(path, format!("cannot tell what it lacks: {error:#}"));
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Round<'_, '_> {
    fn directory(&mut self, node: StoredDir, paths: &[Vec<u8>]) -> Result<()> {
        let selected = match paths {
            [] => super::pathset::PathSet::new(&[Vec::new()]),
            paths => super::pathset::PathSet::new(paths),
        };
        let mut todo = vec![node];
        while let Some(node) = todo.pop() {
            let listing = node.list(self.run.repo);
            let Some(listing) = self.run.readable(&node.path, listing)? else { continue };
            for (name, item) in &listing.files {
                let path = super::scan::join(&node.path, name);
                let Some(blob) = item.content.filter(|_| selected.covers(&path)) else { continue };
                let index = self.run.repo.chunk_index(&blob);
                if let Some(Some(index)) = self.run.readable(&path, index)? {
                    self.entries(&path, &index.entries, 0)?;
                }
            }
            todo.extend(listing.dirs.into_values().filter(|dir| selected.covers(&dir.path) || selected.leads_to(&dir.path)));
        }
        Ok(())
    }

    /// Notes what of these entries of the file at `path` is not here.
    fn entries(&mut self, path: &[u8], entries: &[Entry], depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            let too_deep = Err(Error::refused(Reason::Index, "chunk lists are nested too deep"));
            return self.run.readable(path, too_deep).map(|_: Option<()>| ());
        }
        for entry in entries {
            match *entry {
                Entry::Hole { .. } => (),
                Entry::Chunk { id, len } if !self.has(&id)? => {
                    self.want(Wanted { id, max_len: len.try_into().unwrap_or(usize::MAX) })?;
                }
                Entry::Chunk { .. } => (),
                Entry::List { id, .. } if !self.seen.insert(id) => (),
                Entry::List { id, .. } if !self.has(&id)? => {
                    self.n_lists += 1;
                    self.want(Wanted { id, max_len: MAX_LIST_LEN })?;
                }
                Entry::List { id, len, lines } => {
                    let inner = self.run.repo.chunks.read(&id, MAX_LIST_LEN).and_then(|text| decode_list(&text, len, lines));
                    let inner = inner.context(|| format!("cannot read chunk list '{id}'"));
                    if let Some(inner) = self.run.readable(path, inner)? {
                        self.entries(path, &inner, depth + 1)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Says whether a chunk is where this host is to have it.
    fn has(&self, id: &ChunkId) -> Result<bool> {
        let repo = self.run.repo;
        match repo.settings.policy {
            Policy::Holder => Ok(repo.store.contains(id)? || repo.chunks.local().is_in_a_file(id)?),
            _ => repo.chunks.local().contains(id),
        }
    }

    fn want(&mut self, wanted: Wanted) -> Result<()> {
        if let Policy::Cache(quota) = self.run.repo.settings.policy
            && self.run.got.n_stored + self.n_noted > quota / 4 * 3
        {
            self.run.got.n_left_out += 1;
            return Ok(());
        }
        self.n_noted += wanted.max_len as u64;
        self.wanted.push(wanted);
        if self.wanted.len() < AT_ONCE { Ok(()) } else { self.flush() }
    }

    /// Gets what was noted.
    fn flush(&mut self) -> Result<()> {
        let wanted = std::mem::take(&mut self.wanted);
        self.n_noted = 0;
        let Run { repo, hosts, progress, got, .. } = &mut *self.run;
        self.n_came += get_wanted(repo, wanted, hosts, got, progress)?;
        Ok(())
    }
}

/// Gets chunks from whoever of `hosts` has not failed yet and keeps them as the policy says, durably; adds what came to `got`, and returns how many
/// chunks did.
pub(super) fn get_wanted(
    repo: &Repo,
    mut wanted: Vec<Wanted>,
    hosts: &mut Hosts,
    got: &mut Got,
    progress: &Progress,
) -> Result<u64> {
    if wanted.is_empty() {
        return Ok(0);
    }
    let shelf = Shelf::open(repo)?;
    let (n_new, n_stored) = (AtomicU64::new(0), AtomicU64::new(0));
    let sink = |record: &Record<'_>, _: &[u8]| {
        let stored_len = shelf.put(record)?;
        n_new.fetch_add(u64::from(stored_len.is_some()), Ordering::Relaxed);
        n_stored.fetch_add(stored_len.unwrap_or(0), Ordering::Relaxed);
        Ok(())
    };
    // What was only cached so far, by another policy, need not come again.
    let mut plain = Vec::new();
    let local = repo.chunks.local();
    wanted.retain(|wanted| {
        let is_here = local.contains(&wanted.id).unwrap_or(false);
        let cached = is_here.then(|| local.read_record(&wanted.id).ok()).flatten();
        let taken = cached.as_ref().and_then(|record| Record::verify(record, &wanted.id, MAX_CHUNK, &mut plain).ok());
        taken.is_none_or(|record| sink(&record, &[]).is_err())
    });
    let (links, unreachable) = hosts.links();
    let Fetched { missing, hosts: served } = fetch(links, wanted, &sink, progress)?;
    shelf.finish()?;
    let n_new = n_new.into_inner();
    got.n_chunks += n_new;
    got.n_stored += n_stored.into_inner();
    got.n_missing += missing.len() as u64;
    for Served { name, n_chunks, n_bytes, failure } in unreachable.into_iter().chain(served) {
        if failure.is_some() {
            hosts.give_up(&name);
        }
        let share = got.hosts.entry(name).or_default();
        share.n_chunks += n_chunks;
        share.n_bytes += n_bytes;
        share.failure = share.failure.take().or(failure);
    }
    Ok(n_new)
}

/// Where chunks go that are got for later.
enum Shelf {
    Held(Writer),
    Cached(CacheWriter),
}

impl Shelf {
    fn open(repo: &Repo) -> Result<Self> {
        let options = WriteOptions { level: repo.settings.level };
        let Policy::Cache(quota) = repo.settings.policy else { return Ok(Self::Held(repo.store.writer(options)?)) };
        let busy = || Error::new(Kind::Locked, "another run fills the cache; try again when it is done");
        repo.chunks.local().cache().writer(quota, options)?.map(Self::Cached).ok_or_else(busy)
    }

    /// Puts a chunk; returns how many bytes it takes if it was not there.
    fn put(&self, record: &Record<'_>) -> Result<Option<u64>> {
        match self {
            Self::Held(writer) => Ok(match writer.put_record(record)? {
                Put::New { stored_len } => Some(stored_len.into()),
                Put::Known => None,
            }),
            Self::Cached(writer) => writer.put_record(record).map(|()| Some(record.stored_len())),
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Held(writer) => writer.finish().map(drop),
            Self::Cached(writer) => writer.finish(),
        }
    }
}
