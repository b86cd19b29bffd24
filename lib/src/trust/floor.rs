//! What this host will not go below: two checksummed slots. Format: `docs/formats/trust.md`.

use std::collections::BTreeMap;
use std::path::Path;

use super::release::decode_oid;
use super::{Manifest, TypeName, number};
use crate::durable;
use crate::endline;
use crate::error::{Context, Error, Kind, Reason, Result};
use crate::git::Oid;

const HEAD: &str = "git-devops floor 1";
const SLOTS: [&str; 2] = ["floor.0", "floor.1"];
/// Longer than what a root document with all its types can lead to.
const MAX_FLOOR: u64 = 1 << 20;

/// The release of a type that this host goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its epoch.
    pub epoch: u32,
    /// Its number.
    pub seq: u64,
    /// Its tag object.
    pub tag: Oid,
    /// What hosts of this type should have.
    pub commit: Oid,
    /// Names the files of that commit.
    pub manifest: Manifest,
    /// When it was accepted, by this host's clock, in seconds since 1970.
    pub accepted: u64,
}

/// What was accepted so far. Changes count when they were written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Floor {
    count: u64,
    /// The version of the root document in force.
    pub root_version: u64,
    /// BLAKE3 of its text.
    pub root_hash: [u8; 32],
    /// The latest moment at which something that was accepted was issued.
    pub time: u64,
    /// What is accepted, by type.
    pub types: BTreeMap<TypeName, Accepted>,
}

/// What was found in the slots.
#[derive(Debug)]
pub struct Found {
    /// What counts.
    pub floor: Floor,
    /// A slot that has rotted, and how.
    pub damage: Option<Error>,
}

impl Floor {
    /// Returns that of a host on which nothing but a root document was accepted.
    pub fn new(root_version: u64, text: &str, issued: u64) -> Self {
        let root_hash = *blake3::hash(text.as_bytes()).as_bytes();
        Self { count: 0, root_version, root_hash, time: issued, types: BTreeMap::new() }
    }

    /// Notes a root document that is in force from now on.
    pub fn take_root(&mut self, version: u64, text: &str, issued: u64) {
        (self.root_version, self.root_hash) = (version, *blake3::hash(text.as_bytes()).as_bytes());
        self.time = self.time.max(issued);
    }

    /// Notes a release that is accepted.
    pub fn take(&mut self, kind: TypeName, accepted: Accepted, issued: u64) {
        self.types.insert(kind, accepted);
        self.time = self.time.max(issued);
    }

    /// Reads the slots in `dir`; `None` if there is neither. That no slot can be read is an error.
    pub fn read(dir: &Path) -> Result<Option<Found>> {
        let mut found: Option<Floor> = None;
        let (mut damage, mut n_missing) = (None, 0);
        for name in SLOTS {
            let path = dir.join(name);
            match read_slot(&path).context(|| format!("cannot read '{}'", path.display())) {
                Ok(Some(floor)) if found.as_ref().is_none_or(|other| other.count < floor.count) => found = Some(floor),
                Ok(Some(_)) => (),
                Ok(None) => n_missing += 1,
                Err(error) if error.kind() == Kind::Corrupt => damage = Some(error),
                Err(error) => return Err(error),
            }
        }
        match (found, damage) {
            (Some(floor), damage) => {
                // One that is gone is damage too, but for the moment in which the first one was written.
                let gone = || Error::new(Kind::Corrupt, format!("a slot of '{}' is missing", dir.display()));
                let is_gone = n_missing > 0 && floor.count > 1;
                Ok(Some(Found { floor, damage: damage.or_else(|| is_gone.then(gone)) }))
            }
            (None, Some(error)) => Err(lost(error)),
            (None, None) => Ok(None),
        }
    }

    /// Writes one slot after the other into `dir`; durable on return.
    pub fn write(&mut self, dir: &Path) -> Result<()> {
        self.count += 1;
        let bytes = self.encode();
        // The one that has rotted or is older first, so that the other is there until this one is.
        let counts = SLOTS.map(|name| read_slot(&dir.join(name)).ok().flatten().map_or(0, |floor| floor.count));
        let order = if counts[0] <= counts[1] { [0, 1] } else { [1, 0] };
        order.into_iter().try_for_each(|at| durable::publish(&dir.join(SLOTS[at]), &bytes, 0o600))
    }

    /// Returns the same without its time, for looking at something as it was then.
    pub fn timeless(&self) -> Self {
        Self { time: 0, ..self.clone() }
    }

    /// Returns how often it was written.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Goes on counting from where `other` was, so that slots that are left over do not count any more.
    pub fn follow(&mut self, count: u64) {
        self.count = self.count.max(count);
    }

    fn encode(&self) -> Vec<u8> {
        let Self { count, root_version, root_hash, time, .. } = self;
        let hash = blake3::Hash::from_bytes(*root_hash).to_hex();
        let mut body = format!("{HEAD}\ncount {count}\nroot {root_version} {hash}\ntime {time}\n");
        for (kind, Accepted { epoch, seq, tag, commit, manifest, accepted }) in &self.types {
            body += &format!("type {kind} {epoch} {seq} {tag} {commit} {manifest} {accepted}\n");
        }
        endline::add(body)
    }

