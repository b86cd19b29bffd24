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
        if let Some(accepted) = accepted.filter(|accepted| name.epoch < accepted.epoch) {
            return refused(Reason::Rollback, format!("epoch {} was accepted, and this is {}", accepted.epoch, name.epoch));
        }
        if name.epoch != signers.epoch {
            return refused(Reason::Epoch, format!("the root document has epoch {}, and this is {}", signers.epoch, name.epoch));
        }
        match accepted.filter(|accepted| accepted.epoch == name.epoch) {
            Some(accepted) if accepted.tag == tag => return Ok(Verdict::Same),
            Some(accepted) => check_history(accepted, release, before)?,
            None => (),
        }
        let Release { commit, manifest, .. } = *release;
        Ok(Verdict::Accept(Accepted { epoch: name.epoch, seq: name.seq, tag, commit, manifest, accepted: self.now }))
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
        if found.name.kind != name.kind || found.name.epoch != name.epoch {
            return Err(Error::refused(Reason::Fork, format!("before it came '{}'", found.name)));
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::git::Identity;
    use crate::git::object::{ObjectKind, object_id};
    use crate::trust::gpg::decode_status;
    use crate::trust::openpgp::Certificate;
    use crate::trust::release::Signed;
    use crate::trust::root::Change;
    use crate::trust::{Manifest, TypeName};

    const NOW: u64 = 1_795_300_000;
    const WEEK: u64 = 7 * DAY;

    fn key(seed: u8) -> Certificate {
        Certificate::decode(&[0xc6, 3, 4, seed, seed]).unwrap()
    }

    fn kind(name: &str) -> TypeName {
        name.parse().unwrap()
    }

    /// A host on which release 3 of 'web' is accepted: key 1 signs 'web', key 2 signs 'db', both sign root documents.
    struct Host {
        root: RootFile,
        floor: Floor,
        known: BTreeMap<Oid, Release>,
        now: u64,
    }

    fn tag_of(release: &Release) -> Oid {
        object_id(ObjectKind::Tag, release.encode().as_bytes()).unwrap()
    }

    fn release(kind_name: &str, epoch: u32, seq: u64, prev: Option<Oid>, note: u8) -> Release {
        Release {
            name: ReleaseName { kind: kind(kind_name), epoch, seq },
            prev,
            commit: object_id(ObjectKind::Blob, &[note]).unwrap(),
            manifest: blake3::hash(&[note]).to_hex().parse::<Manifest>().unwrap(),
            issued: NOW - WEEK,
            expires: NOW + WEEK,
            min_version: Version::FIRST,
            tagger: Identity { name: "Ann".into(), email: "a@b".into() },
        }
    }

    impl Host {
        fn new() -> Self {
            let first = Root::first(vec![key(1), key(2), key(3)]).unwrap();
            let changes = [
                Change::Issue { version: 5, issued: NOW - 2 * WEEK, expires: Some(NOW + 50 * WEEK) },
                Change::Threshold(2),
                Change::RemoveSigner(Some(kind("web")), key(2).fingerprint),
                Change::RemoveSigner(Some(kind("web")), key(3).fingerprint),
                Change::RemoveSigner(Some(kind("db")), key(1).fingerprint),
                Change::RemoveSigner(None, key(3).fingerprint),
                Change::Revoke(key(9).fingerprint),
            ];
            let root = RootFile::unsigned(first.with(&changes).unwrap());
            let floor = Floor::new(5, &root.text, root.root.issued);
            let mut host = Self { root, floor, known: BTreeMap::new(), now: NOW };
            let mut prev = None;
            for seq in 1..=3 {
                prev = Some(host.know(release("web", 1, seq, prev, seq as u8)));
            }
            let third = host.known[&prev.unwrap()].clone();
            assert_eq!(host.offer(&third, 1).unwrap(), "accept");
            let Ok(Verdict::Accept(accepted)) = host.ask(&third.name, &third, Ok(key(1).fingerprint)) else { panic!() };
            host.floor.take(kind("web"), accepted, third.issued);
            host
        }

        fn know(&mut self, release: Release) -> Oid {
            let tag = tag_of(&release);
            self.known.insert(tag, release);
            tag
        }

        fn last(&self) -> Oid {
            self.floor.types[&kind("web")].tag
        }

        fn here(&self) -> Here<'_> {
            Here { root: &self.root.root, floor: &self.floor, now: self.now, version: Version::current() }
        }

        fn ask(&self, name: &ReleaseName, release: &Release, signer: Result<Fingerprint>) -> Result<Verdict> {
            let before = |oid: &Oid| self.known.get(oid).cloned();
            self.here().decide(Offer { name, tag: tag_of(release), release, signer, before: &before })
        }

        /// Returns what becomes of a release, signed by key number `signer`, as one word.
        fn offer(&self, release: &Release, signer: u8) -> std::result::Result<&'static str, &'static str> {
            self.word(self.ask(&release.name, release, Ok(key(signer).fingerprint)))
        }

        fn word(&self, verdict: Result<Verdict>) -> std::result::Result<&'static str, &'static str> {
            match verdict {
                Ok(Verdict::Accept(_)) => Ok("accept"),
                Ok(Verdict::Same) => Ok("same"),
                Err(error) => Err(error.reason().expect("a refusal has a name").id()),
            }
        }

        /// Returns what becomes of the root document that `changes` make of ours, signed by these keys of ours and of its own.
        fn offer_root(&self, changes: &[Change], by_ours: &[u8], by_its: &[u8]) -> std::result::Result<bool, &'static str> {
            let next = RootFile::unsigned(self.root.root.with(changes).unwrap());
            let keys = |seeds: &[u8]| seeds.iter().map(|seed| key(*seed).fingerprint).collect();
            let decided = self.here().decide_root(&self.root, &next, &keys(by_ours), &keys(by_its));
            decided.map_err(|error| error.reason().expect("a refusal has a name").id())
        }
    }

    /// The rows of the study's table for which there is an object: branch head, and root document. The columns: older, equal but different, future,
    /// expired, other branch, missing prev, skipped number, forked, wrong key, revoked key, expired key, two signatures.
    #[test]
    fn a_release_is_refused_for_each_column_of_the_table() {
        let host = Host::new();
        let before = host.floor.clone();
        let next = release("web", 1, 4, Some(host.last()), 4);
        assert_eq!(host.offer(&next, 1), Ok("accept"));
        let other = |seq, prev| release("web", 1, seq, prev, 99);
        let stray = object_id(ObjectKind::Tag, b"nowhere").unwrap();
        let second = host.known.values().find(|release| release.name.seq == 2).map(tag_of);
        let table: &[(&str, Release, u8, &str)] = &[
            ("older", release("web", 1, 1, None, 1), 1, "rollback"),
            ("older, never seen", other(2, Some(stray)), 1, "rollback"),
            ("equal but different", other(3, second), 1, "fork"),
            ("future", Release { issued: NOW + 2 * DAY, ..next.clone() }, 1, "future"),
            ("expired", Release { expires: NOW, ..next.clone() }, 1, "stale-head"),
            ("other branch", release("db", 1, 4, Some(host.last()), 4), 1, "signature"),
            ("missing prev", other(5, Some(stray)), 1, "gap"),
            ("no prev at all", Release { prev: None, ..next.clone() }, 1, "gap"),
            ("skipped number", other(5, Some(host.last())), 1, "gap"),
            ("forked", other(4, Some(stray)), 1, "fork"),
            ("forked from an older one", other(4, second), 1, "gap"),
            ("wrong key", next.clone(), 2, "signature"),
            ("unknown key", next.clone(), 8, "signature"),
            ("revoked key", next.clone(), 9, "signature"),
            ("highest number", other(u64::MAX, Some(stray)), 1, "seq-limit"),
            ("above the limit", other(MAX_SEQ + 1, Some(stray)), 1, "seq-limit"),
            ("epoch raised without the root", release("web", 2, 1, None, 1), 1, "epoch"),
            ("newer program", Release { min_version: "999.0.0".parse().unwrap(), ..next.clone() }, 1, "min-version"),
        ];
        for (column, release, signer, id) in table {
            assert_eq!(host.offer(release, *signer), Err(*id), "{column}");
        }
        let named = |name: &str| host.word(host.ask(&name.parse().unwrap(), &next, Ok(key(1).fingerprint)));
        assert_eq!(named("release/db/4"), Err("wrong-branch"), "a good tag moved to another branch");
        assert_eq!(named("release/web/5"), Err("wrong-branch"), "a good tag moved to another number");
        assert_eq!(named("release/web/2.4"), Err("wrong-branch"));
        // What gpgv says of keys and signatures, and what stands in the object.
        let name = key(1).fingerprint;
        let good = format!("[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG x\n[GNUPG:] VALIDSIG {name} d 1 0 4 0 22 10 00 {name}\n");
        let said = |status: &str| host.word(host.ask(&next.name, &next, decode_status(true, status.as_bytes())));
        assert_eq!(said(&good), Ok("accept"));
        for column in ["EXPKEYSIG", "REVKEYSIG", "EXPSIG", "BADSIG", "ERRSIG", "NO_PUBKEY"] {
            assert_eq!(said(&format!("{good}[GNUPG:] {column} x\n")), Err("signature"), "{column}");
        }
        assert_eq!(said(&good.repeat(2)), Err("signature"), "two signatures");
        let page = include_str!("../../../docs/formats/release.md").split("```\n").nth(1).unwrap();
        let (text, armored) = page.split_at(page.find("-----BEGIN").unwrap());
        let twice = Signed::decode(format!("{text}{armored}{armored}").as_bytes()).unwrap_err();
        assert_eq!(twice.reason().map(Reason::id), Some("signature"), "two signatures in the object");
        assert_eq!(host.floor, before);
    }

    #[test]
    fn a_root_document_is_refused_for_each_column_of_the_table() {
        let host = Host::new();
        let issue = |version, issued| Change::Issue { version, issued, expires: Some(NOW + 60 * WEEK) };
        let next = issue(6, NOW);
        assert_eq!(host.offer_root(std::slice::from_ref(&next), &[1, 2], &[1, 2]), Ok(true));
        assert_eq!(host.offer_root(&[], &[], &[]), Ok(false), "the one that is in force");
        let all: &[u8] = &[1, 2, 3];
        type Row<'a> = (&'a str, Vec<Change>, &'a [u8], &'a [u8], &'a str);
        let table: Vec<Row> = vec![
            ("older", vec![issue(4, NOW - 9 * WEEK)], all, all, "rollback"),
            ("equal but different", vec![issue(5, NOW)], all, all, "fork"),
            ("future", vec![issue(6, NOW + 2 * DAY)], all, all, "future"),
            ("missing one before it", vec![issue(7, NOW)], all, all, "gap"),
            ("highest version", vec![issue(u64::MAX, NOW)], all, all, "gap"),
            ("one key", vec![next.clone()], &[1], all, "threshold"),
            ("wrong keys", vec![next.clone()], &[7, 8], all, "threshold"),
            ("revoked keys", vec![next.clone()], &[9, 1], all, "threshold"),
            ("too few of its own", vec![next.clone(), Change::Threshold(3)], &[1, 2], &[1, 2], "threshold"),
            (
                "new keys alone",
                vec![next.clone(), Change::AddRoot(key(4)), Change::AddRoot(key(5))],
                &[4, 5],
                &[4, 5],
                "threshold",
            ),
            (
                "signed by the key that it revokes",
                vec![next.clone(), Change::Revoke(key(3).fingerprint)],
                &[1, 3],
                &[1, 2],
                "threshold",
            ),
        ];
        for (column, changes, by_ours, by_its, id) in table {
            assert_eq!(host.offer_root(&changes, by_ours, by_its), Err(id), "{column}");
        }
        // An epoch that goes down, and a key that comes back.
        let mut later = Host::new();
        let raised = host.root.root.with(&[next.clone(), Change::RaiseEpoch(Some(kind("web")))]).unwrap();
        later.root = RootFile::unsigned(raised);
        let lower = RootFile::unsigned(host.root.root.with(&[issue(7, NOW)]).unwrap());
        let everybody = all.iter().map(|seed| key(*seed).fingerprint).collect();
        let error = later.here().decide_root(&later.root, &lower, &everybody, &everybody).unwrap_err();
        assert_eq!(error.reason().map(Reason::id), Some("rollback"));
        let forgetful = Root::first(vec![key(1), key(2), key(3)]).unwrap().with(std::slice::from_ref(&next)).unwrap();
        let error = host.here().decide_root(&host.root, &RootFile::unsigned(forgetful), &everybody, &everybody).unwrap_err();
        assert!(error.to_string().contains("was revoked"), "{error}");
        // Expired: nothing is accepted under it, but the next one is.
        let mut stale = Host::new();
        stale.now = NOW + 50 * WEEK;
        let fresh = Release { issued: stale.now, expires: stale.now + WEEK, ..release("web", 1, 4, Some(stale.last()), 4) };
        assert_eq!(stale.offer(&fresh, 1), Err("stale-root"));
        assert_eq!(stale.offer_root(&[issue(6, stale.now)], &[1, 2], &[1, 2]), Ok(true));
    }

    #[test]
    fn no_clock_revives_what_has_expired() {
        let mut host = Host::new();
        let next = release("web", 1, 4, Some(host.last()), 4);
        let expired = Release { issued: NOW - 9 * WEEK, expires: NOW - WEEK - 1, ..next.clone() };
        for (now, fresh) in [(0, Ok("accept")), (NOW, Ok("accept")), (4_294_967_296, Err("stale-root"))] {
            host.now = now; // 1970, today, 2106
            assert!(matches!(host.offer(&expired, 1), Err("stale-head" | "stale-root")), "{now}");
            assert_eq!(host.offer(&next, 1), fresh, "{now}");
        }
        // A clock that is behind: what was issued since cannot be told from what comes from the future.
        host.now = 0;
        assert_eq!(host.offer(&Release { issued: NOW, ..next.clone() }, 1), Err("future"));
        // The clock that was ahead for a moment left no trace.
        host.now = NOW;
        assert_eq!(host.offer(&next, 1), Ok("accept"));
    }

    #[test]
    fn a_host_that_was_away_goes_over_all_that_came_meanwhile() {
        let mut host = Host::new();
        let mut prev = Some(host.last());
        for seq in 4..=20 {
            prev = Some(host.know(release("web", 1, seq, prev, seq as u8)));
        }
        let newest = host.known[&prev.unwrap()].clone();
        assert_eq!(host.offer(&newest, 1), Ok("accept"));
        assert_eq!(host.offer(&host.known[&host.last()].clone(), 1), Ok("same"));
        // One of another type in the middle is no history.
        let db = host.know(release("db", 1, 4, Some(host.last()), 4));
        assert_eq!(host.offer(&release("web", 1, 5, Some(db), 5), 1), Err("fork"));
    }

    #[test]
    fn a_raised_epoch_is_the_way_out_of_the_highest_number() {
        let mut host = Host::new();
        let high = release("web", 1, MAX_SEQ, Some(host.last()), 66);
        let floor = Accepted { seq: MAX_SEQ, tag: tag_of(&high), ..host.floor.types[&kind("web")].clone() };
        host.floor.types.insert(kind("web"), floor);
        assert_eq!(host.offer(&release("web", 1, 4, Some(host.last()), 4), 1), Err("rollback"));
        let raised = host.root.root.with(&[Change::RaiseEpoch(Some(kind("web")))]).unwrap();
        host.root = RootFile::unsigned(raised);
        let anew = release("web", 2, 1, None, 1);
        assert_eq!(host.offer(&anew, 1), Ok("accept"));
        let Ok(Verdict::Accept(accepted)) = host.ask(&anew.name, &anew, Ok(key(1).fingerprint)) else { panic!() };
        host.floor.take(kind("web"), accepted, anew.issued);
        assert_eq!(host.offer(&high, 1), Err("rollback"), "the old epoch does not come back");
    }
}
