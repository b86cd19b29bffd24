//! What objects look like: trees and commits to bytes and back, and the name of any object.
//!
//! Pure. The decoders accept only what we would write or what git writes today; anything else is refused by name.

use std::fmt;

use sha1dc::Hasher;

use super::{Identity, Oid, name};
use crate::error::{Error, Kind, Reason, Result};

/// What an object is; printed as git names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    /// The content of a file.
    Blob,
    /// A directory.
    Tree,
    /// A state of all files, with its history.
    Commit,
    /// A name for another object, with a message and perhaps a signature.
    Tag,
}

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// File type and the executable bit: one of `0o40000`, `0o100644`, `0o100755`, `0o120000`, `0o160000`.
    pub mode: u32,
    /// Name within the tree.
    pub name: Vec<u8>,
    /// The object it stands for.
    pub oid: Oid,
}

/// Who did something, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Name of the person or the host.
    pub name: String,
    /// Mail address.
    pub email: String,
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Difference of the local time to UTC, in minutes, positive in the east.
    pub offset_minutes: i32,
}

/// The content of a commit, without headers that only git itself reads (a signature, an encoding).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitData {
    /// The tree of all files.
    pub tree: Oid,
    /// The commits before this one; the first is the branch's own history.
    pub parents: Vec<Oid>,
    /// Who made the change.
    pub author: Signature,
    /// Who recorded it.
    pub committer: Signature,
    /// What the change is and why, as bytes, with its final newline.
    pub message: Vec<u8>,
}

impl ObjectKind {
    /// Returns the kind that git calls `name`.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        [Self::Blob, Self::Tree, Self::Commit, Self::Tag].into_iter().find(|kind| kind.name() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Tree => "tree",
            Self::Commit => "commit",
            Self::Tag => "tag",
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TreeEntry {
    /// Says whether the entry stands for a tree.
    pub fn is_dir(&self) -> bool {
        self.mode == DIR
    }
}

impl Signature {
    /// Returns the signature of `identity` at a moment that the caller read from its clock.
    pub fn new(identity: &Identity, seconds: i64, offset_minutes: i32) -> Self {
        Self { name: identity.name.clone(), email: identity.email.clone(), seconds, offset_minutes }
    }
}

/// Returns the name of an object with this content; refuses content made for a SHA-1 collision.
pub fn object_id(kind: ObjectKind, data: &[u8]) -> Result<Oid> {
    let mut hasher = Hasher::new();
    hasher.update(format!("{kind} {}\0", data.len()).as_bytes());
    hasher.update(data);
    match hasher.finalize() {
        Ok(digest) => Ok(oid_from(digest.to_bytes())),
        Err(_) => Err(Error::new(Kind::Refused, "content was made to collide in SHA-1; git cannot hold it")),
    }
}

pub(super) fn oid_from(digest: [u8; 20]) -> Oid {
    Oid::Sha1(digest)
}

/// The mode of a directory in a tree.
pub const DIR: u32 = 0o40000;

/// The mode of a regular file in a tree.
pub const FILE: u32 = 0o100644;

/// The mode of an executable file in a tree.
pub const EXECUTABLE: u32 = 0o100755;

/// The mode of a symlink in a tree.
pub const SYMLINK: u32 = 0o120000;

/// The mode of a submodule in a tree; we never write one.
pub const GITLINK: u32 = 0o160000;

/// Says whether `mode` is one that a tree of ours may have.
pub fn check_mode(mode: u32) -> bool {
    matches!(mode, DIR | FILE | EXECUTABLE | SYMLINK | GITLINK)
}

/// Appends an entry to the bytes of a tree; the caller keeps the order.
pub(super) fn encode_tree_entry(mode: u32, name: &[u8], oid: &Oid, tree: &mut Vec<u8>) {
    tree.extend_from_slice(format!("{mode:o} ").as_bytes());
    tree.extend_from_slice(name);
    tree.push(0);
    tree.extend_from_slice(oid.as_slice());
}

/// Decodes a tree and refuses names and modes that we don't write, entries out of order, and two entries of one name.
pub fn decode_tree(bytes: &[u8]) -> Result<Vec<TreeEntry>> {
    let mut entries: Vec<TreeEntry> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (entry, after) = decode_tree_entry(rest).ok_or_else(|| Error::new(Kind::Corrupt, "tree is cut short"))?;
        let refuse = |reason: Reason, problem: &str| {
            let shown = entry.name[..entry.name.len().min(MAX_SHOWN)].escape_ascii();
            Err(Error::refused(reason, format!("tree entry '{shown}' {problem}")))
        };
        if entry.name.len() > name::MAX_STORED_NAME {
            return refuse(Reason::NameTooLong, "has too long a name");
        }
        if !name::is_stored_name(&entry.name) {
            return refuse(Reason::TreeName, "has a name that git-devops does not write");
        }
        if !check_mode(entry.mode) {
            return refuse(Reason::Mode, &format!("has the unknown mode {:o}", entry.mode));
        }
        if entries.last().is_some_and(|last| order_key(last).cmp(order_key(&entry)).is_ge()) || has_twin(&entries, &entry) {
            return refuse(Reason::TreeOrder, "is out of order or there twice");
        }
        entries.push(entry);
        rest = after;
    }
    Ok(entries)
}

