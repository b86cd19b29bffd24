//! The note of what was verified, byte for byte, so that it need not be unpacked again to know that it is the same.
//!
//! Format, and why it is no lie: `docs/formats/verified.md`. It is a cache: one that cannot be read says nothing, one that cannot be written is left out.

use std::collections::BTreeSet;
use std::path::Path;

use crate::durable;
use crate::endline;
use crate::git::Oid;
use crate::git::packhash::PackHashes;
use crate::git::verify::Sound;
use crate::id::PackId;

const FILE: &str = "verified";
const HEAD_LINE: &str = "git-devops verified 1\n";

/// Which check it was: to be raised with every change that lets one find more in the same bytes, or that changes what the lines say.
const BY: u32 = 4;

/// Stands for what the packs need where that is too much to keep.
const NEEDS_MUCH: &str = "needs much\n";

/// Stands for what the packs need and none of them has where nobody knows that.
const OUTSIDE_UNKNOWN: &str = "outside unknown\n";

/// A longer note is neither read nor written.
const MAX_LEN: u64 = 64 << 20;

/// Packs that were in order when they were verified, by their bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VerifiedNote {
    /// Packs of chunks.
    pub chunk_packs: BTreeSet<PackId>,
    /// Packs of git's, with the chunk indexes in each, and what they need of each other and from elsewhere.
    pub git_packs: Sound,
}

impl VerifiedNote {
    /// Reads the note in the state directory `state`; what is not one says nothing.
    pub fn read(state: &Path) -> Self {
        let path = state.join(FILE);
        match durable::look(&path) {
            Ok(meta) if meta.len() <= MAX_LEN => {
                durable::read(&path).ok().and_then(|bytes| Self::decode(&bytes)).unwrap_or_default()
            }
            _ => Self::default(),
        }
    }

