//! Where refs are about to go that may go anywhere: written before git moves them, since git does not sync the log that would tell it afterwards.
//!
//! Format: `docs/formats/mirror.md`. What is damaged announces nothing, and then the mirror decides alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Oid;
use super::refs::{RefMove, check_ref_name};
use crate::durable;
use crate::endline;
use crate::error::Result;

const FILE: &str = "moving";
const HEAD_LINE: &str = "git-devops moving 1\n";

/// Refs by name, each with where it is about to be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moving(BTreeMap<String, Oid>);

impl Moving {
    /// Takes those of `moves` that go from one place to another: what comes or goes, the mirror understands without this.
    pub fn of(moves: &[RefMove]) -> Self {
        Self(moves.iter().filter_map(|step| Some((step.name.clone(), step.old.and(step.new)?))).collect())
    }

    /// Announces them in the state directory `state`, durably, beside what was announced before and not withdrawn: a run that was cut off may have moved
    /// that already. Nothing is written if there are none.
    pub fn announce(self, state: &Path) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut all = Self::read(state);
        all.0.extend(self.0);
        durable::publish(&path(state), &all.encode(), 0o600)
    }

    /// Reads what was announced last and not withdrawn.
    pub fn read(state: &Path) -> Self {
        durable::read(&path(state)).ok().and_then(|bytes| Self::decode(&bytes)).unwrap_or_default()
    }

    /// Withdraws what was announced: the mirror knows of it.
    pub fn withdraw(state: &Path) -> Result<()> {
        if durable::is_there(&path(state)) { durable::remove(&path(state)) } else { Ok(()) }
    }

    /// Returns where the ref `name` was about to be.
    pub fn get(&self, name: &str) -> Option<Oid> {
        self.0.get(name).copied()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut text = HEAD_LINE.to_owned();
        self.0.iter().for_each(|(name, oid)| text += &format!("{oid} {name}\n"));
        endline::add(text)
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let lines = std::str::from_utf8(endline::strip(bytes)?).ok()?.strip_prefix(HEAD_LINE)?;
        let mut moving = Self::default();
        for line in lines.split_inclusive('\n') {
            let (oid, name) = line.strip_suffix('\n')?.split_once(' ')?;
            check_ref_name(name).ok()?;
            moving.0.insert(name.to_owned(), Oid::from_hex(oid.as_bytes()).ok()?);
        }
        (moving.encode() == bytes).then_some(moving)
    }
}

fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oid(digit: &str) -> Oid {
        Oid::from_hex(digit.repeat(40).as_bytes()).unwrap()
    }

    #[test]
    fn only_what_goes_from_one_place_to_another_is_announced_until_it_is_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        let step = |name: &str, old, new| RefMove { name: format!("refs/heads/{name}"), old, new };
        let (one, two) = (Some(oid("1")), Some(oid("2")));
        Moving::of(&[step("new", None, two), step("gone", one, None)]).announce(dir.path()).unwrap();
        assert!(!path(dir.path()).exists());
        Moving::withdraw(dir.path()).unwrap();
        Moving::of(&[step("b", one, two), step("a", two, one), step("new", None, two)]).announce(dir.path()).unwrap();
        let read = Moving::read(dir.path());
        assert_eq!(["a", "b", "new"].map(|name| read.get(&format!("refs/heads/{name}"))), [one, two, None]);
        // The next run does not take back what the one before it said.
        Moving::of(&[step("c", one, two), step("b", two, one)]).announce(dir.path()).unwrap();
        let read = Moving::read(dir.path());
        assert_eq!(["a", "b", "c"].map(|name| read.get(&format!("refs/heads/{name}"))), [one, one, two]);
        Moving::withdraw(dir.path()).unwrap();
        assert_eq!(Moving::read(dir.path()), Moving::default());
    }

    #[test]
    fn what_no_writer_writes_announces_nothing() {
        let good = Moving::of(&[RefMove { name: "refs/heads/a".into(), old: Some(oid("1")), new: Some(oid("2")) }]).encode();
        assert!(Moving::decode(&good).is_some());
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert_eq!(Moving::decode(&bad), None, "{at}");
            assert_eq!(Moving::decode(&good[..at]), None, "{at}");
        }
        let encoded = |lines: &str| endline::add(format!("{HEAD_LINE}{lines}"));
        let line = |name: &str| format!("{} {name}\n", oid("1"));
        assert!(Moving::decode(&encoded(&line("refs/heads/x"))).is_some());
        for lines in [
            line("HEAD"),
            line("refs/../x"),
            line("refs/b") + &line("refs/a"),
            line("refs/a") + &line("refs/a"),
            "1 refs/a\n".into(),
        ] {
            assert_eq!(Moving::decode(&encoded(&lines)), None, "{lines}");
        }
    }
}
