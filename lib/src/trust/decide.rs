//! Whether a release, or a root document, is accepted: the tables of `docs/formats/release.md` and `docs/formats/trust.md`, without I/O.

use std::collections::BTreeSet;

use super::floor::{Accepted, Floor};
use super::openpgp::bad_signature;
use super::release::{DAY, MAX_SEQ, Version};
use super::root::RootFile;
use super::{Fingerprint, Release, ReleaseName, Root};
use crate::error::{Error, Kind, Reason, Result};
use crate::git::Oid;

/// A release that somebody offers.
pub struct Offer<'a> {
    /// The name under which it came.
    pub name: &'a ReleaseName,
    /// Its tag object.
    pub tag: Oid,
    /// What it says.
    pub release: &'a Release,
    /// Who signed it, or why that does not count.
    pub signer: std::result::Result<Fingerprint, Error>,
    /// Finds earlier releases by their tag objects.
    pub before: &'a dyn Fn(&Oid) -> Option<Release>,
}

/// What is known here.
#[derive(Clone, Copy)]
pub struct Here<'a> {
    /// The root document in force.
    pub root: &'a Root,
    /// What was accepted.
    pub floor: &'a Floor,
    /// What the clock says, in seconds since 1970.
    pub now: u64,
    /// Which program this is.
    pub version: Version,
}

/// What becomes of a release that is not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It takes the place of what was accepted, if the history of its commit allows that.
    Accept(Accepted),
    /// It is accepted already.
    Same,
}

/// So far two clocks may differ, in seconds.
const MAX_AHEAD: u64 = DAY;

impl Here<'_> {
    /// Returns the time that counts: a clock that was set back revives nothing.
    pub fn time(&self) -> u64 {
        self.now.max(self.floor.time)
    }

    /// Decides about a release; the error says by its reason why it is refused.
    pub fn decide(&self, offer: Offer<'_>) -> Result<Verdict> {
        let Offer { name, tag, release, signer, before } = offer;
        let refused = |reason, message: String| Err(Error::refused(reason, message));
        if *name != release.name {
            return refused(Reason::WrongBranch, format!("'{name}' says that it is '{}'", release.name));
        }
        let Some(signers) = self.root.signers(&name.kind) else {
            return refused(Reason::WrongBranch, format!("the root document has no keys for type '{}'", name.kind));
        };
        self.check_times(release)?;
        let signer = signer?;
        if self.root.revoked.contains(&signer) {
            return Err(bad_signature(format!("key {signer} is revoked")));
        }
        if !signers.keys.contains(&signer) {
            return Err(bad_signature(format!("key {signer} may not sign releases of type '{}'", name.kind)));
        }
        if release.min_version > self.version {
            let message = format!("it needs version {} of this program, which is {}", release.min_version, self.version);
            return Err(Error::new(Kind::Unsupported, message).with_reason(Reason::MinVersion));
        }
        if name.seq > MAX_SEQ {
            return refused(Reason::SeqLimit, format!("{} is more than the highest number, {MAX_SEQ}", name.seq));
        }
        let accepted = self.floor.types.get(&name.kind);
        if let Some(accepted) = accepted.filter(|accepted| release.epoch < accepted.epoch) {
            return refused(Reason::Rollback, format!("epoch {} was accepted, and this is {}", accepted.epoch, release.epoch));
        }
        if release.epoch != signers.epoch {
            return refused(
                Reason::Epoch,
                format!("the root document has epoch {}, and this is {}", signers.epoch, release.epoch),
            );
        }
        match accepted.filter(|accepted| accepted.epoch == release.epoch) {
            Some(accepted) if accepted.tag == tag => return Ok(Verdict::Same),
            Some(accepted) => check_history(accepted, release, before)?,
            None => (),
        }
        let Release { epoch, commit, manifest, .. } = *release;
        Ok(Verdict::Accept(Accepted { epoch, seq: name.seq, tag, commit, manifest, accepted: self.now }))
    }

    fn check_times(&self, release: &Release) -> Result<()> {
        let time = self.time();
        if self.root.expires.is_some_and(|expires| expires <= time) {
            let message = "the root document has expired; get the next one with 'gdo fetch' or 'gdo trust install'";
            return Err(Error::refused(Reason::StaleRoot, message));
        }
        if release.expires <= time {
            let late = (time - release.expires) / DAY;
            return Err(Error::refused(
                Reason::StaleHead,
                format!("it expired {late} days ago; make a new release, or check the clock"),
            ));
        }
        check_issued(release.issued, time)
    }

    /// Decides about the root document that follows; `by_ours` and `by_its` are who signed it, by the keys of ours and by its own.
    ///
    /// `Ok(false)` is for the one that is in force already.
    pub fn decide_root(
        &self,
        ours: &RootFile,
        next: &RootFile,
        by_ours: &BTreeSet<Fingerprint>,
        by_its: &BTreeSet<Fingerprint>,
    ) -> Result<bool> {
        let (root, new) = (&ours.root, &next.root);
        let refused = |reason, message: String| Err(Error::refused(reason, message));
        if new.version < root.version {
            return refused(Reason::Rollback, format!("version {} is in force, and this is {}", root.version, new.version));
        }
        if new.version == root.version {
            return match ours.text == next.text {
                true => Ok(false),
                false => refused(Reason::Fork, format!("there are two documents of version {}", new.version)),
            };
        }
        if let Some((name, _)) = root.types().find(|(name, signers)| epoch_of(new, name) < signers.epoch) {
            return refused(Reason::Rollback, format!("the epoch of type '{name}' is lower"));
        }
        if let Some(key) = root.revoked.difference(&new.revoked).next() {
            return refused(Reason::Rollback, format!("key {key} was revoked, and is not any more"));
        }
        if new.version > root.version + 1 {
            return refused(Reason::Gap, format!("version {} is in force, and this is {}", root.version, new.version));
        }
        check_issued(new.issued, self.time())?;
        for (who, set, by) in [("those before it", root, by_ours), ("its own", new, by_its)] {
            let n = set.roots.intersection(by).filter(|key| !new.revoked.contains(key)).count();
            if n < set.threshold {
                let message = format!("{n} keys of {who} signed it, and {} must", set.threshold);
                return refused(Reason::Threshold, message);
            }
        }
        // One that has expired is still what leads to the next one; releases are refused meanwhile.
        Ok(true)
    }
}

