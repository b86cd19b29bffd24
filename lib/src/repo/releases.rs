//! Releases: made and signed here, looked at when they come, accepted if the root document says so.
//!
//! Format and rules: `docs/formats/release.md`. A release is accepted when the floor was raised to it; [`accepted`] is what anyone acts on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Places, Repo, roots};
use crate::durable::Scratch;
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::git::quarantine::{Quarantine, RELEASES};
use crate::git::refs::RefMove;
use crate::git::{Identity, ObjectKind, Objects, Oid, PackWriter};
use crate::trust::decide::{Here, Offer, Verdict};
use crate::trust::gpg::{self, Signer};
use crate::trust::local::TrustPlaces;
use crate::trust::release::{DAY, MAX_DAYS, MAX_RELEASE, MAX_SEQ, Signed, Version};
use crate::trust::{Accepted, Fingerprint, LocalTrust, Manifest, Release, ReleaseName, TypeName};

/// So many candidates of one type are refused by name; an honest host has one at most.
const MAX_REFUSED: usize = 16;

/// What the names of directories for gpgv begin with; those that a killed run left are removed with what was coming in.
pub(super) const SCRATCH: &str = "incoming-";

/// Returns where this instance keeps what it trusts.
pub fn trust_places(places: &Places) -> TrustPlaces {
    let roots = match (places.is_system(), places.git_dir.parent()) {
        (true, Some(dir)) => dir.join("trust"),
        _ => places.git_dir.join("devops/trust"),
    };
    TrustPlaces { roots, state: places.state.clone() }
}

/// Returns whom this repository believes and what it accepted; `None` if it trusts no key.
pub fn trust(repo: &Repo) -> Result<Option<LocalTrust>> {
    LocalTrust::open(trust_places(&repo.places))
}

/// Returns the release of a type that this host goes by: what may be acted on, and nothing else.
pub fn accepted(repo: &Repo, kind: &TypeName) -> Result<Option<Accepted>> {
    Ok(trust(repo)?.and_then(|trust| trust.accepted(kind).cloned()))
}

/// Returns the releases that are here, accepted or not, by name.
pub fn list(repo: &Repo) -> Result<BTreeMap<ReleaseName, Oid>> {
    let listed = repo.git.run(&["for-each-ref", "--format=%(objectname) %(refname)", RELEASES])?;
    let read = |line: &str| {
        let (oid, name) = line.split_once(' ')?;
        Some((name.parse().ok()?, Oid::from_hex(oid.as_bytes()).ok()?))
    };
    // A tag that somebody else put there is none of ours.
    Ok(String::from_utf8_lossy(&listed).lines().filter_map(read).collect())
}

/// Reads the tag object of a release; who signed it, is not looked at.
pub fn read(objects: &Objects, tag: &Oid) -> Result<Signed> {
    let object = objects.short(tag, ObjectKind::Tag, MAX_RELEASE as u64);
    let object = object.map_err(|error| match error.kind() {
        Kind::Corrupt | Kind::Refused => error.or_refused(Reason::Release),
        _ => error,
    });
    Signed::decode(&object?)
}

/// What is to be released, by whom.
#[derive(Clone, Debug)]
pub struct Order {
    /// Of which type.
    pub kind: TypeName,
    /// What hosts should have; without it, the branch of that name.
    pub source: Option<String>,
    /// How long it counts, in days.
    pub days: u64,
    /// The oldest program that may act on it.
    pub min_version: Version,
    /// Who is named in it.
    pub tagger: Identity,
    /// What the clock says, in seconds since 1970.
    pub now: u64,
}

/// A release that is ready to be signed.
#[derive(Clone, Debug)]
pub struct Draft {
    /// What it will say.
    pub release: Release,
    /// The one before it.
    pub before: Option<ReleaseName>,
}

