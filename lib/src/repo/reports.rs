//! What hosts tell of themselves: the report of this one, and those of all others. Format: `docs/formats/report.md`.
//!
//! A report is the ref `refs/devops/reports/ID`, which that host alone writes and everybody passes on.

use std::collections::BTreeMap;

use super::Repo;
use crate::durable::Lock;
use crate::error::{Context, Error, Kind, Result};
use crate::git::quarantine::{Quarantine, REPORTS};
use crate::git::refs::RefMove;
use crate::git::{CommitData, Identity, ObjectKind, Objects, Oid, PackWriter, Signature, write_tree};
use crate::journal::{MAX_REPORT, Report};
use crate::placement::HolderId;
use crate::placement::record::tidied;
use crate::remote::sign::{self, MAX_SIGNATURE, Purpose};

const KEY: &str = "host-key";
const FILE: u32 = 0o100_644;
/// More hosts than this are not taken note of.
const MAX_HOSTS: usize = 4096;

/// What one host told last.
#[derive(Clone, Debug)]
pub struct Told {
    /// Its report.
    pub report: Report,
    commit: Oid,
}

impl Told {
    /// Reads the report in `commit`, and its signature; who signed it, is not looked at.
    fn read(objects: &Objects, commit: Oid) -> Result<(Self, Vec<u8>, Vec<u8>)> {
        let refused = |what: &str| Error::new(Kind::Refused, what.to_owned());
        let data = objects.commit(&commit)?;
        let tree = objects.tree(&data.tree)?;
        let names: Vec<&[u8]> = tree.iter().map(|entry| entry.name.as_slice()).collect();
        if !data.parents.is_empty()
            || names != [b"report".as_slice(), b"signature"]
            || tree.iter().any(|entry| entry.mode != FILE)
        {
            return Err(refused("it has more, or less, than a report and its signature"));
        }
        let text = objects.short(&tree[0].oid, ObjectKind::Blob, MAX_REPORT as u64)?;
        let signature = objects.short(&tree[1].oid, ObjectKind::Blob, MAX_SIGNATURE as u64)?;
        Ok((Self { report: Report::decode(&text)?, commit }, text, signature))
    }
}

/// Returns the last report of each host that this repository knows.
pub fn known(repo: &Repo) -> Result<BTreeMap<HolderId, Told>> {
    let listed = repo.git.run(&["for-each-ref", "--format=%(objectname) %(refname)", REPORTS])?;
    let mut known = BTreeMap::new();
    for line in String::from_utf8_lossy(&listed).lines() {
        let wrong = || Error::new(Kind::Corrupt, format!("'{}' is no report of a host; remove it", line.escape_debug()));
        let (oid, name) = line.split_once(' ').ok_or_else(wrong)?;
        let id: HolderId = name.strip_prefix(REPORTS).and_then(|id| id.parse().ok()).ok_or_else(wrong)?;
        let oid = Oid::from_hex(oid.as_bytes()).map_err(|_| wrong())?;
        known.insert(id, Told::read(&repo.objects, oid).context(|| format!("cannot read what host {id} tells"))?.0);
    }
    Ok(known)
}

/// Returns the id of this host, if it ever told anything.
pub fn own(repo: &Repo) -> Option<HolderId> {
    sign::public_key(&repo.places.state.join(KEY)).ok().map(|key| HolderId::of_key(&key))
}

/// Forgets what a host told: one that is no more. It comes again from whoever still has it.
pub fn forget(repo: &Repo, id: HolderId) -> Result<()> {
    let lock = repo.lock()?;
    let told = known(repo)?.remove(&id).ok_or_else(|| Error::new(Kind::NotFound, format!("nothing is known of host {id}")))?;
    repo.git.delete_ref(&format!("{REPORTS}{id}"), told.commit)?;
    repo.note_refs(&lock)
}