/// More bytes of a bad name than this help nobody.
const MAX_SHOWN: usize = 300;

fn decode_tree_entry(bytes: &[u8]) -> Option<(TreeEntry, &[u8])> {
    let space = bytes.iter().take(7).position(|&b| b == b' ')?;
    let digits = &bytes[..space];
    if digits.first().is_none_or(|&b| b == b'0') || !digits.iter().all(|b| (b'0'..=b'7').contains(b)) {
        return None;
    }
    let mode = digits.iter().fold(0, |mode, digit| mode << 3 | u32::from(digit - b'0'));
    let rest = &bytes[space + 1..];
    let nul = rest.iter().position(|&b| b == 0)?;
    let oid: [u8; 20] = rest.get(nul + 1..nul + 21)?.try_into().ok()?;
    Some((TreeEntry { mode, name: rest[..nul].to_vec(), oid: oid_from(oid) }, &rest[nul + 21..]))
}

/// Git sorts a directory as if its name ended in a slash.
fn order_key(entry: &TreeEntry) -> impl Iterator<Item = &u8> {
    entry.name.iter().chain(entry.is_dir().then_some(&b'/'))
}

/// Says whether a directory has the name of an earlier file; names between the two can keep them apart.
fn has_twin(sorted: &[TreeEntry], dir: &TreeEntry) -> bool {
    dir.is_dir() && sorted.binary_search_by(|entry| order_key(entry).cmp(dir.name.iter())).is_ok()
}

impl CommitData {
    /// Encodes the commit as git writes it; refuses names and messages that git could not read back.
    pub fn encode(&self) -> Result<Vec<u8>> {
        if self.message.contains(&0) {
            return Err(Error::new(Kind::Refused, "commit message contains a NUL byte"));
        }
        let mut bytes = format!("tree {}\n", self.tree).into_bytes();
        for parent in &self.parents {
            bytes.extend_from_slice(format!("parent {parent}\n").as_bytes());
        }
        bytes.extend_from_slice(format!("author {}\n", encode_signature(&self.author)?).as_bytes());
        bytes.extend_from_slice(format!("committer {}\n\n", encode_signature(&self.committer)?).as_bytes());
        bytes.extend_from_slice(&self.message);
        Ok(bytes)
    }

    /// Decodes a commit; headers after the committer are skipped.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        Self::decode_checked(bytes).ok_or_else(|| Error::new(Kind::Corrupt, "commit has a malformed header"))
    }

    fn decode_checked(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let tree = decode_oid(take_header(&mut rest, b"tree ")?)?;
        let mut parents = Vec::new();
        while let Some(parent) = take_header(&mut rest, b"parent ") {
            parents.push(decode_oid(parent)?);
        }
        let author = decode_signature(take_header(&mut rest, b"author ")?)?;
        let committer = decode_signature(take_header(&mut rest, b"committer ")?)?;
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            if end == 0 {
                return Some(Self { tree, parents, author, committer, message: rest[1..].to_vec() });
            }
            rest = &rest[end + 1..];
        }
        // A commit without a message may end with its headers.
        rest.is_empty().then_some(Self { tree, parents, author, committer, message: Vec::new() })
    }
}

fn encode_signature(signature: &Signature) -> Result<String> {
    let Signature { name, email, seconds, offset_minutes } = signature;
    if [name, email].iter().any(|text| text.is_empty() || text.trim() != text.as_str() || text.contains(['\n', '<', '>', '\0'])) {
        let shown = format!("{name} <{email}>");
        return Err(Error::new(
            Kind::Refused,
            format!("'{}' cannot sign a commit; set 'user.name' and 'user.email'", shown.escape_default()),
        ));
    }
    if *seconds < 0 || offset_minutes.abs() > 24 * 60 {
        return Err(Error::new(
            Kind::Refused,
            format!("time {seconds} (offset {offset_minutes} minutes) cannot be in a commit; check the clock"),
        ));
    }
    let sign = if *offset_minutes < 0 { '-' } else { '+' };
    let (hours, minutes) = (offset_minutes.abs() / 60, offset_minutes.abs() % 60);
    Ok(format!("{name} <{email}> {seconds} {sign}{hours:02}{minutes:02}"))
}

