//! The tag object of a release, to bytes and back. Format: `docs/formats/release.md`.

use std::fmt;
use std::str::FromStr;

use super::openpgp::{self, BEGIN, bad_signature};
use super::{Manifest, ReleaseName, TypeName, number};
use crate::error::{Error, Kind, Reason, Result};
use crate::git::{Identity, Oid};

/// Longest tag object, in bytes.
pub const MAX_RELEASE: usize = 64 << 10;
/// The highest number of a release.
pub const MAX_SEQ: u64 = 999_999_999;
/// The longest time that a release counts, in days.
pub const MAX_DAYS: u64 = 3650;
/// Seconds of a day.
pub const DAY: u64 = 86_400;

const HEAD: &str = "git-devops release 1";

/// What a release says; whether it may, its signature and the root document tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Which it is.
    pub name: ReleaseName,
    /// The tag object of the release before; `None` for the first one of an epoch.
    pub prev: Option<Oid>,
    /// What hosts should have.
    pub commit: Oid,
    /// Names the files of the commit.
    pub manifest: Manifest,
    /// When it was made, in seconds since 1970.
    pub issued: u64,
    /// Until when it counts, in seconds since 1970.
    pub expires: u64,
    /// The oldest program that may act on it.
    pub min_version: Version,
    /// Who made it, for people; what counts is the signature.
    pub tagger: Identity,
}

/// A release with what its signer signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// What it says.
    pub release: Release,
    /// The bytes that are signed; they are what was decoded.
    pub text: Vec<u8>,
    /// An OpenPGP packet.
    pub signature: Vec<u8>,
}

impl Signed {
    /// Decodes a tag object; what no writer writes is refused.
    pub fn decode(object: &[u8]) -> Result<Self> {
        if object.len() > MAX_RELEASE {
            return Err(not_a_release(&format!("it has {} bytes", object.len())));
        }
        let text = std::str::from_utf8(object).map_err(|_| not_a_release("it is not text"))?;
        if text.bytes().any(|b| b.is_ascii_control() && b != b'\n') {
            return Err(bad_signature("there are control bytes in what is signed".to_owned()));
        }
        let at = text.find(BEGIN).filter(|&at| at > 0 && text.as_bytes()[at - 1] == b'\n');
        let (signed, armored) = text.split_at(at.ok_or_else(|| bad_signature("there is none".to_owned()))?);
        let release = Release::decode(signed)?;
        let [signature] =
            <[Vec<u8>; 1]>::try_from(openpgp::dearmor(armored, 1)?).map_err(|_| bad_signature("there is none".to_owned()))?;
        Ok(Self { release, text: signed.as_bytes().to_vec(), signature })
    }

    /// Encodes the tag object.
    pub fn encode(&self) -> Vec<u8> {
        [&self.text[..], openpgp::armor(&self.signature).as_bytes()].concat()
    }
}

impl Release {
    /// Encodes the bytes that are signed.
    pub fn encode(&self) -> String {
        let Self { name, commit, manifest, issued, expires, min_version, tagger, .. } = self;
        let prev = self.prev.map_or("none".to_owned(), |oid| oid.to_string());
        let header =
            format!("object {commit}\ntype commit\ntag {name}\ntagger {} <{}> {issued} +0000\n", tagger.name, tagger.email);
        format!(
            "{header}\n{HEAD}\ntype {}\nseq {}\nepoch {}\nprev {prev}\ncommit {commit}\nmanifest {manifest}\nissued {issued}\nexpires {expires}\nmin-version {min_version}\n",
            name.kind, name.seq, name.epoch
        )
    }