/// Looks what the release that `order` asks for would be; changes nothing.
pub fn draft(repo: &Repo, order: &Order) -> Result<Draft> {
    if !(1..=MAX_DAYS).contains(&order.days) {
        return Err(Error::new(Kind::Usage, format!("a release counts for 1 to {MAX_DAYS} days")));
    }
    let source = order.source.clone().unwrap_or_else(|| format!("refs/heads/{}", order.kind));
    let commit = repo.git.resolve(&source)?;
    let trust = trust(repo)?;
    let all = list(repo)?;
    let last = all.keys().rfind(|name| name.kind == order.kind);
    let epoch = match &trust {
        Some(trust) => match trust.root().signers(&order.kind) {
            Some(signers) => signers.epoch,
            None => {
                let message = format!("the root document has no keys for type '{}'; 'gdo trust next' can add them", order.kind);
                return Err(Error::refused(Reason::WrongBranch, message));
            }
        },
        None => last.map_or(1, |name| name.epoch),
    };
    let before = last.filter(|name| name.epoch == epoch).cloned();
    if let Some(name) = &before {
        let release = read(&repo.objects, &all[name]).context(|| format!("cannot read '{name}'"))?.release;
        check_line(&repo.objects, release.commit, commit).context(|| format!("'{source}' cannot follow '{name}'"))?;
    }
    let seq = before.as_ref().map_or(1, |name| name.seq + 1);
    if seq > MAX_SEQ {
        return Err(Error::refused(
            Reason::SeqLimit,
            "the numbers are used up; raise the epoch with 'gdo trust next --raise-epoch'",
        ));
    }
    let release = Release {
        name: ReleaseName { kind: order.kind.clone(), epoch, seq },
        prev: before.as_ref().map(|name| all[name]),
        commit,
        manifest: Manifest::of_tree(&repo.objects, repo.objects.commit(&commit)?.tree)?,
        issued: order.now,
        expires: order.now.saturating_add(order.days * DAY),
        min_version: order.min_version,
        tagger: order.tagger.clone(),
    };
    // What could not be read back is not signed.
    Release::decode(&release.encode()).context(|| "cannot make the release; see 'user.name' and 'user.email'")?;
    Ok(Draft { release, before })
}

/// Signs the draft and makes it a release; durable on return. Where a key is trusted, it is first decided about as any host would.
pub fn publish(repo: &Repo, draft: &Draft, signer: &Signer, now: u64) -> Result<ReleaseName> {
    let text = draft.release.encode().into_bytes();
    // gpg may wait for a passphrase, so nobody is locked out meanwhile.
    let signed = Signed { signature: gpg::sign(signer, &text)?, release: draft.release.clone(), text };
    let lock = repo.lock()?;
    let name = &draft.release.name;
    let pack = PackWriter::new(&repo.places.git_dir, &repo.objects)?;
    let tag = pack.put(ObjectKind::Tag, &signed.encode())?;
    let mut trust = trust(repo)?;
    let verdict = match &trust {
        Some(trust) => {
            let scratch = Scratch::make(&repo.places.state, SCRATCH)?;
            let look = Look { objects: &repo.objects, here: trust.here(now), scratch: scratch.path() };
            let (verdict, _) =
                look.examine(name, tag, &signed).context(|| format!("hosts would refuse '{name}', so it is not made"))?;
            Some(verdict)
        }
        None => None,
    };
    let kept = pack.finish()?;
    repo.git.update_ref(&name.to_ref(), tag, None, "release")?;
    repo.note_refs(&lock)?;
    if let (Some(trust), Some(Verdict::Accept(accepted))) = (&mut trust, verdict) {
        trust.accept(&signed.release, accepted);
        trust.write()?;
    }
    repo.let_go(kept)?;
    Ok(name.clone())
}

/// Fails unless the first parents of `commit` lead to `earlier`.
fn check_line(objects: &Objects, earlier: Oid, commit: Oid) -> Result<()> {
    let mut next = Some(commit);
    while let Some(oid) = next.filter(|oid| *oid != earlier) {
        next = objects.commit(&oid)?.parents.first().copied();
    }
    match next {
        Some(_) => Ok(()),
        None => {
            let message = format!("the first parents of commit {commit} do not lead to {earlier}, which was released before");
            Err(Error::refused(Reason::Fork, message))
        }
    }
}

/// All that looking at a release needs.
struct Look<'a> {
    objects: &'a Objects,
    here: Here<'a>,
    scratch: &'a Path,
}

