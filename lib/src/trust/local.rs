//! What lies on this host about trust: root documents, and the floor. Format: `docs/formats/trust.md`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::decide::Here;
use super::floor::{Accepted, Floor, lost};
use super::release::Version;
use super::root::{Root, RootFile};
use super::{Fingerprint, Release, TypeName, gpg};
use crate::durable;
use crate::error::{Context, Error, Kind, Reason, Result};

/// Whom this host believes, and what it accepted.
#[derive(Debug)]
pub struct LocalTrust {
    places: TrustPlaces,
    file: RootFile,
    floor: Floor,
    /// What of the floor has rotted, though enough is left.
    pub damage: Option<Error>,
}

/// Where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustPlaces {
    /// The root documents.
    pub roots: PathBuf,
    /// The state directory, in which the floor is.
    pub state: PathBuf,
}

impl TrustPlaces {
    fn document(&self, version: u64) -> PathBuf {
        self.roots.join(format!("{version}.root"))
    }

    fn floor(&self) -> PathBuf {
        self.state.join("trust")
    }

    /// Returns the versions of the documents that are here, the highest last.
    fn versions(&self) -> Result<Vec<u64>> {
        let listed = match durable::list(&self.roots) {
            Err(error) if error.kind() == Kind::NotFound => Vec::new(),
            other => other.context(|| format!("cannot read '{}'", self.roots.display()))?,
        };
        let version = |path: &Path| super::number(path.file_name()?.to_str()?.strip_suffix(".root")?);
        let mut versions: Vec<u64> = listed.iter().filter_map(|listed| version(&listed.path)).collect();
        versions.sort_unstable();
        Ok(versions)
    }

    fn read(&self, version: u64) -> Result<RootFile> {
        let path = self.document(version);
        let what = || format!("cannot use root document '{}'; put it back from another host", path.display());
        let file = RootFile::decode(&durable::read(&path).context(what)?).context(what)?;
        match file.root.version == version {
            true => Ok(file),
            false => Err(Error::new(Kind::Corrupt, "it is of another version").with_reason(Reason::Root)).context(what),
        }
    }
}

impl LocalTrust {
    /// Reads what is here; `None` where no key is trusted.
    pub fn open(places: TrustPlaces) -> Result<Option<Self>> {
        let Some(found) = Floor::read(&places.floor())? else {
            return match places.versions()?.is_empty() {
                true => Ok(None),
                false => Err(lost(Error::new(Kind::Corrupt, format!("there is nothing in '{}'", places.floor().display())))),
            };
        };
        let file = places.read(found.floor.root_version)?;
        if *blake3::hash(file.text.as_bytes()).as_bytes() != found.floor.root_hash {
            let path = places.document(found.floor.root_version);
            let message =
                format!("root document '{}' is not the one that was accepted; put it back from another host", path.display());
            return Err(Error::new(Kind::Corrupt, message).with_reason(Reason::Root));
        }
        Ok(Some(Self { places, file, floor: found.floor, damage: found.damage }))
    }

    /// Begins with the document `file`, because somebody says so; durable on return. Repeating it is safe.
    pub fn begin(places: TrustPlaces, file: RootFile) -> Result<Self> {
        if let Some(there) = Self::open(places.clone())? {
            return match there.file.text == file.text {
                true => Ok(there),
                false => Err(Error::new(
                    Kind::Refused,
                    "there is a root document already; 'gdo trust install' takes the one that follows it",
                )),
            };
        }
        let mut trust = Self { floor: Floor::new(file.root.version, &file.text, file.root.issued), places, file, damage: None };
        trust.write_document(&trust.file)?;
        trust.write()?;
        Ok(trust)
    }

    /// Begins anew where the floor is lost: with the highest document that is here. What was accepted is for the caller to find again, before
    /// [`Self::write`].
    pub fn begin_again(places: TrustPlaces) -> Result<Self> {
        let version = places.versions()?.pop();
        let version =
            version.ok_or_else(|| Error::new(Kind::NotFound, "there is no root document; make one with 'gdo trust init'"))?;
        let file = places.read(version)?;
        let mut floor = Floor::new(version, &file.text, file.root.issued);
        // Whatever is still in a slot must not count any more.
        floor.follow(Floor::read(&places.floor()).ok().flatten().map_or(0, |found| found.floor.count()));
        Ok(Self { places, file, floor, damage: None })
    }

    /// Returns the document in force.
    pub fn root(&self) -> &Root {
        &self.file.root
    }

    /// Returns the document in force, with its signatures.
    pub fn file(&self) -> &RootFile {
        &self.file
    }

    /// Returns the release of a type that this host goes by.
    pub fn accepted(&self, kind: &TypeName) -> Option<&Accepted> {
        self.floor.types.get(kind)
    }

    /// Returns what is accepted, by type.
    pub fn all_accepted(&self) -> impl Iterator<Item = (&TypeName, &Accepted)> {
        self.floor.types.iter()
    }

    /// Returns what decisions are made by; `now` is what the clock says.
    pub fn here(&self, now: u64) -> Here<'_> {
        Here { root: &self.file.root, floor: &self.floor, now, version: Version::current() }
    }

    /// Notes a release that was decided to be accepted; it counts when it was written.
    pub fn accept(&mut self, release: &Release, accepted: Accepted) {
        self.floor.take(release.name.kind.clone(), accepted, release.issued);
    }

    /// Makes the floor durable.
    pub fn write(&mut self) -> Result<()> {
        let dir = self.places.floor();
        durable::create_dir_all(&dir, 0o700)?;
        self.floor.write(&dir)
    }

    /// Takes the document that follows, if enough of its signatures are good; durable on return. Says whether it is another one than is in force.
    pub fn take_root(&mut self, next: RootFile, now: u64, scratch: &Path) -> Result<bool> {
        let what = || format!("root document {} is not taken", next.root.version);
        // The version first: what cannot follow anyhow is not worth asking gpgv about.
        let by_none = BTreeSet::new();
        let follows = match self.here(now).decide_root(&self.file, &next, &by_none, &by_none) {
            Err(error) if error.reason() == Some(Reason::Threshold) => true,
            other => other.context(what)?,
        };
        if !follows {
            return Ok(false);
        }
        let (by_ours, by_its) = (signers(&self.file.root, &next, scratch)?, signers(&next.root, &next, scratch)?);
        self.here(now).decide_root(&self.file, &next, &by_ours, &by_its).context(what)?;
        self.write_document(&next)?;
        self.floor.take_root(next.root.version, &next.text, next.root.issued);
        self.write()?;
        self.file = next;
        Ok(true)
    }

    fn write_document(&self, file: &RootFile) -> Result<()> {
        durable::create_dir_all(&self.places.roots, 0o755)?;
        durable::publish(&self.places.document(file.root.version), &file.encode(), 0o644)
    }
}

/// Returns the root keys of `root` that signed `file`; a signature that is not good just does not count.
pub fn signers(root: &Root, file: &RootFile, scratch: &Path) -> Result<BTreeSet<Fingerprint>> {
    let mut signers = BTreeSet::new();
    for signature in &file.signatures {
        match gpg::verify(scratch, root.certificates(), file.text.as_bytes(), signature) {
            Ok(key) if root.roots.contains(&key) => drop(signers.insert(key)),
            Err(error) if error.kind() != Kind::Refused => return Err(error),
            _ => (),
        }
    }
    Ok(signers)
}