    /// Decodes the bytes that are signed.
    pub fn decode(text: &str) -> Result<Self> {
        let release = Self::decode_fields(text).ok_or_else(|| not_a_release("a field is missing or is not as it must be"))?;
        let tag = text.lines().nth(2).and_then(|line| line.strip_prefix("tag "));
        let again = release.encode();
        match text.strip_prefix(&again) {
            Some("") => Ok(release),
            Some(_) => Err(bad_signature("there is something between it and what it should sign".to_owned())),
            None if tag.is_some_and(|tag| tag != release.name.to_string()) => {
                let tag = tag.unwrap_or_default().escape_debug();
                let message = format!("the tag calls itself '{tag}' and says that it is '{}'", release.name);
                Err(Error::refused(Reason::WrongBranch, message))
            }
            None => Err(not_a_release("it is not what a writer writes")),
        }
    }

    fn decode_fields(text: &str) -> Option<Self> {
        let (header, payload) = text.split_once("\n\n")?;
        let tagger = decode_tagger(header.lines().nth(3)?.strip_prefix("tagger ")?)?;
        let mut lines = payload.strip_prefix(HEAD)?.strip_prefix('\n')?.lines();
        let mut field = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
        let (kind, seq) = (field("type")?.parse::<TypeName>().ok()?, number(field("seq")?)?);
        let name = ReleaseName { kind, seq, epoch: number(field("epoch")?).filter(|&epoch| epoch > 0)? };
        let prev = match field("prev")? {
            "none" => None,
            oid => Some(decode_oid(oid)?),
        };
        let commit = decode_oid(field("commit")?)?;
        let manifest = field("manifest")?.parse().ok()?;
        let (issued, expires): (u64, u64) = (number(field("issued")?)?, number(field("expires")?)?);
        let min_version = field("min-version")?.parse().ok()?;
        let is_first = name.seq == 1;
        let is_in_order = name.seq > 0
            && is_first == prev.is_none()
            && expires.checked_sub(issued).is_some_and(|n| n > 0 && n <= MAX_DAYS * DAY);
        is_in_order.then_some(Self { name, prev, commit, manifest, issued, expires, min_version, tagger })
    }
}

fn decode_tagger(line: &str) -> Option<Identity> {
    let (person, _when) = line.rsplit_once("> ")?;
    let (name, email) = person.split_once(" <")?;
    let is_plain = |part: &str| !part.is_empty() && !part.contains(['<', '>', '\n']);
    (is_plain(name) && is_plain(email)).then(|| Identity { name: name.to_owned(), email: email.to_owned() })
}

pub(super) fn decode_oid(hex: &str) -> Option<Oid> {
    Oid::from_hex(hex.as_bytes())
        .ok()
        .filter(|oid| oid.kind() == gix_hash::Kind::Sha1 && !hex.bytes().any(|b| b.is_ascii_uppercase()) && !oid.is_null())
}

fn not_a_release(why: &str) -> Error {
    Error::refused(Reason::Release, format!("not a release: {why}"))
}

/// A version of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version([u32; 3]);

impl Version {
    /// Returns that of the program that runs.
    pub fn current() -> Self {
        let text = env!("CARGO_PKG_VERSION").split(['-', '+']).next().unwrap_or_default();
        text.parse().expect("BUG: cargo has three numbers in a version")
    }