impl Look<'_> {
    /// Decides about a release that has the name `name`: signature, rules, history of the commit, and the tree itself. Returns who signed it, too.
    fn examine(&self, name: &ReleaseName, tag: Oid, signed: &Signed) -> Result<(Verdict, Option<Fingerprint>)> {
        let release = &signed.release;
        let signer = gpg::verify(self.scratch, self.here.root.certificates(), &signed.text, &signed.signature);
        if let Err(error) = &signer
            && error.kind() != Kind::Refused
        {
            return Err(signer.expect_err("BUG: it is an error"));
        }
        let key = signer.as_ref().ok().copied();
        let before = |oid: &Oid| read(self.objects, oid).ok().map(|signed| signed.release);
        let verdict = self.here.decide(Offer { name, tag, release, signer, before: &before })?;
        let floor = self.here.floor.types.get(&name.kind).filter(|floor| floor.epoch == name.epoch);
        if let (Verdict::Accept(_), Some(floor)) = (&verdict, floor) {
            check_line(self.objects, floor.commit, release.commit)?;
        }
        check_manifest(self.objects, release)?;
        Ok((verdict, key))
    }
}

fn check_manifest(objects: &Objects, release: &Release) -> Result<()> {
    let commit = objects.commit(&release.commit).map_err(|error| match error.kind() {
        Kind::NotFound => Error::refused(Reason::Gap, format!("commit {} did not come", release.commit)),
        _ => error.or_refused(Reason::Release),
    })?;
    match Manifest::of_tree(objects, commit.tree)? == release.manifest {
        true => Ok(()),
        false => {
            Err(Error::refused(Reason::Manifest, format!("the tree of commit {} is not the one that was signed", release.commit)))
        }
    }
}

/// Returns the tag objects to which `prev` leads from `tag` on, that one included, as far as they are here.
fn history(objects: &Objects, tag: Oid) -> Vec<(ReleaseName, Oid)> {
    let mut found: Vec<(ReleaseName, Oid)> = Vec::new();
    let mut next = Some(tag);
    while let Some(oid) = next {
        let Ok(Signed { release, .. }) = read(objects, &oid) else { break };
        // Numbers that do not go down would lead in a circle, if SHA-1 let them.
        if found.last().is_some_and(|(name, _)| name.kind != release.name.kind || name.seq != release.name.seq + 1) {
            break;
        }
        next = release.prev;
        found.push((release.name, oid));
    }
    found
}

/// What a fetch brought about releases and root documents.
#[derive(Debug, Default)]
pub struct Incoming {
    trust: Option<LocalTrust>,
    tags: Vec<(ReleaseName, Oid)>,
    roots: Vec<(u64, Oid)>,
    /// What is accepted now and was not before.
    pub accepted: Vec<ReleaseName>,
    /// Why others are not taken.
    pub refused: Vec<Error>,
}

impl Incoming {
    /// Looks at what came. Root documents that follow are in force from here on; releases count with [`Self::accept`].
    pub(super) fn look(repo: &Repo, quarantine: &Quarantine, now: u64) -> Result<Self> {
        let objects = Objects::open(quarantine.git_dir())?;
        let mut incoming = Self { trust: trust(repo)?, ..Self::default() };
        if let Some(trust) = &mut incoming.trust {
            let came = roots::Came { objects: &objects, roots: quarantine.roots()?, scratch: quarantine.dir() };
            (incoming.roots, incoming.refused) = came.take(trust, now)?;
        }
        let here = list(repo)?;
        let mut fresh = BTreeMap::new();
        for (name, oid) in quarantine.releases()? {
            match incoming.is_fresh(&here, &name, oid) {
                Ok(Some(name)) => drop(fresh.insert(name, oid)),
                Ok(None) => (),
                Err(error) => incoming.refused.push(error),
            }
        }
        match incoming.trust.take() {
            Some(trust) => incoming.choose(&objects, trust, &here, &fresh, quarantine.dir(), now)?,
            None => incoming.note(&objects, &fresh)?,
        }
        Ok(incoming)
    }

    /// Returns the name of a release that is not here yet, and could matter.
    fn is_fresh(&self, here: &BTreeMap<ReleaseName, Oid>, name: &str, oid: Oid) -> Result<Option<ReleaseName>> {
        let name: ReleaseName = format!("release/{name}").parse()?;
        let is_followed = self.trust.as_ref().is_none_or(|trust| trust.root().signers(&name.kind).is_some());
        match here.get(&name) {
            Some(known) if *known == oid => Ok(None),
            Some(known) => {
                let message = format!("'{name}' is not taken: another one of that name is here, {known}");
                Err(Error::refused(Reason::Fork, message))
            }
            None => Ok(is_followed.then_some(name)),
        }
    }