fn decode_signature(line: &[u8]) -> Option<Signature> {
    // Old commits hold any bytes in a name; it is only shown.
    let line = String::from_utf8_lossy(line);
    let (person, when) = line.rsplit_once('>')?;
    let (name, email) = person.split_once('<')?;
    let (seconds, offset) = when.trim().split_once(' ')?;
    let offset: i32 = offset.parse().ok().filter(|offset: &i32| offset.abs() <= 9999)?;
    Some(Signature {
        name: name.trim().to_owned(),
        email: email.to_owned(),
        seconds: seconds.parse().ok()?,
        offset_minutes: offset / 100 * 60 + offset % 100,
    })
}

/// Takes the line that begins with `key` off `rest`, and returns what follows the key.
pub(super) fn take_header<'a>(rest: &mut &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let line = rest.strip_prefix(key)?;
    let end = line.iter().position(|&b| b == b'\n')?;
    *rest = &line[end + 1..];
    Some(&line[..end])
}

pub(super) fn decode_oid(hex: &[u8]) -> Option<Oid> {
    Oid::from_hex(hex).ok().filter(|oid| oid.kind() == gix_hash::Kind::Sha1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (mode, name) in entries {
            bytes.extend_from_slice(format!("{mode} {name}\0").as_bytes());
            bytes.extend_from_slice(&[7; 20]);
        }
        bytes
    }

    #[test]
    fn a_tree_that_git_would_not_write_is_refused_by_name() {
        let cases: &[(&[(&str, &str)], &str)] = &[
            (&[("100644", "a"), ("100644", "a-b"), ("40000", "a")], "tree entry 'a' is out of order or there twice"),
            (&[("100644", "b"), ("100644", "a")], "tree entry 'a' is out of order or there twice"),
            (&[("40000", "a"), ("100644", "a-b")], "tree entry 'a-b' is out of order or there twice"),
            (&[("100644", "a"), ("100644", "a")], "tree entry 'a' is out of order or there twice"),
            (&[("100664", "a")], "tree entry 'a' has the unknown mode 100664"),
            (&[("100644", ".git")], "tree entry '.git' has a name that git-devops does not write"),
            (&[("100644", "..")], "tree entry '..' has a name that git-devops does not write"),
            (&[("100644", "a/b")], "tree entry 'a/b' has a name that git-devops does not write"),
            (&[("100644", "")], "tree entry '' has a name that git-devops does not write"),
            (&[("040000", "a")], "tree is cut short"),
            (&[("108644", "a")], "tree is cut short"),
        ];
        for (entries, message) in cases {
            assert_eq!(decode_tree(&tree(entries)).unwrap_err().to_string(), *message);
        }
        let good =
            tree(&[("100755", "a"), ("100644", "a-b"), ("40000", "a.d"), ("120000", "a0"), ("160000", "b"), ("40000", "c")]);
        assert_eq!(decode_tree(&good).unwrap().len(), 6);
        let last = good.len() - tree(&[("40000", "c")]).len();
        for cut in last + 1..good.len() {
            assert_eq!(decode_tree(&good[..cut]).unwrap_err().kind(), Kind::Corrupt, "cut at {cut}");
        }
    }

    #[test]
    fn a_commit_is_read_back_as_it_was_written() {
        let signature = Signature { name: "Ann".into(), email: "a@b".into(), seconds: 1_700_000_000, offset_minutes: -90 };
        let commit = CommitData {
            tree: oid_from([1; 20]),
            parents: vec![oid_from([2; 20]), oid_from([3; 20])],
            committer: Signature { offset_minutes: 330, ..signature.clone() },
            author: signature,
            message: b"one\n\ntwo\n".to_vec(),
        };
        let bytes = commit.encode().unwrap();
        assert!(bytes.ends_with(b"author Ann <a@b> 1700000000 -0130\ncommitter Ann <a@b> 1700000000 +0530\n\none\n\ntwo\n"));
        assert_eq!(CommitData::decode(&bytes).unwrap(), commit);
        let signed = String::from_utf8(bytes).unwrap().replace("+0530\n\n", "+0530\ngpgsig -----\n \n x\n\n");
        assert_eq!(CommitData::decode(signed.as_bytes()).unwrap(), commit);
        assert_eq!(CommitData::decode(b"tree x\n").unwrap_err().kind(), Kind::Corrupt);
    }

    #[test]
    fn a_name_that_would_break_the_header_is_refused() {
        for (name, email) in [("A\nparent x", "a@b"), ("A <", "a@b"), ("", "a@b"), ("A", "a>b"), ("A", "")] {
            let signature = Signature { name: name.into(), email: email.into(), seconds: 1, offset_minutes: 0 };
            assert_eq!(encode_signature(&signature).unwrap_err().kind(), Kind::Refused, "{name:?} {email:?}");
        }
    }

    #[test]
    fn the_name_of_an_object_is_gits() {
        let id = object_id(ObjectKind::Blob, b"hello\n").unwrap();
        assert_eq!(id.to_string(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