    /// Writes the note, if it can be written.
    pub fn write(&self, state: &Path) {
        let bytes = self.encode();
        if bytes.len() as u64 <= MAX_LEN {
            // Without it, the next check takes longer.
            let _ = durable::publish(&state.join(FILE), &bytes, 0o600);
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut text = format!("{HEAD_LINE}by {BY}\n");
        self.chunk_packs.iter().for_each(|id| text += &format!("chunks {id}\n"));
        for (PackHashes { pack, index }, chunk_indexes) in &self.git_packs.packs {
            text += &format!("pack {pack} {index}\n");
            chunk_indexes.iter().for_each(|oid| text += &format!("index {oid}\n"));
        }
        match &self.git_packs.needs {
            Some(needs) => needs.iter().for_each(|oid| text += &format!("needs {oid}\n")),
            None => text += NEEDS_MUCH,
        }
        match &self.git_packs.outside {
            Some(outside) => outside.iter().for_each(|oid| text += &format!("outside {oid}\n")),
            None => text += OUTSIDE_UNKNOWN,
        }
        endline::add(text)
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(endline::strip(bytes)?).ok()?;
        let lines = text.strip_prefix(HEAD_LINE)?.strip_prefix(&format!("by {BY}\n"))?;
        let oid = |hex: &str| Oid::from_hex(hex.as_bytes()).ok();
        let (mut note, mut last) = (Self::default(), None);
        let Sound { packs, needs, outside } = &mut note.git_packs;
        *outside = Some(Vec::new());
        for line in lines.split_inclusive('\n') {
            match line.trim_end_matches('\n').split_once(' ')? {
                ("chunks", id) => _ = note.chunk_packs.insert(id.parse().ok()?),
                ("pack", hashes) => {
                    let (pack, index) = hashes.split_once(' ')?;
                    let hashes = PackHashes { pack: pack.parse().ok()?, index: index.parse().ok()? };
                    last = Some(hashes);
                    packs.insert(hashes, Vec::new());
                }
                ("index", hex) => packs.get_mut(last.as_ref()?)?.push(oid(hex)?),
                _ if line == NEEDS_MUCH => *needs = None,
                ("needs", hex) => needs.as_mut()?.push(oid(hex)?),
                _ if line == OUTSIDE_UNKNOWN => *outside = None,
                ("outside", hex) => outside.as_mut()?.push(oid(hex)?),
                _ => return None,
            }
        }
        let is_sorted = packs.values().chain(&*needs).chain(&*outside).all(|oids| oids.is_sorted());
        (is_sorted && note.encode() == bytes).then_some(note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::FileHash;

    fn note() -> VerifiedNote {
        let oid = |digit: &str| Oid::from_hex(digit.repeat(40).as_bytes()).unwrap();
        let hashes = |text: &[u8]| PackHashes { pack: FileHash::of(text), index: FileHash::of(b"index") };
        VerifiedNote {
            chunk_packs: [PackId::of(b"a"), PackId::of(b"b")].into(),
            git_packs: Sound {
                packs: [(hashes(b"one"), vec![oid("1"), oid("2")]), (hashes(b"two"), Vec::new())].into(),
                needs: Some(vec![oid("3"), oid("4")]),
                outside: Some(vec![oid("3")]),
            },
        }
    }

    #[test]
    fn a_note_is_read_back_and_one_that_is_lost_or_damaged_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(VerifiedNote::read(dir.path()), VerifiedNote::default());
        note().write(dir.path());
        assert_eq!(VerifiedNote::read(dir.path()), note());
        // Where it cannot be written, nothing happens.
        note().write(&dir.path().join("nowhere"));
        let sound = note().git_packs;
        for git_packs in [
            Sound { needs: None, ..sound.clone() },
            Sound { outside: None, ..sound.clone() },
            Sound { outside: Some(Vec::new()), ..sound },
        ] {
            let other = VerifiedNote { git_packs, ..note() };
            assert_eq!(VerifiedNote::decode(&other.encode()), Some(other));
        }
        let good = note().encode();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 4;
            assert_eq!(VerifiedNote::decode(&bad), None, "{at}");
            assert_eq!(VerifiedNote::decode(&good[..at]), None, "{at}");
        }
    }

    #[test]
    fn the_example_in_the_page_is_a_note() {
        let page = include_str!("../../../docs/formats/verified.md");
        let example = page.split("```\n").nth(1).unwrap();
        let mut expected = note();
        expected.chunk_packs.remove(&PackId::of(b"b"));
        expected.git_packs.packs.retain(|hashes, _| hashes.pack == FileHash::of(b"one"));
        expected.git_packs.packs.values_mut().chain(&mut expected.git_packs.needs).for_each(|oids| oids.truncate(1));
        assert_eq!(String::from_utf8(expected.encode()).unwrap(), example);
    }

    #[test]
    fn what_no_writer_writes_says_nothing() {
        let encoded = |head: &str, lines: &str| endline::add(format!("{head}{lines}"));
        let by_us = format!("{HEAD_LINE}by {BY}\n");
        let (id, oid) = (PackId::of(b"a"), "1".repeat(40));
        let pack = format!("pack {id} {id}\n");
        assert!(VerifiedNote::decode(&encoded(&by_us, &pack)).is_some());
        for lines in [
            format!("index {oid}\n"),
            format!("chunks {id}\nchunks {id}\n"),
            format!("{pack}chunks {id}\n"),
            format!("{pack}{pack}"),
            format!("{pack}index {}\nindex {oid}\n", "2".repeat(40)),
            format!("{pack}needs {}\nneeds {oid}\n", "2".repeat(40)),
            format!("{pack}needs much\nneeds {oid}\n"),
            format!("{pack}needs {oid}\nneeds much\n"),
            format!("{pack}outside {oid}\nneeds {oid}\n"),
            format!("{pack}outside {}\noutside {oid}\n", "2".repeat(40)),
            format!("{pack}outside {oid}\noutside unknown\n"),
            format!("{pack}outside unknown\noutside {oid}\n"),
            format!("{pack}outside unknown\noutside unknown\n"),
            format!("{pack}outside nowhere\n"),
            format!("{pack}needs {oid}\nindex {oid}\n"),
            format!("chunks {id}"),
            "other\n".to_owned(),
        ] {
            assert_eq!(VerifiedNote::decode(&encoded(&by_us, &lines)), None, "{lines}");
        }
        for head in [format!("{HEAD_LINE}by {}\n", BY + 1), HEAD_LINE.to_owned(), "git-devops verified 2\nby 1\n".to_owned()] {
            assert_eq!(VerifiedNote::decode(&encoded(&head, &pack)), None, "{head}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_note_or_none(lines: String) {
            let _ = VerifiedNote::decode(&endline::add(format!("{HEAD_LINE}by {BY}\n{lines}")));
        }
    }
}