/// Tells what `report` says, as this host, by who holds the lock; what it says of key and generation is filled in here. Durable on return.
///
/// Says nothing if it said the same within the last `quiet` seconds.
pub fn publish(repo: &Repo, lock: &Lock, mut report: Report, quiet: u64) -> Result<()> {
    let key = repo.places.state.join(KEY);
    sign::make_key(&key)?;
    report.key = sign::public_key(&key)?;
    report.name = tidied(&report.name, "host");
    let name = format!("{REPORTS}{}", report.id());
    // One that was damaged here is simply followed by another.
    let at = repo.git.read_ref(&name)?;
    let last = at.and_then(|at| Told::read(&repo.objects, at).ok()).map(|(told, ..)| told.report);
    report.generation = report.issued.max(last.as_ref().map_or(0, |last| last.generation + 1));
    report.shorten();
    if last.is_some_and(|last| report.says_the_same(&last) && (last.issued..last.issued + quiet).contains(&report.issued)) {
        return Ok(());
    }
    let text = report.encode();
    let signature = sign::sign(&key, Purpose::Report, &text)?;
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let blob = |bytes: &[u8]| pack.put_anew(ObjectKind::Blob, bytes);
    let tree = write_tree([("report", FILE, blob(&text)?), ("signature", FILE, blob(&signature)?)], &pack)?;
    let identity = Identity { name: "git-devops".into(), email: "host@localhost".into() };
    let who = Signature::new(&identity, report.issued as i64, 0);
    let data = CommitData { tree, parents: Vec::new(), author: who.clone(), committer: who, message: b"report\n".to_vec() };
    let commit = pack.commit(&data)?;
    let kept = pack.finish()?;
    repo.git.update_ref(&name, commit, at, "report")?;
    repo.note_refs(lock)?;
    repo.let_go(kept)
}

/// What came with a fetch about hosts.
#[derive(Debug, Default)]
pub(super) struct Came {
    /// Reports to take over: whose, the new commit, the one before.
    news: Vec<(HolderId, Oid, Option<Oid>)>,
    /// Why others are not taken over.
    pub refused: Vec<Error>,
}

impl Came {
    /// Looks at the reports in `quarantine`: key, signature, and whether they are newer than what is known.
    pub fn look(repo: &Repo, quarantine: &Quarantine) -> Result<Self> {
        let mut came = Self::default();
        let offered = quarantine.reports()?;
        if offered.is_empty() {
            return Ok(came);
        }
        let (known, own) = (known(repo)?, own(repo));
        let objects = Objects::open(quarantine.git_dir())?;
        for (name, commit) in offered {
            if known.len() + came.news.len() >= MAX_HOSTS {
                let message = format!("more than {MAX_HOSTS} hosts are told of; no more are taken note of");
                came.refused.push(Error::new(Kind::Refused, message));
                break;
            }
            let what = || format!("what host '{}' tells is not taken over", name.escape_debug());
            match is_news(&known, own, &objects, quarantine, &name, commit).context(what) {
                Ok(Some(id)) => came.news.push((id, commit, known.get(&id).map(|told| told.commit))),
                Ok(None) => (),
                Err(error) if error.kind() == Kind::Refused => came.refused.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(came)
    }

    pub fn commits(&self) -> impl Iterator<Item = Oid> {
        self.news.iter().map(|(_, commit, _)| *commit)
    }

    pub fn moves(&self) -> impl Iterator<Item = RefMove> {
        self.news.iter().map(|(id, new, old)| RefMove { name: format!("{REPORTS}{id}"), old: *old, new: Some(*new) })
    }
}

fn is_news(
    known: &BTreeMap<HolderId, Told>,
    own: Option<HolderId>,
    objects: &Objects,
    quarantine: &Quarantine,
    name: &str,
    commit: Oid,
) -> Result<Option<HolderId>> {
    let refused = |what: &str| Error::new(Kind::Refused, what.to_owned());
    let id: HolderId = name.parse().map_err(|_| refused("its name is no id"))?;
    // Of itself, this host knows better.
    if own == Some(id) || known.get(&id).is_some_and(|told| told.commit == commit) {
        return Ok(None);
    }
    let (new, text, signature) = Told::read(objects, commit).map_err(|error| error.with_kind(Kind::Refused))?;
    if new.report.id() != id {
        return Err(refused("it has another key"));
    }
    match known.get(&id).map(|told| told.report.generation) {
        Some(generation) if new.report.generation < generation => return Ok(None),
        Some(generation) if new.report.generation == generation => return Err(refused("there are two of one generation")),
        _ => (),
    }
    let good = sign::verify(quarantine.dir(), Purpose::Report, &new.report.key, &text, &signature);
    good.map_err(|error| error.with_kind(Kind::Refused))?;
    Ok(Some(id))
}
