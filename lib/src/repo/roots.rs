//! Root documents: who may sign, how that changes, and how hosts hear of it. Format and rules: `docs/formats/trust.md`.

use std::collections::BTreeMap;
use std::path::Path;

use super::Repo;
use super::releases::{SCRATCH, trust_places};
use crate::durable::Scratch;
use crate::error::{Error, Kind, Reason, Result};
use crate::git::quarantine::ROOTS;
use crate::git::refs::RefMove;
use crate::git::{ObjectKind, Objects, Oid, PackWriter};
use crate::trust::LocalTrust;
use crate::trust::gpg::{self, Signer};
use crate::trust::root::{MAX_ROOT, RootFile};

/// Documents that are taken, by version, with their objects; and why others are not.
type Taken = (Vec<(u64, Oid)>, Vec<Error>);

/// Root documents that another host sent.
pub(super) struct Came<'a> {
    pub(super) objects: &'a Objects,
    /// By what should be their versions.
    pub(super) roots: BTreeMap<String, Oid>,
    pub(super) scratch: &'a Path,
}

impl Came<'_> {
    /// Takes those that follow, one after the other; returns them with their objects, and why others are refused.
    pub(super) fn take(&self, trust: &mut LocalTrust, now: u64) -> Result<Taken> {
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        let version = |name: &str| name.parse().ok().filter(|version: &u64| version.to_string() == name);
        let by_version: BTreeMap<u64, Oid> = self.roots.iter().filter_map(|(name, oid)| Some((version(name)?, *oid))).collect();
        for (version, oid) in by_version {
            // One that nobody signed was made here, from the keys themselves; hosts may have made it otherwise.
            let is_news =
                version > trust.root().version || version == trust.root().version && !trust.file().signatures.is_empty();
            if !is_news {
                continue;
            }
            match self.take_one(trust, version, &oid, now) {
                // One that is in force already may lack its ref: a run ended too early.
                Ok(_) => taken.push((version, oid)),
                Err(error) if error.kind() == Kind::Refused => {
                    refused.push(error.wrap(format!("root document {version} is not taken")));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok((taken, refused))
    }

    fn take_one(&self, trust: &mut LocalTrust, version: u64, oid: &Oid, now: u64) -> Result<bool> {
        let bytes = self.objects.short(oid, ObjectKind::Blob, MAX_ROOT as u64).map_err(|error| error.or_refused(Reason::Root))?;
        let next = RootFile::decode(&bytes)?;
        match next.root.version == version {
            true => trust.take_root(next, now, self.scratch),
            false => Err(Error::refused(Reason::Root, format!("it says that it is version {}", next.root.version))),
        }
    }
}

/// Returns the ref that a root document gets; one that is there stays.
pub(super) fn note(repo: &Repo, version: u64, oid: Oid) -> Result<Option<RefMove>> {
    let name = format!("{ROOTS}{version}");
    let is_there = repo.git.read_ref(&name)?.is_some();
    Ok((!is_there).then_some(RefMove { name, old: None, new: Some(oid) }))
}

/// Begins to trust: from here on, only what `file` and what follows it allow is accepted. Repeating it is safe.
pub fn begin(repo: &Repo, file: RootFile) -> Result<LocalTrust> {
    let lock = repo.lock()?;
    let trust = LocalTrust::begin(trust_places(&repo.places), file)?;
    publish(repo, trust.file())?;
    repo.note_refs(&lock)?;
    Ok(trust)
}

/// Takes the root document that follows the one in force, for this host and those that fetch from it; says whether it is another one.
pub fn install(repo: &Repo, next: RootFile, now: u64) -> Result<bool> {
    let lock = repo.lock()?;
    let mut trust = super::releases::trust(repo)?.ok_or_else(|| {
        Error::new(Kind::NotFound, "no key is trusted here; 'gdo trust init' begins with a root document or a key")
    })?;
    let scratch = Scratch::make(&repo.places.state, SCRATCH)?;
    let is_other = trust.take_root(next, now, scratch.path())?;
    publish(repo, trust.file())?;
    repo.note_refs(&lock)?;
    Ok(is_other)
}

/// Lets other hosts fetch a document, if somebody signed it.
fn publish(repo: &Repo, file: &RootFile) -> Result<()> {
    if file.signatures.is_empty() {
        return Ok(());
    }
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let oid = pack.blob(&file.encode())?;
    let kept = pack.finish()?;
    let moves: Vec<RefMove> = note(repo, file.root.version, oid)?.into_iter().collect();
    repo.git.move_refs(&moves, "trust")?;
    repo.let_go(kept)
}

/// Adds a signature to a document; needs no repository.
pub fn sign(file: &mut RootFile, signer: &Signer) -> Result<()> {
    let signature = gpg::sign(signer, file.text.as_bytes())?;
    file.signatures.push(signature);
    Ok(())
}