    /// Takes all that are well formed: nobody here goes by them.
    fn note(&mut self, objects: &Objects, fresh: &BTreeMap<ReleaseName, Oid>) -> Result<()> {
        for (name, oid) in fresh {
            let named = read(objects, oid).and_then(|signed| match signed.release.name == *name {
                true => Ok(()),
                false => Err(Error::refused(Reason::WrongBranch, format!("it says that it is '{}'", signed.release.name))),
            });
            if named.is_ok() {
                self.tags.push((name.clone(), *oid));
            }
            self.sort(name, named)?;
        }
        Ok(())
    }

    /// Decides, type by type, what is accepted.
    fn choose(
        &mut self,
        objects: &Objects,
        mut trust: LocalTrust,
        here: &BTreeMap<ReleaseName, Oid>,
        fresh: &BTreeMap<ReleaseName, Oid>,
        scratch: &Path,
        now: u64,
    ) -> Result<()> {
        let all: BTreeMap<&ReleaseName, Oid> = here.iter().chain(fresh).map(|(name, oid)| (name, *oid)).collect();
        let kinds: BTreeSet<&TypeName> = all.keys().map(|name| &name.kind).collect();
        for kind in kinds {
            if trust.root().signers(kind).is_none() {
                continue;
            }
            let mut vouched: BTreeSet<Oid> =
                trust.accepted(kind).map(|floor| history(objects, floor.tag)).into_iter().flatten().map(|(_, oid)| oid).collect();
            let mut n_refused = 0;
            for (name, oid) in all.iter().rev().filter(|(name, _)| name.kind == *kind) {
                let is_fresh = fresh.contains_key(*name);
                if vouched.contains(oid) {
                    // Who signed a later one signed its name.
                    self.tags.extend(is_fresh.then(|| ((*name).clone(), *oid)));
                    continue;
                }
                // Of an epoch that is over, nothing is accepted any more: not even worth a word, as honest ones stay where they are for ever.
                if trust.root().signers(kind).is_some_and(|signers| name.epoch < signers.epoch) {
                    continue;
                }
                let below = trust.accepted(kind).is_some_and(|floor| (name.epoch, name.seq) <= (floor.epoch, floor.seq));
                if n_refused == MAX_REFUSED || below && !is_fresh {
                    continue;
                }
                let look = Look { objects, here: trust.here(now), scratch };
                let decided = read(objects, oid).and_then(|signed| Ok((look.examine(name, *oid, &signed)?.0, signed.release)));
                let reason = decided.as_ref().err().and_then(Error::reason);
                match decided {
                    Ok((Verdict::Accept(accepted), release)) => {
                        vouched.extend(history(objects, *oid).into_iter().map(|(_, oid)| oid));
                        self.tags.extend(is_fresh.then(|| ((*name).clone(), *oid)));
                        self.accepted.push((*name).clone());
                        trust.accept(&release, accepted);
                    }
                    Ok((Verdict::Same, _)) => (),
                    // Of what was here before, 'gdo verify' tells.
                    Err(error) if error.kind() == Kind::Refused && !is_fresh => (),
                    other => self.sort(name, other.map(drop))?,
                }
                n_refused += usize::from(reason.is_some());
                // What is older has expired before.
                if matches!(reason, Some(Reason::StaleHead | Reason::StaleRoot)) {
                    n_refused = MAX_REFUSED;
                }
            }
        }
        self.trust = Some(trust);
        Ok(())
    }

    /// Notes why something is refused; what is no refusal is an error here.
    fn sort(&mut self, name: &ReleaseName, done: Result<()>) -> Result<()> {
        match done.context(|| format!("'{name}' is not accepted")) {
            Err(error) if matches!(error.kind(), Kind::Refused | Kind::Unsupported) => self.refused.push(error),
            other => other?,
        }
        Ok(())
    }

    /// Returns the objects that are to be taken over.
    pub(super) fn objects(&self) -> impl Iterator<Item = Oid> {
        self.tags.iter().map(|(_, oid)| *oid).chain(self.roots.iter().map(|(_, oid)| *oid))
    }