/// Returns the epoch of the line `name`; of one that is gone, that of the line for all others, which counts now.
fn epoch_of(root: &Root, name: &str) -> u32 {
    let line = |wanted: &str| root.types().find(|(name, _)| *name == wanted).map(|(_, signers)| signers.epoch);
    line(name).or_else(|| line("*")).unwrap_or(u32::MAX) // of a type that nobody signs, nothing can come back
}

fn check_issued(issued: u64, time: u64) -> Result<()> {
    match issued.saturating_sub(MAX_AHEAD) > time {
        true => Err(Error::refused(
            Reason::Future,
            "it was issued in the future; set the clock, of this host or of the one that made it",
        )),
        false => Ok(()),
    }
}

/// Goes back from `release` until it comes to what was accepted.
fn check_history(accepted: &Accepted, release: &Release, before: &dyn Fn(&Oid) -> Option<Release>) -> Result<()> {
    let name = &release.name;
    if name.seq < accepted.seq {
        return Err(Error::refused(Reason::Rollback, format!("{} was accepted, and this is {}", accepted.seq, name.seq)));
    }
    if name.seq == accepted.seq {
        return Err(Error::refused(Reason::Fork, format!("another release with the number {} was accepted", name.seq)));
    }
    let (mut seq, mut prev) = (name.seq, release.prev);
    while seq > accepted.seq + 1 {
        let gap = || Error::refused(Reason::Gap, format!("number {} is missing", seq - 1));
        let found = prev.and_then(|oid| before(&oid)).ok_or_else(gap)?;
        if found.name.seq + 1 != seq {
            return Err(Error::refused(Reason::Gap, format!("after number {} comes {seq}", found.name.seq)));
        }
        if found.name.kind != name.kind || found.epoch != release.epoch {
            return Err(Error::refused(Reason::Fork, format!("before it came '{}' of epoch {}", found.name, found.epoch)));
        }
        (seq, prev) = (found.name.seq, found.prev);
    }
    // The one before may not be here: its name is enough, as it was accepted.
    match prev {
        Some(oid) if oid == accepted.tag => Ok(()),
        Some(oid) => {
            let number = before(&oid).map(|other| other.name.seq);
            match number.filter(|number| *number != accepted.seq) {
                Some(number) => Err(Error::refused(Reason::Gap, format!("after number {number} comes {seq}"))),
                None => Err(Error::refused(
                    Reason::Fork,
                    format!("its history does not lead to number {}, which was accepted", accepted.seq),
                )),
            }
        }
        None => Err(Error::refused(Reason::Gap, format!("number {} is missing", accepted.seq))),
    }
}