    /// Decodes a slot; what does not match its checksum, or is not what is written, is damaged.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes).ok();
        let decoded = text.and_then(Self::decode_fields).filter(|floor| floor.encode() == bytes);
        decoded.ok_or_else(|| Error::new(Kind::Corrupt, "it is not what was written").with_reason(Reason::Floor))
    }

    fn decode_fields(text: &str) -> Option<Self> {
        let mut lines = text.strip_prefix(HEAD)?.strip_prefix('\n')?.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let count = number(field("count")?)?;
        let (version, hash) = field("root")?.split_once(' ')?;
        let (root_version, root_hash) = (number(version)?, *blake3::Hash::from_hex(hash).ok()?.as_bytes());
        let mut floor = Self { count, root_version, root_hash, time: number(field("time")?)?, types: BTreeMap::new() };
        for line in lines {
            let Some(rest) = line.strip_prefix("type ") else { break };
            let words: Vec<&str> = rest.split(' ').collect();
            let [kind, epoch, seq, tag, commit, manifest, accepted] = words[..] else { return None };
            let accepted = Accepted {
                epoch: number(epoch)?,
                seq: number(seq)?,
                tag: decode_oid(tag)?,
                commit: decode_oid(commit)?,
                manifest: manifest.parse().ok()?,
                accepted: number(accepted)?,
            };
            floor.types.insert(kind.parse().ok()?, accepted);
        }
        Some(floor)
    }
}

fn read_slot(path: &Path) -> Result<Option<Floor>> {
    match durable::look(path) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        Ok(meta) if meta.len() > MAX_FLOOR => return Err(Error::new(Kind::Corrupt, "it is longer than it can be")),
        _ => (),
    }
    durable::read_if_there(path)?.map(|bytes| Floor::decode(&bytes)).transpose()
}

/// Returns the error that neither slot can be read.
pub fn lost(cause: Error) -> Error {
    let message = "what this host accepted last cannot be told; look at it, then 'gdo trust repair' makes it anew from the releases that are here";
    cause.with_kind(Kind::Corrupt).with_reason(Reason::Floor).wrap(message)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn floor() -> Floor {
        let page = include_str!("../../../docs/formats/trust.md");
        let example = page.split("```\n").nth(3).unwrap();
        Floor::decode(example.as_bytes()).expect("the example of the page")
    }

    #[test]
    fn the_example_of_the_page_is_what_is_written() {
        let floor = floor();
        let page = include_str!("../../../docs/formats/trust.md");
        assert_eq!(String::from_utf8(floor.encode()).unwrap(), page.split("```\n").nth(3).unwrap());
        assert_eq!((floor.count, floor.root_version, floor.types[&"web".parse().unwrap()].seq), (12, 2, 7));
    }

    #[test]
    fn a_slot_that_is_changed_anywhere_is_not_believed() {
        let bytes = floor().encode();
        for at in 0..bytes.len() {
            let mut rotted = bytes.clone();
            rotted[at] ^= 1;
            assert_eq!(Floor::decode(&rotted).unwrap_err().kind(), Kind::Corrupt, "at {at}");
            assert_eq!(Floor::decode(&bytes[..at]).unwrap_err().kind(), Kind::Corrupt, "cut at {at}");
        }
    }

    #[test]
    fn one_slot_is_enough_none_is_not_and_zero_it_never_becomes() {
        let dir = tempfile::tempdir().unwrap();
        let slot = |n: usize| dir.path().join(SLOTS[n]);
        assert!(Floor::read(dir.path()).unwrap().is_none());
        let mut floor = floor();
        floor.write(dir.path()).unwrap();
        assert_eq!(fs::read(slot(0)).unwrap(), fs::read(slot(1)).unwrap(), "both say the same");
        type Damage = (&'static str, fn(&Path));
        let damages: [Damage; 5] = [
            ("rotted", |path| fs::write(path, fs::read_to_string(path).unwrap().replace("web 1 7", "web 1 6")).unwrap()),
            ("torn", |path| fs::write(path, &fs::read(path).unwrap()[..100]).unwrap()),
            ("empty", |path| fs::write(path, b"").unwrap()),
            ("long", |path| fs::write(path, vec![b'x'; MAX_FLOOR as usize + 1]).unwrap()),
            ("gone", |path| fs::remove_file(path).unwrap()),
        ];
        for (name, damage) in damages {
            for n in 0..2 {
                floor.write(dir.path()).unwrap();
                damage(&slot(n));
                let found = Floor::read(dir.path()).unwrap().unwrap();
                assert_eq!(found.floor, floor, "{name} {n}");
                assert!(found.damage.is_some(), "{name} {n}");
                // The next write mends it.
                floor.write(dir.path()).unwrap();
                assert!(Floor::read(dir.path()).unwrap().unwrap().damage.is_none(), "{name} {n}");
            }
            (0..2).for_each(|n| damage(&slot(n)));
            match Floor::read(dir.path()) {
                Ok(found) => assert!(found.is_none() && name == "gone"),
                Err(error) => assert_eq!((error.kind(), error.reason()), (Kind::Corrupt, Some(Reason::Floor)), "{name}"),
            }
        }
    }

    #[test]
    fn a_power_cut_between_the_slots_leaves_the_new_one_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let mut floor = floor();
        floor.write(dir.path()).unwrap();
        let old = fs::read(dir.path().join(SLOTS[1])).unwrap();
        floor.time += 1;
        floor.write(dir.path()).unwrap();
        for slot in SLOTS {
            fs::write(dir.path().join(slot), &old).unwrap();
            let found = Floor::read(dir.path()).unwrap().unwrap();
            assert_eq!((found.floor.time, found.damage.is_none()), (floor.time, true));
            // What is newer is not overwritten first.
            let mut next = found.floor;
            next.write(dir.path()).unwrap();
            floor.write(dir.path()).unwrap();
        }
    }
}