    /// Returns the refs that what was taken over gets.
    pub(super) fn moves(&self, repo: &Repo) -> Result<Vec<RefMove>> {
        let tags = self.tags.iter().map(|(name, oid)| RefMove { name: name.to_ref(), old: None, new: Some(*oid) });
        let mut moves: Vec<RefMove> = tags.collect();
        for (version, oid) in &self.roots {
            moves.extend(roots::note(repo, *version, *oid)?);
        }
        Ok(moves)
    }

    /// Raises the floor, once all that it stands for is here: from now on it counts.
    pub(super) fn accept(&mut self) -> Result<()> {
        match &mut self.trust {
            Some(trust) if !self.accepted.is_empty() => trust.write(),
            _ => Ok(()),
        }
    }
}

/// What is found when a release is looked at again.
#[derive(Debug)]
pub struct Verified {
    /// What it says.
    pub release: Release,
    /// Whose signature it has.
    pub signer: Option<Fingerprint>,
    /// How it stands to what this host goes by.
    pub standing: Standing,
}

/// How a release stands to what this host goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// This host goes by it.
    Accepted,
    /// This host goes by a later one, which was signed with it in its history.
    Superseded,
    /// It would be accepted with the next fetch.
    Acceptable,
}

/// Verifies a release that is here: form, signature, rules and the tree itself.
pub fn verify(repo: &Repo, name: &ReleaseName, now: u64) -> Result<Verified> {
    let trust = trust(repo)?.ok_or_else(|| {
        Error::new(Kind::NotFound, "no key is trusted here, so nothing can be verified; 'gdo trust init' begins with one")
    })?;
    let tag = list(repo)?.get(name).copied();
    let tag =
        tag.ok_or_else(|| Error::new(Kind::NotFound, format!("no release '{name}' here; 'gdo release --list' lists them")))?;
    let signed = read(&repo.objects, &tag)?;
    let floor = trust.accepted(&name.kind);
    if let Some(floor) = floor.filter(|floor| floor.tag != tag)
        && history(&repo.objects, floor.tag).iter().any(|(_, oid)| *oid == tag)
    {
        check_manifest(&repo.objects, &signed.release)?;
        return Ok(Verified { release: signed.release, signer: None, standing: Standing::Superseded });
    }
    let scratch = Scratch::make(&repo.places.state, SCRATCH)?;
    let look = Look { objects: &repo.objects, here: trust.here(now), scratch: scratch.path() };
    let (verdict, signer) = look.examine(name, tag, &signed)?;
    let standing = if verdict == Verdict::Same { Standing::Accepted } else { Standing::Acceptable };
    Ok(Verified { release: signed.release, signer, standing })
}

/// Makes a new floor where it is lost: from the highest root document, and the highest release of each type that is here and verifies, however old it
/// is. Returns what is accepted now.
pub fn repair_floor(repo: &Repo, now: u64) -> Result<Vec<ReleaseName>> {
    let _lock = repo.lock()?;
    let mut trust = match trust(repo) {
        Ok(Some(trust)) if trust.damage.is_none() => return Ok(Vec::new()),
        // One slot is left, and whole.
        Ok(Some(mut trust)) => {
            trust.write()?;
            return Ok(Vec::new());
        }
        Ok(None) | Err(_) => LocalTrust::begin_again(trust_places(&repo.places))?,
    };
    let scratch = Scratch::make(&repo.places.state, SCRATCH)?;
    let mut accepted = Vec::new();
    for (name, tag) in list(repo)?.iter().rev() {
        let is_done = accepted.iter().any(|done: &ReleaseName| done.kind == name.kind);
        let Some(signed) = read(&repo.objects, tag).ok().filter(|_| !is_done) else { continue };
        // As it was when it was made: that it has expired since does not make it less of a floor.
        let then = signed.release.issued.min(now);
        let look = Look {
            objects: &repo.objects,
            here: Here { now: then, floor: &trust.here(then).floor.timeless(), ..trust.here(then) },
            scratch: scratch.path(),
        };
        if let Ok((Verdict::Accept(found), _)) = look.examine(name, *tag, &signed) {
            trust.accept(&signed.release, found);
            accepted.push(name.clone());
        }
    }
    trust.write()?;
    Ok(accepted)
}