    /// The first one that knows releases.
    pub const FIRST: Self = Self([0, 1, 0]);
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Option<Vec<u32>> = text.split('.').map(number).collect();
        let numbers = numbers.and_then(|numbers| <[u32; 3]>::try_from(numbers).ok());
        numbers
            .map(Self)
            .ok_or_else(|| Error::new(Kind::Usage, format!("'{}' is no version; '1.2.3' is one", text.escape_debug())))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.0;
        write!(f, "{major}.{minor}.{patch}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the example of `docs/formats/release.md`.
    fn example() -> String {
        let page = include_str!("../../../docs/formats/release.md");
        page.split("```\n").nth(1).unwrap().to_owned()
    }

    #[test]
    fn the_example_of_the_page_is_what_is_written() {
        let object = example();
        let signed = Signed::decode(object.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(signed.encode()).unwrap(), object);
        let release = &signed.release;
        assert_eq!((release.name.to_string().as_str(), release.name.epoch, release.issued), ("release/web/7", 1, 1_795_300_000));
        assert_eq!(release.expires - release.issued, 30 * DAY);
        assert_eq!(release.encode().as_bytes(), signed.text);
    }

    #[test]
    fn a_release_that_is_cut_short_or_changed_anywhere_is_refused_or_signs_something_else() {
        let object = example();
        for cut in 0..object.len() {
            assert_eq!(Signed::decode(&object.as_bytes()[..cut]).unwrap_err().kind(), Kind::Refused, "cut at {cut}");
        }
        let good = Signed::decode(object.as_bytes()).unwrap();
        for at in 0..object.len() {
            let mut bytes = object.clone().into_bytes();
            bytes[at] ^= 1;
            // The bytes that gpgv gets are the ones that were decoded.
            if let Ok(other) = Signed::decode(&bytes) {
                assert!(other.text != good.text || other.signature != good.signature, "flip at {at}");
            }
        }
    }

    #[test]
    fn what_no_writer_writes_is_refused_by_name() {
        let oid = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        let cases = [
            ("seq 7", "seq 07", "release"),
            ("seq 7", "seq 0", "release"),
            ("seq 7", "seq 8", "wrong-branch"),
            ("type web\n", "type db\n", "wrong-branch"),
            ("tag release/web/7", "tag release/db/7", "wrong-branch"),
            ("epoch 1", "epoch 0", "release"),
            ("epoch 1", "epoch 2", "wrong-branch"),
            ("epoch 1", "epoch 4294967296", "release"),
            ("seq 7", "seq 18446744073709551616", "release"),
            (&format!("prev {oid}"), "prev none", "release"),
            (&format!("prev {oid}"), "prev 4B825DC642CB6EB9A060E54BF8D69288FBEE4904", "release"),
            (&format!("prev {oid}"), &format!("prev {}", "0".repeat(40)), "release"),
            ("expires 1797892000", "expires 1795300000", "release"),
            ("expires 1797892000", "expires 2110660001", "release"),
            ("1795300000 +0000", "1795300001 +0000", "release"),
            ("1795300000 +0000", "1795300000 +0100", "release"),
            ("type commit", "type tree", "release"),
            ("git-devops release 1", "git-devops release 2", "release"),
            ("min-version 0.1.0\n", "min-version 0.1\n", "release"),
            ("min-version 0.1.0\n", "min-version 0.1.0\nmore 1\n", "signature"),
            ("Ann", "An\u{0}n", "signature"),
            ("Ann", "An\u{1b}n", "signature"),
            ("-----END PGP SIGNATURE-----\n", "-----END PGP SIGNATURE-----\n\nx\n", "signature"),
            ("-----BEGIN PGP SIGNATURE-----\n", "", "signature"),
            ("-----BEGIN PGP SIGNATURE-----\n", " -----BEGIN PGP SIGNATURE-----\n", "signature"),
        ];
        for (from, to, id) in cases {
            let object = example();
            assert!(object.contains(from), "{from}");
            let error = Signed::decode(object.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert_eq!((error.kind(), error.reason().map(Reason::id)), (Kind::Refused, Some(id)), "{to}: {error}");
        }
        let long = vec![b'x'; MAX_RELEASE + 1];
        assert_eq!(Signed::decode(&long).unwrap_err().reason(), Some(Reason::Release));
    }

    #[test]
    fn two_three_and_forty_signatures_are_as_none() {
        let object = example();
        let (text, armored) = object.split_at(object.find(BEGIN).unwrap());
        for n in [0, 2, 3, 40] {
            let error = Signed::decode(format!("{text}{}", armored.repeat(n)).as_bytes()).unwrap_err();
            assert_eq!(error.reason(), Some(Reason::Signature), "{n}");
        }
    }
}
